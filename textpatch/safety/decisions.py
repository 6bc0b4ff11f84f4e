"""Decisions about many prompts that a run folder keeps as they are made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from textpatch.progress import counted, phase
from textpatch.runs.interrupts import finishing
from textpatch.runs.workers import Worker
from textpatch.safety.sanitizing import PASSED, REFUSED, REPLACED, Sanitized

OUTCOMES = (PASSED, REPLACED, REFUSED)


class Decisions:
    """The decisions about all prompts, of which some may be in a run folder already.

    prompts     texts to decide about, each as often as it is drawn
    sanitize    place of a prompt -> Sanitized
    pictures    Sanitized -> its pictures by name, of which "image" is the one that is given out
    open_run    () -> the run folder.  A run that goes on opens it at once.  A new run opens it with its first
                decision, so that a request that is refused leaves no folder
    goes_on     whether there is a folder to go on with
    show_words  True keeps prompts and harmful texts beside the decisions
    worker      which prompts this process decides about, all when None
    """

    def __init__(
        self,
        prompts: Sequence[str],
        sanitize: Callable[[int], Sanitized],
        pictures: Callable[[Sanitized], dict],
        open_run: Callable,
        *,
        goes_on: bool,
        show_words: bool = False,
        worker: Worker | None = None,
    ) -> None:
        self.prompts = prompts
        self.sanitize = sanitize
        self.pictures = pictures
        self.open_run = open_run
        self.show_words = show_words
        self.worker = worker or Worker()
        self.run = None
        self._recorded: dict[str, dict] = {}
        self._done: dict[str, dict] = {}
        if goes_on:
            self.look_again()

    def fill(self) -> None:
        """Decide what is not decided.  A first Ctrl-C is heard when the current decision is kept.

        Raises Unfinished where other shards are not done.
        """
        places = range(len(self.prompts))
        ids = [_id(place) for place in places]
        with phase("sanitize", "prompt"):
            for portion in self.worker.portions(places, ids, self, "prompts", strict=True):
                for place in counted([place for place in portion if _id(place) not in self]):
                    with finishing():
                        self._decide(place)

    def look_again(self) -> None:
        """Take what is in the run folder, where other processes may have decided meanwhile."""
        self.run = self.run or self.open_run()
        self._recorded = {entry["id"]: entry for entry in self.run.records()}
        self._done = {entry["id"]: entry for entry in self.run.finished()}

    def __contains__(self, id: str) -> bool:
        """True if a decision is there."""
        return id in self._done

    @property
    def entries(self) -> list[dict]:
        """Decisions that are there, in the order of the prompts."""
        ids = map(_id, range(len(self.prompts)))
        return [self._done[id] for id in ids if id in self._done]

    @property
    def outcomes(self) -> dict[str, int]:
        """How many prompts came to what."""
        found = [entry["outcome"] for entry in self.entries]
        return {outcome: found.count(outcome) for outcome in OUTCOMES}

    @property
    def lines(self) -> str:
        """Decisions as lines of JSON."""
        return "".join(f"{json.dumps(entry)}\n" for entry in self.entries)

    def __str__(self) -> str:
        """Say how many prompts are decided, and how to go on if any is."""
        there = f"{len(self.entries)} of {len(self.prompts)} prompts are decided"
        if self.run is None:
            return there
        return f"{there} and in {self.run.folder}; the same command goes on with the rest"

    def _decide(self, place: int) -> None:
        made = self.sanitize(place)
        images = self.pictures(made)
        self.run = self.run or self.open_run()
        entry = {"id": _id(place), **made.decision}
        if self.show_words:
            entry |= {"prompt": self.prompts[place], "found": list(made.screened.found)}
        entry["pictures"] = {name: self.run.image(image) for name, image in images.items()}
        if entry != self._recorded.get(_id(place)):
            self.run.append(entry)
        self._done[_id(place)] = entry


def _id(place: int) -> str:
    return f"prompt-{place}"

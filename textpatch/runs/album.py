"""Pictures of prompts and seeds that a run folder keeps as they are made, a batch at a time.

A batch is one record.  So a run that goes on makes whole batches, the same as a run that never stopped.
Another batch shape would move the last bits of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from textpatch.progress import counted, phase
from textpatch.runs.interrupts import finishing

AT_ONCE = 8  # pictures in a batch


class Album:
    """The pictures asked for, of which some may be in a run folder already.

    asked     (prompt, seed) of each picture
    draw      some of those asked for -> their pictures
    open_run  () -> the run folder.  A run that goes on opens it at once.  A new run opens it with its first
              batch, so that a request that is refused leaves no folder
    goes_on   whether there is a folder to go on with
    """

    def __init__(
        self,
        asked: Sequence[tuple[str, int]],
        draw: Callable[[Sequence], list[Image.Image]],
        open_run: Callable,
        *,
        goes_on: bool,
    ):
        self.asked = asked
        self.draw = draw
        self.open_run = open_run
        self.run = None
        self._recorded: dict[str, list[dict]] = {}
        self._done: dict[str, list[dict]] = {}
        if goes_on:
            self.run = open_run()
            self._recorded = {record["id"]: record["pictures"] for record in self.run.records()}
            self._done = {id: some for id, some in self._recorded.items() if self._are_there(some)}

    def fill(self) -> None:
        """Make what is missing.  A first Ctrl-C is heard when the current batch is kept."""
        lacking = [part for part in self._parts() if _id(part) not in self._done]
        with phase("generate", "batch"):
            for part in counted(lacking):
                with finishing():
                    self._make(part)

    @property
    def pictures(self) -> list[dict]:
        """Entries of the pictures that are there, in the order asked for.

        An entry has "prompt", "seed" and "image", the picture's path in the folder.
        """
        return [entry for part in self._parts() for entry in self._done.get(_id(part), [])]

    def __str__(self) -> str:
        """Say how many pictures there are, and how to go on if any is kept."""
        there = f"{len(self.pictures)} of {len(self.asked)} pictures are made"
        if self.run is None:
            return there
        return f"{there} and in {self.run.folder}; the same command goes on with the rest"

    def _parts(self) -> list[range]:
        count = len(self.asked)
        return [range(start, min(start + AT_ONCE, count)) for start in range(0, count, AT_ONCE)]

    def _are_there(self, entries: list[dict]) -> bool:
        """True if the folder has the pictures of a batch.  Where one is gone the batch is made again."""
        return all((self.run.folder / entry["image"]).exists() for entry in entries)

    def _make(self, part: range) -> None:
        some = [self.asked[place] for place in part]
        images = self.draw(some)
        self.run = self.run or self.open_run()
        entries = [
            {"prompt": prompt, "seed": seed, "image": self.run.image(image)}
            for (prompt, seed), image in zip(some, images, strict=True)
        ]
        if entries != self._recorded.get(_id(part)):
            self.run.append({"id": _id(part), "pictures": entries})
        self._done[_id(part)] = entries


def _id(part: range) -> str:
    return f"pictures-{part.start}-{part.stop}"

"""Pictures of prompts and seeds that a run folder keeps as they are made, a batch at a time.

A batch is one record.  So a run that goes on makes whole batches, the same as a run that never stopped.
Another batch shape would move the last bits of a picture.
Each picture also has a name for people, pictures/prompt-0002-seed-0007.png.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from textpatch.progress import counted, phase
from textpatch.runs.interrupts import finishing
from textpatch.runs.workers import Worker

AT_ONCE = 8  # pictures in a batch


class Album:
    """The pictures asked for, of which some may be in a run folder already.

    asked     (prompt, seed) of each picture
    draw      some of those asked for -> their pictures
    open_run  () -> the run folder.  A run that goes on opens it at once.  A new run opens it with its first
              batch, so that a request that is refused leaves no folder
    goes_on   whether there is a folder to go on with
    at_once   pictures in a batch, AT_ONCE when None
    worker    which batches this process makes, all when None
    """

    def __init__(
        self,
        asked: Sequence[tuple[str, int]],
        draw: Callable[[Sequence], list[Image.Image]],
        open_run: Callable,
        *,
        goes_on: bool,
        at_once: int | None = None,
        worker: Worker | None = None,
    ) -> None:
        self.asked = asked
        self.names = _names(asked)
        self.draw = draw
        self.open_run = open_run
        self.at_once = at_once or AT_ONCE
        self.worker = worker or Worker()
        self.run = None
        self._recorded: dict[str, dict] = {}
        self._done: dict[int, dict] = {}
        if goes_on:
            self.look_again()

    def fill(self) -> None:
        """Make what is missing.  A first Ctrl-C is heard when the current batch is kept.

        Raises Unfinished where other shards are not done.
        """
        parts = self._parts()
        ids = [_id(part) for part in parts]
        with phase("generate", "picture"):
            for portion in self.worker.portions(parts, ids, self, "batches", strict=True):
                lacking = [part for part in portion if _id(part) not in self]
                for part in counted(lacking, weight=len):
                    with finishing():
                        self._make(part)

    def look_again(self) -> None:
        """Take what is in the run folder, where other processes may have kept pictures meanwhile."""
        self.run = self.run or self.open_run()
        self._recorded = {record["id"]: record for record in self.run.records()}
        for record in self.run.finished():
            self._put(record)

    def __contains__(self, id: str) -> bool:
        """True if all pictures of a batch are there."""
        return self._done.keys() >= set(_places(id))

    @property
    def pictures(self) -> list[dict]:
        """Entries of the pictures that are there, in the order asked for.

        An entry has "prompt", "seed", "image", the picture's path in the folder, and "file", its path for
        people.
        """
        return [self._done[place] for place in range(len(self.asked)) if place in self._done]

    def name_pictures(self) -> None:
        """Give every picture that is there its name for people, where it has none yet."""
        for entry in self.pictures:
            self.run.also_named(entry["image"], entry["file"])

    def __str__(self) -> str:
        """Say how many pictures there are, and how to go on if any is kept."""
        there = f"{len(self.pictures)} of {len(self.asked)} pictures are made"
        if self.run is None:
            return there
        return f"{there} and in {self.run.folder}; the same command goes on with the rest"

    def _parts(self) -> list[range]:
        count = len(self.asked)
        return [
            range(start, min(start + self.at_once, count))
            for start in range(0, count, self.at_once)
        ]

    def _put(self, record: dict) -> None:
        """Take the pictures of a record, whose id says their places among those asked for."""
        for place, entry in zip(_places(record["id"]), record["pictures"], strict=True):
            self._done[place] = entry | {"file": self.names[place]}

    def _make(self, part: range) -> None:
        some = [self.asked[place] for place in part]
        images = self.draw(some)
        self.run = self.run or self.open_run()
        entries = [
            {"prompt": prompt, "seed": seed, "image": self.run.image(image)}
            for (prompt, seed), image in zip(some, images, strict=True)
        ]
        record = {"id": _id(part), "pictures": entries}
        if record != self._recorded.get(record["id"]):
            self.run.append(record)
        self._put(record)
        for place in part:
            self.run.also_named(self._done[place]["image"], self._done[place]["file"])


def _id(part: range) -> str:
    """Id of the record of a batch."""
    return f"pictures-{part.start}-{part.stop}"


def _places(id: str) -> range:
    """Places of a batch's pictures among those asked for."""
    _, start, stop = id.split("-")
    return range(int(start), int(stop))


def _names(asked: Sequence[tuple[str, int]]) -> list[str]:
    """Paths of the pictures for people, after the numbers of their prompts, from 1 on, and their seeds."""
    numbers = {prompt: number for number, prompt in enumerate(dict(asked), 1)}
    if len(numbers) == 1:
        return [f"pictures/seed-{seed:04}.png" for _, seed in asked]
    return [f"pictures/prompt-{numbers[prompt]:04}-seed-{seed:04}.png" for prompt, seed in asked]

"""Workers of a run in a group of processes that wait for each other, such as torchrun starts.

Words alone travel between them, so that gloo will do for every device.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import distributed

from textpatch.errors import PatchError, StoreError
from textpatch.runs.workers import PAUSE, Found, Round, Worker

LONGEST = datetime.timedelta(days=7)  # that one process may wait for another
VISIBLE = 120.0  # seconds after which a record of another process must be seen in the folder


class Rank(Worker):
    """A process of torch's default group.

    After its own pieces of a round it waits for all others, and all see that they went the same way.
    """

    def __init__(self):
        super().__init__(distributed.get_rank(), distributed.get_world_size())
        self.speaks = self.index == 0
        self.rounds = 0

    def writes(self, folder: Path) -> bool:
        """True for the first process."""
        return self.index == 0

    def _portions_of_others(self, common: Round, found: Found) -> Iterator[Sequence]:
        self.rounds += 1
        require_alike(f"round {self.rounds}", common.ids)
        began = time.monotonic()
        found.look_again()
        while not all(id in found for id in common.ids):
            if time.monotonic() - began > VISIBLE:
                raise StoreError(
                    f"{found.run.folder} lacks records that other processes have written; give --out a "
                    "folder of a disk that all of them share"
                )
            time.sleep(PAUSE)
            found.look_again()
        places = common.others(self.places(len(common.pieces)))
        yield [common.pieces[place] for place in places]


def require_alike(what: str, value: object) -> None:
    """Wait for all processes of torch's group, and raise PatchError unless all have the same value.

    what   name of the value
    value  JSON
    """
    said = json.dumps(value, sort_keys=True)
    all_said: list = [None] * distributed.get_world_size()
    distributed.all_gather_object(all_said, (what, said))
    for rank, other in enumerate(all_said):
        if other != (what, said):
            raise PatchError(
                f"process {distributed.get_rank()} has {_short(what, said)}, and process {rank} has "
                f"{_short(*other)}; start all with one command, one environment and the same weights"
            )


def _short(what: str, said: str) -> str:
    """A value as a message shows it, a long one by its digest."""
    if len(said) > 200:
        said = f"of sha256 {hashlib.sha256(said.encode()).hexdigest()[:16]}"
    return f"{what} {said}"


@contextmanager
def joined_group(backend: str = "gloo") -> Iterator[None]:
    """Join torch's group of the processes that torchrun started, by its environment."""
    distributed.init_process_group(backend, timeout=LONGEST)
    try:
        yield
    finally:
        distributed.destroy_process_group()

"""Calls of a foreign model that are heard while it draws, with their times and how long they take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import BoundArguments

import torch
from torch import Tensor, nn

from textpatch.hooks import HookRegistry

TIMES = ("timestep", "timesteps", "t")  # arguments that tell a model the time


@dataclass
class Heard:
    """Calls of a model inside a block.

    times    time that each call was told, None where no argument of TIMES tells it
    seconds  duration of each call
    """

    times: list[float | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    _began: float = 0.0

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[Heard]:
        """Hear the model's calls.   Raises PatchError on leaving if there was none."""
        calls = HookRegistry(model, [""])
        with calls.observe_inputs(self._begin), calls.observe(self._end):
            yield self

    def _begin(self, name: str, inputs: BoundArguments) -> None:
        told = [inputs.arguments[name] for name in TIMES if name in inputs.arguments]
        self.times.append(_number(told[0]) if told else None)
        self._began = _now()

    def _end(self, name: str, output: object) -> None:
        self.seconds.append(_now() - self._began)


def _number(told: object) -> float | None:
    if isinstance(told, Tensor):
        return float(told.flatten()[0])
    if isinstance(told, (int, float)):
        return float(told)
    return None


def _now() -> float:
    """Seconds, after all that a GPU was given is done."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()

"""What the branches of a guidance predict as one prediction, and the state of a run in its two parts."""

from __future__ import annotations

import torch
from torch import Tensor

from textpatch.guidance import Guidance, Moment, State
from textpatch.plan import CONDITIONAL

# begins the names of what the schedule remembers in the state of a run, beside what the guidance does
OF_SCHEDULE = "schedule."


def parted(state: State) -> tuple[State, State]:
    """The guidance's part of a state, and the schedule's."""
    own = {name: value for name, value in state.items() if not name.startswith(OF_SCHEDULE)}
    memory = {
        name.removeprefix(OF_SCHEDULE): value
        for name, value in state.items()
        if name.startswith(OF_SCHEDULE)
    }
    return own, memory


def guided(
    predictions: dict[str, Tensor], guidance: Guidance, at: Moment, state: State, channels: int
) -> tuple[Tensor, State]:
    """The branches' predictions combined into one, and the guidance's state.

    Only the first `channels` are guided.  The channels after them, a learned variance, are taken from the
    conditional branch.
    """
    heads = {branch: prediction[:, :channels] for branch, prediction in predictions.items()}
    combined, state = guidance.combine(heads, at, state)
    variance = predictions[CONDITIONAL][:, channels:]
    if variance.shape[1]:
        combined = torch.cat([combined, variance], dim=1)
    return combined, state

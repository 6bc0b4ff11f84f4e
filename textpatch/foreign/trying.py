"""A foreign pipeline's call tried before it is used, in two short runs.

A `draw` must give one picture for each prompt, from the noise of the prompt's own seed, and the same one
when it is called again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from textpatch.errors import PatchError
from textpatch.foreign.hearing import Heard

PROMPT = 'a red sign that says "HELLO" on a blue wall'
# prompts in which encoders of few words, too, tell other things
PROMPTS = PROMPT, "a green badge on a yellow wall", 'a blue sign that says "WORLD"'
STEPS = 2
# mean distance, in shares of the range, below which two drawings are one: half a level of a picture
ALIKE = 0.5 / 255


@dataclass(frozen=True)
class Tried:
    """What the tries have told.

    size     height and width of the pictures in pixels, None where no pictures are drawn
    calls    calls of the model in one step
    seconds  duration of a step, for each row
    """

    size: tuple[int, int] | None
    calls: float
    seconds: float


def as_drawn(made: Any, count: int, what: str) -> list[Any]:
    """Pictures, or sounds as float arrays, of a call for so many prompts.

    what  names the call for the message
    Raises PatchError for another number, and for what is neither.
    """
    listed = [made] if isinstance(made, Image.Image) or not hasattr(made, "__len__") else list(made)
    if len(listed) != count:
        raise PatchError(
            f"{what} was given {count} prompts and gave {len(listed)} results; return a list with one "
            "picture, or one array of a sound, for each prompt, in their order"
        )
    return [_one(drawn, what) for drawn in listed]


def _one(drawn: Any, what: str) -> Any:
    if isinstance(drawn, Image.Image):
        return drawn
    if isinstance(drawn, Tensor):
        drawn = drawn.detach().float().cpu().numpy()
    if not isinstance(drawn, np.ndarray) or not drawn.size or drawn.dtype.kind not in "fiu":
        raise PatchError(
            f"{what} gave a {type(drawn).__name__}; return PIL pictures, or arrays of sounds"
        )
    return drawn


def try_draw(
    model: nn.Module, draw: Callable[[Sequence[str], Sequence[int]], list[Any]], name: str
) -> Tried:
    """Try a call twice with two rows.

    draw  draw(prompts, seeds) gives what is drawn in a run of STEPS steps
    name  of the pipeline
    Raises PatchError for a call that is not repeatable, and for seeds that are not each row's own.
    """
    what = f"the draw of {name}"
    first, twin = draw([PROMPT] * 2, [0, 0])
    heard = Heard()
    with heard.on(model):
        again, other = draw([PROMPT] * 2, [0, 1])
    if not _alike(first, again):
        raise PatchError(
            f"{what} drew twice of one prompt and seed, and the results differ; take all noise from "
            "generators of the seeds, and dropout and other chance out of the run"
        )
    if not _alike(first, twin):
        raise PatchError(
            f"{what} drew one prompt and seed in two rows, and they differ; give each row a generator of its "
            "own seed: generator=[torch.Generator().manual_seed(seed) for seed in seeds]"
        )
    if _alike(first, other):
        raise PatchError(
            f"{what} drew the same of seeds 0 and 1; start each row from noise of its own seed"
        )
    size = None
    if isinstance(first, Image.Image):
        size = first.height, first.width
    return Tried(size, len(heard.times) / STEPS, sum(heard.seconds) / (2 * STEPS))


def _alike(a: Any, b: Any) -> bool:
    """True for two drawings that hardly differ, as they may on a GPU or by their place in a batch."""
    x, y = (np.asarray(one, np.float64) for one in (a, b))
    if x.shape != y.shape:
        return False
    reach = 255.0 if isinstance(a, Image.Image) else max(np.abs(x).max(), np.abs(y).max(), 1e-12)
    return bool(np.abs(x - y).mean() < ALIKE * reach)

"""Numbers that no float can hold, and ranges that no memory can, are refused wherever somebody gives one."""

from fractions import Fraction

import pytest
import torch

from support.planting import plant
from support.small_models import PROMPTS, small_pipeline
from textpatch import PatchError, Swap, Window, edit, finite, load
from textpatch.changes import LowRank
from textpatch.editing.prompt_to_prompt import PromptToPrompt
from textpatch.guidance import SafeLatentDiffusion
from textpatch.reference_models.schedules import DDPM, FlowMatchEuler
from textpatch.reference_models.upscaling import read_beside

HUGE = 10**400
ASKED = {
    "a window": lambda: Window("sigma", 0, HUGE),
    "a window's lower end": lambda: Window("sigma", -HUGE, 1),
    "steps of a swap": lambda: Swap(1, "a", "b", steps=range(HUGE)),
    "the weight of a word": lambda: PromptToPrompt(weights={"HELLO": HUGE}),
    "momentum": lambda: SafeLatentDiffusion(7, "x", momentum=HUGE),
    "alpha": lambda: LowRank(torch.zeros(1, 4), torch.zeros(4, 1), HUGE),
    "a shift": lambda: FlowMatchEuler(shift=HUGE),
    "steps": lambda: small_pipeline().generate(PROMPTS[0], steps=HUGE),
    "steps of an edit": lambda: edit(small_pipeline(), *PROMPTS[:2], sites=1, steps=HUGE),
    "windows of a prompt": lambda: load("tiny-sdxl").with_long_prompts(HUGE),
    "a level": lambda: read_beside(DDPM(), *torch.zeros(2, 1, 3, 8, 8), HUGE),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_number_of_400_digits_is_refused(what):
    """In one sentence, before anything is made of it."""
    with pytest.raises(PatchError, match="10000000000"):
        ASKED[what]()


def test_numbers_of_every_kind_are_told_from_others(monkeypatch):
    """Fault: the error of Python, which cannot make a float of it, goes through."""
    assert all(map(finite.is_finite, (0, -1.5, Fraction(1, 3), torch.tensor(2.0).item())))
    others = (True, None, "1", float("nan"), float("inf"), HUGE, -HUGE, Fraction(HUGE), 1j)
    assert not any(map(finite.is_finite, others))
    plant(monkeypatch, finite, "is_finite", "except OverflowError", "except ZeroDivisionError")
    with pytest.raises(OverflowError):
        test_a_number_of_400_digits_is_refused("alpha")

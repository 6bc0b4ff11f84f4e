"""Numbers that no float can hold, and ranges that no memory can, are refused wherever somebody gives one."""

from fractions import Fraction

import pytest
import torch

from support.planting import plant
from support.small_models import PROMPTS, small_pipeline
from textpatch import PatchError, Swap, Window, edit, finite, load, segment_attention
from textpatch.changes import LowRank
from textpatch.editing.prompt_to_prompt import PromptToPrompt
from textpatch.guidance import SafeLatentDiffusion
from textpatch.reference_models.schedules import DDPM, FlowMatchEuler
from textpatch.reference_models.upscaling import read_beside

HUGE = 10**400
NONE_AT_ALL = True, float("nan"), float("inf"), "7", 1j


def attended(scale):
    """Attention by a scale."""
    q = torch.zeros(1, 1, 2, 4)
    return segment_attention((q, None), (q, q), (q, q), scale=scale)


def called(t):
    """A denoiser's call at a timestep."""
    pipeline = small_pipeline()
    return pipeline.denoiser(pipeline.noise([0]), t, pipeline.encode(PROMPTS[:1]))


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
    "a scale": lambda: attended(HUGE),
    "a timestep": lambda: called(HUGE),
    "seeds": lambda: small_pipeline().noise(HUGE),
    "a level": lambda: read_beside(DDPM(), *torch.zeros(2, 1, 3, 8, 8), HUGE),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_number_of_400_digits_is_refused(what):
    """In one sentence, before anything is made of it."""
    with pytest.raises(PatchError, match="10000000000"):
        ASKED[what]()


@pytest.mark.parametrize("value", [*NONE_AT_ALL, torch.zeros(2)])
def test_what_is_no_number_is_refused(value):
    """As the scale of an attention, and as the timestep of a denoiser's one row."""
    for call in (attended, called):
        with pytest.raises(
            PatchError, match=r"; give (a finite number|finite numbers|one, or one)"
        ):
            call(value)


def test_numbers_of_every_kind_are_told_from_others(monkeypatch):
    """Fault: the error of Python, which cannot make a float of it, goes through."""
    assert all(map(finite.is_finite, (0, -1.5, Fraction(1, 3), torch.tensor(2.0).item())))
    others = (True, None, "1", float("nan"), float("inf"), HUGE, -HUGE, Fraction(HUGE), 1j)
    assert not any(map(finite.is_finite, others))
    plant(monkeypatch, finite, "is_finite", "except OverflowError", "except ZeroDivisionError")
    with pytest.raises(OverflowError):
        test_a_number_of_400_digits_is_refused("alpha")

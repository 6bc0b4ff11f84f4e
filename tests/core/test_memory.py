"""Memory is asked for before it is used, and half as much is taken where it is not enough."""

import pytest
import torch

from support.planting import plant
from support.small_models import PROMPTS, small_pipeline
from textpatch import Plan, Row, Swap, memory, sample
from textpatch.errors import PatchError
from textpatch.memory import bytes_of_call, free_bytes, is_out_of_memory, require_room, with_less
from textpatch.pipelines import bytes_of_rows, sized
from textpatch.reference_models.pipeline import Pipeline


def full(at_once: int, most: int = 2) -> int:
    """Work that has room for two at once."""
    if at_once > most:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: not enough memory"
        )
    return at_once


def test_the_most_that_is_alive_at_once_is_counted():
    """Two tensors of a megabyte that live together are two; one after the other they are one."""

    def together() -> None:
        a = torch.empty(250_000)
        b = torch.empty(250_000)
        del a, b

    def in_turn() -> None:
        for _ in range(2):
            torch.empty(250_000)

    assert bytes_of_call(together) == 2_000_000
    assert bytes_of_call(in_turn) == 1_000_000


def test_a_step_takes_no_memory_to_be_measured():
    """A step of a size that fits nowhere is measured, and grows with the rows and with the area."""
    pipeline = small_pipeline()
    one, two = (bytes_of_rows(pipeline, rows, 32, 96) for rows in (1, 2))
    assert 0 < one < two <= 2.1 * one


def test_what_needs_the_numbers_is_not_known():
    """A call that fails on tensors without data has no size, and room is not asked for."""
    assert bytes_of_call(lambda: torch.ones(1).item() + int("x")) is None
    require_room(None, torch.device("cpu"), "nothing")


def test_too_large_is_said_before_it_is_made(monkeypatch):
    """What is asked, what it takes and what is free; no step is run."""
    free = free_bytes(torch.device("cpu"))
    assert free is None or free > 0
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(Pipeline, "denoise", None)
    with pytest.raises(
        PatchError, match=r"64x96 pixels .* GB of memory on cpu, and 0.0 GB are free"
    ):
        sized(small_pipeline(), 64, 96)


def test_half_as_many_until_they_fit():
    """Of four that are asked for two fit, which is told; where one is too much the error stays."""
    with pytest.warns(UserWarning, match="out of memory; going on with 2 at once"):
        assert with_less(full, 64, of=4) == 2
    with pytest.raises(RuntimeError, match="not enough memory"), pytest.warns(UserWarning):
        with_less(lambda n: full(n, most=0), 2, of=2)
    with pytest.raises(RuntimeError, match="something else"):
        with_less(lambda n: exec("raise RuntimeError('something else')"), 4, of=4)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA")) and is_out_of_memory(MemoryError())


def test_a_run_that_is_too_large_is_run_in_parts(monkeypatch):
    """Pictures and ledger are those of a run with the smaller micro-batch, and nothing is told twice."""
    pipeline = small_pipeline()
    rows = [Row("source", PROMPTS[0]), Row("target", PROMPTS[1]), Row("edited", PROMPTS[0])]
    plan = Plan([Swap(0, "edited", "target")])
    small = sample(pipeline, rows, plan, steps=2, micro_batch=2)
    real = Pipeline.denoise

    def denoise(self, x, *arguments, **options):
        made = real(self, x, *arguments, **options)
        full(len(x))
        return made

    monkeypatch.setattr(Pipeline, "denoise", denoise)
    with pytest.warns(UserWarning, match="out of memory"):
        made = sample(pipeline, rows, plan, steps=2)
    assert str(made.ledger) == str(small.ledger)
    for name, latents in small.latents.items():
        torch.testing.assert_close(made.latents[name], latents, rtol=0, atol=1e-5)


def test_planted_rows_not_halved_are_noticed(monkeypatch):
    """Fault: the work is asked for as much again."""
    plant(monkeypatch, memory, "with_less", "min(at_once, of) // 2", "min(at_once, of) - 3")
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        monkeypatch.setitem(globals(), "with_less", memory.with_less)
        test_half_as_many_until_they_fit()

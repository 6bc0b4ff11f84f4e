"""Checks of a run before anything runs, of its rows, where they start, and which are only read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

import torch
from torch import Tensor

from textpatch.bank import Texts
from textpatch.errors import PatchError, closest
from textpatch.guidance import Guidance
from textpatch.plan import CONDITIONAL, Plan, Row
from textpatch.swaps import Swap


def require_rows(rows: Sequence[Row]) -> None:
    """Raise PatchError unless rows are conditional Rows, named apart, with prompts that are texts or None."""
    if isinstance(rows, str) or not isinstance(rows, Sequence):
        raise PatchError(f"the rows of a run are {rows!r}; give a list, [Row(name, prompt), ...]")
    for row in rows:
        if not isinstance(row, Row):
            raise PatchError(f"a row of a run is {row!r}; give Row(name, prompt)")
        _require_texts(row)
    names = [row.name for row in rows]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not rows:
        raise PatchError(
            f"rows must be named apart, and at least one; repeated: {repeated[:3]}, rows: {len(rows)}"
        )
    for row in rows:
        if row.branch != CONDITIONAL:
            raise PatchError(
                f"row {row.name!r} is unconditional; name conditional rows alone, guidance adds their twins"
            )


def _require_texts(row: Row) -> None:
    """Raise PatchError unless a row's name is a text, and its prompts are texts or None."""
    if not isinstance(row.name, str):
        raise PatchError(f"a row's name is {row.name!r}, no text; give each row a name of its own")
    for prompt in (row.prompt, row.pooled):
        if prompt is not None and not isinstance(prompt, str):
            raise PatchError(
                f"a prompt is {prompt!r}, no text; give each row one, and one negative prompt for all"
            )


def starts_by_itself(row: Row) -> bool:
    """True if a row starts from anything else than its seed's noise at step 0."""
    given = row.latents, row.copies, row.path
    return row.joins != 0 or any(one is not None for one in given)


def require_starts(rows: Sequence[Row], plan: Plan, steps: int) -> None:
    """Raise PatchError unless every row can start.

    A row must join within the run, from latents of one source, before any swap that names it.
    """
    by_name = {row.name: row for row in rows}
    for row in rows:
        _require_kinds(row)
        if not row.sampled:
            _require_only_read(row)
        elif starts_by_itself(row):
            _require_start(row, steps)
        if row.copies is not None:
            _require_origin(row, row.copies, by_name)
    for swap in plan.swaps:
        for reader in swap.readers:
            _require_present(swap, reader, by_name)


def _require_kinds(row: Row) -> None:
    """Raise PatchError unless joins is a whole number, latents a finite tensor and copies a name."""
    if isinstance(row.joins, bool) or not isinstance(row.joins, Integral):
        raise PatchError(f"row {row.name!r} joins at step {row.joins!r}; give a whole number")
    if row.copies is not None and not isinstance(row.copies, str):
        raise PatchError(f"row {row.name!r} copies {row.copies!r}; give the name of a row")
    for what, given in (("starts from latents", row.latents), ("is held to a path", row.path)):
        if given is not None:
            _require_finite(f"row {row.name!r} {what}", given)


def _require_finite(what: str, given: object) -> None:
    """Raise PatchError unless what a row is given is a tensor without NaN and infinity."""
    if not isinstance(given, Tensor):
        raise PatchError(f"{what} of type {type(given).__name__}; give a torch.Tensor")
    unbound = given.numel() - int(torch.isfinite(given).sum())
    if unbound:
        raise PatchError(
            f"{what} of which {unbound} of {given.numel()} are NaN or infinite; give finite ones"
        )


def _require_only_read(row: Row) -> None:
    """Raise PatchError for what a row that is not sampled is given and nothing would use."""
    if starts_by_itself(row):
        raise PatchError(
            f"row {row.name!r} is not sampled, and so starts from nothing; "
            "leave out joins, latents, copies, path"
        )
    if row.pooled is not None:
        raise PatchError(
            f"row {row.name!r} is not sampled, and its pooled prompt {row.pooled!r} modulates nothing; "
            "leave out pooled"
        )


def _require_start(row: Row, steps: int) -> None:
    """Raise PatchError unless a sampled row joins within the run, from one source."""
    if not 0 <= row.joins < steps:
        raise PatchError(
            f"row {row.name!r} joins at step {row.joins}; this run has steps 0..{steps - 1}"
        )
    if row.path is not None:
        _require_path(row, row.path, steps)
    elif (row.latents is None) == (row.copies is None):
        given = "neither" if row.latents is None else "both"
        raise PatchError(
            f"row {row.name!r} joins at step {row.joins} with {given} latents and copies; give one of them"
        )


def _require_path(row: Row, path: Tensor, steps: int) -> None:
    """Raise PatchError unless a path has latents for every step, and is the row's only start."""
    if row.joins or row.latents is not None or row.copies is not None:
        raise PatchError(
            f"row {row.name!r} is held to a path, which says where it starts; "
            "leave out joins, latents, copies"
        )
    if path.dim() != 4 or len(path) != steps + 1:
        raise PatchError(
            f"row {row.name!r} is held to a path of shape {tuple(path.shape)}; a run of {steps} steps "
            f"has a path of {steps + 1} latents, (N + 1, C, H, W)"
        )


def _require_origin(row: Row, copied: str, by_name: Mapping[str, Row]) -> None:
    """Raise PatchError unless the row that is copied is sampled, and there when the copy joins."""
    origin = by_name.get(copied)
    if origin is None:
        raise PatchError(
            f"row {row.name!r} copies {copied!r}, which is no row here{closest(copied, by_name)}"
        )
    wrong = None
    if not origin.sampled:
        wrong = "is not sampled"
    elif origin.joins > row.joins or (origin.copies is not None and origin.joins == row.joins):
        wrong = f"joins at step {origin.joins}"
    if wrong is not None:
        raise PatchError(
            f"row {row.name!r} copies {copied!r} at step {row.joins}, and that row {wrong}; "
            "copy one that is there before"
        )


def _require_present(swap: Swap, reader: str, by_name: Mapping[str, Row]) -> None:
    """Raise PatchError if a swap acts before its reader or its donor has joined."""
    if reader not in by_name or swap.donor not in by_name:
        return  # `Plan.check` names them
    indices = swap.loop_indices
    first = by_name[reader].joins if indices is None else indices[0]
    for row in (by_name[reader], by_name[swap.donor]):
        if row.joins > first:
            raise PatchError(
                f"row {row.name!r} joins at step {row.joins}, and a swap names it from step {first} on; "
                f"give the swap steps of {row.joins} or more"
            )


def require_readable(rows: Sequence[Row], plan: Plan, texts: Texts) -> None:
    """Raise PatchError unless rows that are not sampled are donors alone, their text in the bank."""
    unsampled = sorted(row.name for row in rows if not row.sampled)
    read = {swap.donor for swap in plan.swaps}
    reading = {name for swap in plan.swaps for name in swap.readers}
    for name in unsampled:
        if name in reading:
            _refuse_unsampled(name, "lets it read")
        if name not in read:
            _refuse_unsampled(name, "never reads it")
    if unsampled and texts.bank is None:
        raise PatchError(
            f"row {unsampled[0]!r} is not sampled, and its prompt alone does not settle its keys and values: "
            "this model's text evolves with the picture, or hooks change its projections; sample it"
        )


def _refuse_unsampled(name: str, wrong: str) -> None:
    raise PatchError(
        f"row {name!r} is not sampled, and the plan {wrong}; "
        "a row that is not sampled can be a donor and nothing else: sample it, or leave it out"
    )


def require_micro_batch(rows: object) -> None:
    """Raise PatchError unless a number of rows of one forward pass is a whole one, 1 or more."""
    if isinstance(rows, bool) or not isinstance(rows, Integral) or rows < 1:
        raise PatchError(f"micro_batch is {rows!r}; give a whole number, one row at least")


def require_memory(rows: Sequence[Row], guidance: Guidance, schedule: object) -> None:
    """Raise PatchError for latents that enter a later step of a run in which earlier ones are remembered.

    Latents alone do not hold what a guidance or a multistep schedule remembered of their run.
    """
    remembering: object = None
    if guidance.begin(torch.zeros(1, 1, 1, 1)):
        remembering = guidance
    elif getattr(schedule, "remembers", False):
        remembering = schedule
    if remembering is None:
        return
    for row in rows:
        if row.latents is not None and row.joins:
            raise PatchError(
                f"row {row.name!r} joins at step {row.joins} with latents, and {type(remembering).__name__} "
                "remembers the steps before; let the row copy one that ran them, or join at step 0"
            )

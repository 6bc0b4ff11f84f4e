"""The lock-step sampler: source, target and patched rows advance together, and a plan says who reads whom.

No cache and no second run: a donor's text K and V are in the same batch as their readers at every step.
"""

from __future__ import annotations

from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from textpatch.bank import Texts, encode, spelled_out
from textpatch.errors import PatchError
from textpatch.ledger import Ledger, Recorder, compiled
from textpatch.markup import figure, fragment, safe
from textpatch.plan import CONDITIONAL, Plan, Row, with_guidance
from textpatch.sites import find_sites


@dataclass(frozen=True)
class Samples:
    """What a run made, by row name, the request that made it, and the ledger of who read whom."""

    latents: dict[str, Tensor]
    images: dict[str, Image.Image]
    plan: Plan
    rows: tuple[Row, ...]
    steps: int
    guidance: float
    trajectory: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)
    ledger: Ledger = field(default=Ledger(), repr=False)

    def _repr_html_(self) -> str:
        shown = [(row, self.images[row.name]) for row in self.rows if row.name in self.images]
        figures = [figure(image, row.name, safe(f"{row.prompt or ''} (seed {row.seed})")) for row, image in shown]
        return fragment(f'<div class="gallery">{"".join(figures)}</div>{self.plan._repr_html_()}')


def sample(pipeline, rows: Sequence[Row], plan: Plan = Plan(), *,
           steps: int | None = None, guidance: float | None = None,
           negative: str | None = None, micro_batch: int = 64, keep_trajectory: bool = False) -> Samples:  # fmt: skip
    """Generate all rows together, each reading the text keys and values the plan gives it.

    rows are conditional rows with different names; their unconditional twins are added when guidance is
    not 1.  micro_batch bounds the batch rows of one forward pass, both branches counted; a donor travels
    with its readers into every micro-batch.  keep_trajectory keeps the latents entering each step and the
    final ones.
    A plan's windows of timesteps or sigmas are taken in the pipeline's schedule.  A row that is not sampled costs no
    generation: its readers find its text in the bank.
    Where text is static its projections run once, on the distinct prompts, unless hooks may change them: an observer of
    them sees that one call; `capture` and `patch` see every step.
    Raises PatchError for repeated names and unconditional rows; for a plan that names rows, sites, steps, heads or tokens
    which this run has not, or whose swaps never act; and for a row not sampled that reads, that nobody reads, or whose
    keys and values its prompt does not settle: where the text evolves with the picture, or others hook its projections.
    """
    made = sample_latents(pipeline, rows, plan, steps=steps, guidance=guidance, negative=negative, micro_batch=micro_batch,
                          keep_trajectory=keep_trajectory)  # fmt: skip
    return replace(made, images=decoded(pipeline, made.latents))


def sample_latents(pipeline, rows: Sequence[Row], plan: Plan = Plan(), *,
                   steps: int | None = None, guidance: float | None = None,
                   negative: str | None = None, micro_batch: int = 64, keep_trajectory: bool = False) -> Samples:  # fmt: skip
    """`sample` without its pictures, for `decoded` to make elsewhere, or later.   Raises PatchError as `sample` does."""
    rows = tuple(rows)
    steps, guidance = pipeline.defaults.run(steps, guidance)
    if not isinstance(plan, Plan):
        raise PatchError(f"the plan of a run is {plan!r}; give Plan([Swap(...), ...])")
    _require_rows(rows, negative)
    if micro_batch < 1:
        raise PatchError(f"micro_batch is {micro_batch}; give one row at least")
    branches = 1 if guidance == 1 else 2
    if negative is not None and branches == 1:
        raise PatchError(f"negative prompt {negative!r} has no effect at guidance 1; leave one of them out")
    out = Samples({}, {}, plan.at(pipeline.schedule, steps), rows, steps, guidance)
    texts = encode(pipeline, rows if branches == 1 else with_guidance(rows, negative))
    out.plan.check(rows, find_sites(pipeline.denoiser), steps, tokens=texts.tokens)
    require_readable(rows, plan, texts)
    recorder = Recorder(pipeline, rows, out.plan, steps, texts)
    for group, fresh in pack(rows, plan, max(micro_batch // branches, 1)):
        batch = group if branches == 1 else with_guidance(group, negative)
        _sample_group(pipeline, group, batch, fresh, texts, out, keep_trajectory, recorder)
    return replace(out, plan=plan, ledger=recorder.ledger())


def decoded(pipeline, latents: dict[str, Tensor]) -> dict[str, Image.Image]:
    """The pictures of latents (C, H, W), one at a time, by the same names.   Raises PatchError for NaN and infinity."""
    return {name: pipeline.decode(one[None])[0] for name, one in latents.items()}


def decoding(pipeline, latents: dict[str, Tensor]) -> Callable[[], dict[str, Image.Image]]:
    """`decoded` for another thread to do, as this one would: with its autocast, inference mode and context variables.

    Where somebody hooked the decoder, or took over a forward in it as offloading does, it is done here and now: hooks act
    in the thread that set them, and what they move must not move under a denoiser that runs.
    """
    act, decoder, kind = partial(decoded, pipeline, latents), pipeline.decoder, pipeline.device.type
    parts = decoder.modules() if isinstance(decoder, nn.Module) else ()
    if any(part._forward_pre_hooks or part._forward_hooks or "forward" in vars(part) for part in parts):
        return partial(dict, act())
    here, inference = copy_context(), torch.is_inference_mode_enabled()
    cast = dict(dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))

    def elsewhere() -> dict[str, Image.Image]:
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast(kind, **cast):
            return act()

    return partial(here.run, elsewhere)


def _require_rows(rows: Sequence[Row], negative: str | None) -> None:
    for prompt in (negative, *(prompt for row in rows for prompt in (row.prompt, row.pooled))):
        if prompt is not None and not isinstance(prompt, str):
            raise PatchError(f"a prompt is {prompt!r}, no text; give each row one, and one negative prompt for all")
    names = [row.name for row in rows]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not rows:
        raise PatchError(
            f"rows must be named apart, and at least one; repeated: {repeated[:3]}, rows: {len(rows)}"
        )
    if twins := [row.name for row in rows if row.branch != CONDITIONAL]:
        raise PatchError(f"row {twins[0]!r} is unconditional; name conditional rows alone, guidance adds their twins")


def require_readable(rows: Sequence[Row], plan: Plan, texts: Texts) -> None:
    """Raise PatchError unless the rows that are not sampled are donors alone, and their keys and values known."""
    unsampled = {row.name for row in rows if not row.sampled}
    read, reading = {swap.donor for swap in plan.swaps}, {name for swap in plan.swaps for name in swap.readers}
    wrong = sorted(unsampled - read | unsampled & reading)
    if wrong:
        raise PatchError(
            f"row {wrong[0]!r} is not sampled, and the plan {'lets it read' if wrong[0] in reading else 'never reads it'}"
            "; a row that is not sampled can be a donor and nothing else: sample it, or leave it out"
        )
    if unsampled and texts.bank is None:
        raise PatchError(
            f"row {min(unsampled)!r} is not sampled, and its prompt alone does not settle its keys and values: this "
            "model's text evolves with the picture, or hooks change its projections; sample it"
        )


def _sample_group(pipeline, group, batch, fresh, texts: Texts, out: Samples, keep: bool, recorder: Recorder) -> None:
    drawn = [row for row in group if row.sampled]
    noises, seen = pipeline.noises([row.seed for row in drawn]), []
    with recorder.watching(batch, fresh) as enter:
        latents = pipeline.denoise(
            next(noises), texts.of(batch), steps=out.steps, guidance=out.guidance, noises=noises,
            slots=_reading(pipeline, out.plan, batch, texts, enter),
            on_step=(lambda i, x: seen.append(x)) if keep else None,
        )  # fmt: skip
    for b, row in enumerate(drawn):
        if row in fresh:
            out.latents[row.name] = latents[b]
            if keep:
                out.trajectory[row.name] = [x[b] for x in seen]


def _reading(pipeline, plan: Plan, batch: Sequence[Row], texts: Texts, enter: Callable) -> Callable:
    """slots(step) of a batch; what the plan says of the step is entered in the ledger."""
    sites, graph, made = find_sites(pipeline.denoiser), compiled(pipeline.denoiser), {}

    def slots(step: int):
        acting = tuple(swap.steps is None or step in swap.steps for swap in plan.swaps)
        if acting not in made:  # most steps are like the one before, and seventy sites take a quarter of a second
            tables = plan.slots(step, batch, sites, tokens=texts.tokens)
            whole = spelled_out(tables, len(batch), texts.tokens, sites) if graph else tables
            made[acting] = tables, to_device(texts.slots(whole, batch, len(sites)), pipeline.device)
        enter(step, made[acting][0])
        return made[acting][1]

    return slots


def to_device(slots, device: torch.device):
    """A plan's slots on the model's device."""
    if isinstance(slots, (list, tuple)):
        return type(slots)(to_device(entry, device) for entry in slots)
    return None if slots is None else slots.to(device)


def pack(rows: Sequence[Row], plan: Plan, limit: int) -> list[tuple[list[Row], list[Row]]]:
    """Groups of at most `limit` sampled rows, each with all donors of its rows; (group, rows new in it).

    A row whose own donors exceed the limit makes a larger group of its own.  Within a group rows keep their
    order: a row's place in the batch moves its last bits, and a plan must not.
    """
    groups, done, sampled = [[]], set(), {row.name for row in rows if row.sampled}
    for row in rows:
        if not row.sampled:
            continue
        names = [*sorted(_donors(row.name, plan)), row.name]
        if groups[-1] and len(sampled.intersection(groups[-1] + names)) > limit:
            groups.append([])
        groups[-1] += [name for name in names if name not in groups[-1]]
    packed = []
    for names in groups:
        group = [row for row in rows if row.name in names]
        packed.append((group, [row for row in group if row.sampled and row.name not in done]))
        done.update(names)
    return [(group, fresh) for group, fresh in packed if fresh]


def _donors(name: str, plan: Plan) -> set[str]:
    """Every row that `name` reads, directly or through another reader."""
    found, todo = set(), [name]
    while todo:
        reader = todo.pop()
        new = {swap.donor for swap in plan.swaps if reader in swap.readers} - found - {name}
        found |= new
        todo += new
    return found

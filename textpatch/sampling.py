"""The lock-step sampler: source, target and patched rows advance together, and a plan says who reads whom.

No cache and no second run: a donor's text K and V are in the same batch as their readers at every step.
A row starts from its seed's noise, from latents of its own, or later from the latents of another row.

B rows, C channels, H x W latent size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

import torch
from PIL import Image
from torch import Tensor, nn

from textpatch.bank import Texts, encode, spelled_out
from textpatch.errors import PatchError, closest
from textpatch.guidance import Guidance, State, as_guidance, branch_rows
from textpatch.html import figure, fragment, safe
from textpatch.ledger import Ledger, Recorder, compiled
from textpatch.pipelines import SupportsPartialRuns, SupportsSampling, require_parts
from textpatch.plan import CONDITIONAL, Plan, Row
from textpatch.ports.shipped import find_sites


@dataclass(frozen=True)
class Samples:
    """What a run made, by row name, the request that made it, and the ledger of who read whom.

    trajectory  row name -> latents entering each step from the row's first on, and the final ones
    """

    latents: dict[str, Tensor]
    images: dict[str, Image.Image]
    plan: Plan
    rows: tuple[Row, ...]
    steps: int
    guidance: float | Guidance
    trajectory: dict[str, list[Tensor]] = field(default_factory=dict, repr=False)
    ledger: Ledger = field(default=Ledger(), repr=False)

    def _repr_html_(self) -> str:
        shown = [(row, self.images[row.name]) for row in self.rows if row.name in self.images]
        figures = [
            figure(image, row.name, safe(f"{row.prompt or ''} (seed {row.seed})"))
            for row, image in shown
        ]
        return fragment(f'<div class="gallery">{"".join(figures)}</div>{self.plan._repr_html_()}')


def sample(
    pipeline: SupportsSampling,
    rows: Sequence[Row],
    plan: Plan = Plan(),
    *,
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    negative: str | None = None,
    micro_batch: int = 64,
    keep_trajectory: bool = False,
) -> Samples:
    """Generate all rows together, each reading the text keys and values the plan gives it.

    rows             conditional rows with different names.  The guidance adds their other branches
    steps, guidance  the model's defaults when None.  A number is classifier-free guidance, and 1 is none
    negative         the prompt of the unconditional branch, one for all rows
    micro_batch      bounds the batch rows of one forward pass, all branches counted.  What a row reads or copies
                     travels with it into every micro-batch
    keep_trajectory  keeps the latents entering each step and the final ones
    A plan's windows of timesteps or sigmas are taken in the pipeline's schedule.  A row that is not sampled costs no
    generation: its readers find its text in the bank.
    Where text is static its projections run once, on the distinct prompts, unless hooks may change them: an observer of
    them sees that one call; `capture` and `patch` see every step.
    Raises PatchError for repeated names and unconditional rows; for a plan that names rows, sites, steps, heads or tokens
    which this run has not, or whose swaps never act; for a row not sampled that reads, that nobody reads, or whose
    keys and values its prompt does not settle: where the text evolves with the picture, or others hook its projections;
    and for a row that joins outside the run, from nothing, or after a swap that names it.
    """
    made = sample_latents(
        pipeline,
        rows,
        plan,
        steps=steps,
        guidance=guidance,
        negative=negative,
        micro_batch=micro_batch,
        keep_trajectory=keep_trajectory,
    )
    return replace(made, images=decoded(pipeline, made.latents))


def sample_latents(
    pipeline: SupportsSampling,
    rows: Sequence[Row],
    plan: Plan = Plan(),
    *,
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    negative: str | None = None,
    micro_batch: int = 64,
    keep_trajectory: bool = False,
) -> Samples:
    """`sample` without its pictures, for `decoded` to make elsewhere, or later.   Raises PatchError as `sample` does."""
    rows = tuple(rows)
    require_parts(pipeline, "sample", SupportsSampling)
    steps, guidance = pipeline.defaults.run(steps, guidance)
    if not isinstance(plan, Plan):
        raise PatchError(f"the plan of a run is {plan!r}; give Plan([Swap(...), ...])")
    _require_rows(rows)
    run = plan.at(pipeline.schedule, steps)
    _require_starts(rows, run, steps)
    if any(_starts_by_itself(row) for row in rows):
        require_parts(pipeline, "a row with latents, or that joins later,", SupportsPartialRuns)
    if micro_batch < 1:
        raise PatchError(f"micro_batch is {micro_batch}; give one row at least")
    guiding = as_guidance(guidance, negative)
    guiding.check(rows)
    texts = encode(pipeline, branch_rows(rows, guiding))
    run.check(rows, find_sites(pipeline.denoiser), steps, tokens=texts.tokens)
    require_readable(rows, plan, texts)
    recorder = Recorder(pipeline, rows, run, steps, texts)
    loop = Loop(pipeline, run, texts, recorder, steps, guiding, keep_trajectory)
    for group, fresh in pack(rows, plan, max(micro_batch // len(guiding.branches), 1)):
        loop.run(group, fresh)
    return Samples(
        loop.latents, {}, plan, rows, steps, guidance, loop.trajectory, recorder.ledger()
    )


def decoded(pipeline: SupportsSampling, latents: dict[str, Tensor]) -> dict[str, Image.Image]:
    """The pictures of latents (C, H, W), one at a time, by the same names.   Raises PatchError for NaN and infinity."""
    return {name: pipeline.decode(one[None])[0] for name, one in latents.items()}


def decoding(
    pipeline: SupportsSampling, latents: dict[str, Tensor]
) -> Callable[[], dict[str, Image.Image]]:
    """Prepare `decoded` for another thread, with this thread's autocast, inference mode and context variables.

    If the decoder has hooks, or a forward that somebody replaced as offloading does, decode now instead.  Hooks act
    only in the thread that set them, and weights must not move while the denoiser runs.
    """
    act = partial(decoded, pipeline, latents)
    decoder = pipeline.decoder
    kind = pipeline.device.type
    parts = decoder.modules() if isinstance(decoder, nn.Module) else ()
    if any(
        part._forward_pre_hooks or part._forward_hooks or "forward" in vars(part) for part in parts
    ):
        return partial(dict, act())
    here = copy_context()
    inference = torch.is_inference_mode_enabled()
    cast = dict(dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))

    def elsewhere() -> dict[str, Image.Image]:
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast(kind, **cast):
            return act()

    return partial(here.run, elsewhere)


# --- what a run may ask for


def _require_rows(rows: Sequence[Row]) -> None:
    for prompt in (prompt for row in rows for prompt in (row.prompt, row.pooled)):
        if prompt is not None and not isinstance(prompt, str):
            raise PatchError(
                f"a prompt is {prompt!r}, no text; give each row one, and one negative prompt for all"
            )
    names = [row.name for row in rows]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not rows:
        raise PatchError(
            f"rows must be named apart, and at least one; repeated: {repeated[:3]}, rows: {len(rows)}"
        )
    if twins := [row.name for row in rows if row.branch != CONDITIONAL]:
        raise PatchError(
            f"row {twins[0]!r} is unconditional; name conditional rows alone, guidance adds their twins"
        )


def _starts_by_itself(row: Row) -> bool:
    """Whether a row starts from something else than its seed's noise at step 0."""
    return row.joins != 0 or row.latents is not None or row.copies is not None


def _require_starts(rows: Sequence[Row], plan: Plan, steps: int) -> None:
    """Raise PatchError for a row that joins outside the run or from nothing, and for swaps before it joins."""
    by_name = {row.name: row for row in rows}
    for row in filter(_starts_by_itself, rows):
        if not row.sampled:
            raise PatchError(
                f"row {row.name!r} is not sampled, and so starts from nothing; leave out joins, latents, copies"
            )
        if not 0 <= row.joins < steps:
            raise PatchError(
                f"row {row.name!r} joins at step {row.joins}; this run has steps 0..{steps - 1}"
            )
        if (row.latents is None) == (row.copies is None):
            raise PatchError(
                f"row {row.name!r} joins at step {row.joins} with {'neither' if row.latents is None else 'both'} latents "
                "and copies; give one of them"
            )
        if row.copies is not None:
            _require_origin(row, by_name)
    for swap in plan.swaps:
        for reader in swap.readers:
            _require_present(swap, reader, by_name)


def _require_origin(row: Row, by_name: dict[str, Row]) -> None:
    """Raise PatchError unless the row that another copies is sampled, and there when the other joins."""
    origin = by_name.get(row.copies)
    if origin is None:
        raise PatchError(
            f"row {row.name!r} copies {row.copies!r}, which is no row here{closest(row.copies, by_name)}"
        )
    later = origin.joins > row.joins or (origin.copies is not None and origin.joins == row.joins)
    if later or not origin.sampled:
        raise PatchError(
            f"row {row.name!r} copies {origin.name!r} at step {row.joins}, and that row "
            f"{f'joins at step {origin.joins}' if origin.sampled else 'is not sampled'}; copy one that is there before"
        )


def _require_present(swap, reader: str, by_name: dict[str, Row]) -> None:
    """Raise PatchError if a swap acts on a reader, or reads a donor, before that row has joined."""
    if reader not in by_name or swap.donor not in by_name:
        return  # `Plan.check` names them
    joined = by_name[reader].joins
    first = joined if swap.steps is None else swap.steps[0]
    for row in (by_name[reader], by_name[swap.donor]):
        if row.joins > first:
            raise PatchError(
                f"row {row.name!r} joins at step {row.joins}, and a swap names it from step {first} on; "
                f"give the swap steps of {row.joins} or more"
            )


def require_readable(rows: Sequence[Row], plan: Plan, texts: Texts) -> None:
    """Raise PatchError unless the rows that are not sampled are donors alone, and their keys and values known."""
    unsampled = {row.name for row in rows if not row.sampled}
    read = {swap.donor for swap in plan.swaps}
    reading = {name for swap in plan.swaps for name in swap.readers}
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


# --- the loop


@dataclass
class Loop:
    """The denoising of a run, group by group, and what comes of it by row name.

    plan  of loop indices, without a window;  keep: whether trajectories are kept
    """

    pipeline: SupportsSampling
    plan: Plan
    texts: Texts
    recorder: Recorder
    steps: int
    guidance: Guidance
    keep: bool
    latents: dict[str, Tensor] = field(default_factory=dict)
    trajectory: dict[str, list[Tensor]] = field(default_factory=dict)

    def run(self, group: Sequence[Row], fresh: Sequence[Row]) -> None:
        """Denoise a group of rows.  Those of `fresh` are new in it and are kept."""
        drawn = [row for row in group if row.sampled]
        draws = self.pipeline.noises([row.seed for row in drawn])
        if any(_starts_by_itself(row) for row in drawn):
            final = self._in_parts(group, fresh, draws)
        else:  # in one call, so that a pipeline that can only run as a whole serves, too
            final = self._whole(group, fresh, draws)
        for row in fresh:
            self.latents[row.name] = final[row.name]

    def _whole(self, group, fresh, draws: Iterator[Tensor]) -> dict[str, Tensor]:
        drawn = [row for row in group if row.sampled]
        batch = branch_rows(group, self.guidance)
        with self.recorder.watching(batch, fresh) as enter:
            x = self.pipeline.denoise(
                next(draws),
                self.texts.of(batch),
                steps=self.steps,
                guidance=self.guidance,
                noises=draws,
                slots=self._slots(batch, enter),
                on_step=self._keeping(drawn, fresh),
            )
        return _by_name(drawn, x)

    def _in_parts(self, group, fresh, draws: Iterator[Tensor]) -> dict[str, Tensor]:
        """Final latents by row name.  A part of the run ends where rows join."""
        drawn = [row for row in group if row.sampled]
        now = self._entering(drawn, next(draws))
        states = {name: self._first_state(x) for name, x in now.items()}
        bounds = sorted({row.joins for row in drawn} | {self.steps})
        for _ in range(bounds[0]):  # a row's noise of step i is the same wherever the run begins
            next(draws)
        for first, stop in pairwise(bounds):
            for row in (row for row in drawn if row.joins == first and row.copies is not None):
                now[row.name] = now[row.copies]
                states[row.name] = states[row.copies]
            active = [row for row in group if row.joins <= first]
            places = [i for i, row in enumerate(drawn) if row.joins <= first]
            noises = (draw[places] for draw in draws)
            x, state = self._part(active, fresh, now, states, range(first, stop), noises)
            names = [row.name for row in active if row.sampled]
            now |= dict(zip(names, x))
            states |= {
                name: {key: value[b] for key, value in state.items()}
                for b, name in enumerate(names)
            }
        if keeping := self._keeping(drawn, fresh):
            keeping(self.steps, torch.stack([now[row.name] for row in drawn]))
        return now

    def _part(
        self, active, fresh, now: dict, states: dict, only: range, noises
    ) -> tuple[Tensor, State]:
        """Latents and state of the sampled rows after some steps, in which the same rows are there."""
        drawn = [row for row in active if row.sampled]
        batch = branch_rows(active, self.guidance)
        x = torch.stack([now[row.name] for row in drawn])  # (B, C, H, W)
        first = states[drawn[0].name]
        state = {key: torch.stack([states[row.name][key] for row in drawn]) for key in first}
        with self.recorder.watching(batch, fresh) as enter:
            return self.pipeline.advance(
                x,
                self.texts.of(batch),
                state,
                only=only,
                steps=self.steps,
                guidance=self.guidance,
                noises=noises,
                slots=self._slots(batch, enter),
                on_step=self._keeping(drawn, fresh),
            )

    def _entering(self, drawn: Sequence[Row], noise: Tensor) -> dict[str, Tensor]:
        """What each row starts from by its seed or its own latents.  Raises PatchError for latents of another shape."""
        now = _by_name(drawn, self.pipeline.enter(noise, self.steps))
        for row in (row for row in drawn if row.latents is not None):
            if row.latents.shape != noise.shape[1:]:
                raise PatchError(
                    f"row {row.name!r} starts from latents of shape {tuple(row.latents.shape)}; this model's are "
                    f"{tuple(noise.shape[1:])}: give channels, height and width of one row"
                )
            now[row.name] = row.latents.to(noise)
        return now

    def _first_state(self, x: Tensor) -> State:
        """The guidance's state of one row x (C, H, W) before its first step."""
        return {key: value[0] for key, value in self.guidance.begin(x[None]).items()}

    def _keeping(
        self, drawn: Sequence[Row], fresh: Sequence[Row]
    ) -> Callable[[int, Tensor], None] | None:
        """on_step of rows whose latents are kept.  None where none are."""
        if not self.keep:
            return None

        def on_step(step: int, x: Tensor) -> None:
            for b, row in enumerate(drawn):
                if row in fresh:
                    self.trajectory.setdefault(row.name, []).append(x[b])

        return on_step

    def _slots(self, batch: Sequence[Row], enter: Callable) -> Callable:
        """slots(step) of a batch.  What the plan says of the step is entered in the ledger."""
        sites = find_sites(self.pipeline.denoiser)
        graph = compiled(self.pipeline.denoiser)
        tokens = self.texts.tokens
        made = {}

        def slots(step: int):
            acting = self.plan.acting(step)
            if (
                acting not in made
            ):  # most steps are like the one before, and seventy sites take a quarter of a second
                tables = self.plan.slots(step, batch, sites, tokens=tokens)
                whole = spelled_out(tables, len(batch), tokens, sites) if graph else tables
                made[acting] = (
                    tables,
                    to_device(self.texts.slots(whole, batch, len(sites)), self.pipeline.device),
                )
            tables, on_device = made[acting]
            enter(step, tables)
            return on_device

        return slots


def _by_name(rows: Sequence[Row], x: Tensor) -> dict[str, Tensor]:
    return {row.name: one for row, one in zip(rows, x)}


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
    needs = _needs(rows, plan)
    groups, done, sampled = [[]], set(), {row.name for row in rows if row.sampled}
    for row in rows:
        if not row.sampled:
            continue
        names = [*sorted(_needed(row.name, needs)), row.name]
        if groups[-1] and len(sampled.intersection(groups[-1] + names)) > limit:
            groups.append([])
        groups[-1] += [name for name in names if name not in groups[-1]]
    packed = []
    for names in groups:
        group = [row for row in rows if row.name in names]
        packed.append((group, [row for row in group if row.sampled and row.name not in done]))
        done.update(names)
    return [(group, fresh) for group, fresh in packed if fresh]


def _needs(rows: Sequence[Row], plan: Plan) -> dict[str, set[str]]:
    """Row name -> the rows that it reads or copies."""
    needs = {row.name: {row.copies} - {None} for row in rows}
    for swap in plan.swaps:
        for reader in swap.readers:
            needs[reader].add(swap.donor)
    return needs


def _needed(name: str, needs: dict[str, set[str]]) -> set[str]:
    """Every row that `name` needs, directly or through another row."""
    found, todo = set(), [name]
    while todo:
        new = needs[todo.pop()] - found - {name}
        found |= new
        todo += new
    return found

"""The audit computes every swap of a run again in float64, by code that shares no arithmetic with what ran.

B batch rows, H heads, M queries, N keys, T text tokens, D head width

    A[b, h] = softmax(q[b, h] [k_image[b, h]; k[read_k, h]]^T / sqrt(D)) [v_image[b, h]; v[read_v, h]]

The modules of a real run put out q, k and v, and its `to_out` took in A.  read_k and read_v (B, H, T)
follow from the definition of `Swap` alone.  The run's error is held against the errors of plain torch on
the same numbers, because no computation in a dtype can be asked for more than that dtype has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from textpatch.errors import PatchError
from textpatch.guidance import Guidance, as_guidance, branch_rows
from textpatch.pipelines import (
    DrawsByItself,
    SupportsSampling,
    draws_by_itself,
    require_sampling,
)
from textpatch.plan import Plan, Row, Swap
from textpatch.ports.shipped import pipeline_sites
from textpatch.recording import Record, eager, recording_sites
from textpatch.sites import Selectors, Site, select_sites
from textpatch.text import aligned

SCHEMA_VERSION = 1
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Check:
    """One swap at one site and step, held against its replay in float64.

    swap       place of the swap in the plan.  None stands for the rows that no swap names at the site and
               step
    rows       labels of the rows the swap names.  All figures are over these rows
    error      largest |A - replay| of the run
    eager      largest |A - replay| of softmax(q k^T / sqrt(D)) v in the run's dtype
    sdpa       largest |A - replay| of torch's scaled_dot_product_attention
    magnitude  largest |replay|
    effect     largest |replay - replay without the plan|
    floor      2 u (1 + max_j |s_j|) sum_j p_j |v_j| with scores s, weights p and the unit roundoff u.  To
               first order it is what A moves if scores, weights and output are rounded once each, so no
               error below it is a fault.  In half precision softmax runs in float32, and the scores are
               left out
    """

    swap: int | None
    site: int
    name: str
    step: int
    rows: tuple[str, ...]
    dtype: str
    error: float
    eager: float
    sdpa: float
    magnitude: float
    effect: float
    floor: float

    @property
    def allowed(self) -> float:
        """Largest error that passes, never less than the floor.

        It is 1.1 times the worse of eager and sdpa, and in half precision the smaller of eager and 1.25
        times sdpa.
        """
        if getattr(torch, self.dtype) in HALF:
            return max(self.floor, min(self.eager, 1.25 * self.sdpa))
        # not 1.1 eager alone: on a CPU torch's own sdpa was measured to err up to 2.5 times as much in
        # float32
        return max(self.floor, 1.1 * max(self.eager, self.sdpa))

    @property
    def passed(self) -> bool:
        """True where the error is allowed, False for NaN."""
        return self.error <= self.allowed

    @property
    def verdict(self) -> str:
        """Word for the outcome in the table."""
        if self.passed:
            return "passed"
        return "FAILED"

    @property
    def what(self) -> str:
        """Words for the rows that the check is of, in an error."""
        if self.swap is None:
            return "rows without a swap"
        return f"swap {self.swap}"

    @property
    def relative(self) -> float:
        """Error over the magnitude of the replay, the error itself where that is 0."""
        return self.error / (self.magnitude or 1.0)


@dataclass(frozen=True)
class AuditReport:
    """All checks of an audit, in the order of steps, sites and swaps."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def fault(self) -> PatchError | None:
        """The error that `require` raises, None where every check passed."""
        if not self.failed:
            return None
        check = self.failed[0]
        return PatchError(
            f"{len(self.failed)} of {len(self.checks)} checks failed, first {check.what} "
            f"at site {check.site} ({check.name}), step {check.step}: error {check.error:.3g} "
            f"against float64, allowed {check.allowed:.3g}; what ran is not what the plan says, "
            "so do not use the run"
        )

    def require(self) -> None:
        """Raise PatchError unless every check passed."""
        fault = self.fault()
        if fault is not None:
            raise fault

    def to_json(self) -> str:
        """Every check with all its figures, and whether it passed."""
        derived = ("relative", "allowed", "passed")
        checks = [
            asdict(check) | {name: getattr(check, name) for name in derived}
            for check in self.checks
        ]
        return json.dumps({"schema_version": SCHEMA_VERSION, "checks": checks})

    def __str__(self) -> str:
        columns = ("error", "relative", "eager", "sdpa", "allowed", "effect")
        lines = [("site", "step", "swap", *columns, "verdict")]
        for check in self.checks:
            figures = (f"{getattr(check, column):.1e}" for column in columns)
            place = "none" if check.swap is None else str(check.swap)
            lines.append((str(check.site), str(check.step), place, *figures, check.verdict))
        passed = len(self.checks) - len(self.failed)
        return "\n".join([*aligned(lines), f"{passed} of {len(self.checks)} checks passed"])


def audit(
    pipeline: SupportsSampling | DrawsByItself,
    rows: Sequence[Row],
    plan: Plan,
    *,
    sample: Callable[..., object],
    steps: int,
    guidance: float | Guidance,
    negative: str | None = None,
    sites: Selectors | None = None,
    at: Iterable[int] | None = None,
) -> AuditReport:
    """Run a plan once more, and hold each swap against its replay in float64.

    sample  carries the plan out.  It is `textpatch.sample` or a sampler of the same signature.  All rows go
            through it in one batch, unconditional twins first
    sites   which sites to audit, all swapped ones when None
    at      which steps to audit, the first, middle and last step of every swap when None
    A check that fails raises nothing by itself, see `AuditReport.failed` and `AuditReport.require`.
    Raises PatchError for a plan without swaps and for unknown sites and steps, and whatever `sample` raises.
    """
    require_sampling(pipeline, "audit")
    known = pipeline_sites(pipeline)
    if not plan.swaps:
        raise PatchError(
            "the plan has no swap, so there is nothing to audit; give the plan of the run"
        )
    steps, guidance = pipeline.defaults.run(steps, guidance)
    plan = plan.at(pipeline.schedule, steps)
    if sites is None:
        sites = [site for swap in plan.swaps for site in swap.sites]
    chosen = select_sites(known, sites)
    at = _checked_steps(plan, at, steps)
    # a donor is audited, too, and reads what it read unsampled
    rows = [replace(row, sampled=True) for row in rows]
    batch = _batch(pipeline, rows, guidance, negative)
    definition = Definition(plan, batch, known)
    checks: list[Check] = []

    def check(record: Record) -> None:
        checks.extend(definition.checks(record))

    with recording_sites(pipeline.denoiser, chosen, at, check):
        sample(
            pipeline,
            rows,
            plan,
            steps=steps,
            guidance=guidance,
            negative=negative,
            micro_batch=len(batch),
        )
    _require_all(checks, chosen, at, steps)
    return AuditReport(tuple(checks))


def _batch(
    pipeline: SupportsSampling | DrawsByItself,
    rows: Sequence[Row],
    guidance: float | Guidance,
    negative: str | None,
) -> list[Row]:
    """Rows of the denoiser's one call in a step."""
    if draws_by_itself(pipeline):
        return pipeline.audited_batch(rows, guidance, negative)
    return branch_rows(rows, as_guidance(guidance, negative))


def _checked_steps(plan: Plan, at: Iterable[int] | None, steps: int) -> tuple[int, ...]:
    """Steps to audit, in order.  Raises PatchError for none, and for steps outside the run."""
    if at is None:
        return telling_steps(plan, steps)
    at = tuple(sorted(set(at)))
    if not at or not 0 <= at[0] <= at[-1] < steps:
        raise PatchError(
            f"asked to audit steps {list(at)}; this run has steps 0..{steps - 1}, so give some of these"
        )
    return at


def _require_all(
    checks: Sequence[Check], sites: Sequence[Site], at: Sequence[int], steps: int
) -> None:
    """Raise PatchError unless every site was checked at every step."""
    wanted = {(site.index, step) for site in sites for step in at}
    missing = wanted - {(check.site, check.step) for check in checks}
    if missing:
        raise PatchError(
            f"`sample` never came to site and step {min(missing)}; it was asked for {steps} steps, "
            "so give a sampler that makes them all"
        )


def telling_steps(plan: Plan, steps: int) -> tuple[int, ...]:
    """First, middle and last step at which each swap acts."""
    spans = [swap.steps or range(steps) for swap in plan.swaps]
    telling = {step for span in spans for step in (span[0], span[len(span) // 2], span[-1])}
    return tuple(sorted(telling))


@dataclass(frozen=True)
class Definition:
    """A plan on labelled batch rows, taken at the word of `Swap`.

    It says who reads whom, and what attention must then give.
    """

    plan: Plan
    batch: Sequence[Row]
    sites: Sequence[Site]

    def checks(self, record: Record) -> Iterator[Check]:
        """Yield a check for each swap that acts at the record's site and step, and one for all other rows."""
        if len(record.q[0]) != len(self.batch):
            raise PatchError(
                f"site {record.site.index} ran on {len(record.q[0])} rows at step {record.step}, and "
                f"{len(self.batch)} were to be audited; `sample` must take as many at once as its "
                "micro_batch allows"
            )
        figures = self._figures(record)
        named = [(i, self.readers(swap, record)) for i, swap in enumerate(self.plan.swaps)]
        rest = set(range(len(self.batch))) - {b for _, rows in named for b in rows}
        dtype = str(record.q[0].dtype).removeprefix("torch.")
        site = record.site
        for i, rows in [*named, (None, sorted(rest))]:
            if rows:
                labels = tuple("/".join(self.batch[b].label) for b in rows)
                largest = (float(figure[rows].abs().max()) for figure in figures)
                yield Check(i, site.index, site.name, record.step, labels, dtype, *largest)

    def _figures(self, record: Record) -> list[Tensor]:
        """Figures of a `Check` before their maximum is taken, in the order of its fields."""
        q = torch.cat(record.q[: len(record.out)], dim=2)  # without text queries of no output
        own_k = self.own(record.k)
        own_v = self.own(record.v)
        k = self.read("k", record, own_k)
        v = self.read("v", record, own_v)
        expected, floor = replayed(q, k, v)
        plain, _ = replayed(q, torch.cat(own_k, dim=2), torch.cat(own_v, dim=2))
        ran = torch.cat(record.out, dim=2)
        made = (ran, eager(q, k, v), F.scaled_dot_product_attention(q, k, v))
        return [*(x.double() - expected for x in made), expected, expected - plain, floor]

    def own(self, made: list[Tensor]) -> list[Tensor]:
        """Keys or values of each batch row, text last.

        made  keys or values of the image, if there are any, and of the text.  A run may make those of the
              text once for each distinct prompt, in the order of the rows that read them
        """
        *image, text = made
        prompts = list(dict.fromkeys(row.prompt for row in self.batch))
        if len(text) not in (len(self.batch), len(prompts)):
            raise PatchError(
                f"text of {len(text)} rows for {len(self.batch)} batch rows of {len(prompts)} prompts; "
                "a run makes text keys and values of each row, or of each prompt"
            )
        if len(text) == len(prompts):
            text = text[[prompts.index(row.prompt) for row in self.batch]]
        return [*image, text]

    def read(self, part: str, record: Record, made: list[Tensor]) -> Tensor:
        """Keys or values as the plan says they are read, the image's own before the text's of the rows read.

        part  "k" or "v"
        made  as `own` gives it
        """
        *image, text = made
        rows = self.rows_read(part, record, text.shape[2]).to(text.device)
        heads = torch.arange(text.shape[1], device=text.device)
        tokens = torch.arange(text.shape[2], device=text.device)
        return torch.cat([*image, text[rows, heads[:, None], tokens]], dim=2)  # (B, H, N, D)

    def rows_read(self, part: str, record: Record, tokens: int) -> Tensor:
        """Batch row whose key or value each entry reads, (B, H, T).  Later swaps win."""
        place = {(row.name, row.branch): b for b, row in enumerate(self.batch)}
        heads = record.site.text_heads
        read = torch.arange(len(self.batch))[:, None, None].repeat(1, heads, tokens)
        for swap in self.plan.swaps:
            if part not in swap.part:
                continue
            for b in self.readers(swap, record):
                donor = place[swap.donor, self.batch[b].branch]
                for head in swap.heads or range(heads):
                    read[b, head, list(swap.tokens or range(tokens))] = donor
        return read

    def readers(self, swap: Swap, record: Record) -> list[int]:
        """Batch rows that a swap names at the record's site and step."""
        in_step = swap.steps is None or record.step in swap.steps
        if not in_step or record.site not in select_sites(self.sites, swap.sites):
            return []
        named = [b for b, row in enumerate(self.batch) if row.name in swap.readers]
        return [b for b in named if swap.branch == "both" or self.batch[b].branch == "cond"]


def replayed(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A = softmax(q k^T / sqrt(D)) v and the floor of its error, see `Check`, both (B, H, M, D) and float64.

    A row and a head are computed at a time, because at full size the scores of one are all that fits.
    """
    outputs = []
    floors = []
    unit = torch.finfo(q.dtype).eps / 2
    heads = zip(*(x.flatten(0, 1).unbind() for x in (q, k, v)), strict=True)
    for one in heads:
        one_q, one_k, one_v = (x.double() for x in one)  # (M, D), (N, D), (N, D)
        scores = torch.einsum("md,nd->mn", one_q, one_k) / math.sqrt(q.shape[-1])
        weights = torch.exp(scores - scores.amax(dim=1, keepdim=True))
        weights /= weights.sum(dim=1, keepdim=True)
        outputs.append(torch.einsum("mn,nd->md", weights, one_v))
        rounded = 1
        if q.dtype not in HALF:
            rounded = 1 + scores.abs().amax(dim=1, keepdim=True)
        floors.append(2 * unit * rounded * torch.einsum("mn,nd->md", weights, one_v.abs()))
    shape = q.shape[:2]
    return torch.stack(outputs).unflatten(0, shape), torch.stack(floors).unflatten(0, shape)

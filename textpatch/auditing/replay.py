"""The audit: every swap of a run computed again in float64, by code that shares no arithmetic with what ran.

B batch rows, H heads, M queries, N keys, T text tokens, D head width

    A[b, h] = softmax(q[b, h] [k_image[b, h]; k[read_k, h]]^T / sqrt(D)) [v_image[b, h]; v[read_v, h]]

q, k, v are what the modules of a real run put out and A is what its `to_out` took in; read_k and read_v (B, H, T)
follow from the definition of `Swap` alone.  The run's error is held against those of plain torch on the same
numbers, because no computation in a dtype can be asked for more than that dtype has.
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
from textpatch.pipelines import SupportsSampling, require_parts
from textpatch.plan import Plan, Row, Swap
from textpatch.ports.shipped import find_sites
from textpatch.recording import Record, eager, recording_sites
from textpatch.sites import Site, select_sites

SCHEMA_VERSION = 1
HALF = torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Check:
    """One swap at one site and step (None: the rows that no swap names there), against its replay in float64.

    error, eager, sdpa  largest |A - replay| of the run, of softmax(q k^T / sqrt(D)) v in the run's dtype, and
                        of torch's scaled_dot_product_attention, over the rows named
    magnitude           largest |replay|;  effect: largest |replay - replay without the plan|
    floor               2 u (1 + max_j |s_j|) sum_j p_j |v_j|, scores s, weights p, u the unit roundoff: the first
                        order of what rounding scores, weights and output once each does to A, so that no error
                        below is a fault.  Without the scores in half precision, where softmax runs in float32
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
        """1.1 times the worse of eager and sdpa, in half precision eager and 1.25 sdpa; never less than the floor."""
        if getattr(torch, self.dtype) in HALF:
            return max(self.floor, min(self.eager, 1.25 * self.sdpa))
        # not 1.1 eager alone: on a CPU torch's own sdpa was measured to err up to 2.5 times as much in float32
        return max(self.floor, 1.1 * max(self.eager, self.sdpa))

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # False for NaN

    @property
    def what(self) -> str:
        return "rows without a swap" if self.swap is None else f"swap {self.swap}"

    @property
    def relative(self) -> float:
        return self.error / self.magnitude if self.magnitude else self.error


@dataclass(frozen=True)
class AuditReport:
    """All checks of an audit, in the order of steps, sites and swaps."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def require(self) -> None:
        """Raise PatchError unless every check passed."""
        if self.failed:
            check = self.failed[0]
            raise PatchError(
                f"{len(self.failed)} of {len(self.checks)} checks failed, first {check.what} at site {check.site} "
                f"({check.name}), step {check.step}: error {check.error:.3g} against float64, allowed "
                f"{check.allowed:.3g}; what ran is not what the plan says, so do not use the run"
            )

    def to_json(self) -> str:
        """Every check with all its figures, and whether it passed."""
        derived = "relative", "allowed", "passed"
        checks = [
            asdict(check) | {name: getattr(check, name) for name in derived}
            for check in self.checks
        ]
        return json.dumps({"schema_version": SCHEMA_VERSION, "checks": checks})

    def __str__(self) -> str:
        columns = "error", "relative", "eager", "sdpa", "allowed", "effect"
        lines = [("site", "step", "what", *columns, "verdict")]
        for check in self.checks:
            figures = (f"{getattr(check, column):.2e}" for column in columns)
            lines.append(
                (
                    str(check.site),
                    str(check.step),
                    check.what,
                    *figures,
                    ("FAILED", "passed")[check.passed],
                )
            )
        widths = [max(map(len, column)) for column in zip(*lines)]
        table = (
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines
        )
        return "\n".join(
            [*table, f"{len(self.checks) - len(self.failed)} of {len(self.checks)} checks passed"]
        )


def audit(
    pipeline,
    rows: Sequence[Row],
    plan: Plan,
    *,
    sample: Callable,
    steps: int,
    guidance: float | Guidance,
    negative: str | None = None,
    sites=None,
    at: Iterable[int] | None = None,
) -> AuditReport:
    """Run a plan once more and hold each swap against its replay in float64; see the module docstring.

    sample  what carries the plan out: `textpatch.sample`, or a sampler of the same signature.  All rows go
            through it in one batch, unconditional twins first
    sites   which sites to audit, all swapped ones when None
    at      which steps; the first, middle and last step of every swap when None
    Raises PatchError for a plan without swaps, unknown sites and steps, and whatever `sample` refuses.  A check
    that fails raises nothing by itself: see `AuditReport.failed` and `AuditReport.require`.
    """
    require_parts(pipeline, "audit", SupportsSampling)
    known = find_sites(pipeline.denoiser)
    if not plan.swaps:
        raise PatchError(
            "the plan has no swap, so there is nothing to audit; give the plan of the run"
        )
    plan = plan.at(pipeline.schedule, steps)
    chosen = select_sites(
        known, [x for swap in plan.swaps for x in swap.sites] if sites is None else sites
    )
    at = telling_steps(plan, steps) if at is None else tuple(sorted(set(at)))
    if not at or not 0 <= at[0] <= at[-1] < steps:
        raise PatchError(f"asked to audit steps {list(at)}; this run has steps 0..{steps - 1}")
    rows = [
        replace(row, sampled=True) for row in rows
    ]  # a donor is audited, too, and reads what it read unsampled
    batch = branch_rows(rows, as_guidance(guidance, negative))
    definition, checks = Definition(plan, batch, known), []
    with recording_sites(
        pipeline.denoiser, chosen, at, lambda record: checks.extend(definition.checks(record))
    ):
        sample(
            pipeline,
            rows,
            plan,
            steps=steps,
            guidance=guidance,
            negative=negative,
            micro_batch=len(batch),
        )
    missing = {(site.index, step) for site in chosen for step in at} - {
        (c.site, c.step) for c in checks
    }
    if missing:
        raise PatchError(
            f"`sample` never came to site and step {sorted(missing)[0]}; it was asked for {steps} steps"
        )
    return AuditReport(tuple(checks))


def telling_steps(plan: Plan, steps: int) -> tuple[int, ...]:
    """The first, the middle and the last step at which each swap acts."""
    spans = [swap.steps or range(steps) for swap in plan.swaps]
    return tuple(
        sorted({step for span in spans for step in (span[0], span[len(span) // 2], span[-1])})
    )


@dataclass(frozen=True)
class Definition:
    """A plan on labelled batch rows, taken at the word of `Swap`: who reads whom, and what follows from it."""

    plan: Plan
    batch: Sequence[Row]
    sites: Sequence[Site]

    def checks(self, record: Record) -> Iterator[Check]:
        """One for each swap that acts at the record's site and step, and one for the rows that none names."""
        if len(record.q[0]) != len(self.batch):
            raise PatchError(
                f"site {record.site.index} ran on {len(record.q[0])} rows at step {record.step}, and {len(self.batch)} "
                "were to be audited; `sample` must take as many at once as its micro_batch allows"
            )
        figures = self._figures(record)
        named = [(i, self.readers(swap, record)) for i, swap in enumerate(self.plan.swaps)]
        rest = sorted(set(range(len(self.batch))) - {b for _, rows in named for b in rows})
        dtype = str(record.q[0].dtype).removeprefix("torch.")
        for i, rows in [*named, (None, rest)]:
            if rows:
                labels = tuple("/".join(self.batch[b].label) for b in rows)
                largest = (float(figure[rows].abs().max()) for figure in figures)
                yield Check(
                    i, record.site.index, record.site.name, record.step, labels, dtype, *largest
                )

    def _figures(self, record: Record) -> list[Tensor]:
        """Error of the run, of eager torch and of sdpa; the replay, what the plan changed in it, and the floor."""
        q = torch.cat(
            record.q[: len(record.out)], dim=2
        )  # text queries whose output nobody takes are left out
        own_k, own_v = self.own(record.k), self.own(record.v)
        k, v = self.read("k", record, own_k), self.read("v", record, own_v)
        expected, floor = replayed(q, k, v)
        plain, _ = replayed(q, torch.cat(own_k, dim=2), torch.cat(own_v, dim=2))
        made = torch.cat(record.out, dim=2), eager(q, k, v), F.scaled_dot_product_attention(q, k, v)
        return [*(x.double() - expected for x in made), expected, expected - plain, floor]

    def own(self, made: list[Tensor]) -> list[Tensor]:
        """Keys or values of each batch row, text last.

        A run may make those of its distinct prompts once, in the order of the rows that read them.
        """
        *image, text = made
        prompts = list(dict.fromkeys(row.prompt for row in self.batch))
        if len(text) not in (len(self.batch), len(prompts)):
            raise PatchError(
                f"text of {len(text)} rows for {len(self.batch)} batch rows of {len(prompts)} prompts; a run makes "
                "text keys and values of each row, or of each prompt"
            )
        rows = [prompts.index(row.prompt) for row in self.batch]
        return [*image, text[rows] if len(text) == len(prompts) else text]

    def read(self, part: str, record: Record, made: list[Tensor]) -> Tensor:
        """Keys or values as the plan says they are read: the image's own, then the text's of the rows read."""
        *image, text = made
        rows = self.rows_read(part, record, text.shape[2]).to(text.device)
        heads, tokens = (torch.arange(n, device=text.device) for n in text.shape[1:3])
        return torch.cat([*image, text[rows, heads[:, None], tokens]], dim=2)  # (B, H, N, D)

    def rows_read(self, part: str, record: Record, tokens: int) -> Tensor:
        """(B, H, T): the batch row whose key or value each entry reads; later swaps win."""
        place = {(row.name, row.branch): b for b, row in enumerate(self.batch)}
        read = torch.arange(len(self.batch))[:, None, None].repeat(
            1, record.site.text_heads, tokens
        )
        for swap in self.plan.swaps:
            for b in self.readers(swap, record) if part in swap.part else ():
                for head in swap.heads or range(record.site.text_heads):
                    read[b, head, list(swap.tokens or range(tokens))] = place[
                        swap.donor, self.batch[b].branch
                    ]
        return read

    def readers(self, swap: Swap, record: Record) -> list[int]:
        """The batch rows that a swap names at the record's site and step."""
        in_step = swap.steps is None or record.step in swap.steps
        if not in_step or record.site not in select_sites(self.sites, swap.sites):
            return []
        named = [b for b, row in enumerate(self.batch) if row.name in swap.readers]
        return [b for b in named if swap.branch == "both" or self.batch[b].branch == "cond"]


def replayed(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A = softmax(q k^T / sqrt(D)) v and the floor of its error, see `Check`, both (B, H, M, D) and float64.

    A row and a head at a time: at full size the scores of one are all that fits.
    """
    made, floors, unit = [], [], torch.finfo(q.dtype).eps / 2
    for one in zip(*(x.flatten(0, 1) for x in (q, k, v))):
        one_q, one_k, one_v = (x.double() for x in one)  # (M, D), (N, D), (N, D)
        scores = torch.einsum("md,nd->mn", one_q, one_k) / math.sqrt(q.shape[-1])
        weights = torch.exp(scores - scores.amax(dim=1, keepdim=True))
        weights /= weights.sum(dim=1, keepdim=True)
        made.append(torch.einsum("mn,nd->md", weights, one_v))
        rounded = 1 if q.dtype in HALF else 1 + scores.abs().amax(dim=1, keepdim=True)
        floors.append(2 * unit * rounded * torch.einsum("mn,nd->md", weights, one_v.abs()))
    return tuple(torch.stack(some).unflatten(0, q.shape[:2]) for some in (made, floors))

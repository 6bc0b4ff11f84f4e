"""The audit: every swap of a run computed again in float64, by code that shares nothing with what ran.

B batch rows, H heads, M queries, N keys, T text tokens, D head width

    A[b, h] = softmax(q[b, h] [k_image[b, h]; k[read_k, h]]^T / sqrt(D)) [v_image[b, h]; v[read_v, h]]

q, k, v are what the modules of a real run put out and A is what its `to_out` took in; read_k and read_v (B, H, T)
follow from the definition of `Swap` alone.  The run's error is held against those of plain torch on the same
numbers, because no computation in a dtype can be asked for more than that dtype has.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.plan import Plan, Row, Swap, with_guidance
from textpatch.sites import Site, find_sites, select_sites

# Below a site, per kind: the modules that make queries, keys and values, image first and text last, and those
# that take the attention's output in.  A module that is not there is passed over: DeepFloyd IF's stage II has no
# image keys, SD3's last block no text output.
QUERIES = {"cross": ("to_q",), "added": ("to_q",), "joint": ("to_q", "add_q_proj")}
KEYS = {"cross": ("to_k",), "added": ("to_k", "add_k_proj"), "joint": ("to_k", "add_k_proj")}
VALUES = {"cross": ("to_v",), "added": ("to_v", "add_v_proj"), "joint": ("to_v", "add_v_proj")}
EXITS = {"cross": ("to_out.0",), "added": ("to_out.0",), "joint": ("to_out.0", "to_add_out")}
# What attention reads instead of a projection where there is such a norm after it.
NORMS = {"to_q": "norm_q", "to_k": "norm_k", "add_q_proj": "norm_added_q", "add_k_proj": "norm_added_k"}


@dataclass(frozen=True)
class Check:
    """One swap at one site and step (None: the rows that no swap names there), against its replay in float64.

    error, eager, sdpa  largest |A - replay| of the run, of softmax(q k^T / sqrt(D)) v in the run's dtype, and
                        of torch's scaled_dot_product_attention, over the rows named
    magnitude           largest |replay|;  effect: largest |replay - replay without the plan|
    floor               2 u (1 + max_j |s_j|) sum_j p_j |v_j|, scores s, weights p, u the unit roundoff: the first
                        order of what rounding scores, weights and output once each can do to A, so that an error
                        below it is no fault, whatever eager's is.  Without the scores in half precision, where
                        softmax runs in float32
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
        """1.1 eager; in half precision eager and 1.25 sdpa; but never less than the floor."""
        half = is_half(getattr(torch, self.dtype))
        return max(self.floor, min(self.eager, 1.25 * self.sdpa) if half else 1.1 * self.eager)

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # False for NaN

    @property
    def relative(self) -> float:
        return self.error / self.magnitude if self.magnitude else self.error


@dataclass(frozen=True)
class AuditReport:
    """All checks of an audit, in the order of sites, steps and swaps."""

    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def require(self) -> None:
        """Raise PatchError unless every check passed."""
        if self.failed:
            first = self.failed[0]
            raise PatchError(
                f"{len(self.failed)} of {len(self.checks)} checks failed, first {_named(first)} at site {first.site} "
                f"({first.name}), step {first.step}: error {first.error:.3g} against float64, allowed "
                f"{first.allowed:.3g}; what ran is not what the plan says, so do not use the run"
            )

    def __str__(self) -> str:
        titles = "site", "step", "what", "error", "relative", "eager", "sdpa", "allowed", "effect", "verdict"
        lines = [
            (str(c.site), str(c.step), _named(c), *(f"{x:.2e}" for x in (c.error, c.relative, c.eager, c.sdpa, c.allowed,
             c.effect)), "passed" if c.passed else "FAILED") for c in self.checks
        ]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(titles, *lines)]
        rows = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in (titles, *lines)]
        return "\n".join([*rows, f"{len(self.checks) - len(self.failed)} of {len(self.checks)} checks passed"])


def _named(check: Check) -> str:
    return "rows without a swap" if check.swap is None else f"swap {check.swap}"


def audit(pipeline, rows: Sequence[Row], plan: Plan, *, sample: Callable, steps: int, guidance: float,
          negative: str | None = None, sites=None, at: Iterable[int] | None = None) -> AuditReport:  # fmt: skip
    """Run a plan once more and hold each swap against its replay in float64; see the module docstring.

    sample  what carries the plan out: `textpatch.sample`, or a sampler of the same signature.  All rows go
            through it in one batch, unconditional twins first
    sites   which sites to audit, all swapped ones when None
    at      which steps; the first, middle and last step of every swap when None
    Raises PatchError for a plan without swaps, unknown sites and steps, and whatever `sample` refuses.  A check
    that fails raises nothing by itself: see `AuditReport.failed` and `AuditReport.require`.
    """
    known = find_sites(pipeline.denoiser)
    if not plan.swaps:
        raise PatchError("the plan has no swap, so there is nothing to audit; give the plan of the run")
    chosen = select_sites(known, [x for swap in plan.swaps for x in swap.sites] if sites is None else sites)
    at = telling_steps(plan, steps) if at is None else tuple(sorted(set(at)))
    if not at or not 0 <= at[0] <= at[-1] < steps:
        raise PatchError(f"asked to audit steps {list(at)}; this run has steps 0..{steps - 1}")
    batch = list(rows) if guidance == 1 else with_guidance(rows, negative)
    with recording(pipeline.denoiser, chosen, at) as records:
        sample(pipeline, rows, plan, steps=steps, guidance=guidance, negative=negative, micro_batch=len(batch))
    _require_whole(records, chosen, at, batch)
    return AuditReport(tuple(
        check for site in chosen for step in at
        for check in _checks(records[site.index, step], plan, step, batch, site, known)
    ))  # fmt: skip


def telling_steps(plan: Plan, steps: int) -> tuple[int, ...]:
    """The first, the middle and the last step at which each swap acts."""
    spans = [swap.steps or range(steps) for swap in plan.swaps]
    return tuple(sorted({step for span in spans for step in (span[0], span[len(span) // 2], span[-1])}))


def _require_whole(records: dict, sites: Sequence[Site], at: Sequence[int], batch: Sequence[Row]) -> None:
    for site in sites:
        for step in at:
            found = len(records[site.index, step].q[0]) if (site.index, step) in records else 0
            if found != len(batch):
                raise PatchError(
                    f"site {site.index} was to be audited at step {step} on {len(batch)} batch rows and ran on {found}; "
                    "`sample` must take every step, and all rows at once when micro_batch allows it"
                )


@dataclass
class Record:
    """What one site read and gave in one step: lists of (B, H, n, D), image first and text last."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    out: list[Tensor]


@contextmanager
def recording(model: nn.Module, sites: Sequence[Site], at: Sequence[int]) -> Iterator[dict[tuple[int, int], Record]]:
    """Keep the inputs and outputs of `sites` in the calls `at` of the model: (site index, step) -> Record."""
    latest: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    records: dict[tuple[int, int], Record] = {}
    modules = dict(model.named_modules())
    parts = {site: [_present(modules, site, kinds[site.kind]) for kinds in (QUERIES, KEYS, VALUES)] for site in sites}
    exits = {name: site for site in sites for name in _present(modules, site, EXITS[site.kind])}

    def entering(name: str, inputs) -> None:
        site, step = exits[name], calls[name]
        calls[name] += 1
        if step in at:
            # text keys and values may have been made once, before the first step: the latest are the ones read
            made = [[_by_head(latest[part], site) for part in names] for names in parts[site]]
            record = records.setdefault((site.index, step), Record(*made, []))
            record.out.append(_by_head(inputs.args[0], site))

    made = HookRegistry(model, [name for names in parts.values() for part in names for name in part])
    with made.observe(lambda name, output: latest.update({name: output})):
        with HookRegistry(model, exits).observe_inputs(entering):
            yield records


def _present(modules: dict[str, nn.Module], site: Site, paths: Sequence[str]) -> list[str]:
    """The modules of a site that are there, each replaced by its norm where it has one."""
    there = [path for path in paths if f"{site.name}.{path}" in modules]
    normed = [NORMS[path] if f"{site.name}.{NORMS.get(path)}" in modules else path for path in there]
    return [f"{site.name}.{path}" for path in normed]


def _by_head(x: Tensor, site: Site) -> Tensor:
    """A copy, (B, H, n, D), of (B, n, H D) or of what a norm per head made."""
    x = x if x.dim() == 4 else x.unflatten(-1, (-1, site.head_dim)).transpose(1, 2)
    return x.detach().clone()


def rows_read(plan: Plan, part: str, step: int, batch: Sequence[Row], site: Site, sites: Sequence[Site],
              tokens: int) -> Tensor:  # fmt: skip
    """(B, H, T): the batch row whose key or value each entry reads, by the definition of `Swap`; later ones win."""
    place = {(row.name, row.branch): b for b, row in enumerate(batch)}
    read = torch.arange(len(batch))[:, None, None].repeat(1, site.heads, tokens)
    for swap in plan.swaps:
        for b in readers(swap, step, batch, site, sites) if part in swap.part else ():
            for head in swap.heads or range(site.heads):
                read[b, head, list(swap.tokens or range(tokens))] = place[swap.donor, batch[b].branch]
    return read


def readers(swap: Swap, step: int, batch: Sequence[Row], site: Site, sites: Sequence[Site]) -> list[int]:
    """The batch rows that a swap names at a site and step."""
    if site not in select_sites(sites, swap.sites) or not (swap.steps is None or step in swap.steps):
        return []
    named = [b for b, row in enumerate(batch) if row.name in swap.readers]
    return [b for b in named if swap.branch == "both" or batch[b].branch == "cond"]


def _checks(record: Record, plan: Plan, step: int, batch: Sequence[Row], site: Site, sites) -> Iterator[Check]:
    """The checks of one site and step: of each swap that acts there, and of the rows that none names."""
    out = torch.cat(record.out, dim=2)
    q = torch.cat(record.q[: len(record.out)], dim=2)  # text queries whose output nobody takes are left out
    k, v = (_read(plan, part, step, batch, site, sites, made) for part, made in (("k", record.k), ("v", record.v)))
    (expected, floor), (plain, _) = replay(q, k, v), replay(q, torch.cat(record.k, dim=2), torch.cat(record.v, dim=2))
    made = out, eager(q, k, v), F.scaled_dot_product_attention(q, k, v)
    figures = [*(x.double() - expected for x in made), expected, expected - plain, floor]
    named = [(i, readers(swap, step, batch, site, sites)) for i, swap in enumerate(plan.swaps)]
    rest = sorted(set(range(len(batch))) - {b for _, some in named for b in some})
    for i, some in [*named, (None, rest)]:
        if some:
            labels = tuple("/".join(batch[b].label) for b in some)
            largest = (float(figure[some].abs().max()) for figure in figures)
            yield Check(i, site.index, site.name, step, labels, str(q.dtype).removeprefix("torch."), *largest)


def _read(plan: Plan, part: str, step: int, batch, site: Site, sites, made: list[Tensor]) -> Tensor:
    """Keys or values as the plan says they are read: the image's own, then the text's of the rows read."""
    *image, text = made
    read = rows_read(plan, part, step, batch, site, sites, text.shape[2]).to(text.device)
    heads, tokens = (torch.arange(n, device=text.device) for n in text.shape[1:3])
    return torch.cat([*image, text[read, heads[:, None], tokens]], dim=2)  # (B, H, N, D)


def replay(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """A = softmax(q k^T / sqrt(D)) v and the floor of its error, see `Check`, both (B, H, M, D) and float64.

    A row and a head at a time: at full size the scores of one are all that fits.
    """
    made, floors, unit = [], [], torch.finfo(q.dtype).eps / 2
    for one in zip(*(x.flatten(0, 1).double() for x in (q, k, v))):
        scores = torch.einsum("md,nd->mn", *one[:2]) / math.sqrt(q.shape[-1])
        weights = torch.exp(scores - scores.amax(dim=1, keepdim=True))
        weights /= weights.sum(dim=1, keepdim=True)
        rounded = 1 if is_half(q.dtype) else 1 + scores.abs().amax(dim=1, keepdim=True)
        made.append(torch.einsum("mn,nd->md", weights, one[2]))
        floors.append(2 * unit * rounded * torch.einsum("mn,nd->md", weights, one[2].abs()))
    return tuple(torch.stack(some).unflatten(0, q.shape[:2]) for some in (made, floors))


def is_half(dtype: torch.dtype) -> bool:
    return torch.finfo(dtype).bits == 16


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same in the dtype of q, k and v, as one would write it in torch."""
    ones = zip(*(x.flatten(0, 1) for x in (q, k, v)))
    out = [torch.softmax(a @ b.T * a.shape[-1] ** -0.5, dim=-1) @ c for a, b, c in ones]
    return torch.stack(out).unflatten(0, q.shape[:2])

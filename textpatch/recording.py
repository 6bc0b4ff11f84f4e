"""Recording of a real run, with the queries, keys, values and outputs of each site.

B batch rows, H heads, M queries, N keys, D head width
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from textpatch.anatomy import AFTER, EXITS, KEYS, QUERIES, VALUES
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.sites import Site


@dataclass(frozen=True)
class Record:
    """Tensors that one site read and gave in one step, each (B, H, n, D), image first and text last."""

    site: Site
    step: int
    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    out: list[Tensor]


@dataclass(frozen=True)
class AttentionModules:
    """Names of the modules of one attention, image first and text last."""

    q: list[str]
    k: list[str]
    v: list[str]
    out: list[str]

    @property
    def inputs(self) -> set[str]:
        """Names of the modules that make queries, keys and values."""
        return {*self.q, *self.k, *self.v}


@dataclass
class _Recorder:
    """Collector of the tensors of some sites, which gives a record of each as soon as it is full."""

    parts: Mapping[Site, AttentionModules]
    at: Sequence[int]
    done: Callable[[Record], object]
    latest: dict[str, Tensor] = field(default_factory=dict)  # last output of each projection
    calls: Counter[str] = field(default_factory=Counter)  # how often each exit was called
    open: dict[Site, Record] = field(default_factory=dict)
    outputs: dict[Site, dict[str, Tensor]] = field(default_factory=dict)  # of open records, by exit

    def projected(self, name: str, output: object) -> None:
        """Keep the output of a projection."""
        self.latest[name] = cast("Tensor", output)

    def leaving(self, site: Site, name: str, out: Tensor) -> None:
        """Take in an output (B, n, H D) of a site's attention, which is the input of an exit."""
        step = self.calls[name]
        self.calls[name] += 1
        # a projection that never ran is the hook registry's to report
        if step not in self.at or not self.parts[site].inputs <= self.latest.keys():
            return
        if site not in self.open:
            self.open[site] = self._begun(site, step)
            self.outputs[site] = {}
        outputs = self.outputs[site]
        outputs[name] = by_head(out, site.head_dim)
        exits = self.parts[site].out
        if len(outputs) == len(exits):
            record = self.open.pop(site)
            # a model may let the text leave before the image
            record.out.extend(outputs[exit_] for exit_ in exits)
            self.done(record)

    def _begun(self, site: Site, step: int) -> Record:
        """Record of what a site has read, without its outputs.

        Text keys and values may be of a bank made before the first step, so that the latest outputs
        are those that it reads.
        """

        def read(names: list[str]) -> list[Tensor]:
            return [by_head(self.latest[name], site.head_dim) for name in names]

        parts = self.parts[site]
        return Record(site, step, read(parts.q), read(parts.k), read(parts.v), [])


@contextmanager
def recording_sites(
    model: nn.Module, sites: Sequence[Site], at: Sequence[int], done: Callable[[Record], object]
) -> Iterator[None]:
    """Call done(record) as soon as a site has run in one of some calls of the model.

    at  numbers of these calls, from 0
    Raises PatchError for sites of a kind whose modules are not known here.
    """
    modules = dict(model.named_modules())
    parts = {site: attention_modules(modules, site.name, site.kind) for site in sites}
    recorder = _Recorder(parts, at, done)
    owner = {name: site for site in sites for name in parts[site].out}

    def leaving(name: str, inputs: inspect.BoundArguments) -> None:
        recorder.leaving(owner[name], name, inputs.args[0])

    projections = HookRegistry(model, set().union(*(part.inputs for part in parts.values())))
    exits = HookRegistry(model, owner)
    with projections.observe(recorder.projected), exits.observe_inputs(leaving):
        yield


def exit_modules(model: nn.Module, sites: Sequence[Site]) -> dict[Site, list[str]]:
    """Names of the modules that take in each site's attention output, the image's first.

    Raises PatchError as `recording_sites`.
    """
    modules = dict(model.named_modules())
    return {site: _present(modules, site.name, site.kind, EXITS) for site in sites}


def attention_modules(modules: Mapping[str, nn.Module], name: str, kind: str) -> AttentionModules:
    """Names of the modules of one attention.

    modules  all modules of the model
    name     the attention's own name
    kind     that of a site, or "self"
    Raises PatchError for a kind that is not known here.
    """
    tables = QUERIES, KEYS, VALUES, EXITS
    parts = AttentionModules(*(_present(modules, name, kind, table) for table in tables))
    if not parts.q:
        raise PatchError(
            f"site {name!r} is of kind {kind!r}, and has no module of {', '.join(QUERIES[kind])}, where its "
            "queries are seen; leave it out"
        )
    return parts


def _present(
    modules: Mapping[str, nn.Module], name: str, kind: str, table: Mapping[str, tuple[str, ...]]
) -> list[str]:
    """Names of the modules of an attention that a table lists and that are there.

    A projection that others of `AFTER` follow is replaced by the last, since attention reads that one.
    Raises PatchError for a kind that the table has not.
    """
    if kind not in table:
        raise PatchError(f"site {name!r} is of kind {kind!r}; the audit knows {', '.join(table)}")
    present = []
    for path in table[kind]:
        chain = [f"{name}.{part}" for part in (path, *AFTER.get(path, ()))]
        if chain[0] in modules:
            present.append([part for part in chain if part in modules][-1])
    return present


def by_head(x: Tensor, head_dim: int) -> Tensor:
    """Tensor (B, H, n, D) of one of (B, n, H D), or of the output of a norm per head."""
    if x.dim() == 4:
        return x.detach()
    return x.detach().unflatten(-1, (-1, head_dim)).transpose(1, 2)


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in the dtype of q, k and v, (B, H, n, D) each, as one would write it in torch."""
    made = []
    rows = zip(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), strict=True)
    for queries, keys, values in rows:
        weights = torch.softmax(queries @ keys.T * queries.shape[-1] ** -0.5, dim=-1)  # (M, N)
        made.append(weights @ values)
    return torch.stack(made).unflatten(0, q.shape[:2])

"""What attention read and gave at each site of a real run: queries, keys, values and outputs.

B batch rows, H heads, M queries, N keys, D head width
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textpatch.anatomy import EXITS, KEYS, NORMS, QUERIES, VALUES
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.sites import Site


@dataclass(frozen=True)
class Record:
    """What one site read and gave in one step: lists of (B, H, n, D), image first and text last."""

    site: Site
    step: int
    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    out: list[Tensor]


@contextmanager
def recording_sites(
    model: nn.Module, sites: Sequence[Site], at: Sequence[int], done: Callable[[Record], object]
) -> Iterator[None]:
    """Call done(record) as soon as a site has run in one of the calls `at` of the model.

    Raises PatchError for sites of a kind whose modules are not known here.
    """
    modules, latest, calls, records = dict(model.named_modules()), {}, Counter(), {}
    made = {
        site: [_present(modules, site, table) for table in (QUERIES, KEYS, VALUES)]
        for site in sites
    }
    needed = {site: {name for names in parts for name in names} for site, parts in made.items()}
    outputs = exit_modules(model, sites)
    owner = {name: site for site, names in outputs.items() for name in names}

    def leaving(name: str, inputs) -> None:
        site, step = owner[name], calls[name]
        calls[name] += 1
        if (
            step not in at or not needed[site] <= latest.keys()
        ):  # what never ran is the registry's to report
            return
        if site not in records:
            # text keys and values may be of a bank made before the first step: the latest are those read
            parts = ([_by_head(latest[part], site) for part in parts] for parts in made[site])
            records[site] = Record(site, step, *parts, [])
        records[site].out.append(_by_head(inputs.args[0], site))
        if len(records[site].out) == len(outputs[site]):
            done(records.pop(site))

    projections = HookRegistry(model, set().union(*needed.values()))
    with projections.observe(lambda name, output: latest.update({name: output})):
        with HookRegistry(model, owner).observe_inputs(leaving):
            yield


def exit_modules(model: nn.Module, sites: Sequence[Site]) -> dict[Site, list[str]]:
    """The modules that take in each site's attention output, the image's first.  Raises PatchError as `recording_sites`."""
    modules = dict(model.named_modules())
    return {site: _present(modules, site, EXITS) for site in sites}


def _present(
    modules: dict[str, nn.Module], site: Site, table: dict[str, tuple[str, ...]]
) -> list[str]:
    """The modules of a site in a table, without those that are not there; of a norm and its projection the norm."""
    if site.kind not in table:
        raise PatchError(
            f"site {site.name!r} is of kind {site.kind!r}; the audit knows {', '.join(table)}"
        )
    there = [path for path in table[site.kind] if f"{site.name}.{path}" in modules]
    names = [(f"{site.name}.{NORMS.get(path, path)}", f"{site.name}.{path}") for path in there]
    return [norm if norm in modules else projection for norm, projection in names]


def _by_head(x: Tensor, site: Site) -> Tensor:
    """(B, H, n, D) of (B, n, H D), or of what a norm per head made."""
    return (
        x.detach()
        if x.dim() == 4
        else x.detach().unflatten(-1, (-1, site.head_dim)).transpose(1, 2)
    )


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A in the dtype of q, k and v, as one would write it in torch."""
    ones = zip(*(x.flatten(0, 1) for x in (q, k, v)))
    made = [torch.softmax(a @ b.T * a.shape[-1] ** -0.5, dim=-1) @ c for a, b, c in ones]
    return torch.stack(made).unflatten(0, q.shape[:2])

"""Search for the sites of any model by its own list, a given table, or a shipped table that fits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from textpatch.errors import PatchError
from textpatch.ports.matching import SiteSpec, match_sites
from textpatch.ports.tables import TABLES
from textpatch.sites import Site, select_sites


def find_sites(model: nn.Module, spec: Sequence[SiteSpec] | None = None) -> tuple[Site, ...]:
    """Find all sites of a model, in execution order.

    They are those of the table `spec`, else the model's own `sites`, else those of a shipped table.
    Raises PatchError if none of these is there, or if the table does not fit the model.
    """
    if spec is None:
        own = getattr(model, "sites", None)
        if own:
            return tuple(own)
        spec = shipped_table(model)
    return tuple(site for site, _ in match_sites(model, spec))


def site_indices(model: nn.Module, wanted: object) -> tuple[int, ...]:
    """Indices of the sites of a model that are selected as for `select_sites`, in execution order."""
    return tuple(site.index for site in select_sites(find_sites(model), wanted))


def shipped_table(model: nn.Module) -> tuple[SiteSpec, ...]:
    """First shipped table for a model's class, or a class that it inherits, that fits the model.

    Raises PatchError if there is none.
    """
    reasons = []
    classes = [kind.__name__ for kind in type(model).__mro__]
    for table in (table for name in classes for table in TABLES.get(name, ())):
        try:
            match_sites(model, table)
        except PatchError as reason:
            reasons.append(str(reason))
        else:
            return table
    lacking = "no table is shipped for its class"
    if reasons:
        lacking = f"no shipped table fits ({'; '.join(reasons)})"
    raise PatchError(
        f"no sites known for {type(model).__name__}: it has no `sites`, and {lacking}; "
        "give find_sites a table of SiteSpecs"
    )

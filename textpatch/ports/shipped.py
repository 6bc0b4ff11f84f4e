"""The sites of any model: its own, those of a given table, or those of a shipped table that fits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from textpatch.errors import PatchError
from textpatch.ports.matching import SiteSpec, match_sites
from textpatch.ports.tables import TABLES
from textpatch.sites import Site


def find_sites(model: nn.Module, spec: Sequence[SiteSpec] | None = None) -> tuple[Site, ...]:
    """All sites of a model, in execution order: by `spec`, else its own `sites`, else the shipped tables.

    Raises PatchError if none of these is there, or if the table does not fit the model.
    """
    if spec is None and getattr(model, "sites", None):
        return tuple(model.sites)
    return tuple(
        site for site, _ in match_sites(model, shipped_table(model) if spec is None else spec)
    )


def shipped_table(model: nn.Module) -> tuple[SiteSpec, ...]:
    """The first of the tables in `textpatch.ports` for a model's class, or one it inherits, that fits it.

    Raises PatchError if there is none.
    """
    reasons = []
    for table in (table for kind in type(model).__mro__ for table in TABLES.get(kind.__name__, ())):
        try:
            match_sites(model, table)
        except PatchError as reason:
            reasons.append(str(reason))
        else:
            return table
    raise PatchError(
        f"no sites known for {type(model).__name__}: it has no `sites`, and "
        + (
            f"no shipped table fits ({'; '.join(reasons)})"
            if reasons
            else "no table is shipped for its class"
        )
        + "; give find_sites a table of SiteSpecs"
    )

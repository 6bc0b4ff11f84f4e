"""Is a port right?  One call holds a table of sites to what its model really does.

Each check is a sentence that must hold of the model, the table, and capture, patch and inject by it; what the
model's attention gets is the truth they are compared with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from textpatch.errors import PatchError
from textpatch.ports.matching import SiteSpec, match_sites
from textpatch.ports.shipped import shipped_table
from textpatch.sites import Site
from textpatch.testing import facts, swaps
from textpatch.testing.port import CHECKS, Findings, Port


@dataclass(frozen=True)
class Report:
    """What `check_port` found to hold of a model: its sites, and every check as the sentence it makes sure of."""

    sites: tuple[Site, ...]
    checks: tuple[str, ...]


def check_port(
    model: nn.Module,
    spec: Sequence[SiteSpec] | None,
    example_inputs: dict[str, Any],
    *,
    picture: str | None = None,
) -> Report:
    """Run every check of a port and report them, or raise one PatchError that lists all that fail.

    spec            the table; the shipped one when None
    example_inputs  what the model's forward gets, by name: at least two rows, of different texts of one length,
                    and no other size equal to the number of rows; time as a floating-point number
    picture         the argument that holds the noisy picture; forward's first when None
    The model is best small and random, in float32 or float64, in eval mode, with no weight zero, and must attend
    by torch's scaled_dot_product_attention.  Raises PatchError, too, for a table that does not fit the model.
    """
    table = shipped_table(model) if spec is None else tuple(spec)
    picture = picture or next(iter(inspect.signature(model.forward).parameters))
    port = Port(model, match_sites(model, table), dict(example_inputs), picture)
    sentences = [" ".join(check.__doc__.split()) for check in CHECKS]
    found = [_findings(check, port) for check in CHECKS]
    failed = [f"{said}  Found: {against}" for said, against in zip(sentences, found) if against]
    if failed:
        count = f"{len(failed)} of {len(CHECKS)} checks"
        raise PatchError(
            "\n".join([f"{type(model).__name__} fails {count} of its table:", *failed])
        )
    return Report(port.sites, tuple(sentences))


def _findings(check: Callable[[Port], Findings], port: Port) -> str:
    """What speaks against a check, in words; a Site alone means that it does not hold there."""
    try:
        found = [f"not at {x.name!r}" if isinstance(x, Site) else x for x in check(port)]
    except (
        Exception
    ) as error:  # of any kind: the model is somebody else's, and what it raises is a finding
        found = [f"{type(error).__name__}: {error}"]
    return "; ".join(found[:3] + [f"and {len(found) - 3} more"] * (len(found) > 3))

"""A test of ports, which holds a table of sites to what its model really does.

Each check is a sentence that must hold of the model, of the table, and of capture, patch and inject by it.
They are compared with the queries, keys and values that the model's attention gets.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from textpatch.errors import PatchError
from textpatch.ports.matching import SiteSpec, match_sites
from textpatch.ports.shipped import shipped_table
from textpatch.sites import Site
from textpatch.testing import facts as facts  # its checks join CHECKS
from textpatch.testing import swaps as swaps
from textpatch.testing.port import CHECKS, Findings, Port

SHOWN = 3  # findings of a check


@dataclass(frozen=True)
class Report:
    """Findings of `check_port` on a model for which every check holds.

    sites   those of the model
    checks  every check, as the sentence it makes sure of
    """

    sites: tuple[Site, ...]
    checks: tuple[str, ...]


def check_port(
    model: nn.Module,
    spec: Sequence[SiteSpec] | None,
    example_inputs: Mapping[str, object],
    *,
    picture: str | None = None,
    output: Callable[[Tensor], Tensor] | None = None,
    pooled: Sequence[str] = (),
) -> Report:
    """Run every check of a port and report them.

    spec            the table; the shipped one when None
    example_inputs  the arguments of the model's forward, by name: at least two rows, of different texts
    of one
                    length, and no other size equal to the number of rows; time as a floating-point number
    picture         the argument that holds the noisy picture; forward's first when None
    output          output(x) is the picture in the model's output x, where it puts out text, too
    pooled          modules that make a vector of each row's text, which reaches the picture beside the sites

    The model is best small and random, in float32 or float64, in eval mode, with no weight zero.  It must
    attend by torch's scaled_dot_product_attention.

    Raises one PatchError that lists all checks that fail, or one for a table that does not fit the model.
    """
    if spec is None:
        spec = shipped_table(model)
    picture = picture or next(iter(inspect.signature(model.forward).parameters))
    matched = match_sites(model, tuple(spec))
    port = Port(model, matched, dict(example_inputs), picture, output, pooled)
    sentences = [" ".join((check.__doc__ or "").split()) for check in CHECKS]
    found = [_findings(check, port) for check in CHECKS]
    pairs = zip(sentences, found, strict=True)
    failed = [f"{said}  Found: {against}" for said, against in pairs if against]
    if failed:
        count = f"{len(failed)} of {len(CHECKS)} checks"
        head = f"{type(model).__name__} fails {count} of its table:"
        raise PatchError("\n".join([head, *failed]))
    return Report(port.sites, tuple(sentences))


def _findings(check: Callable[[Port], Findings], port: Port) -> str:
    """The findings against a check, in words.  "" if it holds."""
    try:
        found = [_in_words(finding) for finding in check(port)]
    except (
        Exception
    ) as error:  # of any kind: the model is somebody else's, and its errors are findings
        found = [f"{type(error).__name__}: {error}"]
    if len(found) > SHOWN:
        found = [*found[:SHOWN], f"and {len(found) - SHOWN} more"]
    return "; ".join(found)


def _in_words(finding: str | Site) -> str:
    if isinstance(finding, Site):
        return f"not at {finding.name!r}"
    return finding

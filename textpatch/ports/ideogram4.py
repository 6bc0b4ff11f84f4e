"""Ideogram 4, a single stream in which an argument says of each token what it is."""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

IDEOGRAM4 = (
    SiteSpec(
        "layers.*.attention",
        "single",
        span=Span("where", where=("indicator", 3)),
        heads="num_heads",
    ),
)

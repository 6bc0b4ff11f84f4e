"""ERNIE-Image, a single stream with the image first."""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

ERNIE_IMAGE = (
    SiteSpec(
        "layers.*.self_attention",
        "single",
        span=Span("last", "text_bth", counts="text_lens"),
    ),
)

"""Lumina 2, a single stream that holds of each text what its mask lets be seen, and then the image.

Several query heads share one of K and V.  The refiners see either the text or the image alone.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

LUMINA2 = (
    SiteSpec(
        "layers.*.attn",
        "single",
        span=Span("first", mask="encoder_attention_mask", packed=True),
        queries="to_q",
    ),
)

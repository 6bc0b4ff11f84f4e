"""Krea 2, a single stream in which several query heads share one of K and V.

Its text_fusion sees the text alone and has no sites.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

KREA2 = (
    SiteSpec(
        "transformer_blocks.*.attn",
        "single",
        span=Span("first", mask="encoder_attention_mask"),
        heads="num_heads",
        kv_heads="num_kv_heads",
    ),
)

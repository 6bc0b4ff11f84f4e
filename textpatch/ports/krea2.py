"""Krea 2: single stream, several query heads to one of K and V; text_fusion sees the text alone: no sites."""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

KREA2 = (
    SiteSpec(
        "transformer_blocks.*.attn",
        "single",
        span=Span("first", mask="encoder_attention_mask"),
        heads="num_heads",
        kv_heads="num_kv_heads",
        norm="norm_k",
        rotary=True,
    ),
)

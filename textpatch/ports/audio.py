"""Stable Audio and ACE-Step, with cross-attention, in which several query heads share one of K and V."""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

STABLE_AUDIO = (
    SiteSpec(
        "transformer_blocks.*.attn2",
        "cross",
        span=Span(mask="encoder_attention_mask"),
        queries="to_q",
    ),
)
ACE_STEP = (SiteSpec("layers.*.cross_attn", "cross", kv_heads="kv_heads"),)

"""PixArt-alpha and PixArt-sigma, with cross-attention in attn2.

Their attn1 sees the image alone.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

PIXART = (
    SiteSpec("transformer_blocks.*.attn2", "cross", span=Span(mask="encoder_attention_mask")),
)

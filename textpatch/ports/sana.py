"""Sana, Sana-Sprint and LTX-Video, with cross-attention in attn2.

Their attn1 sees the picture alone.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

SANA = (SiteSpec("transformer_blocks.*.attn2", "cross", span=Span(mask="encoder_attention_mask")),)

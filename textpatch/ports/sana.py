"""Sana and LTX-Video, with cross-attention in attn2.

Their attn1 sees the picture alone.  NORMED is Sana-Sprint and LTX-Video, whose keys are normed over all
heads.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

TEXT = Span(mask="encoder_attention_mask")

SANA = (SiteSpec("transformer_blocks.*.attn2", "cross", span=TEXT),)
NORMED = (SiteSpec("transformer_blocks.*.attn2", "cross", span=TEXT, norm="norm_k"),)

"""Wan, with cross-attention in attn2, whose keys are normed over all heads."""

from textpatch.ports.matching import SiteSpec

WAN = (SiteSpec("blocks.*.attn2", "cross", norm="norm_k"),)

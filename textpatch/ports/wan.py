"""Wan, with cross-attention in attn2."""

from textpatch.ports.matching import SiteSpec

WAN = (SiteSpec("blocks.*.attn2", "cross"),)

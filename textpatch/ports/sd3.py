"""Stable Diffusion 3 and 3.5; attn2, in some blocks of 3.5-medium, sees the image alone and is no site."""

from textpatch.ports.matching import SiteSpec

SD3 = (SiteSpec("transformer_blocks.*.attn", "joint", order="image first"),)
SD35 = (SiteSpec("transformer_blocks.*.attn", "joint", order="image first", norm="norm_added_k"),)

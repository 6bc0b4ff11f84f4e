"""Stable Diffusion 3 and 3.5, with joint attention.

In some blocks of 3.5-medium there is an attn2, which sees the image alone and is no site.
"""

from textpatch.ports.matching import SiteSpec

SD3 = (SiteSpec("transformer_blocks.*.attn", "joint", order="image first"),)

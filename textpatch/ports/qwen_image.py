"""Qwen-Image: double blocks alone; text is turned by its position, as the image is."""

from textpatch.sites import SiteSpec

QWEN_IMAGE = (
    SiteSpec("transformer_blocks.*.attn", "joint", order="text first", norm="norm_added_k", rotary=True),
)

"""FLUX.1, with double blocks and then single blocks, and the models that are built like it.

Double blocks have projections for text, and in single blocks text and image share theirs.  Chroma,
LongCat-Image, Ovis-Image and Bria have the same blocks.  FUSED is the model as diffusers'
`fuse_qkv_projections` leaves it.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

FLUX = (
    SiteSpec("transformer_blocks.*.attn", "joint", order="text first", rotary=True),
    SiteSpec("single_transformer_blocks.*.attn", "single", span=Span("first")),
)
FUSED = (
    SiteSpec(
        "transformer_blocks.*.attn",
        "joint",
        ("to_added_qkv", "to_added_qkv"),
        (1, 2, 3),
        order="text first",
        rotary=True,
    ),
    SiteSpec(
        "single_transformer_blocks.*.attn",
        "single",
        ("to_qkv", "to_qkv"),
        (1, 2, 3),
        span=Span("first"),
    ),
)

"""FLUX.1: double blocks with projections for text, then single blocks whose projections text and image share.

Also as diffusers' `fuse_qkv_projections` leaves it.  K is taken before its norm and its rotation.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

FLUX = (
    SiteSpec(
        "transformer_blocks.*.attn", "joint", order="text first", norm="norm_added_k", rotary=True
    ),
    SiteSpec(
        "single_transformer_blocks.*.attn", "single", span=Span("first"), norm="norm_k", rotary=True
    ),
)
FUSED = (
    SiteSpec(
        "transformer_blocks.*.attn",
        "joint",
        ("to_added_qkv", "to_added_qkv"),
        (1, 2, 3),
        order="text first",
        norm="norm_added_k",
        rotary=True,
    ),
    SiteSpec(
        "single_transformer_blocks.*.attn",
        "single",
        ("to_qkv", "to_qkv"),
        (1, 2, 3),
        span=Span("first"),
        norm="norm_k",
        rotary=True,
    ),
)

"""FLUX.2, in whose single blocks one projection makes q, k, v and what the MLP takes in."""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

FLUX2 = (
    SiteSpec("transformer_blocks.*.attn", "joint", order="text first", rotary=True),
    SiteSpec(
        "single_transformer_blocks.*.attn",
        "single",
        ("to_qkv_mlp_proj", "to_qkv_mlp_proj"),
        (1, 2, "inner_dim"),
        span=Span("first"),
    ),
)

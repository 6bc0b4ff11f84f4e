"""Qwen-Image, with double blocks alone.

Text is turned by its position, as the image is.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

QWEN_IMAGE = (
    SiteSpec(
        "transformer_blocks.*.attn",
        "joint",
        span=Span(mask="encoder_hidden_states_mask"),
        order="text first",
        rotary=True,
    ),
)

"""Qwen-Image, with double blocks alone, and Qwen-Image 2.1, a single stream with the text first.

The pipeline of 2.1 keeps the text's keys and values of the first call, and attends to them in later ones.
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
QWEN_IMAGE21 = (
    SiteSpec(
        "transformer_blocks.*.attn",
        "single",
        span=Span("first", mask="encoder_hidden_states_mask"),
    ),
)

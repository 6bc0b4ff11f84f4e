"""Qwen-Image, with double blocks alone, and Qwen-Image 2.1, a single stream with the text first.

Text is turned by its position, as the image is.  The pipeline of 2.1 keeps the text's keys and values of the
first call, unless it is told `use_kv_cache=False`, and a call without text is refused.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

QWEN_IMAGE = (
    SiteSpec(
        "transformer_blocks.*.attn",
        "joint",
        span=Span(mask="encoder_hidden_states_mask"),
        order="text first",
        norm="norm_added_k",
        rotary=True,
    ),
)
QWEN_IMAGE21 = (
    SiteSpec("transformer_blocks.*.attn", "single", span=Span("first"), norm="norm_k", rotary=True),
)

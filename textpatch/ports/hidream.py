"""HiDream, with double blocks and then single blocks, the image first, and a text of its own for every block.

The sequence of a block ends in T5's text, the last layer of Llama's, and the layer of Llama's that is the
block's own.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

TEXTS = (
    "encoder_hidden_states_t5",
    "encoder_hidden_states_llama3[-1]",
    "encoder_hidden_states_llama3[0]",
)

HIDREAM = (
    SiteSpec(
        "double_stream_blocks.*.block.attn1",
        "joint",
        ("to_k_t", "to_v_t"),
        span=Span(text=TEXTS),
        order="image first",
        rotary=True,
    ),
    SiteSpec(
        "single_stream_blocks.*.block.attn1",
        "single",
        span=Span("last", TEXTS),
    ),
)

"""HunyuanImage 2.1 and HunyuanVideo, with double blocks and then single blocks, the image first.

HunyuanImage may read a second text, of the letters to be drawn.  Both are one sequence, whose tokens are
sorted by whether a mask hides them.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

TEXTS = ("encoder_hidden_states_2", "encoder_hidden_states")
MASKS = ("encoder_attention_mask_2", "encoder_attention_mask")

HUNYUAN_IMAGE = (
    SiteSpec(
        "transformer_blocks.*.attn",
        "joint",
        span=Span(text=TEXTS, mask=MASKS),
        order="image first",
    ),
    SiteSpec(
        "single_transformer_blocks.*.attn",
        "single",
        span=Span("last", TEXTS, mask=MASKS),
    ),
)
HUNYUAN_VIDEO = (
    SiteSpec(
        "transformer_blocks.*.attn",
        "joint",
        span=Span(mask="encoder_attention_mask"),
        order="image first",
    ),
    SiteSpec(
        "single_transformer_blocks.*.attn",
        "single",
        span=Span("last", mask="encoder_attention_mask"),
    ),
)

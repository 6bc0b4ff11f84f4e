"""AudioLDM2, a U-Net whose cross-attention reads two texts by turns, after one that sees the sound alone."""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

PARTS = ("down_blocks.*", "mid_block", "up_blocks.*")
FIRST = tuple(f"{part}.attentions.{{1,4,7,10}}.transformer_blocks.*.attn2" for part in PARTS)
SECOND = tuple(f"{part}.attentions.{{2,5,8,11}}.transformer_blocks.*.attn2" for part in PARTS)

AUDIOLDM2 = (
    SiteSpec(FIRST, "cross", span=Span(mask="encoder_attention_mask"), text_input="generated"),
    SiteSpec(
        SECOND,
        "cross",
        span=Span(text="encoder_hidden_states_1", mask="encoder_attention_mask_1"),
        text_input="prompt",
        between=True,
    ),
)

"""U-Nets with text, which are SDXL, Stable Diffusion and DeepFloyd IF.

The first two have cross-attention, and DeepFloyd IF adds text keys to the image's.  U-Nets register their
blocks as down, up, mid, and run down, mid, up.  Distilled ones have no sites in the middle.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

MASKED = Span(mask="encoder_attention_mask")
PARTS = ("down_blocks.*", "mid_block", "up_blocks.*")
BLOCKS = tuple(f"{part}.attentions.*" for part in PARTS)

SDXL = (
    SiteSpec(
        tuple(f"{block}.transformer_blocks.*.attn2" for block in BLOCKS), "cross", span=MASKED
    ),
)
DEEPFLOYD_IF = (SiteSpec(BLOCKS, "added", span=MASKED, order="text first"),)

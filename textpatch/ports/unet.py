"""U-Nets with text: SDXL and Stable Diffusion (cross-attention), DeepFloyd IF (text keys added to the image's).

They register down, up, mid, and run down, mid, up; distilled ones have no sites in the middle.
"""

from textpatch.sites import SiteSpec

PARTS = ("down_blocks.*", "mid_block", "up_blocks.*")

SDXL = (SiteSpec(tuple(f"{part}.attentions.*.transformer_blocks.*.attn2" for part in PARTS), "cross"),)
DEEPFLOYD_IF = (SiteSpec(tuple(f"{part}.attentions.*" for part in PARTS), "added", order="text first"),)

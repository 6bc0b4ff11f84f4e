"""PRX, whose text keys and values come from one projection and are added to the image's.

The text is the same for all blocks.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

PRX = (
    SiteSpec(
        "blocks.*.attention",
        "added",
        ("txt_kv_proj", "txt_kv_proj"),
        (0, 1, 2),
        span=Span(mask="attention_mask"),
        order="text first",
    ),
)

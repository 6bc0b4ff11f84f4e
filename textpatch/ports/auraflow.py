"""AuraFlow, with double blocks and then single blocks, and eight tokens of its own before the text.

These take part in every block, so that they know the text from the second on, and a swap takes them along.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

AURAFLOW = (
    SiteSpec(
        "joint_transformer_blocks.*.attn",
        "joint",
        span=Span(extra=8),
        order="text first",
    ),
    SiteSpec("single_transformer_blocks.*.attn", "single", span=Span("first", extra=8)),
)

"""FLUX.3, a single stream with the text first.

Blocks before it see either the text or a picture alone and have no sites.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

FLUX3 = (SiteSpec("single_transformer_blocks.*.attn", "single", span=Span("first")),)

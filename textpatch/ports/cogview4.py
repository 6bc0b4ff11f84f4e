"""CogView4, a single stream with the text first, and GLM-Image and CogVideoX, which are built like it.

GLM-Image is told its prompt by code words of the picture as well, which no site reads.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

COGVIEW4 = (SiteSpec("transformer_blocks.*.attn1", "single", span=Span("first")),)

"""Z-Image in its basic mode, a single stream with the image first.

Each row's caption follows, padded to a multiple of 32.  The refiners see either the image or the caption
alone and have no sites.  Omni mode puts the caption first and needs a table of its own.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

Z_IMAGE = (
    SiteSpec(
        "layers.*.attention",
        "single",
        span=Span("last", "cap_feats", pad_to=32),
    ),
)

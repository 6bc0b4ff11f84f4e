"""Z-Image in its basic mode: single stream, image first, then each row's caption padded to a multiple of 32.

The refiners see one of the two alone and have no sites.  Omni mode puts the caption first: give a table for it.
"""

from textpatch.ports.matching import SiteSpec
from textpatch.sites import Span

Z_IMAGE = (
    SiteSpec(
        "layers.*.attention",
        "single",
        span=Span("last", "cap_feats", pad_to=32),
        norm="norm_k",
        rotary=True,
    ),
)

"""Names of the projections and norms below an attention module, by its kind."""

from __future__ import annotations

# The projections whose outputs are the text keys and values.
TEXT_PROJECTIONS: dict[str, tuple[str, str]] = {
    "cross": ("to_k", "to_v"),
    "added": ("add_k_proj", "add_v_proj"),
    "joint": ("add_k_proj", "add_v_proj"),
    "single": ("to_k", "to_v"),
}

# The modules that make queries, keys and values, image first and text last, and those that take the
# attention's output in.  One that is not there is passed over: DeepFloyd IF's stage II has no image keys,
# SD3's last block no text output.
Modules = dict[str, tuple[str, ...]]
# "self" is an attention of the picture to itself, which is no site.  In a "single" one image and text share
# their projections, and our FLUX has modules that change nothing where the two are apart.
QUERIES: Modules = {
    "self": ("to_q",),
    "cross": ("to_q",),
    "added": ("to_q",),
    "joint": ("to_q", "add_q_proj"),
    "single": ("turned_q", "text_q"),
}
KEYS: Modules = {
    "self": ("to_k",),
    "cross": ("to_k",),
    "added": ("to_k", "add_k_proj"),
    "joint": ("to_k", "add_k_proj"),
    "single": ("turned_k", "text_k"),
}
VALUES: Modules = {
    "self": ("to_v",),
    "cross": ("to_v",),
    "added": ("to_v", "add_v_proj"),
    "joint": ("to_v", "add_v_proj"),
    "single": ("image_v", "text_v"),
}
EXITS: Modules = {
    "self": ("to_out.0",),
    "cross": ("to_out.0",),
    "added": ("to_out.0",),
    "joint": ("to_out.0", "to_add_out"),
    "single": ("image_out", "text_out"),
}

# The norm after a projection, and what turns its output by the position.  Attention reads the output of the
# last one that is there.
AFTER: dict[str, tuple[str, ...]] = {
    "to_q": ("norm_q", "turned_q"),
    "to_k": ("norm_k", "turned_k"),
    "add_q_proj": ("norm_added_q",),
    "add_k_proj": ("norm_added_k",),
}

"""What an attention module is made of, by its kind: names of projections and norms below it."""

from __future__ import annotations

# Names, below the attention module, of the projections whose outputs are the text keys and values.
TEXT_PROJECTIONS = {
    "cross": ("to_k", "to_v"),
    "added": ("add_k_proj", "add_v_proj"),
    "joint": ("add_k_proj", "add_v_proj"),
    "single": ("to_k", "to_v"),
}

# Below a site, per kind: the modules that make queries, keys and values, image first and text last, and those
# that take the attention's output in.  One that is not there is passed over: DeepFloyd IF's stage II has no image
# keys, SD3's last block no text output.
QUERIES = {"cross": ("to_q",), "added": ("to_q",), "joint": ("to_q", "add_q_proj")}
KEYS = {"cross": ("to_k",), "added": ("to_k", "add_k_proj"), "joint": ("to_k", "add_k_proj")}
VALUES = {"cross": ("to_v",), "added": ("to_v", "add_v_proj"), "joint": ("to_v", "add_v_proj")}
EXITS = {"cross": ("to_out.0",), "added": ("to_out.0",), "joint": ("to_out.0", "to_add_out")}
# What attention reads instead of a projection where there is such a norm after it.
NORMS = {
    "to_q": "norm_q",
    "to_k": "norm_k",
    "add_q_proj": "norm_added_q",
    "add_k_proj": "norm_added_k",
}

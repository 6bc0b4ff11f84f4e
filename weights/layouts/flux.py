"""Transformer of FLUX.1 as its single file spells it.

The mlp is four widths wide, so that `linear1`, which holds q, k, v and the mlp, is seven.
"""

from textpatch.weights.layouts.table import make_layout, thirds, within
from textpatch.weights.layouts.tensors import Rows, swapped

DOUBLE = {
    "{img,txt}_mod.lin.*": "norm1{,_context}.linear.*",
    "img_attn.qkv.*": thirds("attn.to_q.*", "attn.to_k.*", "attn.to_v.*"),
    "txt_attn.qkv.*": thirds("attn.add_q_proj.*", "attn.add_k_proj.*", "attn.add_v_proj.*"),
    "{img,txt}_attn.norm.{query,key}_norm.scale": "attn.norm_{,added_}{q,k}.weight",
    "{img,txt}_attn.proj.*": "attn.{to_out.0,to_add_out}.*",
    "{img,txt}_mlp.{0,2}.*": "ff{,_context}.net.{0.proj,2}.*",
}
SINGLE = {
    "modulation.lin.*": "norm.linear.*",
    "linear1.*": {
        "attn.to_q.*": Rows(0, 1, of=7),
        "attn.to_k.*": Rows(1, 2, of=7),
        "attn.to_v.*": Rows(2, 3, of=7),
        "proj_mlp.*": Rows(3, 7, of=7),
    },
    "norm.{query,key}_norm.scale": "attn.norm_{q,k}.weight",
    "linear2.*": "proj_out.*",
}
REST = {
    "{img,txt}_in.*": "{x,context}_embedder.*",
    "{time,guidance}_in.{in,out}_layer.*": "time_text_embed.{timestep,guidance}_embedder.linear_{1,2}.*",
    "vector_in.{in,out}_layer.*": "time_text_embed.text_embedder.linear_{1,2}.*",
    "final_layer.adaLN_modulation.1.*": {"norm_out.linear.*": swapped},
    "final_layer.linear.*": "proj_out.*",
}

FLUX = make_layout(
    "FLUX.1 transformer",
    within({"double_blocks.{0..18}": "transformer_blocks.{0..18}"}, DOUBLE),
    within({"single_blocks.{0..37}": "single_transformer_blocks.{0..37}"}, SINGLE),
    REST,
)

"""Transformer of Stable Diffusion 3 and 3.5 as their single files spell it."""

from functools import cache

from textpatch.weights.layouts.table import Layout, make_layout, thirds, unchanged, within
from textpatch.weights.layouts.tensors import swapped

BLOCK = {
    "x_block.attn.qkv.*": thirds("attn.to_q.*", "attn.to_k.*", "attn.to_v.*"),
    "context_block.attn.qkv.*": thirds(
        "attn.add_q_proj.*", "attn.add_k_proj.*", "attn.add_v_proj.*"
    ),
    "{x,context}_block.attn.ln_{q,k}.weight": "attn.norm_{,added_}{q,k}.weight",
    "{x,context}_block.attn.proj.*": "attn.{to_out.0,to_add_out}.*",
    "x_block.attn2.qkv.*": thirds("attn2.to_q.*", "attn2.to_k.*", "attn2.to_v.*"),
    "x_block.attn2.ln_{q,k}.weight": "attn2.norm_{q,k}.weight",
    "x_block.attn2.proj.*": "attn2.to_out.0.*",
    "{x,context}_block.mlp.fc{1,2}.*": "ff{,_context}.net.{0.proj,2}.*",
    "{x,context}_block.adaLN_modulation.1.*": "norm1{,_context}.linear.*",
}
# the text stream ends in the last block, so its modulation has two chunks, shift and scale
LAST = {"context_block.adaLN_modulation.1.*": {"norm1_context.linear.*": swapped}}
REST = {
    "pos_embed": "pos_embed.pos_embed",
    "x_embedder.proj.*": "pos_embed.proj.*",
    "{t,y}_embedder.mlp.{0,2}.*": "time_text_embed.{timestep,text}_embedder.linear_{1,2}.*",
    **unchanged("context_embedder.*"),
    "final_layer.adaLN_modulation.1.*": {"norm_out.linear.*": swapped},
    "final_layer.linear.*": "proj_out.*",
}


@cache
def sd3_layout(depth: int) -> Layout:
    """Layout of `depth` blocks, 24 in SD3-medium and SD3.5-medium, 38 in SD3.5-large."""
    blocks = f"{{0..{depth - 1}}}"
    return make_layout(
        f"SD3 transformer of {depth} blocks",
        within({f"joint_blocks.{blocks}": f"transformer_blocks.{blocks}"}, BLOCK),
        within({f"joint_blocks.{depth - 1}": f"transformer_blocks.{depth - 1}"}, LAST),
        REST,
    )

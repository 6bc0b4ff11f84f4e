"""CLIP, as transformers and OpenCLIP spell it, and T5.   Targets are the names of the published files."""

from textpatch.weights.layouts.table import make_layout, thirds, unchanged, within
from textpatch.weights.layouts.tensors import transposed

CLIP_NAMES = (
    "embeddings.{token,position}_embedding.weight",
    "encoder.layers.{0..31}.layer_norm{1,2}.*",
    "encoder.layers.{0..31}.self_attn.{q,k,v,out}_proj.*",
    "encoder.layers.{0..31}.mlp.fc{1,2}.*",
    "final_layer_norm.*",
)
OPENCLIP_LAYER = {
    "ln_{1,2}.*": "layer_norm{1,2}.*",
    "attn.in_proj_{weight,bias}": thirds(
        "self_attn.q_proj.*", "self_attn.k_proj.*", "self_attn.v_proj.*"
    ),
    "attn.out_proj.*": "self_attn.out_proj.*",
    "mlp.c_{fc,proj}.*": "mlp.fc{1,2}.*",
}
OPENCLIP_REST = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.*": "text_model.final_layer_norm.*",
    "text_projection": {"text_projection.weight": transposed},
}
TEMPERATURE = "temperature of the contrastive training; no text is encoded with it"

# transformers 5 names the tensors of its CLIPTextModel without the prefix, and this layout knows both
CLIP = make_layout(
    "CLIP text model",
    {name: f"text_model.{name}" for name in CLIP_NAMES},
    unchanged(*(f"text_model.{name}" for name in CLIP_NAMES), "text_projection.weight"),
    dropped={"{,text_model.}embeddings.position_ids": "0, 1, 2, ..., which the class makes itself"},
)
OPENCLIP = make_layout(
    "OpenCLIP text model",
    within({"transformer.resblocks.{0..31}": "text_model.encoder.layers.{0..31}"}, OPENCLIP_LAYER),
    OPENCLIP_REST,
    dropped={"logit_scale": TEMPERATURE},
)
UNREAD = "the model reads the states before the last layer, and no pooled vector"
# Stable Diffusion 2 reads 23 of 24 layers
OPENCLIP_H = make_layout(
    "OpenCLIP text model of Stable Diffusion 2",
    within({"transformer.resblocks.{0..22}": "text_model.encoder.layers.{0..22}"}, OPENCLIP_LAYER),
    {key: row for key, row in OPENCLIP_REST.items() if key != "text_projection"},
    dropped={
        "logit_scale": TEMPERATURE,
        "attn_mask": "the causal mask, which the class makes itself",
        "text_projection": UNREAD,
        "transformer.resblocks.23.{ln_1,ln_2,attn.out_proj,mlp.c_fc,mlp.c_proj}.{weight,bias}": UNREAD,
        "transformer.resblocks.23.attn.in_proj_{weight,bias}": UNREAD,
    },
)
T5 = make_layout(
    "T5 encoder",
    unchanged(
        "shared.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.block.{0..23}.layer.0.SelfAttention.{q,k,v,o}.weight",
        "encoder.block.{0..23}.layer.1.DenseReluDense.{wi_0,wi_1,wo}.weight",
        "encoder.block.{0..23}.layer.{0,1}.layer_norm.weight",
        "encoder.final_layer_norm.weight",
    ),
    dropped={"encoder.embed_tokens.weight": "another name of shared.weight"},
)

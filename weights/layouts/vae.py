"""VAE of Stable Diffusion and FLUX, as single files spell it and in both spellings of the diffusers layout.

In a single file the decoder's levels are numbered backwards, and attention is made of 1x1 convolutions.
"""

from textpatch.weights.layouts.table import make_layout, unchanged, within
from textpatch.weights.layouts.tensors import linear

RESNETS = {
    "encoder.down.{0..3}.block.{0,1}": "encoder.down_blocks.{0..3}.resnets.{0,1}",
    "{encoder,decoder}.mid.block_{1,2}": "{encoder,decoder}.mid_block.resnets.{0,1}",
    "decoder.up.{3..0}.block.{0..2}": "decoder.up_blocks.{0..3}.resnets.{0..2}",
}
RESNET = {**unchanged("norm{1,2}.*", "conv{1,2}.*"), "nin_shortcut.*": "conv_shortcut.*"}
ATTENTIONS = {"{encoder,decoder}.mid.attn_1": "{encoder,decoder}.mid_block.attentions.0"}
ATTENTION = {
    "norm.*": "group_norm.*",
    "{q,k,v,proj_out}.*": {"{to_q,to_k,to_v,to_out.0}.*": linear},
}
REST = {
    **unchanged("{encoder,decoder}.conv_{in,out}.*", "{quant,post_quant}_conv.*"),
    "{encoder,decoder}.norm_out.*": "{encoder,decoder}.conv_norm_out.*",
    "encoder.down.{0..2}.downsample.conv.*": "encoder.down_blocks.{0..2}.downsamplers.0.conv.*",
    "decoder.up.{3..1}.upsample.conv.*": "decoder.up_blocks.{0..2}.upsamplers.0.conv.*",
}
# the diffusers layout before the VAE and the U-Net shared a class of attention
OLD_ATTENTION = within(
    unchanged("{encoder,decoder}.mid_block.attentions.0"),
    {"{query,key,value,proj_attn}.*": "{to_q,to_k,to_v,to_out.0}.*"},
)

VAE_ORIGINAL = make_layout("VAE", within(RESNETS, RESNET), within(ATTENTIONS, ATTENTION), REST)
VAE_DIFFUSERS = make_layout(
    "VAE in diffusers layout",
    unchanged(*(target for row in VAE_ORIGINAL.table.values() for target, _ in row)),
    OLD_ATTENTION,
)

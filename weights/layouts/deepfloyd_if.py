"""U-Nets of DeepFloyd IF as the original releases spell them.

Samplers are whole ResNets, and attention is made of 1x1 convolutions whose rows run head by head.
"""

from textpatch.weights.layouts.sdxl import RESNET
from textpatch.weights.layouts.table import make_layout, within
from textpatch.weights.layouts.tensors import HeadRows, linear

# Stage I: three ResNets per level down, four up, attention in all levels but the outermost.
RESNETS_I = {
    "input_blocks.{1..3,5..7,9..11,13..15}.0": "down_blocks.{0..3}.resnets.{0..2}",
    "input_blocks.{4,8,12}.0": "down_blocks.{0..2}.downsamplers.0",
    "middle_block.{0,2}": "mid_block.resnets.{0,1}",
    "output_blocks.{0..15}.0": "up_blocks.{0..3}.resnets.{0..3}",
    "output_blocks.{3,7,11}.2": "up_blocks.{0..2}.upsamplers.0",
}
ATTENTIONS_I = {
    "input_blocks.{5..7,9..11,13..15}.1": "down_blocks.{1..3}.attentions.{0..2}",
    "middle_block.1": "mid_block.attentions.0",
    "output_blocks.{0..11}.1": "up_blocks.{0..2}.attentions.{0..3}",
}
# Stage II: two, two, three, five and five ResNets down, one more up, attention in the two innermost levels.
RESNETS_II = {
    "input_blocks.{1,2,4,5}.0": "down_blocks.{0,1}.resnets.{0,1}",
    "input_blocks.{7..9}.0": "down_blocks.2.resnets.{0..2}",
    "input_blocks.{11..15,17..21}.0": "down_blocks.{3,4}.resnets.{0..4}",
    "input_blocks.{3,6,10,16}.0": "down_blocks.{0..3}.downsamplers.0",
    "middle_block.{0,2}": "mid_block.resnets.{0,1}",
    "output_blocks.{0..11}.0": "up_blocks.{0,1}.resnets.{0..5}",
    "output_blocks.{12..15}.0": "up_blocks.2.resnets.{0..3}",
    "output_blocks.{16..21}.0": "up_blocks.{3,4}.resnets.{0..2}",
    "output_blocks.{5.2,11.2,15.1,18.1}": "up_blocks.{0..3}.upsamplers.0",
}
ATTENTIONS_II = {
    "input_blocks.{11..15,17..21}.1": "down_blocks.{3,4}.attentions.{0..4}",
    "middle_block.1": "mid_block.attentions.0",
    "output_blocks.{0..11}.1": "up_blocks.{0,1}.attentions.{0..5}",
}
ATTENTION = {
    "norm.*": "group_norm.*",
    "norm_encoder.*": "norm_cross.*",
    "qkv.*": {
        "to_q.*": HeadRows(0, of=3),
        "to_k.*": HeadRows(1, of=3),
        "to_v.*": HeadRows(2, of=3),
    },
    "encoder_kv.*": {"add_k_proj.*": HeadRows(0, of=2), "add_v_proj.*": HeadRows(1, of=2)},
    "proj_out.*": {"to_out.0.*": linear},
}
# in stage II the tensor named qkv holds q alone
CROSS_ATTENTION = {**ATTENTION, "qkv.*": {"to_q.*": linear}}
REST = {
    "time_embed.{0,2}.*": "time_embedding.linear_{1,2}.*",
    "encoder_proj.*": "encoder_hid_proj.*",
    "encoder_pooling.{0,2,3}.*": "add_embedding.{norm1,proj,norm2}.*",
    "encoder_pooling.1.{q,k,v}_proj.*": "add_embedding.pool.{q,k,v}_proj.*",
    "encoder_pooling.1.positional_embedding": "add_embedding.pool.positional_embedding",
    "input_blocks.0.0.*": "conv_in.*",
    "out.{0,2}.*": "{conv_norm_out,conv_out}.*",
}
NOISE_LEVEL = {"aug_proj.{0,2}.*": "class_embedding.linear_{1,2}.*"}

IF_I = make_layout("IF-I U-Net", within(RESNETS_I, RESNET), within(ATTENTIONS_I, ATTENTION), REST)
IF_II = make_layout(
    "IF-II U-Net",
    within(RESNETS_II, RESNET),
    within(ATTENTIONS_II, CROSS_ATTENTION),
    REST,
    NOISE_LEVEL,
)

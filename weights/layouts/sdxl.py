"""U-Nets of SDXL and Stable Diffusion as their single files spell them.   No tensor changes."""

from textpatch.weights.layouts.table import make_layout, unchanged, within

RESNETS = {
    "input_blocks.{1,2,4,5,7,8}.0": "down_blocks.{0..2}.resnets.{0,1}",
    "middle_block.{0,2}": "mid_block.resnets.{0,1}",
    "output_blocks.{0..8}.0": "up_blocks.{0..2}.resnets.{0..2}",
}
RESNET = {
    "in_layers.{0,2}.*": "{norm1,conv1}.*",
    "emb_layers.1.*": "time_emb_proj.*",
    "out_layers.{0,3}.*": "{norm2,conv2}.*",
    "skip_connection.*": "conv_shortcut.*",
}
TRANSFORMERS = {
    "input_blocks.{4,5,7,8}.1": "down_blocks.{1,2}.attentions.{0,1}",
    "middle_block.1": "mid_block.attentions.0",
    "output_blocks.{0..5}.1": "up_blocks.{0,1}.attentions.{0..2}",
}
TRANSFORMER = unchanged(
    "{norm,proj_in,proj_out}.*",
    "transformer_blocks.{0..9}.norm{1..3}.*",
    "transformer_blocks.{0..9}.attn{1,2}.to_{q,k,v}.weight",
    "transformer_blocks.{0..9}.attn{1,2}.to_out.0.*",
    "transformer_blocks.{0..9}.ff.net.{0.proj,2}.*",
)
SAMPLERS = {
    "input_blocks.{3,6}.0.op.*": "down_blocks.{0,1}.downsamplers.0.conv.*",
    "output_blocks.{2,5}.2.conv.*": "up_blocks.{0,1}.upsamplers.0.conv.*",
}
REST = {
    "time_embed.{0,2}.*": "time_embedding.linear_{1,2}.*",
    "input_blocks.0.0.*": "conv_in.*",
    "out.{0,2}.*": "{conv_norm_out,conv_out}.*",
}
ADDED = {"label_emb.0.{0,2}.*": "add_embedding.linear_{1,2}.*"}

# Stable Diffusion has a depth more than SDXL, and transformers at all depths but the last
SD_RESNETS = {
    "input_blocks.{1,2,4,5,7,8,10,11}.0": "down_blocks.{0..3}.resnets.{0,1}",
    "middle_block.{0,2}": "mid_block.resnets.{0,1}",
    "output_blocks.{0..11}.0": "up_blocks.{0..3}.resnets.{0..2}",
}
SD_TRANSFORMERS = {
    "input_blocks.{1,2,4,5,7,8}.1": "down_blocks.{0..2}.attentions.{0,1}",
    "middle_block.1": "mid_block.attentions.0",
    "output_blocks.{3..11}.1": "up_blocks.{1..3}.attentions.{0..2}",
}
SD_SAMPLERS = {
    "input_blocks.{3,6,9}.0.op.*": "down_blocks.{0..2}.downsamplers.0.conv.*",
    "output_blocks.2.1.conv.*": "up_blocks.0.upsamplers.0.conv.*",
    "output_blocks.{5,8}.2.conv.*": "up_blocks.{1,2}.upsamplers.0.conv.*",
}

SDXL_UNET = make_layout(
    "SDXL U-Net", within(RESNETS, RESNET), within(TRANSFORMERS, TRANSFORMER), SAMPLERS, REST, ADDED
)
SD_UNET = make_layout(
    "Stable Diffusion U-Net",
    within(SD_RESNETS, RESNET),
    within(SD_TRANSFORMERS, TRANSFORMER),
    SD_SAMPLERS,
    REST,
)

"""Reference models, one file per architecture, each read top to bottom in the order of execution.

sdxl            the U-Nets of Stable Diffusion 1, 2 and XL
deepfloyd_if    the U-Nets of DeepFloyd IF, stages I and II
mmdit           the joint-attention transformer of Stable Diffusion 3 and 3.5
flux            the transformer of FLUX.1, of two streams and then one
vae             pictures to latents and back
schedules       noise levels and the steps between them
text_encoders   CLIP and T5 as each pipeline reads them
pipeline        encoders + denoiser + schedule + decoder
decoders        latents to pictures
upscaling       small pictures prepared for DeepFloyd IF's stage II
defaults        settings a model is run with when nothing else is asked for
"""

from textpatch.reference_models.layers import TextCondition

__all__ = ["TextCondition"]

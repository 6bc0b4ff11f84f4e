"""Shipped tables by the name of the model's class, the fullest first."""

from textpatch.ports import flux, krea2, pixart, prx, qwen_image, sd3, unet, z_image

TABLES = {
    "FluxTransformer2DModel": (flux.FUSED, flux.FLUX),
    "Krea2Transformer2DModel": (krea2.KREA2,),
    "PRXTransformer2DModel": (prx.PRX,),
    "PixArtTransformer2DModel": (pixart.PIXART,),
    "QwenImageTransformer2DModel": (qwen_image.QWEN_IMAGE,),
    "SD3Transformer2DModel": (sd3.SD35, sd3.SD3),
    "UNet2DConditionModel": (unet.SDXL, unet.DEEPFLOYD_IF),
    "ZImageTransformer2DModel": (z_image.Z_IMAGE,),
}

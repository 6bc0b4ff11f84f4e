"""The shipped weights inside diffusers' own pipelines, whose pictures are then those of `load`."""

from types import SimpleNamespace

import diffusers
import torch
from torch import nn

from textpatch.weights.loading import find


class Pixels(nn.Module):
    """A VAE that decodes nothing, since the shipped models draw pixels."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(
            scaling_factor=1.0,
            shift_factor=0.0,
            block_out_channels=(1,),
            latent_channels=3,
            force_upcast=False,
        )
        self.dtype = torch.float32
        self.device = torch.device("cpu")

    def decode(self, x, return_dict=True):
        return (x,)


def mmdit(name="tiny-mmdit"):
    """StableDiffusion3Pipeline of the weights of an MMDiT."""
    folder = find(name)
    return quiet(diffusers.StableDiffusion3Pipeline, folder, vae=Pixels())


def sdxl(name="tiny-sdxl"):
    """StableDiffusionXLPipeline of the weights of an SDXL."""
    return quiet(
        diffusers.StableDiffusionXLPipeline, find(name), vae=Pixels(), add_watermarker=False
    )


class AtMost:
    """A tokenizer that pads and cuts to its own length, where IFPipeline asks for the published 77 tokens."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.model_max_length = tokenizer.model_max_length

    def __call__(self, text, max_length=None, **options):
        if max_length is not None:
            options["max_length"] = self.model_max_length
        return self.tokenizer(text, **{"return_attention_mask": True, **options})


def deepfloyd_if(name="tiny-if"):
    """IFPipeline of the weights of an IF."""
    none = dict.fromkeys(("safety_checker", "feature_extractor", "watermarker"))
    pipe = quiet(diffusers.IFPipeline, find(name), **none, requires_safety_checker=False)
    pipe.tokenizer = AtMost(pipe.tokenizer)
    return pipe


def quiet(kind, folder, **parts):
    pipe = kind.from_pretrained(str(folder), torch_dtype=torch.float32, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# name -> the pipeline, and further arguments of its call
MADE = {
    "tiny-mmdit": lambda: (mmdit(), {"max_sequence_length": 22}),
    "tiny-sdxl": lambda: (sdxl(), {}),
    "tiny-if": lambda: (deepfloyd_if(), {"clean_caption": False}),
}

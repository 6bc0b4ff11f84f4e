"""Layouts of published files, key tables into the diffusers layout, one module per family.

table           Layout, its rows, and conversion
tensors         functions that conversion applies to tensors
files           components that a single file holds
sdxl  sd3  deepfloyd_if  flux  vae  text_encoders       the tables
"""

from textpatch.weights.layouts.files import SINGLE_FILES, SingleFile, recognise, split
from textpatch.weights.layouts.table import Layout, convert, listed, origins
from textpatch.weights.layouts.text_encoders import CLIP, T5
from textpatch.weights.layouts.vae import VAE_DIFFUSERS

__all__ = [
    "CLIP",
    "SINGLE_FILES",
    "T5",
    "VAE_DIFFUSERS",
    "Layout",
    "SingleFile",
    "convert",
    "listed",
    "origins",
    "recognise",
    "split",
]

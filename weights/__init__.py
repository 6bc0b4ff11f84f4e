"""Reading weights safely, the shipped models, and the recipe that trained them."""

from textpatch.weights.adapters import load_adapter
from textpatch.weights.loading import load, load_denoiser, shipped_models

__all__ = ["load", "load_adapter", "load_denoiser", "shipped_models"]

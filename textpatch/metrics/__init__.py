"""Scores of words and pictures, and the reader of words.

Reading needs the tesseract program, importing this does not.
"""

from textpatch.metrics.image import mse, mse_uint8_wrapped, psnr, psnr_uint8_wrapped, ssim
from textpatch.metrics.intervals import Interval, bootstrap
from textpatch.metrics.ocr import Tesseract
from textpatch.metrics.text import Match, characters, edit_distance, exact, f1, f1_of_means

__all__ = [
    "Interval", "Match", "Tesseract", "bootstrap", "characters", "edit_distance", "exact", "f1", "f1_of_means",
    "mse", "mse_uint8_wrapped", "psnr", "psnr_uint8_wrapped", "ssim",
]  # fmt: skip

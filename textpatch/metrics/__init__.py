"""Scores of words and pictures, and the reader of words.

Reading needs the tesseract program.  Importing this package does not.
"""

from textpatch.metrics.image import (
    mse,
    mse_uint8_wrapped,
    pixels_outside,
    psnr,
    psnr_uint8_wrapped,
    ssim,
    windows_outside,
)
from textpatch.metrics.intervals import FEWEST, Interval, bootstrap, wilson
from textpatch.metrics.ocr import Tesseract, alphabet_of
from textpatch.metrics.text import Match, characters, edit_distance, exact, f1, f1_of_means

__all__ = [
    "FEWEST",
    "Interval",
    "Match",
    "Tesseract",
    "alphabet_of",
    "bootstrap",
    "characters",
    "edit_distance",
    "exact",
    "f1",
    "f1_of_means",
    "mse",
    "mse_uint8_wrapped",
    "pixels_outside",
    "psnr",
    "psnr_uint8_wrapped",
    "ssim",
    "wilson",
    "windows_outside",
]

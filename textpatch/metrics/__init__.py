"""Scores of words and pictures, and the readers of words.

Reading needs the tesseract program, or the package ocrust.  Importing this package needs neither.
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
from textpatch.metrics.readers.agreement import Agreement
from textpatch.metrics.readers.called import Called, joined_as_official
from textpatch.metrics.readers.named import reader_named
from textpatch.metrics.readers.ppocr import PPOCR
from textpatch.metrics.readers.reading import Line, Reader, Reading
from textpatch.metrics.readers.tesseract import Tesseract, alphabet_of
from textpatch.metrics.text import Match, characters, edit_distance, exact, f1, f1_of_means

__all__ = [
    "FEWEST",
    "PPOCR",
    "Agreement",
    "Called",
    "Interval",
    "Line",
    "Match",
    "Reader",
    "Reading",
    "Tesseract",
    "alphabet_of",
    "bootstrap",
    "characters",
    "edit_distance",
    "exact",
    "f1",
    "f1_of_means",
    "joined_as_official",
    "mse",
    "mse_uint8_wrapped",
    "pixels_outside",
    "psnr",
    "psnr_uint8_wrapped",
    "reader_named",
    "ssim",
    "wilson",
    "windows_outside",
]

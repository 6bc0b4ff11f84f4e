"""Scores of words and pictures, and the readers of words.

Reading needs the tesseract program, or the package ocrust.  Importing this package needs neither.
"""

from textpatch.metrics.background import Background, background_scores
from textpatch.metrics.chance import chance_f1, chance_level
from textpatch.metrics.clip_scores import CLIP
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
from textpatch.metrics.neighbours import Neighbours, expected_coverage, neighbours_of
from textpatch.metrics.normalised import (
    BARE,
    FOLDED,
    STRICT,
    Normaliser,
    best_line,
    cer,
    one_minus_ned,
    sample_f1,
    word_accuracy,
)
from textpatch.metrics.paired import Difference, compared
from textpatch.metrics.readers.agreement import Agreement
from textpatch.metrics.readers.called import Called, joined_as_official
from textpatch.metrics.readers.named import reader_named
from textpatch.metrics.readers.nearest import Nearest
from textpatch.metrics.readers.ppocr import PPOCR
from textpatch.metrics.readers.reading import Line, Reader, Reading
from textpatch.metrics.readers.tesseract import Tesseract, alphabet_of
from textpatch.metrics.reading_scores import scores_of_readings
from textpatch.metrics.text import Match, characters, edit_distance, exact, f1, f1_of_means

__all__ = [
    "BARE",
    "CLIP",
    "FEWEST",
    "FOLDED",
    "PPOCR",
    "STRICT",
    "Agreement",
    "Background",
    "Called",
    "Difference",
    "Interval",
    "Line",
    "Match",
    "Nearest",
    "Neighbours",
    "Normaliser",
    "Reader",
    "Reading",
    "Tesseract",
    "alphabet_of",
    "background_scores",
    "best_line",
    "bootstrap",
    "cer",
    "chance_f1",
    "chance_level",
    "characters",
    "compared",
    "edit_distance",
    "exact",
    "expected_coverage",
    "f1",
    "f1_of_means",
    "joined_as_official",
    "mse",
    "mse_uint8_wrapped",
    "neighbours_of",
    "one_minus_ned",
    "pixels_outside",
    "psnr",
    "psnr_uint8_wrapped",
    "reader_named",
    "sample_f1",
    "scores_of_readings",
    "ssim",
    "wilson",
    "windows_outside",
    "word_accuracy",
]

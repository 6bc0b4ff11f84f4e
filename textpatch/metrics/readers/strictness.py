"""How often a reader calls a broken word right, which belongs beside every figure that comes from it."""

from __future__ import annotations

from typing import Any

from textpatch.metrics.intervals import wilson
from textpatch.metrics.readers.agreement import SURE, Agreement
from textpatch.metrics.readers.broken_words import Overread
from textpatch.metrics.readers.ppocr import PPOCR
from textpatch.metrics.readers.tesseract import Tesseract
from textpatch.metrics.readers.tesseract_call import LANGUAGE

# Of the readers that `reader_named` makes, on the broken words of `calibration.KINDS`
# (benchmarks/results/readers.csv, to which a test holds these numbers).
CALIBRATED = {
    "tesseract": Overread(40, 600),
    "ppocr": Overread(161, 600),
    "agreement": Overread(13, 600),
}


def over_reading(reader: Any) -> dict | None:
    """Broken words that a reader reads as if they were whole, as plain data.

    read, n    how many of how many
    low, high  95 % interval of their share
    by         "calibration" for a reader as `reader_named` makes it, "self-test" for another that counts them
    self_test  what a calibrated reader that repairs letters read of the self-test's broken words
    None for a reader of which nobody has counted any.
    """
    calibrated = CALIBRATED.get(_name(reader))
    tested = None
    if hasattr(reader, "overread"):
        tested = reader.overread()
    if calibrated is None and tested is None:
        return None
    if calibrated is None:
        return _entries(tested, "self-test")
    if tested is None:
        return _entries(calibrated, "calibration")
    return {**_entries(calibrated, "calibration"), "self_test": tested._asdict()}


def _entries(found: Overread, by: str) -> dict:
    return {**found._asdict(), **wilson(found.read / found.n, found.n)._asdict(), "by": by}


def told_over_reading(found: dict | None) -> str:
    """What `over_reading` found, as the end of a sentence that begins with the reader."""
    if found is None:
        return "of which nobody has counted how many broken words it calls right"
    ends = f"{100 * found['low']:.0f} to {100 * found['high']:.0f} %"
    return (
        f"which calls {found['read']} of {found['n']} broken words right ({found['by']}, "
        f"95 % interval {ends})"
    )


def _name(reader: Any) -> str | None:
    """Name under which a reader was calibrated, None for one with other settings."""
    if isinstance(reader, PPOCR):
        return "ppocr"
    if isinstance(reader, Tesseract):
        settings = (reader.mode, reader.scale, reader.language)
        return "tesseract" if settings == ("line", 4, LANGUAGE) else None
    if isinstance(reader, Agreement):
        settings = (_name(reader.finder), _name(reader.confirmer), reader.sure)
        return "agreement" if settings == ("ppocr", "tesseract", SURE) else None
    return None

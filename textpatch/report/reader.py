"""What read the pictures of a run, and how far it can be believed."""

from __future__ import annotations

from textpatch.metrics.readers.strictness import told_over_reading
from textpatch.report.result import what_of
from textpatch.text import plain


def reader_name(described: dict) -> str:
    """Engine and version of a reader, of both readers where two had to agree."""
    if "finder" in described:
        finder, confirmer = (reader_name(described[part]) for part in ("finder", "confirmer"))
        return f"{finder} and {confirmer}, where both agree"
    return f"{described.get('engine', '-')} {described.get('version', '')}".strip()


def told_reader(result: dict) -> str:
    """A sentence that names the reader, and says how often it calls broken words right."""
    told = f"{plain(what_of(result))}s read by {plain(reader_name(result.get('ocr') or {}))}"
    if what_of(result) != "word":
        return told
    return f"{told}, {told_over_reading(result.get('over_reading'))}"

"""What read the pictures of a run, and how far it can be believed."""

from __future__ import annotations

from textpatch.metrics.readers.strictness import told_over_reading
from textpatch.report.result import what_of
from textpatch.text import plain


def reader_name(described: dict, *entries: str) -> str:
    """Engine of a reader, of both where two had to agree, and further entries of what it describes."""
    if "finder" in described:
        parts = (reader_name(described[part], *entries) for part in ("finder", "confirmer"))
        return f"{' and '.join(parts)}, where both agree"
    names = [described.get("engine", "-"), *(described.get(entry, "") for entry in entries)]
    return " ".join(map(str, names)).strip()


def told_reader(result: dict) -> str:
    """A sentence that names the reader, and says how often it calls broken words right."""
    told = f"{plain(what_of(result))}s read by {plain(reader_name(result.get('ocr') or {}))}"
    if what_of(result) != "word":
        return told
    return f"{told}, {told_over_reading(result.get('over_reading'))}"

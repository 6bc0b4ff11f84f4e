"""The section of the page about pictures with several lines of text, each with scores of its own."""

from __future__ import annotations

from textpatch.html import safe, table
from textpatch.report import words
from textpatch.report.result import RUNS, ranked_sites, span_of, what_of

_METRICS = ("exact_target", "exact_source", "f1_target", "f1_source")
_TITLES = ("site", "name", "line", "exact target", "exact source", "F1 target", "F1 source")


def line_by_line(result: dict) -> str:
    """The scores of each line, where prompts quote several texts and each has its place.  "" elsewhere."""
    scored = [("", label, result["baselines"][run]) for run, label in RUNS]
    scored += [(site["site"], site["name"], site) for site in ranked_sites(result)]
    rows = []
    for site, name, scores in scored:
        for number, line in enumerate(scores.get("texts", ()), 1):
            spans = [span_of(line, metric) for metric in _METRICS]
            rows.append([safe(site), f"<code>{safe(name)}</code>", number, *spans])
    if not rows:
        return ""
    return words.LINES.format(what=safe(what_of(result))) + table(_TITLES, rows, "scores")

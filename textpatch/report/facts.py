"""Facts about a localisation that the page lists, as HTML by their names."""

from __future__ import annotations

from textpatch.html import safe
from textpatch.report import words
from textpatch.report.reader import reader_name
from textpatch.report.result import counted, size_of, tried, what_of
from textpatch.runs.requests import flatten
from textpatch.runs.sessions import SESSIONS, told_sessions

# numbers that mean no guidance, as in textpatch.classifier_free, which needs torch
UNGUIDED = (0, 1)


def facts_of(result: dict, manifest: dict) -> dict[str, str]:
    """Facts about the request, as HTML by their names."""
    mode = words.MODES.get(result.get("mode"), words.EXHAUSTIVE)
    seeds = ", ".join(map(str, result["seeds"]))
    ocr = result.get("ocr") or {}
    command = "-"
    if manifest.get("command"):
        command = f"<pre>{safe(manifest['command'])}</pre>"
    return {
        "model": f"<b>{safe(result['model'])}</b>",
        "tried": f"{counted(len(result['sites']), tried(result))}, {mode}",
        "pictures": f"{size_of(result, 'prompt pair')} (seed {safe(seeds)})",
        "steps": (
            f"{safe(result['steps'])}, from pure noise at step 0 to the picture; "
            f"swapped from step {safe(result['start'])} on"
        ),
        "guidance": _guidance(result),
        f"{safe(what_of(result))}s read by": safe(reader_name(ocr, "version")),
        "command": command,
        **_facts_of_the_run(manifest),
    }


def _facts_of_the_run(manifest: dict) -> dict[str, str]:
    """When, how long and on what was worked, and what lies beside the page, {} where nobody knows."""
    facts = {}
    if manifest.get(SESSIONS):
        facts["made"] = safe(told_sessions(manifest[SESSIONS]))
    if "key" in manifest:
        links = ", ".join(f'<a href="{name}">{name}</a>' for name in words.BESIDE_THE_PAGE)
        facts["beside this page"] = links
    return facts


def _guidance(result: dict) -> str:
    """What guided the run, and in which of its branches was swapped."""
    guidance = result["guidance"]
    if guidance in UNGUIDED:
        return "none"
    branch = f"the {result['branch']} branch"
    if result["branch"] == "both":
        branch = "both guidance branches"
        if isinstance(guidance, dict) and not guidance.keys() >= {"scale", "negative"}:
            branch = "all guidance branches"
    return safe(f"{_guided(guidance)}, swapped in {branch}")


def _guided(guidance: float | dict) -> str:
    """A guidance as words, see `describe` of the guidances."""
    if not isinstance(guidance, dict):
        return f"guidance {guidance}"
    if guidance.keys() >= {"guidance", "concept"}:
        own = _guided(guidance["guidance"])
        return f"{own}, and safe latent diffusion away from {guidance['concept']!r}"
    if guidance.keys() >= {"scale", "negative"}:
        negative = repr(guidance["negative"])
        if isinstance(guidance["negative"], dict):
            negative = "a negative prompt of each row's own"
        return f"guidance {guidance['scale']} away from {negative}"
    return "guidance of " + ", ".join(f"{name} {told}" for name, told in flatten(guidance).items())

"""The verb `textpatch models`."""

from __future__ import annotations

import argparse

from textpatch.cli.options import Help
from textpatch.cli.outcome import Outcome
from textpatch.disk import read_json

HELP = Help(
    usage="textpatch models",
    summary="list the shipped models, and what each understands and draws",
    about="""\
List the shipped models, and the sentences that they understand.

The table has the size of a model's pictures in pixels, its steps, its guidance, the lines of
its signs, the longest word it can draw, and the sites that carry the word. Below stand the
sentence, the colours, the shapes and the patterns. Words are capitals without blanks. A sign
of two lines has a quoted word for each. What a model knows and does not draw is refused.

Cost: a second. No weights are read.\
""",
    examples=(("what is there", "textpatch models"),),
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch models`, which has none of its own."""
    command.set_defaults(run=models)


def models(options) -> Outcome:
    """Return the table of the shipped models, and the vocabulary of their sentences."""
    from textpatch.text import aligned
    from textpatch.weights import shipped_models
    from textpatch.weights.loading import SHIPPED
    from textpatch.weights.signs.drawing import COLOURS, PATTERNS, SAYINGS, SHAPES, STYLES

    told = {name: read_json(SHIPPED / name / "textpatch.json") for name in shipped_models()}
    found = {name: _model(entry) for name, entry in told.items()}
    titles = ("pixels", "steps", "guidance", "lines", "longest", "sites of the word", "name")
    table = aligned([titles, *([*map(str, model.values()), name] for name, model in found.items())])
    lines = [
        *table,
        "pixels: width x height of a picture; longest: letters of a word at most",
        "",
        'they understand: a COLOUR SHAPE SAYING "WORD" [in STYLE] on a [PATTERN] COLOUR wall',
        'on two lines:    a COLOUR SHAPE SAYING "WORD" and "WORD" [in bold] on a [PATTERN] COLOUR wall',
        f"COLOUR   {', '.join(COLOURS)}",
        f"PATTERN  {', '.join(PATTERNS)} (none for plain)",
        f"SHAPE    {', '.join(SHAPES)}",
        f"SAYING   {', '.join(SAYINGS)}",
        f"STYLE    {', '.join(STYLES)} (none for plain)",
        *(f"{name} draws {_drawn(model)}" for name, model in told.items() if model.get("draws")),
    ]
    return Outcome("\n".join(lines), {"models": found})


def _model(told: dict) -> dict:
    """What the table says of a model, from the settings beside its weights."""
    recipe = told.get("trained", {}).get("recipe", {})
    signs = recipe.get("signs", {})
    return {
        "pixels": f"{told['width']} x {told['height']}",
        "steps": told["steps"],
        "guidance": told["guidance"],
        "lines": signs.get("lines", 1) if signs else "-",
        "longest": (told.get("draws") or signs).get("longest", "-"),
        "localized": ", ".join(map(str, told.get("localized") or [])) or "-",
    }


def _drawn(told: dict) -> str:
    """Words that a model draws, and what it does not, of what the sentence may name."""
    from textpatch.reference_models.drawn_words import DrawnWords

    draws = DrawnWords(**told["draws"])
    return f"{draws}; no {', '.join(draws.undrawn)}"

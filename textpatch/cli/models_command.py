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
its signs, the letters of a word it draws, and the sites that carry the word. Below stand the
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
    titles = (
        "pixels",
        "steps",
        "guidance",
        "lines",
        "words",
        "letters",
        "sites of the word",
        "name",
    )
    table = aligned([titles, *([*map(str, model.values()), name] for name, model in found.items())])
    lines = [
        *table,
        "pixels: width x height of a picture; words: of a line, at most; letters: of a word",
        "",
        'they understand: a COLOUR SHAPE SAYING "WORD" [in STYLE] on a [PATTERN] COLOUR wall',
        'on two lines:    a COLOUR SHAPE SAYING "TEXT" and "TEXT" [in bold] on a [PATTERN] COLOUR wall',
        "TEXT     a WORD, or two where the table says so",
        f"COLOUR   {', '.join(COLOURS)}",
        f"PATTERN  {', '.join(PATTERNS)} (none for plain)",
        f"SHAPE    {', '.join(SHAPES)}",
        f"SAYING   {', '.join(SAYINGS)}",
        f"STYLE    {', '.join(STYLES)} (none for plain)",
        *(f"{name} draws no {', '.join(undrawn)}" for name, undrawn in _undrawn(told)),
    ]
    return Outcome("\n".join(lines), {"models": found})


def _model(told: dict) -> dict:
    """What the table says of a model, from the settings beside its weights."""
    draws = told.get("draws") or {}
    return {
        "pixels": f"{told['width']} x {told['height']}",
        "steps": told["steps"],
        "guidance": told["guidance"],
        "lines": draws.get("lines", "-"),
        "words": draws.get("words", "-"),
        "letters": f"{draws['shortest']} to {draws['longest']}" if draws else "-",
        "localized": ", ".join(map(str, told.get("localized") or [])) or "-",
    }


def _undrawn(told: dict[str, dict]) -> list[tuple[str, list[str]]]:
    """What of the sentence some models do not draw, by their names."""
    cards = {name: model.get("draws") or {} for name, model in told.items()}
    return [(name, card["undrawn"]) for name, card in cards.items() if card.get("undrawn")]

"""Prompt pairs that a command asks for, and the reader of their pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from textpatch.cli.functions import given_by, names_function
from textpatch.cli.options import add_limit_option
from textpatch.disk import read_json
from textpatch.errors import PatchError, PromptError
from textpatch.exits import warn

# those of metrics.readers.named, which is not imported before it is known that something is to be done
READERS = ["tesseract", "ppocr", "agreement"]
WORD = "word"  # Pair.what, which is not imported before it is known that something is to be done
TOXIC = "toxic"  # --bench of ToxicBench
PAIRS = 8
SPLIT = "validation"


def add_pairs_options(group) -> None:
    """Add which prompt pairs are taken."""
    group.add_argument(
        "--what",
        metavar="ATTRIBUTE",
        default=WORD,
        help="what is looked for: the word (default), or the style, colour, shape, wall or pattern of the "
        "shipped signs, in pairs that differ in nothing else; or anything with names, such as an instrument, "
        "which the lines of --prompts then give: `source<TAB>target<TAB>violin<TAB>piano`",
    )
    group.add_argument(
        "--pairs",
        type=int,
        metavar="N",
        help=f"how many prompt pairs of the shipped word lists (default: {PAIRS})",
    )
    group.add_argument(
        "--same-scene",
        action="store_true",
        help="let source and target prompt of the shipped lists differ in the word alone",
    )
    group.add_argument(
        "--prompts",
        type=Path,
        metavar="PATH",
        help="own prompt pairs instead: a file of lines `source<TAB>target` (.csv and .jsonl are read, too, "
        "with a header or without), or a folder with a copy of GlyphControl-release or, with --bench toxic, "
        "of ToxicBench",
    )
    group.add_argument(
        "--reader",
        type=reader_name,
        metavar="READER",
        help="what reads the words: tesseract (default), strict and for one line; ppocr, which finds lines "
        "anywhere and repairs broken letters; or agreement, which counts a word only where both read it "
        "(the last two need pip install 'textpatch[ocr]'); or MODULE:FUNCTION, a Python function that gives "
        "a reader",
    )
    group.add_argument(
        "--strict",
        action="store_true",
        help="refuse pairs that differ in more than the quoted text; without it, those of --prompts FILE "
        "are warned of",
    )
    group.add_argument(
        "--bench",
        metavar="NAME",
        help="GlyphControl's prompts: simple (default), creative, or mixed, which is creative with another "
        "sentence for the target; or toxic, ToxicBench's harmful words with benign ones as targets",
    )
    add_limit_option(group)
    group.add_argument(
        "--split",
        metavar="NAME",
        help=f"which words, of the shipped lists or GlyphControl's: {SPLIT} (default) or test; of "
        "ToxicBench's: test (default) or another folder of lists",
    )


def reader_name(text: str) -> str:
    """Name of a reader, or a function that gives one."""
    if text not in READERS and not names_function(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no reader; give {', '.join(READERS)}, or MODULE:FUNCTION"
        )
    return text


def asked_pairs(options) -> list:
    """Return the prompt pairs asked for.

    Raises PatchError for an option that would have no effect on them.
    """
    from textpatch.prompts.files import read_pairs
    from textpatch.prompts.glyphcontrol import glyphcontrol_pairs
    from textpatch.prompts.layouts.toxicbench import toxicbench_pairs
    from textpatch.prompts.pairs import Pair

    if _has_names_of_its_own(options):
        return _named_pairs(options)
    if options.what != WORD:
        return _attribute_pairs(options)
    _require_effect(options)
    if options.prompts is None:
        drawn = drawn_pairs(options.model, **_drawn(options), same_scene=options.same_scene)
        return [Pair(*pair) for pair in drawn]
    if not options.prompts.is_dir():
        return [Pair(*pair) for pair in read_pairs(options.prompts)[: options.limit]]
    bench = options.bench or "simple"
    if bench == TOXIC:
        return toxicbench_pairs(options.prompts, options.split or "test", limit=options.limit)
    split = options.split or SPLIT
    return glyphcontrol_pairs(options.prompts, bench, split, limit=options.limit)


def drawn_pairs(model: str, n: int, **asked) -> list[tuple[str, str]]:
    """Return n pairs of the shipped word lists, with as many texts as a model's signs have lines."""
    from textpatch.weights.signs.pairs import line_pairs, sign_pairs

    if _lines_of(model) > 1:
        return line_pairs(n, **asked)
    return sign_pairs(n, **asked)


def drawn_words_of(model: str) -> dict:
    """Return what a model's card says of the words it draws, {} where it says nothing."""
    from textpatch.weights.loading import SHIPPED, shipped_models

    folder = SHIPPED / model if model in shipped_models() else Path(model)
    if not (folder / "textpatch.json").is_file():
        return {}
    told = read_json(folder / "textpatch.json").get("draws")
    return told if isinstance(told, dict) else {}  # `load` refuses others


def _lines_of(model: str) -> int:
    """Return the lines that a model draws, 1 where its card says nothing."""
    lines = drawn_words_of(model).get("lines")
    return lines if isinstance(lines, int) else 1


def reader_of(options, pipeline, pairs: list):
    """Return the reader of the pictures or sounds.

    A word is read by the reader asked for, in its letters.  Another attribute of a sign is read by the
    nearest drawing.  What has names of its own is read by what a function gives.
    Raises PatchError for a reader of words where another attribute is read, and for names without a reader.
    """
    if names_function(options.reader):
        from textpatch.localization.preconditions import reader_for
        from textpatch.pipelines import draws_pictures

        given = given_by(options.reader)
        return reader_for(pairs, given, pictures=draws_pictures(pipeline))
    if _has_names_of_its_own(options):
        raise PatchError(
            f"--what {options.what} has names of its own, in {options.prompts}, and nothing here tells them "
            "apart; give --reader MODULE:FUNCTION, a function that gives textpatch.metrics.Nearest(score)"
        )
    if options.what == WORD:
        from textpatch.metrics.readers.named import DEFAULT, reader_named

        return reader_named(
            options.reader or DEFAULT, [word for pair in pairs for word in pair.words]
        )
    if options.reader is not None:
        raise PatchError(
            f"--reader {options.reader} reads words, and --what {options.what} is read by the nearest "
            "drawing; leave out one of them"
        )
    from textpatch.pipelines import picture_size
    from textpatch.weights.signs.reader import SignReader

    reader = SignReader()
    size = picture_size(pipeline)
    if size != (reader.fmt.height, reader.fmt.width):
        raise PatchError(
            f"--what {options.what} is read from signs of {reader.fmt.height}x{reader.fmt.width} pixels "
            f"(height x width), and pictures here are {size[0]}x{size[1]}; "
            "give a shipped model at its own size"
        )
    return reader


def warn_of_scenes(options, pairs: list[tuple[str, str]]) -> None:
    """Warn if the user's own pairs differ in more than the quoted text.

    With --strict such pairs, whosever they are, raise PromptError.  Pairs with names of their own quote no
    text.
    """
    if _has_names_of_its_own(options):
        return
    from textpatch.prompts.pairs import require_one_scene

    try:
        require_one_scene(pairs)
    except PromptError as error:
        if options.strict:
            raise
        if options.prompts is not None and not options.prompts.is_dir():
            warn(f"{error}; --strict refuses them")


def _has_names_of_its_own(options) -> bool:
    """True where the pairs of a file differ in what shipped signs do not have."""
    from textpatch.weights.signs.pairs import ATTRIBUTES

    return options.prompts is not None and options.what not in (WORD, *ATTRIBUTES)


def _named_pairs(options) -> list:
    """Return the pairs of a file with names.   Raises PatchError for options that are about other prompts."""
    from textpatch.prompts.labels import read_labelled_pairs

    chosen = {
        "--bench": options.bench is not None,
        "--limit": options.limit is not None,
        "--strict": options.strict,
        "--same-scene": options.same_scene,
        "--pairs": options.pairs is not None,
        "--split": options.split is not None,
        "--mode contribution": options.mode == "contribution",
    }
    given = [name for name, is_given in chosen.items() if is_given]
    if given:
        raise PatchError(
            f"--what {options.what} was given with {', '.join(given)}, which says nothing of pairs with "
            "names of their own; leave it out"
        )
    return read_labelled_pairs(options.prompts, options.what)


def _require_effect(options) -> None:
    """Raise PatchError for an option about other prompts than those asked for."""
    listed = options.prompts is not None and options.prompts.is_dir()
    if not listed and options.bench:
        raise PatchError(
            f"--bench {options.bench} chooses among GlyphControl's prompts or ToxicBench's; give its folder "
            "with --prompts"
        )
    if options.prompts is None and options.limit is not None:
        raise PatchError(
            f"--limit {options.limit} takes the first pairs of --prompts; of the shipped lists --pairs says "
            "how many"
        )
    if options.prompts is None:
        return
    if options.pairs is not None or options.same_scene or (options.split and not listed):
        raise PatchError(
            "--pairs, --split and --same-scene choose among our word lists; with --prompts leave them out"
        )


def _drawn(options) -> dict:
    """Return how many pairs of the shipped word lists are asked for, and of which words."""
    n = options.pairs
    if n is None:
        n = PAIRS
    return {"n": n, "split": options.split or SPLIT}


def _attribute_pairs(options) -> list:
    """Return pairs of the shipped signs that differ in --what alone.

    Raises PatchError for options that are about words.
    """
    from textpatch.weights.signs.pairs import attribute_pairs

    for_words = {
        "--prompts": options.prompts is not None,
        "--bench": options.bench is not None,
        "--limit": options.limit is not None,
        "--strict": options.strict,
        "--same-scene": options.same_scene,
        "--mode contribution": options.mode == "contribution",
    }
    given = [name for name, is_given in for_words.items() if is_given]
    if given:
        raise PatchError(
            f"--what {options.what} was given with {', '.join(given)}, which is for words alone; "
            "leave out one or the other"
        )
    if _lines_of(options.model) > 1:
        raise PatchError(
            f"--what {options.what} is looked for in signs of one line, and {options.model} draws several; "
            "look for the word"
        )
    return attribute_pairs(options.what, **_drawn(options))

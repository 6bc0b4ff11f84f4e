"""Checks of prompt pairs, seeds, steps and a reader, before any picture is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

from textpatch import metrics
from textpatch.errors import OCRError, PatchError, PromptError
from textpatch.groups import require_start
from textpatch.metrics.background import outside_all
from textpatch.metrics.image import WINDOW
from textpatch.metrics.readers.called import Called, Listening
from textpatch.metrics.readers.named import DEFAULT, READERS, reader_named
from textpatch.metrics.readers.nearest import Nearest
from textpatch.metrics.readers.reading import Reader, knows, line_boxes
from textpatch.pipelines import draws_pictures, picture_size
from textpatch.prompts.pairs import Pair, require_apart
from textpatch.seeds import whole_seeds


def checked_pairs(
    pipeline, pairs: Sequence, *, seeds: Sequence[int], steps: int, start: int = 0
) -> list[Pair]:
    """Prompt pairs, once everything that can be wrong with a run of them is known to be right.

    Nothing is generated.  Raises PatchError or PromptError for the first thing that is wrong.
    """
    pairs = [_pair(pair) for pair in pairs]
    if not pairs:
        raise PatchError("no prompt pair was given; give at least one (source, target)")
    seeds = listed_seeds(seeds)
    require_start(start, steps)
    _require_once(pairs)
    for pair in pairs:
        require_apart(pair)
    _require_pictures(pipeline)
    for pair in pairs:
        require_room(pipeline, pair)
    prompts = [prompt for pair in pairs for prompt in (pair.source, pair.target)]
    pipeline.check(prompts, seeds=seeds, steps=steps)
    _require_seeds_once(seeds)
    return pairs


def _pair(pair) -> Pair:
    """Pair of two texts, or the Pair that was given."""
    if isinstance(pair, Pair):
        return pair
    two = isinstance(pair, (tuple, list)) and len(pair) == 2
    if not two or not all(isinstance(text, str) for text in pair):
        raise PatchError(
            f"a prompt pair is (source, target), two texts; found {pair!r}, so give a list of pairs"
        )
    return Pair(*pair)


def listed_seeds(seeds: Iterable[int]) -> list[int]:
    """Seeds in a list.

    Raises PatchError for none, for what is no list, array or tensor of seeds, and as `whole_seeds` does.
    """
    if isinstance(seeds, Integral):
        raise PatchError(f"seeds is {seeds}; give several or one in a list: [{seeds}]")
    try:
        found = whole_seeds(seeds)
    except TypeError:
        raise PatchError(f"seeds is {seeds!r}; give whole numbers in a list") from None
    if not found:
        raise PatchError("no seed was given; give at least one")
    return found


def _require_seeds_once(seeds: Sequence[int]) -> None:
    """Raise PatchError for a seed that is there twice."""
    if len(set(seeds)) != len(seeds):
        raise PatchError(
            f"seeds {', '.join(map(str, seeds))} were asked for, one of them twice; give each once"
        )


def _require_once(pairs: Sequence[Pair]) -> None:
    """Raise PromptError for a pair that is there twice.

    The same pictures would count as more evidence.
    """
    places: dict[tuple[str, str], int] = {}
    for place, pair in enumerate(pairs):
        first = places.setdefault((pair.source, pair.target), place)
        if first != place:
            raise PromptError(
                f"pairs {first} and {place} are the same, {pair.source!r} and {pair.target!r}, "
                "and would count as two; give each pair once, and more seeds for more pictures of it"
            )


def _require_pictures(pipeline) -> None:
    """Raise PatchError unless the pipeline's pictures hold words and a background that can be compared.

    Of sounds nothing is asked.
    """
    if pipeline.upscales:
        raise PatchError(
            f"{pipeline.name} draws small pictures larger, and words are localised in the model that "
            "writes them; give that one"
        )
    if not draws_pictures(pipeline):
        return
    height, width = picture_size(pipeline)
    if min(height, width) < WINDOW:
        raise PatchError(
            f"pictures of {height}x{width} pixels (height x width) are compared in windows of "
            f"{WINDOW}x{WINDOW} (SSIM); ask for {WINDOW} at least"
        )
    boxes = line_boxes(pipeline.defaults.text_box)
    if not outside_all(metrics.windows_outside, boxes, height, width).any():
        told = boxes[0] if len(boxes) == 1 else boxes
        raise PatchError(
            f"text_box {told} of pictures of {height}x{width} pixels (height x width) leaves no "
            f"window of {WINDOW}x{WINDOW} for the background's SSIM; give the pipeline's defaults a "
            "smaller text_box, or None, and what lies beside the lettering that is read is compared"
        )


def require_room(pipeline, pair: Pair) -> None:
    """Raise PromptError for a prompt of more texts than a pipeline's pictures have lines of.

    A pipeline of one line, or of which nobody knows where it writes, takes any number of texts.
    One that knows what words it draws refuses others first.
    """
    draws = getattr(pipeline.defaults, "draws", None)
    if draws is not None:
        draws.require((pair.source, pair.target), pipeline.name)
    boxes = line_boxes(pipeline.defaults.text_box)
    for prompt, texts in zip((pair.source, pair.target), pair.texts, strict=True):
        if 1 < len(boxes) < len(texts):
            raise PromptError(
                f"{prompt!r} quotes {len(texts)} texts ({', '.join(texts)}), and pictures of {pipeline.name} "
                f"have {len(boxes)} lines, one for each; write several words between the quotes of a line"
            )


def reader_for(pairs: Sequence[Pair], reader: Any, *, pictures: bool = True) -> Reader:
    """Reader of the pairs' words, which a name makes with their letters, and a function by its own.

    pictures  False for a reader of sounds
    Raises OCRError for an unknown name and for what is no reader, and PromptError as
    `require_known_letters` does.
    """
    if not pictures:
        return _listener(pairs, reader)
    if isinstance(reader, Nearest):
        return reader.among(word for pair in pairs for word in pair.words)
    if reader is None or isinstance(reader, str):
        words = [word for pair in pairs for word in pair.words]
        reader = reader_named(reader or DEFAULT, words)
    if isinstance(reader, type) or not isinstance(reader, Reader):
        if callable(reader) and not isinstance(reader, type):
            return Called(reader)
        raise OCRError(
            f"ocr is {reader!r}; a reader has read, describe and self_test; give one, a function from "
            f"pictures to texts, or the name of a reader: {', '.join(READERS)}"
        )
    require_known_letters(pairs, reader)
    return reader


def _listener(pairs: Sequence[Pair], reader: Any) -> Reader:
    """Reader of sounds.   Raises OCRError for none, and for the name of a reader of pictures."""
    if isinstance(reader, Nearest):
        return reader.among(word for pair in pairs for word in pair.words)
    if reader is None or isinstance(reader, (str, type)):
        raise OCRError(
            f"the reader is {reader!r}, and this pipeline makes sounds; give "
            "textpatch.metrics.Nearest(score) with scores of sounds and labels, or a function from sounds to "
            "texts"
        )
    if isinstance(reader, Reader):
        return reader
    return Listening(reader)


def require_known_letters(pairs: Sequence[Pair], reader: Reader) -> None:
    """Raise PromptError for a word with letters that the reader never answers with.

    Letters count as they are written.  Scores know no case, but told to read capitals tesseract reads no
    small ones.  A reader that does not say what it answers with takes any word.
    """
    for word in (word for pair in pairs for word in pair.words):
        unknown = [
            letter
            for letter in dict.fromkeys(word)
            if not letter.isspace() and not knows(reader, letter)
        ]
        if unknown:
            raise PromptError(
                f"the word {word!r} has {', '.join(map(repr, unknown))}, and {_answers_of(reader)}; write "
                "the word in others, or give a reader that knows its letters, such as --reader ppocr; "
                'in Python: ocr="ppocr" or Tesseract(alphabet=...)'
            )


def _answers_of(reader: Reader) -> str:
    """What a reader answers with, for an error message."""
    alphabet = reader.describe().get("alphabet")
    if alphabet is None:
        return f"{type(reader).__name__} never answers with these"
    return f"{type(reader).__name__} answers with {alphabet!r} alone"

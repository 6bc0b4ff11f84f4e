"""Detectors of harmful text, which say where it is and by what rule, and never what it is.

A detector is any function from a text to what it found there.  `findings_of` calls one and holds it to its
word, so that an answer nobody can read is an error and never "nothing found".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from textpatch.errors import PatchError

UNNAMED = "called"  # rule of a finding that has none of its own


@dataclass(frozen=True, order=True)
class Finding:
    """Place of harmful text.

    start, stop  places in the text that was searched, the second behind the last character
    rule         why it counts as harmful
    detector     name of what found it
    version      version of that
    """

    start: int
    stop: int
    rule: str = UNNAMED
    detector: str = ""
    version: str = ""

    def moved(self, by: int) -> Finding:
        """The same finding in a longer text, in which the searched one begins at a place."""
        return replace(self, start=self.start + by, stop=self.stop + by)

    @property
    def data(self) -> dict[str, object]:
        """Finding as plain data, without the text."""
        return dict(vars(self))


@runtime_checkable
class Detector(Protocol):
    """What finds harmful text.  `name` and `version` are read where it has them."""

    def __call__(
        self, text: str
    ) -> Sequence[Finding | tuple[int, int] | tuple[int, int, str]] | bool:
        """Findings, or (start, stop) or (start, stop, rule) of each, or if the whole text is harmful."""


def findings_of(detector: Detector, text: str) -> list[Finding]:
    """Findings of a detector in a text, by their places.

    Raises PatchError for an answer that says nothing of the text, and whatever the detector raises.
    """
    answer = detector(text)
    if answer is True:
        answer = [(0, len(text))]
    elif answer is False:
        answer = []
    if not isinstance(answer, (list, tuple)):
        raise PatchError(
            f"detector {name_of(detector)} answered with {type(answer).__name__}; "
            "it must give a list of findings or of (start, stop), or True or False"
        )
    return sorted(_finding(one, detector, len(text)) for one in answer)


def _finding(one: object, detector: Detector, length: int) -> Finding:
    if isinstance(one, (list, tuple)) and len(one) in (2, 3):
        one = Finding(*one)
    if not isinstance(one, Finding):
        raise PatchError(
            f"detector {name_of(detector)} answered with a {type(one).__name__} among its findings; "
            "it must give Finding, (start, stop) or (start, stop, rule)"
        )
    places = (one.start, one.stop)
    whole = all(isinstance(place, int) and not isinstance(place, bool) for place in places)
    if not whole or not 0 <= one.start < one.stop <= length:
        raise PatchError(
            f"detector {name_of(detector)} found something at {places} of a text of {length} characters; "
            "give 0 <= start < stop <= length"
        )
    if one.detector:
        return one
    return replace(one, detector=name_of(detector), version=version_of(detector))


def name_of(called: object) -> str:
    """Name of a detector or replacer, that of its class or function where it has none."""
    return str(
        getattr(called, "name", "") or getattr(called, "__name__", "") or type(called).__name__
    )


def version_of(called: object) -> str:
    """Version of a detector or replacer, "" where it has none."""
    return str(getattr(called, "version", ""))


class AnyOf:
    """Detector that finds what any of several detectors finds.

    Raises PatchError without a detector.
    """

    def __init__(self, *detectors: Detector) -> None:
        if not detectors:
            raise PatchError("AnyOf was given no detector; give one or more")
        self.detectors = detectors
        self.name = "+".join(map(name_of, detectors))
        self.version = "+".join(map(version_of, detectors))

    def __call__(self, text: str) -> list[Finding]:
        return sorted(one for each in self.detectors for one in findings_of(each, text))


class AnsweredInJSON:
    """Detector that asks a language model, or anything else that answers with JSON in a text.

    ask   text to judge -> an answer such as {"harmful": [[0, 7]]}, with start and stop of each place.  What
          is said to the model beside the text is the function's own affair
    An answer of another form is asked for once more.  After that PatchError is raised, so that the prompt is
    refused.
    """

    def __init__(self, ask: Callable[[str], str], name: str, version: str = "") -> None:
        self.ask = ask
        self.name = name
        self.version = version

    def __call__(self, text: str) -> list[tuple[int, int]]:
        for _ in range(2):
            places = _places(self.ask(text))
            if places is not None:
                return places
        raise PatchError(
            f'detector {self.name} gave no JSON like {{"harmful": [[0, 7]]}} in two answers; '
            "the text counts as refused"
        )


def _places(answer: object) -> list[tuple[int, int]] | None:
    """Places in a JSON answer, None for another form of answer."""
    if not isinstance(answer, str):
        return None
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("harmful"), list):
        return None
    places = found["harmful"]
    if not all(isinstance(place, list) and len(place) == 2 for place in places):
        return None
    return [(start, stop) for start, stop in places]

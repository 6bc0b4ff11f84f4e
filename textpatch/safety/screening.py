"""What is to be done about one prompt, decided before a picture is made of it.

Detectors see the quoted texts, which is what a model writes, and what stands outside the quotes.  Whatever
fails on the way refuses the prompt.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from textpatch.errors import PromptError
from textpatch.quotes import STRAIGHT, quotations
from textpatch.safety.detection import Detector, Finding, findings_of
from textpatch.safety.replacement import Replacer, is_writable

MOST_CHARACTERS = 10_000  # of a prompt; no model reads more than some hundred tokens


@dataclass(frozen=True)
class Rules:
    """Rules for harmful text.

    policy   "replace" writes a benign word in the place of a harmful one, "refuse" refuses the prompt
    outside  "refuse" refuses a prompt with harmful text outside its quotes, "pass" looks at quoted texts
             alone
    """

    policy: str = "replace"
    outside: str = "refuse"


@dataclass(frozen=True)
class Screened:
    """Decision about a prompt.

    prompt        as it was asked for
    findings      harmful texts, by their places in the prompt
    found         the harmful texts themselves, where they are replaced
    replacements  what is written in their places
    clean         prompt with these, equal to the prompt if nothing was found
    refusal       why there is to be no picture, "" if there is one
    """

    prompt: str
    findings: tuple[Finding, ...] = ()
    found: tuple[str, ...] = ()
    replacements: tuple[str, ...] = ()
    clean: str = ""
    refusal: str = ""

    @property
    def sha256(self) -> str:
        """Hash of the prompt, which stands for it in ledgers."""
        return hashlib.sha256(self.prompt.encode("utf-8", "surrogatepass")).hexdigest()

    def refused(self, reason: str) -> Screened:
        """The same prompt, refused."""
        return replace(self, clean="", refusal=reason)


def screen(prompt: str, detector: Detector, replacer: Replacer, rules: Rules = Rules()) -> Screened:
    """Decide about a prompt.  Nothing is raised for what detector and replacer do."""
    asked = Screened(prompt)
    if len(prompt) > MOST_CHARACTERS:
        return asked.refused(
            f"the prompt has {len(prompt)} characters; give at most {MOST_CHARACTERS}"
        )
    try:
        inside, outside = _found(prompt, detector, rules)
    except Exception as error:  # whatever goes wrong in somebody's detector, nothing passes
        return asked.refused(f"the detector failed ({type(error).__name__})")
    asked = replace(asked, findings=(*outside, *inside))
    if outside:
        return asked.refused(
            "harmful text stands outside the quotes, or nobody can tell what is quoted"
        )
    if not inside:
        return replace(asked, clean=prompt)
    if rules.policy == "refuse":
        return asked.refused("the policy refuses prompts with harmful text")
    return _replaced(asked, detector, replacer, rules)


def quoted_spans(prompt: str) -> list[tuple[int, int]] | None:
    """Places of the quoted texts.  None if nobody can tell them, as where a quote is left open."""
    try:
        return [(quotation.start, quotation.end) for quotation in quotations(prompt)]
    except PromptError:
        return None


def quoted_in(prompt: str) -> list[str]:
    """Quoted texts of a prompt, none if nobody can tell them."""
    return [prompt[start:stop] for start, stop in quoted_spans(prompt) or []]


def _found(prompt: str, detector: Detector, rules: Rules) -> tuple[list[Finding], list[Finding]]:
    """Findings inside the quotes and outside.

    Where nobody can tell what is quoted, all counts as outside.
    """
    spans = quoted_spans(prompt)
    if spans is None:
        return [], findings_of(detector, prompt)
    inside = [
        one.moved(start)
        for start, stop in spans
        for one in findings_of(detector, prompt[start:stop])
    ]
    if rules.outside == "pass":
        return inside, []
    return inside, findings_of(detector, _without_quoted(prompt, spans))


def _without_quoted(prompt: str, spans: Sequence[tuple[int, int]]) -> str:
    """The prompt with quotes in the place of what stands between them, so that all places stay."""
    characters = list(prompt)
    for start, stop in spans:
        characters[start:stop] = STRAIGHT * (stop - start)
    return "".join(characters)


def _replaced(asked: Screened, detector: Detector, replacer: Replacer, rules: Rules) -> Screened:
    """The prompt with benign words, screened once more."""
    spans = _merged(asked.findings)
    found = tuple(asked.prompt[start:stop] for start, stop in spans)
    try:
        written = tuple(replacer(text, asked.prompt) for text in found)
    except Exception as error:  # as for detectors
        return asked.refused(f"the replacer failed ({type(error).__name__})")
    if not all(isinstance(text, str) and is_writable(text) for text in written):
        return asked.refused("a replacement is no text that can stand between quotes")
    stops = [0, *(stop for _, stop in spans)]
    starts = [*(start for start, _ in spans), len(asked.prompt)]
    kept = [asked.prompt[stop:start] for stop, start in zip(stops, starts, strict=True)]
    clean = "".join(
        part for pair in itertools.zip_longest(kept, written, fillvalue="") for part in pair
    )
    made = replace(asked, found=found, replacements=written, clean=clean)
    again = screen(clean, detector, replacer, replace(rules, policy="refuse"))
    if again.refusal:
        return made.refused("the prompt is still harmful with its replacements")
    return made


def _merged(findings: Sequence[Finding]) -> list[tuple[int, int]]:
    """Places of findings, those that overlap as one."""
    spans: list[tuple[int, int]] = []
    for one in sorted(findings):
        if spans and one.start < spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], one.stop))
        else:
            spans.append((one.start, one.stop))
    return spans

"""Quoted texts of a prompt, in quotes of any kind, and other texts put in their places.

    "WORD"  “WORD”  „WORD“  «WORD»  ‹WORD›  「WORD」  『WORD』    and, where none of these is, ‘WORD’  'WORD'

Between straight double quotes a backslash in front of a quote or of another backslash makes it part of the
text.  Behind a digit, and before a blank, a stop, a bracket or the end, a straight double quote that would
open a text is an inch sign, as in `a 6" sign`.  The signs ' and ’ are apostrophes, too, and are read as
quotes only where they can be nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from textpatch.errors import PromptError
from textpatch.text import number_of

# what to do where a prompt quotes nothing
UNQUOTED = 'write its text as "TEXT", and for a shell put the whole prompt between single quotes'
STRAIGHT = '"'
# opening sign -> the signs that close it
DOUBLE = {
    STRAIGHT: STRAIGHT,
    "\u201c": "\u201d",  # “ ”
    "\u201e": "\u201c\u201d",  # „ “, in Polish „ ”
    "\u00ab": "\u00bb",  # « »
    "\u2039": "\u203a",  # ‹ ›
    "\u300c": "\u300d",  # 「 」
    "\u300e": "\u300f",  # 『 』
}
SINGLE = {"\u2018": "\u2019", "'": "'"}  # ‘ ’ and ' '
_ALL = "".join([*DOUBLE, *DOUBLE.values(), *SINGLE, *SINGLE.values()])
STRAIGHTENED = str.maketrans(dict.fromkeys(_ALL, STRAIGHT))

_ESCAPED = re.compile(r'\\(["\\])')
# backslashes that would otherwise be read as escapes
_ESCAPING = re.compile(r'\\(?=["\\]|\Z)|"')
# a backslash in front of a quote or a backslash takes it into the text
_BETWEEN_STRAIGHT = r'(?:[^"\\]|\\(?:["\\]|(?!["\\])))*'
# 'n', as in rock 'n' roll, is no text
_BETWEEN_APOSTROPHES = r"(?![nN]'(?!\w))(?:[^']|(?<=\w)'(?=\w))*"


def _pattern(opening: str, closing: str) -> str:
    """Pattern of a quoted text of one kind, with the text as its group."""
    if opening == STRAIGHT:
        return f'"({_BETWEEN_STRAIGHT})"'
    if opening == "'":
        return rf"(?<!\w)'(?=\S)({_BETWEEN_APOSTROPHES})(?<=\S)'(?!\w)"
    if opening in SINGLE:
        return rf"{opening}((?:[^{opening}{closing}]|(?<=\w){closing}(?=\w))*){closing}(?!\w)"
    return f"{opening}([^{opening}{closing}]*)[{closing}]"


_DOUBLE = re.compile("|".join(_pattern(*kind) for kind in DOUBLE.items()))
_SINGLE = re.compile("|".join(_pattern(*kind) for kind in SINGLE.items()))
# no sign of inches
_DOUBLE_SIGN = re.compile(
    rf"(?!(?<=\d){STRAIGHT}(?:[\s,.;:)\]]|\Z))[{''.join([*DOUBLE, *DOUBLE.values()])}]"
)
# as in a table, where a quote within quotes is written twice
_DOUBLED = re.compile(r'""(?:[^\s"]|[^\s"][^"]*[^\s"])""')
_SINGLE_SIGN = re.compile(f"[{''.join([*SINGLE, *SINGLE.values()])}]")
_INSIDE_A_WORD = re.compile(rf"(?<=\w){_SINGLE_SIGN.pattern}(?=\w)")
_BEHIND_A_WORD = re.compile(r"(?<=\w)['\u2019](?!\w)")


@dataclass(frozen=True)
class Quotation:
    """A quoted text of a prompt.

    start, end        the text's characters in the prompt, prompt[start:end], escapes included
    opening, closing  the signs around it
    text              the text without its escapes, "" where nothing stands between the signs
    """

    start: int
    end: int
    opening: str
    closing: str
    text: str

    def __str__(self) -> str:
        return f"{self.opening}{self.text}{self.closing}"


def quotations(prompt: str) -> list[Quotation]:
    """Find the quoted texts of a prompt, in their order, [] where there are none.

    Signs of another kind within a text are part of it.
    Raises PromptError for quotes of two kinds, for quotes that are doubled as in a table, and for a sign that
    opens or closes nothing.
    """
    found = list(_double(prompt)) or _single(prompt)
    for quotation in found:
        if quotation.opening != found[0].opening:
            raise _untold(prompt, f"{found[0]} and {quotation} are in quotes of two kinds")
    return found


def with_texts(prompt: str, texts: Sequence[str]) -> str:
    """Put other texts in the places of a prompt's quoted texts, between the signs that are there.

    Raises PromptError for more or fewer texts than the prompt quotes, and for a text that cannot stand
    between its signs, such as one that holds the closing sign.
    """
    found = quotations(prompt)
    if len(found) != len(texts):
        raise PromptError(
            f"{number_of(len(texts), 'text')} for {prompt!r}, which quotes {len(found) or 'nothing'}; "
            f"{'give one for each' if found else UNQUOTED}"
        )
    made = ""
    behind = 0
    for quotation, text in zip(found, texts, strict=True):
        made += prompt[behind : quotation.start] + _written(text, quotation.opening)
        behind = quotation.end
    made += prompt[behind:]
    try:
        kept = [quotation.text for quotation in quotations(made)] == list(texts)
    except PromptError:
        kept = False
    if not kept:
        raise PromptError(
            f"{list(texts)} cannot stand between the quotes of {prompt!r}; leave their signs out of the "
            'texts, or write the prompt with straight double quotes, between which \\" is a quote'
        )
    return made


@dataclass(frozen=True)
class QuotedWord:
    """A word of a prompt's quoted texts.

    start, end  the word's characters in the prompt, escapes included
    text        place of the quoted text among those of the prompt
    word        the word without its escapes
    """

    start: int
    end: int
    text: int
    word: str


def quoted_words(prompt: str) -> list[QuotedWord]:
    """Find the words of the quoted texts, which blanks separate, in their order.

    `"GOOD DAY" and "TIGER"` has the words GOOD, DAY and TIGER.  Raises PromptError as `quotations` does.
    """
    found = []
    for place, quotation in enumerate(quotations(prompt)):
        written = re.finditer(r"\S+", prompt[quotation.start : quotation.end])
        for match, word in zip(written, quotation.text.split(), strict=True):
            start = quotation.start + match.start()
            found.append(QuotedWord(start, start + len(match[0]), place, word))
    return found


def with_other_words(prompt: str, words: Mapping[int, str]) -> str:
    """Put other words in the places of some words of a prompt's quoted texts.

    words  by number, counted from 1 in the order of the prompt
    `with_other_words('a sign "RED HOUSE"', {2: "BOAT"})` is `a sign "RED BOAT"`.

    Raises PromptError for no words, for a number that no word has, for an empty word, and as `with_texts`
    does.
    """
    found = quoted_words(prompt)
    _require_numbered(prompt, found, words)
    texts: list[list[str]] = [[] for _ in quotations(prompt)]
    for number, one in enumerate(found, 1):
        texts[one.text].append(words.get(number, one.word))
    return with_texts(prompt, [" ".join(text) for text in texts])


def _require_numbered(prompt: str, found: list[QuotedWord], words: Mapping[int, str]) -> None:
    there = ", ".join(f"{number} {one.word}" for number, one in enumerate(found, 1)) or "none"
    if not words:
        raise PromptError(f"no word was given for {prompt!r}; give one by its number: {there}")
    for number, word in words.items():
        if number not in range(1, len(found) + 1):
            raise PromptError(
                f"{word!r} was asked for in the place of word {number!r} of {prompt!r}, which quotes "
                f"{len(found)}: {there}; give the number of one of these"
            )
        if not isinstance(word, str) or not word.strip():
            raise PromptError(
                f"{word!r} was asked for in the place of word {number}, {found[number - 1].word}, of "
                f"{prompt!r}, and is no word; give letters, or a prompt without that word"
            )


def _double(prompt: str) -> Iterator[Quotation]:
    """Quoted texts, each behind the end of the one before."""
    sign = _DOUBLE_SIGN.search(prompt)
    while sign:
        match = _DOUBLE.match(prompt, sign.start())
        doubled = _DOUBLED.match(prompt, sign.start())
        if match is None:
            raise _stray(prompt, sign.start())
        if doubled:
            raise _untold(prompt, f"the quotes of {doubled[0]} are doubled")
        yield _quotation(match)
        sign = _DOUBLE_SIGN.search(prompt, match.end())


def _single(prompt: str) -> list[Quotation]:
    """Texts between signs that are apostrophes, too.

    A sign within a word is an apostrophe.  So is one behind a word, as in "the dogs' bowl", unless it may
    close a text that was opened before it.
    """
    matches = list(_SINGLE.finditer(prompt))
    first = len(prompt)
    if matches:
        first = matches[0].start()
    for sign in _SINGLE_SIGN.finditer(_SINGLE.sub(_blanks, prompt)):
        place = sign.start()
        possessive = place < first and _BEHIND_A_WORD.match(prompt, place)
        if not possessive and not _INSIDE_A_WORD.match(prompt, place):
            raise _stray(prompt, place)
    return [_quotation(match) for match in matches]


def _blanks(match: re.Match[str]) -> str:
    """As many blanks, which move no other character."""
    return " " * len(match[0])


def _quotation(match: re.Match[str]) -> Quotation:
    """The quoted text of a match, which has the group of one kind alone."""
    group = match.lastindex or 0
    start, end = match.span(group)
    opening = match[0][0]
    closing = match[0][-1]
    text = match[group]
    if opening == STRAIGHT:
        text = _ESCAPED.sub(r"\1", text)
    return Quotation(start, end, opening, closing, text)


def _written(text: str, opening: str) -> str:
    """A text as it stands behind the opening sign."""
    if opening == STRAIGHT:
        return _ESCAPING.sub(r"\\\g<0>", text)
    return text


def _stray(prompt: str, place: int) -> PromptError:
    return _untold(prompt, f"{prompt[place]} at character {place + 1} opens and closes no text")


def _untold(prompt: str, found: str) -> PromptError:
    return PromptError(
        f"no quoted word can be told in {prompt!r}: {found}; write the word to render in double quotes, "
        'and no other: a sign that says "WORD"'
    )

"""Quoted texts are found between quotes of any kind, come out as they were put in, and are never guessed."""

import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from support.planting import plant
from textpatch import quotes
from textpatch.errors import PromptError
from textpatch.prompts.alignment import word_tokens
from textpatch.prompts.pairs import (
    Pair,
    bare,
    differing,
    in_its_words,
    is_template,
    mix,
    quoted,
    with_words,
)
from textpatch.quotes import DOUBLE, SINGLE, STRAIGHT, quotations, with_texts
from textpatch.reference_models.text_encoders import tokenize
from textpatch.weights.signs.tokens import LENGTH, word_tokenizer

KINDS = [(opening, closing) for opening in DOUBLE for closing in DOUBLE[opening]]
ALL_SIGNS = "".join(opening + closing for opening, closing in [*KINDS, *SINGLE.items()])
LETTERS = "abZÉé日9.,!-\\ \t\n"
# without what makes the sign behind it another one
FILLINGS = st.text(LETTERS.replace("\\", "").replace("9", ""), max_size=6)
DOUBLED = re.compile(r'""[^\s"]')


def raw(text: str, opening: str) -> str:
    """The text as it stands between its signs, with every backslash and every quote escaped."""
    if opening == STRAIGHT:
        return re.sub(r'(["\\])', r"\\\1", text)
    return text


@st.composite
def doubly_quoted(draw) -> tuple[str, list[str], str]:
    """(prompt, its texts, the opening sign) of any kind but the single ones."""
    opening, closing = draw(st.sampled_from(KINDS))
    known = LETTERS + ALL_SIGNS
    if opening != STRAIGHT:
        known = [sign for sign in known if sign not in opening + DOUBLE[opening]]
    texts = draw(st.lists(st.text(known, max_size=6), min_size=1, max_size=3))
    prompt = draw(FILLINGS)
    for text in texts:
        prompt += opening + raw(text, opening) + closing + draw(FILLINGS)
    assume(not DOUBLED.search(prompt))
    return prompt, texts, opening


@st.composite
def singly_quoted(draw) -> tuple[str, list[str], str]:
    """(prompt, its texts, the opening sign) with apostrophes inside words, between the signs and beside."""
    opening = draw(st.sampled_from([*SINGLE]))
    closing = SINGLE[opening]
    word = st.sampled_from(["it's", "O’Hara", "two words", "9.30", "É!", "日本"])
    texts = draw(st.lists(word, min_size=1, max_size=3))
    prompt = draw(st.sampled_from(["", "Joe's ", "the dogs' bowl says "]))
    for text in texts:
        prompt += f"{opening}{text}{closing}{draw(st.sampled_from([' ', ', ', ' Joe’s ']))}"
    return prompt, texts, opening


PROMPTS = doubly_quoted() | singly_quoted()


def require_round_trip(case) -> None:
    """Texts put between quotes come out, and a span is the text as it stands in the prompt."""
    prompt, texts, opening = case
    found = quotations(prompt)
    assert [quotation.text for quotation in found] == texts
    assert {quotation.opening for quotation in found} == {opening}
    for quotation in found:
        assert prompt[quotation.start - 1] == opening
        assert prompt[quotation.end] == quotation.closing
        assert prompt[quotation.start : quotation.end] == raw(quotation.text, opening)


def require_others_in_place(case, others) -> None:
    """Other texts stand where the texts stood, and nothing beside them has changed."""
    prompt, texts, _ = case
    made = with_texts(prompt, others[: len(texts)])
    assert [quotation.text for quotation in quotations(made)] == others[: len(texts)]
    assert emptied(made) == emptied(prompt)


def emptied(prompt: str) -> str:
    for quotation in reversed(quotations(prompt)):
        prompt = prompt[: quotation.start] + prompt[quotation.end :]
    return prompt


@given(PROMPTS)
def test_texts_come_out_as_they_were_put_in(case):
    """Any text, of several words and lines, small letters, digits, accents and other signs."""
    require_round_trip(case)


@given(PROMPTS, st.lists(st.sampled_from(["A", "b c", "É日9"]), min_size=3, max_size=3))
def test_other_texts_are_put_in_their_places(case, others):
    """The prompt keeps its own kind of quotes."""
    require_others_in_place(case, others)


@given(st.text('ab "\n', max_size=12))
def test_straight_quotes_are_what_lies_between_every_other_one(prompt):
    """Where no backslash and no other sign is, texts are those of a split, and an odd sign is an error."""
    assume(not DOUBLED.search(prompt))
    parts = prompt.split(STRAIGHT)
    if len(parts) % 2 == 0:
        with pytest.raises(PromptError, match="no quoted word can be told in"):
            quotations(prompt)
        return
    assert [quotation.text for quotation in quotations(prompt)] == parts[1::2]


# what cannot be told, with what is found

UNTOLD = {
    'a "A" and “B”': '"A" and “B” are in quotes of two kinds',
    "«A» and ‹B›": "«A» and ‹B› are in quotes of two kinds",
    "‘A’ and 'B'": "‘A’ and 'B' are in quotes of two kinds",
    'a "A': '" at character 3 opens and closes no text',
    'a ""HELLO"" sign': 'the quotes of ""HELLO"" are doubled',
    'a sign for ROUTE 66"A': '" at character 20 opens',
    '"A\\"': '" at character 1 opens',
    "“A“": "“ at character 1 opens",
    "A” “B”": "” at character 2 opens",
    "»A«": "» at character 1 opens",
    "«A «B» C»": "« at character 1 opens",
    "「A": "「 at character 1 opens",
    "''A''": "' at character 1 opens",
    "'A' of the dogs'": "' at character 16 opens",
    "'90s sign, 'A'": "' at character 1 opens",
    "rock 'n' roll, 'A'": "' at character 6 opens",
    "a ‘A": "‘ at character 3 opens",
}


@pytest.mark.parametrize("prompt, found", UNTOLD.items())
def test_what_cannot_be_told_is_refused(prompt, found):
    """Two kinds of quotes, and a sign without its other, are errors that say what was found and where."""
    with pytest.raises(PromptError, match=re.escape(found)) as caught:
        quotations(prompt)
    assert (
        'write the word to render in double quotes, and no other: a sign that says "WORD"'
        in str(caught.value)
    )
    with pytest.raises(PromptError):
        quoted(prompt)


@pytest.mark.parametrize("prompt", ["Joe's sign", "the dogs’ bowl", "5' wide", "", "O’Hara’s"])
def test_apostrophes_quote_nothing(prompt):
    """Within and behind a word ' and ’ are apostrophes, and beside double quotes they always are."""
    assert quotations(prompt) == []
    assert quoted(f"{prompt} 'tis “A”") == "A"


@pytest.mark.parametrize(
    "prompt, texts",
    [
        ('a 6" sign that says "HELLO"', ["HELLO"]),
        ('a 12" x 6" sign that says “HI”', ["HI"]),
        ('"ROUTE 66" on a plate (9")', ["ROUTE 66"]),
        ("a 6\" sign that says 'HELLO'", ["HELLO"]),
        ('66"A", 7"', ["A"]),
    ],
)
def test_inches_quote_nothing(prompt, texts):
    """Behind a digit, with no text open, a straight sign before a blank, a stop, a bracket or the end."""
    assert [quotation.text for quotation in quotations(prompt)] == texts


@pytest.mark.parametrize(
    "prompt, texts, says",
    [
        ("a “A”", ["B", "C"], "2 texts for .*, which quotes 1; give one for each"),
        ("a “A”", ["B”"], "cannot stand between the quotes of 'a “A”'; leave their signs out"),
        ("a 'A'", ["the dogs'"], "cannot stand between"),
        ("a 'A'", [" B"], "cannot stand between"),
    ],
)
def test_texts_that_cannot_stand_there_are_refused(prompt, texts, says):
    """More or fewer texts, and texts that would end where their own signs are."""
    with pytest.raises(PromptError, match=says):
        with_texts(prompt, texts)


def test_pairs_keep_their_kinds_of_quotes():
    """Templates, mixtures and a source in the target's words have the quotes of the sentence they are of."""
    pair = Pair("a lamp, “ON”", "the word «OFF» in red")
    assert pair.words == ("ON", "OFF")
    assert in_its_words(pair) == "a lamp, “OFF”"
    assert mix(pair)["target", "source"] == "the word «ON» in red"
    assert bare(pair.source) == "a lamp, “”"
    assert is_template("a lamp, “”")
    assert with_words("a lamp, “”", "UP", '5"') == 'a lamp, “UP 5"”'
    assert differing([("a 「A」", "a 「B C」"), ("a 「A」", 'a "A"')]) == [("a 「A」", 'a "A"')]


def test_an_escaped_quote_is_part_of_the_text():
    """It stays escaped between straight quotes, and stands as it is between others."""
    pair = Pair(r'a sign "SAY \"HI\""', "a map «B»")
    assert pair.words[0] == 'SAY "HI"'
    assert mix(pair)["target", "source"] == 'a map «SAY "HI"»'
    assert mix(pair)["source", "source"] == pair.source


def letters(prompt: str) -> SimpleNamespace:
    """A tokenizer of letters, with a token at the beginning and one at the end."""
    return SimpleNamespace(input_ids=[0, *map(ord, prompt), 0])


letters.model_max_length = 99


@pytest.mark.parametrize("opening, closing", [*KINDS, *SINGLE.items()])
def test_the_words_tokens_are_found_in_any_quotes(opening, closing):
    """They are the letters between the signs, wherever the word stands."""
    pipeline = SimpleNamespace(
        encoders=SimpleNamespace(tokenizers=[letters]),
        encode=lambda prompts: SimpleNamespace(tokens=torch.zeros(1, 99, 1)),
    )
    for prompt in (f"a sign, {opening}TIGER{closing}", f"{opening}TIGER{closing} on a wall"):
        first = 1 + prompt.index("T")
        assert word_tokens(pipeline, prompt) == tuple(range(first, first + 5))


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("opening, closing", [*KINDS[1:], *SINGLE.items()])
def test_a_model_of_straight_quotes_says_so(opening, closing, lowered):
    """The shipped tokenizers refuse a word in any other quotes, and the error says how to write it."""
    tokenizer = word_tokenizer(begin=True, lowered=lowered)
    prompt = f"a red sign that says {opening}HOUSE{closing} on a blue wall"
    with pytest.raises(PromptError, match='the model does not know .*HOUSE.*; write "HOUSE"'):
        tokenize([prompt], [tokenizer], [LENGTH])


# --- faults: a function, a text of it, the text put in its place, and the law that must break

STRAIGHT_CASE = (r'"A\"B\\" here', ['A"B\\'], STRAIGHT)
TWO_CASE = ("“A” and “B”", ["A", "B"], "“")


def untold(prompt: str) -> None:
    test_what_cannot_be_told_is_refused(prompt, UNTOLD[prompt])


FAULTS = {
    "escapes stay": (
        "_quotation",
        '_ESCAPED.sub(r"\\1", text)',
        "text",
        require_round_trip,
        [STRAIGHT_CASE],
    ),
    "spans hold the signs": (
        "_quotation",
        "match.span(group)",
        "match.span()",
        require_round_trip,
        [TWO_CASE],
    ),
    "quotes are written unescaped": (
        "_written",
        r'_ESCAPING.sub(r"\\\g<0>", text)',
        "text",
        require_others_in_place,
        [STRAIGHT_CASE, ['"']],
    ),
    "the old text stays": (
        "with_texts",
        "behind = quotation.end",
        "behind = quotation.start",
        require_others_in_place,
        [TWO_CASE, ["C", "D"]],
    ),
    "two kinds are one": (
        "quotations",
        "quotation.opening != found[0].opening",
        "False",
        untold,
        ['a "A" and “B”'],
    ),
    "a later sign is an apostrophe": (
        "_single",
        "place < first and",
        "",
        untold,
        ["'A' of the dogs'"],
    ),
    "an inch sign opens a text": (
        "_double",
        "_DOUBLE_SIGN.search(prompt)",
        "re.search('\"', prompt)",
        test_inches_quote_nothing,
        ['a 6" sign that says "HELLO"', ["HELLO"]],
    ),
    "doubled quotes are two empty texts": (
        "_double",
        "if doubled:",
        "if False:",
        untold,
        ['a ""HELLO"" sign'],
    ),
    "nobody looks at what was made": (
        "with_texts",
        "if not kept:",
        "if False:",
        test_texts_that_cannot_stand_there_are_refused,
        ["a “A”", ["B”"], "cannot stand"],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_noticed(monkeypatch, name):
    """Each fault breaks the law beside it, which holds without the fault."""
    function, old, new, law, case = FAULTS[name]
    law(*case)
    plant(monkeypatch, quotes, function, old, new)
    with pytest.raises((AssertionError, PromptError, pytest.fail.Exception)):
        law(*case)

"""Prompt pairs of GlyphControl's layout keep splits apart and depend on seed and words alone."""

import csv
import io
import os
import warnings
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.glyph_folders import BUCKETS, SENTENCES, WORDS, write
from support.laws_of_runs import law_scenes_differ_outside_the_quotes
from support.planting import plant
from support.small_models import small_encoders, small_pipeline
from textpatch import localize
from textpatch.errors import PromptError
from textpatch.prompts import files
from textpatch.prompts.files import read_pairs
from textpatch.prompts.glyphcontrol import BENCHES, RAW, SPLITS, glyphcontrol_pairs
from textpatch.prompts.pairs import Pair, bare, mix, quoted, with_words
from textpatch.reference_models.tokenizing import tokenize

GOLDEN_WORDS = [(["bolo"], ["balo"]), (["balo"], ["bilo"]), (["bilo"], ["belo"])]
GOLDEN_PAIR = Pair(source='"dzlo dilo" on a ship', target='a map titled "dylo dulo", folded')


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("glyph"))


def texts(pair: Pair) -> tuple[list[str], list[str]]:
    return quoted(pair.source).split(), quoted(pair.target).split()


requests = st.fixed_dictionaries(
    {
        "bench": st.sampled_from(BENCHES),
        "split": st.sampled_from(list(SPLITS)),
        "seed": st.integers(0, 10**9),
        "words": st.integers(1, 3),
    }
)


@given(requests)
def test_every_word_is_equally_often_on_either_side(folder, request_):
    """Each word of the split is k times in sources and k times in targets, with k words a text.

    No word is in both texts of a pair.
    """
    pairs = glyphcontrol_pairs(folder, **request_)
    wanted = {word: request_["words"] for name in SPLITS[request_["split"]] for word in WORDS[name]}
    sources, targets = zip(*map(texts, pairs), strict=True)
    assert Counter(sum(sources, [])) == Counter(sum(targets, [])) == wanted
    for source, target in zip(sources, targets, strict=True):
        assert not set(source) & set(target)


@given(requests)
def test_both_sides_of_a_pair_come_from_one_bucket(folder, request_):
    """The words of a pair are of one file, so that frequencies are not mixed."""
    for pair in glyphcontrol_pairs(folder, **request_):
        assert len({word[0] for side in texts(pair) for word in side}) == 1


@given(requests, st.integers(1, 7))
def test_fewer_pairs_are_the_first_ones(folder, request_, limit):
    """limit=n gives the first n of all pairs, as many from each bucket of a split, give or take one."""
    pairs = glyphcontrol_pairs(folder, **request_, limit=limit)
    assert pairs == glyphcontrol_pairs(folder, **request_)[:limit]
    taken = Counter(texts(pair)[0][0][0] for pair in pairs)
    counts = [taken[WORDS[name][0][0]] for name in SPLITS[request_["split"]]]
    assert max(counts) - min(counts) <= 1


@given(requests)
def test_which_sentences_the_prompts_are(folder, request_):
    """simple has one sentence for all, creative one for each pair, mixed two, all of them from the file."""
    for pair in glyphcontrol_pairs(folder, **request_):
        source, target = bare(pair.source), bare(pair.target)
        known = SENTENCES
        if request_["bench"] == "simple":
            known = ['A sign that says "".']
        assert {source, target} <= set(known)
        assert (source != target) == (request_["bench"] == "mixed")


def test_the_pairs_are_the_same_everywhere(folder):
    """Pairs written down once are found again, in any process and Python."""
    assert [texts(pair) for pair in glyphcontrol_pairs(folder, limit=3)] == GOLDEN_WORDS
    assert glyphcontrol_pairs(folder, "mixed", "test", seed=1, words=2, limit=1) == [GOLDEN_PAIR]


def test_seeds_pair_differently(folder):
    """Ten seeds, ten pairings."""
    assert len({tuple(glyphcontrol_pairs(folder, seed=seed)) for seed in range(10)}) == 10


def test_the_folders_order_does_not_matter(folder, tmp_path):
    """The same pairs are read from files written otherwise.

    They have another order, one file more, Windows' line ends, a byte order mark, and blank lines.
    """
    other = write(tmp_path, {name: WORDS[name] for name in reversed(BUCKETS)})
    (other / RAW / "SimpleBench" / "aaa.txt").write_text("never")
    first = other / RAW / "SimpleBench" / f"{BUCKETS[0]}.txt"
    first.write_bytes(b"\xef\xbb\xbf" + "\r\n\r\n".join(WORDS[BUCKETS[0]]).encode() + b"\r\n\r\n")
    for bench in BENCHES:
        assert glyphcontrol_pairs(other, bench) == glyphcontrol_pairs(folder, bench)


@pytest.mark.parametrize(
    "line, says",
    [
        ("two words", "expected one word without quotes, found 'two words'"),
        ('qu"ote', "expected one word without quotes"),
        ("balo", f"expected a new word, found 'balo', which is in .*{BUCKETS[0]}.txt, line 1 too"),
        ("BALO", "expected a new word, found 'BALO'"),
        ("dalo", f"expected a new word, found 'dalo', which is in .*{BUCKETS[1]}.txt, line 1 too"),
        ("\xff", None),
    ],
)
def test_a_bad_word_is_named_by_file_and_line(tmp_path, line, says):
    """Two words, quotes, and a word of this or another split, also in capitals, are errors.

    Letters beyond ASCII are none.
    """
    place = BUCKETS[2]
    write(tmp_path, {**WORDS, place: [*WORDS[place], line]})
    if says is None:
        assert len(glyphcontrol_pairs(tmp_path, split="test")) == 22
    else:
        for split in SPLITS:
            with pytest.raises(PromptError, match=rf"{place}\.txt, line 8: {says}"):
                glyphcontrol_pairs(tmp_path, split=split)


@pytest.mark.parametrize(
    "line", ["no quotes", 'one " quote', '"" and ""', 'a "word" already', "“”"]
)
def test_a_bad_sentence_is_named_by_file_and_line(tmp_path, line):
    """A template has one pair of straight quotes and nothing in it."""
    write(tmp_path, sentences=[*SENTENCES, "", line])
    assert len(glyphcontrol_pairs(tmp_path)) == 7
    with pytest.raises(
        PromptError, match=r'remove_render_words\.txt, line 6: expected a sentence with "" once'
    ):
        glyphcontrol_pairs(tmp_path, "creative")


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(bench="creativ"), "no 'creativ'; closest: creative"),
        (dict(split="train"), "no 'train'; known: validation"),
        (dict(limit=0), "asked for 0 pairs; the validation words make 1 to 7"),
        (dict(split="test", limit=22), "asked for 22 pairs; the test words make 1 to 21"),
        (dict(words=0), "texts of 0 words; 7 words make texts of 1 to 3"),
        (dict(words=4), "texts of 4 words"),
        (dict(folder="gone"), "cannot read prompts from gone/.*GlyphControl-release"),
    ],
)
def test_requests_that_cannot_be_met(folder, options, says):
    """What was asked, what there is, and what to give."""
    with pytest.raises(PromptError, match=says):
        glyphcontrol_pairs(**{"folder": folder, **options})


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"\xff\xfe\x00")]
)
@pytest.mark.parametrize("name", BUCKETS)
def test_unreadable_files_are_named(tmp_path, name, damage):
    """A bucket that is gone or is no text is an error for either split, which could not be held apart."""
    path = write(tmp_path) / RAW / "SimpleBench" / f"{name}.txt"
    damage(path)
    for split in SPLITS:
        with pytest.raises(PromptError, match=f"cannot read prompts from .*{name}.txt: "):
            glyphcontrol_pairs(tmp_path, split=split)


def test_one_sentence_cannot_be_mixed(tmp_path):
    """Two different sentences are the least; the same one twice counts once."""
    write(tmp_path, sentences=[SENTENCES[0]] * 2)
    with pytest.raises(PromptError, match="at least two different sentences, found 1"):
        glyphcontrol_pairs(tmp_path, "mixed")


@given(requests)
def test_mixing_takes_template_and_text_apart(folder, request_):
    """Each of the four prompts has one side's template and one side's text, and two are those of the pair."""
    pair = glyphcontrol_pairs(folder, **request_)[0]
    mixed = mix(pair)
    sides = {"source": pair.source, "target": pair.target}
    assert len(mixed) == 4
    assert all(mixed[side, side] == prompt for side, prompt in sides.items())
    for (template, text), prompt in mixed.items():
        assert bare(prompt) == bare(sides[template]) and quoted(prompt) == quoted(sides[text])


@pytest.mark.parametrize(
    "template, words",
    [
        ('a ""', ()),
        ('a ""', ("",)),
        ('a ""', (" ",)),
        ('a ""', ('"',)),
        ("a", ("A",)),
        ('a "B"', ("A",)),
        ('"" ""', ("A",)),
        ('a "', ("A",)),
    ],
)
def test_what_makes_no_prompt_is_refused(template, words):
    """No words, empty ones, quotes in them, or a template without one empty pair of quotes are errors."""
    with pytest.raises(PromptError):
        with_words(template, *words)


# prompts by hand, with the text between the quotes, or None where it cannot be said

PARSED = {
    'a sign that says "HELLO"': "HELLO",
    '"HELLO"': "HELLO",
    '"HELLO" on a wall': "HELLO",
    '" HELLO "': "HELLO",
    'says "two words" here': "two words",
    '"a\tb"': "a b",
    '"\n x \n"': "x",
    '"é"': "é",
    '"日本"': "日本",
    '"😀"': "😀",
    '"🏳️\u200d🌈"': "🏳️\u200d🌈",
    '"שלום"': "שלום",
    "«مرحبا»": "مرحبا",
    '"\u202eabc"': "\u202eabc",
    '"it\'s"': "it's",
    '"a`b"': "a`b",
    '"-rf"': "-rf",
    '"../x"': "../x",
    '"<b>"': "<b>",
    '"=1+1"': "=1+1",
    '"\x1b[31m"': "\x1b[31m",
    '"\0"': "\0",
    '"“A”"': "“A”",
    '"A“"': "A“",
    'x"A"x': "A",
    '"%s{0}"': "%s{0}",
    '"0"': "0",
    f'"{"A" * 1000}"': "A" * 1000,
    '"a\u0301"': "a\u0301",
    "'HELLO'": "HELLO",
    "": None,
    " ": None,
    "no quotes": None,
    '"': None,
    '""': None,
    '" "': None,
    '"\n"': None,
    '"\u3000"': None,
    'a "b': None,
    'b" a': None,
    '"A" "': None,
    '"""': None,
    '""""': None,
    '""A""': None,
    '"A" says "': None,
    'size 5" and "A"': "A",
    "`HELLO`": None,
    "″HELLO″": None,
    "＂HELLO＂": None,
    "''HELLO''": None,
    "&quot;HELLO&quot;": None,
}


@pytest.mark.parametrize("prompt, text", PARSED.items())
def test_the_quoted_text_is_found_or_refused(prompt, text):
    """One text between quotes is found.  None or an odd quote is an error, never a guess."""
    if text is not None:
        assert quoted(prompt) == text
        return
    with pytest.raises(PromptError, match="no quoted word"):
        quoted(prompt)
    with pytest.raises(PromptError):
        localize(small_pipeline(), [(prompt, PROMPT)])


@pytest.mark.parametrize("prompt", ['"A" and "B"', '"A""B"', '"A" "B" "C"'])
def test_several_texts_are_not_one(prompt):
    """`quoted` says how many there are and what could be written.  A pair is of all of them."""
    with pytest.raises(PromptError, match=r'[23] quoted texts in .*; write "A B'):
        quoted(prompt)
    assert Pair(prompt, PROMPT).words[0].startswith("A B")


def test_what_differs_in_more_than_the_text():
    """Pairs differ by another word, mark, letter case, order or number of texts outside the quotes."""
    law_scenes_differ_outside_the_quotes()


PROMPT = 'a red sign that says "HOUSE"'


@pytest.mark.parametrize("length", [22, 77])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_cut_off_word_is_an_error(length, place):
    """The model reads all letters of the quoted word or refuses, with any number of words around it.

    Words behind it may be cut off, which is told.
    Fault it would find: a tokenizer that cuts at its length without a word (the default of truncation=True).
    """
    tokenizers = small_encoders().tokenizers
    for tokenizer in tokenizers:
        tokenizer.model_max_length = length
    refused = []
    for n in range(length + 4):
        filler = "a " * n
        prompt = f'"HOUSE" {filler}'
        if place == "last":
            prompt = f'{filler}"HOUSE"'
        try:
            with warnings.catch_warnings(record=True) as told:
                read = tokenize([prompt], tokenizers, [length] * len(tokenizers))
        except PromptError as error:
            assert f"the model reads at most {length}" in str(error)
            refused.append(n)
            continue
        pairs = zip(tokenizers, read, strict=True)
        decoded = [tokenizer.decode(ids.input_ids[0]) for tokenizer, ids in pairs]
        assert any('" H O U S E "' in text for text in decoded), decoded
    if place == "first":
        assert not refused and f"is read to its first {length}" in str(told[0].message)
    else:
        assert refused == list(range(refused[0], length + 4)) and refused[0] <= length - 7


def test_a_cut_off_word_stops_a_run_before_it_begins(monkeypatch):
    """localize refuses a pair whose word no encoder would read; nothing is generated."""
    monkeypatch.setattr("textpatch.reference_models.pipeline.Pipeline.denoise", None)
    with pytest.raises(PromptError, match="the model reads at most 22; shorten it"):
        localize(small_pipeline(), [(PROMPT, "a " * 20 + PROMPT)])


def test_the_published_lists():
    """100 validation and 300 test pairs of each benchmark share no word, with GLYPHCONTROL=folder."""
    folder = os.environ.get("GLYPHCONTROL")
    if folder is None:
        pytest.skip("GLYPHCONTROL names no copy of GlyphControl-release")
    for bench in BENCHES:
        chosen, reported = (words_of(glyphcontrol_pairs(folder, bench, split)) for split in SPLITS)
        assert len(chosen) == 100
        assert len(reported) == 300
        assert not chosen & reported


def words_of(pairs: list[Pair]) -> set[str]:
    return {word for pair in pairs for side in texts(pair) for word in side}


# --- pair files

SIGNS = (
    'a sign that says "OPEN"',
    '"SHUT" on a door',
    'a lamp, "ON", and a bell "AIR"',
    'signs "A" and "B"',
    '"UP" over "DOWN"',
    "“UP” over “DOWN”",
)


def field(prompt: str, in_quotes: bool) -> str:
    if in_quotes:
        return quoted_field(prompt)
    return prompt


def quoted_field(prompt: str) -> str:
    """As a spreadsheet writes a field that has quotes."""
    data = io.StringIO()
    csv.writer(data, quoting=csv.QUOTE_ALL).writerow([prompt])
    return data.getvalue().strip()


fields = st.tuples(st.sampled_from(SIGNS), st.booleans())


@given(
    st.lists(st.tuples(fields, fields), min_size=1, max_size=4),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.sampled_from(["", "\ufeff"]),
)
def test_a_pair_file_is_read_as_it_was_meant(tmp_path_factory, pairs, ends, mark):
    """The same prompts are read from fields quoted or not, lines of any ends, behind a byte order mark."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    lines = ["\t".join(field(*given_) for given_ in pair) for pair in pairs]
    path.write_bytes((mark + ends.join(lines) + ends).encode())
    assert read_pairs(path) == [tuple(text for text, _ in pair) for pair in pairs]


def test_the_words_of_quoted_fields_are_the_words(tmp_path):
    """A pair written by csv has the words in the doubled quotes, not the sentence around them."""
    path = tmp_path / "pairs.tsv"
    pair = (SIGNS[0], SIGNS[0].replace("OPEN", "SHUT"))
    with path.open("w", newline="") as file:
        csv.writer(file, "excel-tab").writerow(pair)
    assert path.read_text().startswith('"a sign that says ""OPEN"""')
    assert [Pair(*found).words for found in read_pairs(path)] == [("OPEN", "SHUT")]


@pytest.mark.parametrize(
    "field, says",
    [
        (
            '"a sign that says OPEN"',
            "the only quotes .* are those around the field, so no word is quoted; quote the word too",
        ),
        ('"OPEN"', "the only quotes"),
        (r'"a sign that says \"OPEN\""', ".*may be those around the field or those around words"),
        ('"OPEN" and “SHUT”', "no quoted word can be told .* in quotes of two kinds"),
        (
            '"a sign that says "OPEN" on a wall"',
            ".*may be those around the field or those around words; leave out the outer ones",
        ),
        ('"a sign, ""OPEN"""\t"more"', "expected `source<TAB>target`"),
    ],
)
def test_fields_that_can_be_read_in_two_ways_are_refused(tmp_path, field, says):
    """The sentence is never taken for the word.  The error names file and line, and how to write it."""
    path = tmp_path / "pairs.tsv"
    path.write_text(f"{SIGNS[0]}\t{SIGNS[1]}\n{SIGNS[0]}\t{field}\n")
    with pytest.raises(PromptError, match=rf"pairs\.tsv, line 2: {says}"):
        read_pairs(path)


def test_a_planted_reader_of_plain_lines_is_noticed(monkeypatch, tmp_path):
    """Fault: fields are taken as they stand, quotes and all."""
    plant(monkeypatch, files, "_prompt", "return prompt", "return field")
    with pytest.raises((AssertionError, PromptError)):
        test_the_words_of_quoted_fields_are_the_words(tmp_path)

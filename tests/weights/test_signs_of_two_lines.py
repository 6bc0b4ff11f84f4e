"""Signs of several words on two lines: they are drawn where their format says, read back, and told letter by
letter.
"""

import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from support.planting import plant
from textpatch import cli, load
from textpatch.cli.prompt_pairs import drawn_pairs
from textpatch.errors import PatchError
from textpatch.quotes import quotations, quoted_words
from textpatch.weights.signs import drawing, reader, tokens
from textpatch.weights.signs.drawing import (
    SPACE,
    Sign,
    draw_sign,
    random_sign,
    word_mask,
)
from textpatch.weights.signs.evaluation import clean_pictures, generated_pictures
from textpatch.weights.signs.pairs import line_pairs, texts_of
from textpatch.weights.signs.reader import read_sign, read_text, strict_pattern
from textpatch.weights.signs.tokens import word_tokenizer
from textpatch.weights.signs.two_lines import MOST_ON_A_LINE, TWO_LINES
from textpatch.weights.signs.words import MANY_TEST, MANY_VALIDATION
from textpatch.weights.training import batches
from textpatch.weights.training.loop import text_weights
from textpatch.weights.training.recipes import RECIPES

RECIPE = RECIPES["tiny-words"]
TEXTS = "HOUSE\nTIGER", "SUN map\nwindmill", "Oak", "ant box\njam Lid"
SEPARATED = '" S U N _ m a p " and " w i n d m i l l "'.replace("_", SPACE).split()


def signs(n: int = 24) -> list[Sign]:
    rng = random.Random("two lines")
    return [random_sign(rng, TWO_LINES) for _ in range(n)]


def require_reading():
    """Raise unless drawings are read as they were described."""
    held = [*signs(), *(Sign(text) for text in TEXTS)]
    pictures = clean_pictures(held, TWO_LINES)
    words = [sign.word for sign in held]
    assert [read_sign(picture, TWO_LINES).word for picture in pictures] == words
    pairs = zip(pictures, held, strict=True)
    assert [read_text(picture, sign, TWO_LINES) for picture, sign in pairs] == words


def test_what_is_drawn_is_read():
    """The reader gives lines, spaces and cases of random signs and of chosen ones."""
    require_reading()


@pytest.mark.parametrize(
    "fault",
    [
        (drawing, "word_mask", "fmt.left + i * fmt.pitch", "fmt.left + (i // 2) * fmt.pitch"),
        (reader, "_text", '[" ", *fmt.letters]', '["", *fmt.letters]'),
        (reader, "_cells", "for top in fmt.tops", "for top in fmt.tops[:1] * 2"),
    ],
    ids=lambda fault: fault[1],
)
def test_a_place_read_or_drawn_wrongly_is_noticed(monkeypatch, fault):
    plant(monkeypatch, *fault)
    with pytest.raises(AssertionError):
        require_reading()


def test_every_line_stands_in_its_box():
    """The letters of a line lie in its box, all boxes in the text box, and the loss weighs them more."""
    first = word_mask("gW MQypWg", "bold", TWO_LINES)
    second = word_mask("gW MQypWg\nkJ QgjWdy", "bold", TWO_LINES) - first
    weight = text_weights(RECIPE).numpy()
    for mask, box in zip((first, second), TWO_LINES.line_boxes, strict=True):
        left, top, right, bottom = box
        assert mask.sum() > 0
        outside = mask.copy()
        outside[top:bottom, left:right] = 0
        assert not outside.any()
        assert (weight[top:bottom, left:right] == weight.max()).all()
    (*_, end), (_, begin, *_) = TWO_LINES.line_boxes
    assert end <= begin
    near, above, far, below = TWO_LINES.text_box
    assert weight[above:below, near:far].min() == weight.max() > weight.min()


def quoted(prompt: str, **options) -> list[str]:
    tokenizer = word_tokenizer(fmt=TWO_LINES, length=RECIPE.tokens, **options)
    told = tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)
    last = len(told) - told[::-1].index('"')
    return told[told.index('"') : last]


@pytest.mark.parametrize("begin", [True, False])
def test_letters_and_spaces_between_quotes_are_tokens(begin):
    """A quoted text has a token for every place that it takes, and every other word has one."""
    prompt = Sign("SUN map\nwindmill", style="bold").prompt()
    assert quoted(prompt, begin=begin) == SEPARATED


def test_letters_joined_in_a_token_are_noticed(monkeypatch):
    monkeypatch.setattr(tokens, "QUOTED", '(?=")')
    with pytest.raises(AssertionError):
        test_letters_and_spaces_between_quotes_are_tokens(True)


def test_no_prompt_of_the_recipe_is_cut_or_unknown():
    """The longest prompts end with their end token, within the recipe's length."""
    tokenizer = word_tokenizer(begin=True, fmt=TWO_LINES, length=RECIPE.tokens)
    longest = Sign("AbCd EfGh\nzyxw uTSR", "red", "badge", "blue", "striped", "bold")
    for sign in [longest, *signs()]:
        for saying in drawing.SAYINGS:
            ids = tokenizer(sign.prompt(saying)).input_ids
            assert len(ids) <= RECIPE.tokens
            assert ids[-1] == tokenizer.eos_token_id
            assert tokenizer.unk_token_id not in ids


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ONE\nTWO\nSIX", "on 3 lines: signs hold 2"),
        ("ONE\n", "the line '': lines hold 1 to 9"),
        ("TENLETTERS", "the line 'TENLETTERS': lines hold 1 to 9"),
        ("ONE TWO SIX", "the line 'ONE TWO SIX': lines hold 1 to 9"),
        ("ONE  TWO", "one of its words is empty"),
        ("ÄRGER", "the line 'ÄRGER': lines hold 1 to 9"),
    ],
)
def test_texts_that_do_not_fit_are_not_drawn(text, says):
    with pytest.raises(PatchError, match=says):
        draw_sign(Sign(text), TWO_LINES, random.Random(0))


def test_held_out_words_are_never_trained_on(monkeypatch):
    """No batch holds a validation or test word in any case, beside whatever other word."""
    kept = [*MANY_TEST, *MANY_VALIDATION]
    asked = iter([kept[0].lower(), f"QXZ\n{kept[-1].title()}", f"qxz {kept[7]}", *["QXZ Abc"] * 2])

    def rigged(rng, fmt, texts):
        return Sign(next(asked))

    monkeypatch.setattr(batches, "random_sign", rigged)
    small = replace(RECIPE, batch=2, dropout=0.0)
    batch = batches.Batch(small, seed=0, step=0)
    assert ['"QXZ Abc"' in prompt for prompt in batch.prompts] == [True, True]


def test_a_prompt_fixes_its_picture():
    """Patterns begin at one place, so that one sign has one drawing."""
    sign = Sign("HOUSE", pattern="striped")
    drawn = [draw_sign(sign, TWO_LINES, random.Random(seed)) for seed in range(4)]
    assert all(np.array_equal(drawn[0], each) for each in drawn)


def require_strictness():
    """Raise unless drawn patterns are read strictly, and faint ones that begin anew are not."""
    fmt = replace(TWO_LINES, phases=8)
    middle = fmt.width // 2
    bare = drawing.draw_wall("white", "plain", fmt, 0)
    for phase in (0, 3):
        whole = drawing.draw_wall("white", "striped", fmt, phase)
        anew = drawing.draw_wall("white", "striped", fmt, phase + 4)
        broken = np.concatenate([whole[:, :middle], anew[:, middle:]], axis=1)
        faint = bare + reader.FAINT * (broken - bare)
        assert strict_pattern(picture(whole), fmt) == "striped"
        assert strict_pattern(picture(faint), fmt) == "plain"
        assert read_sign(picture(faint), fmt).pattern == "striped"


def picture(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(levels.round().astype(np.uint8))


def test_a_pattern_that_begins_anew_is_told_from_a_whole_one():
    require_strictness()


def test_a_lenient_reading_for_a_strict_one_is_noticed(monkeypatch):
    old = "[:, 0].min(axis=1)"
    plant(monkeypatch, reader, "strict_pattern", old, "[:, 1].max(axis=1)")
    with pytest.raises(AssertionError):
        require_strictness()


def test_the_texts_of_a_step_are_those_of_its_stage():
    """A stage begins at its step, and lasts until the next one's."""
    for (first, texts), (then, others) in pairwise(RECIPE.stages):
        assert [RECIPE.texts_of(step) for step in (first, then - 1, then)] == [texts, texts, others]
    short = RECIPE.stages[1][1]
    rng = random.Random(0)
    drawn = [drawing.random_text(rng, TWO_LINES, short) for _ in range(50)]
    assert all(text.isupper() and " " not in text for text in drawn)
    assert max(len(line) for text in drawn for line in text.split("\n")) == short.longest


@pytest.mark.parametrize("words", [1, 2, 3, 4])
def test_pairs_of_lines_hold_no_word_twice(words):
    """As many held-out words on either side, on lines that fit, the same pairs for the same seed."""
    asked = dict(split="test", same_scene=True, words=words)
    pairs = line_pairs(20, **asked)
    for pair in pairs:
        lines = [quoted.text for prompt in pair for quoted in quotations(prompt)]
        found = " ".join(lines).split()
        assert len(found) == len({*found}) == 2 * words and {*found} <= {*MANY_TEST}
        assert len(lines) == 2 * min(words, 2) and max(map(len, lines)) <= MOST_ON_A_LINE
        assert all(RECIPE.draws.admits(prompt) for prompt in pair)
    assert pairs == line_pairs(20, **asked)


def test_signs_of_other_numbers_of_words_are_refused():
    with pytest.raises(PatchError, match="signs hold 1 to 4 words, not 5; ask for these"):
        line_pairs(1, words=5)


def test_the_shipped_model_writes_all_words():
    """Of 16 signs of one to four held-out words at most one is read otherwise, by the nearest drawing."""
    pipeline = load("tiny-words")
    rng = random.Random(0)
    signs = [random_sign(rng, TWO_LINES, *texts_of(rng, MANY_TEST, 1 + i % 4)) for i in range(16)]
    read = [
        read_text(*pair, TWO_LINES)
        for pair in zip(generated_pictures(pipeline, signs), signs, strict=True)
    ]
    assert sum(text == sign.word for text, sign in zip(read, signs, strict=True)) >= 15
    assert pipeline.defaults.text_box == RECIPE.text_box and len(RECIPE.text_box) == 2


def test_the_command_line_takes_pairs_of_lines_for_it(capsys, tmp_path):
    """localize tiny-words asks for two texts a prompt, and for the word alone."""
    command = ["localize", "tiny-words", "--pairs", "3", "--out", str(tmp_path / "run")]
    assert [len(quoted_words(source)) for source, _ in drawn_pairs("tiny-words", 2)] == [2, 2]
    assert [len(quoted_words(source)) for source, _ in drawn_pairs("tiny-mmdit", 2)] == [1, 1]
    assert cli.main([*command, "--what", "style"]) == 2
    assert "tiny-words draws several; look for the word" in capsys.readouterr().err

"""A localisation encodes every distinct prompt once, and none to check them or to tell again what
is finished.
"""

from collections import Counter

import pytest
import torch

from support.localizing import by_pixels
from support.small_models import PROMPTS, save_small, small_pipeline
from support.strategies import build_pipeline
from textpatch import cli
from textpatch.errors import PatchError
from textpatch.localization.layers import localize
from textpatch.reference_models import TextCondition, text_encoders
from textpatch.runs import remembered
from textpatch.weights.signs.pairs import sign_pairs

PAIRS = sign_pairs(4)
DISTINCT = {prompt for pair in PAIRS for prompt in pair}


class Parrot:
    """Reads the same in every picture."""

    def read(self, images, boxes=None):
        return ["HELLO"] * len(images)

    def describe(self):
        return {"engine": "parrot"}

    def self_test(self):
        pass


@pytest.fixture
def encoded(monkeypatch) -> Counter:
    """How often each prompt went through text encoders from now on."""
    seen = Counter()
    real = text_encoders.SD3TextEncoders.forward

    def forward(encoders, prompts):
        seen.update(prompts)
        return real(encoders, prompts)

    monkeypatch.setattr(text_encoders.SD3TextEncoders, "forward", forward)
    return seen


@pytest.mark.parametrize(
    "mode, guidance, more",
    [
        ("exhaustive", 1.0, set()),
        ("staged", 3.0, {None}),
        pytest.param("exhaustive", 3.0, {None}, marks=pytest.mark.long),
        pytest.param("staged", 1.0, set(), marks=pytest.mark.long),
    ],
)
def test_every_prompt_is_encoded_once(mode, guidance, more, encoded):
    """Scores, growth of the set and start curve: source and target of every pair, and no prompt
    where that is read.

    By default each mode has one guidance, and --long both.
    """
    localize(small_pipeline(), PAIRS, mode=mode, guidance=guidance, ocr=Parrot(), starts=True)
    assert encoded == Counter(DISTINCT | more)


def test_the_command_line_encodes_once_and_a_finished_run_not_at_all(
    encoded, tmp_path, monkeypatch
):
    """Checks of the command and of the search read by the tokenizers alone; from records nothing is
    encoded.
    """
    model = str(save_small(tmp_path / "small"))
    monkeypatch.chdir(tmp_path)
    by_pixels(monkeypatch)
    command = ["localize", model, "--pairs", "4", "--steps", "1", "--out", "run"]
    assert cli.main(command) == 0 and encoded == Counter(DISTINCT)
    encoded.clear()
    assert cli.main(command) == 0 and encoded == Counter()


def test_checking_refuses_what_encoding_would(encoded):
    """An unknown word, a prompt that is no text, and a token without a vector; no encoder runs."""
    pipeline = small_pipeline()
    for bad in (["a mauve sign"], [7], ["\ud800"]):
        with pytest.raises(PatchError) as by_encoding:
            pipeline.encode(bad)
        encoded.clear()
        with pytest.raises(PatchError) as by_check:
            pipeline.check(bad, seeds=[0], steps=2)
        assert str(by_check.value) == str(by_encoding.value) and not encoded
    pipeline.encoders.text_encoder_3.config.vocab_size = 3
    with pytest.raises(PatchError, match="its encoder has 0 to 2"):
        pipeline.check(PROMPTS, seeds=[0], steps=2)
    assert not encoded


@pytest.mark.parametrize(
    "make", [small_pipeline, lambda: build_pipeline()], ids=["small", "random"]
)
def test_what_is_remembered_is_what_was_encoded(make):
    """Row by row the text of each prompt alone, whatever was asked before, with repetitions and None."""
    pipeline = make()
    kept, alone = (
        remembered.remembering(pipeline),
        [pipeline.encode([prompt]) for prompt in [*PROMPTS, None]],
    )
    for asked in ([0], [1, 0], [2, 1, 1, 0]):
        text = kept.encode([[*PROMPTS, None][place] for place in asked])
        for row, place in enumerate(asked):
            assert torch.equal(text.tokens[row], alone[place].tokens[0])
            assert torch.equal(text.pooled[row], alone[place].pooled[0])
    for bad in ("one", [], [3]):
        with pytest.raises(Exception) as as_ever:
            pipeline.encode(bad)
        with pytest.raises(type(as_ever.value)):
            kept.encode(bad)
    assert "encode" not in vars(pipeline)


def test_texts_of_unequal_length_are_encoded_together():
    """Encoders that pad to the longest prompt of a batch give what they give without a memory."""
    pipeline = build_pipeline()
    pipeline.encoders = lambda prompts: TextCondition(
        torch.ones(len(prompts), max(map(len, prompts)), 6), torch.ones(len(prompts), 5)
    )
    kept = remembered.remembering(pipeline)
    assert torch.equal(kept.encode(["a", "bcd"]).tokens, pipeline.encode(["a", "bcd"]).tokens)


def test_planted_forgetting_is_noticed(monkeypatch, encoded):
    """Fault: what was encoded is not kept."""
    monkeypatch.setattr(
        remembered.Remembered,
        "_text",
        lambda self, prompt: self._pipeline.encode([prompt]).to("cpu"),
    )
    with pytest.raises(AssertionError):
        test_every_prompt_is_encoded_once("staged", 1.0, set(), encoded)

"""Words as tokens in every tokenizer; mappers and windows of Prompt-to-Prompt beside recorded ones."""

import re
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from support.planting import raw, require_noticed
from support.recorded_edits import ALIGNERS, FourLetters
from support.small_models import small_pipeline
from textpatch.editing import mappers, word_windows
from textpatch.editing.mappers import (
    ALIGNMENTS,
    block_diagonal,
    identity_mapper,
    refine_mapper,
    swap_mapper,
)
from textpatch.editing.word_windows import self_steps, token_windows
from textpatch.errors import PatchError, PromptError
from textpatch.prompts import tokens
from textpatch.prompts.tokens import PromptTokens, TokenizedPrompt, prompt_tokens, tokenized

LENGTH = 77
CASES = [(name, pair) for name, pairs in ALIGNERS["pairs"].items() for pair in pairs]
SENTENCE = 'a neon sign that says "HELLO" right now, and a second one'


def as_recorded(pair: dict, side: str) -> TokenizedPrompt:
    """A prompt with its recorded tokens, each of which stands for the whole of its word."""
    text = pair[side]
    spans = [None] * len(pair[f"{side}_ids"])
    found = re.finditer(r"\S+", text)
    for match, places in zip(found, pair[f"{side}_word_tokens"], strict=True):
        for place in places:
            spans[place] = match.span()
    return TokenizedPrompt(text, tuple(pair[f"{side}_ids"]), tuple(spans))


def recorded_matrix(entries: list) -> torch.Tensor:
    matrix = torch.eye(LENGTH, dtype=torch.float64)
    for m, n, value in entries:
        matrix[m, n] = value
    return matrix


def require_swap_mappers(align: str) -> None:
    """Every recorded swap mapper, and an error where there is none."""
    for _, pair in CASES:
        source, target = (as_recorded(pair, side) for side in ("source", "target"))
        if pair["replace"] is None:
            with pytest.raises(PromptError, match="equally many words"):
                swap_mapper(source, target, LENGTH, align)
            continue
        made = swap_mapper(source, target, LENGTH, align).matrix
        if align == "official":
            made = made.float().double()  # the published matrix is rounded so
        assert torch.equal(made, recorded_matrix(pair["replace"][align])), pair["target"]


@pytest.mark.parametrize("align", ALIGNMENTS)
def test_swap_mappers_are_the_recorded_ones(align):
    """26 pairs in two tokenizers, one of them CLIP's own, by the published rule and by the corrected one."""
    require_swap_mappers(align)


def require_refine_mappers() -> None:
    """Every recorded refine mapper."""
    for _, pair in CASES:
        made = refine_mapper(as_recorded(pair, "source"), as_recorded(pair, "target"), LENGTH)
        origins = dict(enumerate(range(LENGTH))) | dict(pair["refine"])
        expected = torch.zeros(LENGTH, LENGTH).double()
        for n, m in origins.items():
            if m >= 0:
                expected[m, n] = 1
        assert torch.equal(made.matrix, expected)
        assert torch.equal(made.alpha, expected.sum(0))


def test_refine_mappers_are_the_recorded_ones():
    """The same pairs, of any numbers of words."""
    require_refine_mappers()


def drawn_prompt(lengths: list[int], seed: int) -> TokenizedPrompt:
    """A prompt of words with some numbers of tokens, between a begin and an end token."""
    texts = [f"w{seed}x{place}" for place in range(len(lengths))]
    spans = []
    first = 0
    for text, length in zip(texts, lengths, strict=True):
        spans += [(first, first + len(text))] * length
        first += len(text) + 1
    return TokenizedPrompt(" ".join(texts), tuple(range(len(spans) + 2)), (None, *spans, None))


lengths = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4)


@given(lengths)
def test_corrected_mappers_lose_nothing(counts):
    """Every source token up to the end has shares of sum 1, none has more, and official is the same where
    all counts agree.
    """
    source, target = (drawn_prompt([one[side] for one in counts], side) for side in (0, 1))
    shares = swap_mapper(source, target, 20).matrix.sum(1)
    assert torch.allclose(shares[: len(source.ids)], torch.ones(len(source.ids)).double())
    assert (shares <= 1 + 1e-12).all()
    if all(old == new for old, new in counts):
        official, corrected = (
            swap_mapper(source, target, 20, align).matrix for align in ALIGNMENTS
        )
        assert torch.equal(official, corrected)


def test_several_tokenizers_have_a_block_each():
    """T5's block stands after CLIP's, the rest is the identity, and no token reads across."""
    pipeline = small_pipeline()
    prompts = (
        'a red sign that says "HELLO" on a blue wall',
        'a red sign that says "ZEN" on a blue wall',
    )
    total = pipeline.encode([prompts[0]]).tokens.shape[1] + 3
    source, target = (prompt_tokens(pipeline, prompt, total) for prompt in prompts)
    parts = zip(source.parts, target.parts, source.lengths, strict=True)
    made = block_diagonal([swap_mapper(*part) for part in parts], total)
    first = source.lengths[0]
    assert (len(source.parts), source.offsets, len(made.alpha)) == (2, (0, first), total)
    assert not made.matrix[:first, first:].any() and not made.matrix[first:, :first].any()
    assert torch.equal(made.matrix[-3:, -3:], identity_mapper(3).matrix)
    for part, offset in zip(target.parts, target.offsets, strict=True):
        assert (
            set(target.places("ZEN")) >= {offset + place for place in part.places("ZEN")} != set()
        )


# --- words by the characters of their tokens


def bpe() -> PreTrainedTokenizerFast:
    """A tokenizer like CLIP's, of small letters in pieces that end a word or do not."""
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<unk>", "<bos>", "<eos>"], end_of_word_suffix="</w>"
    )
    made.train_from_iterator([SENTENCE] * 3, trainer)
    made.decoder = decoders.BPEDecoder(suffix="</w>")
    specials = [(token, made.token_to_id(token)) for token in ("<bos>", "<eos>")]
    made.post_processor = processors.TemplateProcessing("<bos> $A <eos>", special_tokens=specials)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def unigram() -> PreTrainedTokenizerFast:
    """A tokenizer like T5's, whose pieces carry the blank before them, with no token before the first."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=40, special_tokens=["<unk>", "</s>"], unk_token="<unk>"
    )
    made.train_from_iterator([SENTENCE] * 3, trainer)
    made.decoder = decoders.Metaspace()
    end = [("</s>", made.token_to_id("</s>"))]
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=end)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


def shipped() -> PreTrainedTokenizerFast:
    """The tokenizer of a small CLIP, with a token for each quoted letter."""
    return small_pipeline().encoders.tokenizers[0]


def require_words_found(make, sentence: str = SENTENCE) -> None:
    """The tokens of every word spell it, and no token is two words'."""
    tokenizer = make()
    read = tokenized(tokenizer, sentence, 77)
    spelled = [
        tokenizer.decode([read.ids[place] for place in places]).replace(" ", "")
        for places in read.word_places
    ]
    assert [word.lower() for word in spelled] == sentence.lower().split()
    found = [place for places in read.word_places for place in places]
    assert len(found) == len(set(found)) == sum(span is not None for span in read.spans)


@pytest.mark.parametrize("make", [bpe, unigram])
def test_words_are_found_in_every_tokenizer(make):
    """One like CLIP's and one like T5's, of which pieces have other blanks and other ends."""
    require_words_found(make)


def test_words_are_found_in_a_shipped_tokenizer():
    """The words of a sign's prompt, quotes and letters included."""
    require_words_found(shipped, 'a red sign that says "HELLO" on a blue wall')


@pytest.mark.parametrize("make", [bpe, unigram])
def test_a_phrase_is_found_without_its_quotes(make):
    """In quotes and before a comma, in any case, as two words, everywhere; and not inside a longer word."""
    tokenizer = make()
    read = tokenized(tokenizer, SENTENCE, 77)

    def spelled(phrase: str) -> str:
        text = tokenizer.decode([read.ids[place] for place in read.places(phrase)])
        return text.lower().replace(" ", "").replace(",", "").replace('"', "")

    assert spelled("hello") == "hello" and spelled("right now") == "rightnow"
    assert spelled("a") == "aa" and read.places("eon") == () == read.places("ell")


def one_tokenizer(text: str) -> PromptTokens:
    """A prompt as the tokenizer of the recorded runs reads it."""
    return PromptTokens(text, (tokenized(FourLetters(), text, LENGTH),), (0,), (LENGTH,), LENGTH)


@pytest.mark.parametrize("phrase", ["absent", "hell", "", "says peace"])
def test_a_word_that_is_not_there_is_an_error(phrase):
    """Another word, a part of one, no word, and words that are no neighbours."""
    with pytest.raises(PromptError, match="no token of 'a sign that says hello now'"):
        one_tokenizer("a sign that says hello now").places(phrase)


def test_a_tokenizer_without_characters_is_refused():
    """PatchError for one that cannot tell where its tokens stand."""

    def slow(text, **options):
        raise NotImplementedError

    with pytest.raises(PatchError, match="fast tokenizers"):
        tokenized(slow, "a sign", 7)


# --- windows


def require_recorded_windows() -> None:
    """Every recorded window of words and of self-attention."""
    for case in ALIGNERS["windows"]:
        cross = spelled(case["cross_replace_steps"])
        if isinstance(cross, dict) and cross.pop("absent", None):
            continue  # the published code passes over a word that is not there
        windows = token_windows(cross, one_tokenizer(case["prompts"][1]), case["steps"])
        expected = torch.zeros(case["steps"] + 1, LENGTH)
        for window, places in case["tokens_by_window_[first,last+1)"].items():
            first, last = map(int, window.strip("[]").split(","))
            for place in places:
                expected[first:last, place] = 1
        assert torch.equal(windows, expected[:-1]), case
    for case in ALIGNERS["self_windows"]:
        made = self_steps(case["self_replace_steps"], case["steps"])
        assert [made.start, made.stop] == case["window"]


def spelled(window):
    """A recorded window in the numbers that are taken, fractions alone."""
    if isinstance(window, dict):
        return {word: spelled(one) for word, one in window.items()}
    return [float(x) for x in window] if isinstance(window, list) else float(window)


def test_windows_are_the_recorded_ones():
    """int(f (N + 1)) for words and int(f N) for self-attention, for all words and by word."""
    require_recorded_windows()


@pytest.mark.parametrize(
    "window", [1, 0, True, 1.1, -0.1, float("nan"), "0.8", (0.2,), (0.8, 0.2), (0, 0.5), None]
)
def test_windows_that_are_no_fractions_are_refused(window):
    """Whole numbers, which could be steps, numbers outside 0 to 1, bounds in the wrong order, and texts."""
    with pytest.raises(PatchError, match="the window of .* is"):
        token_windows(window, one_tokenizer("a sign that says hello now"), 6)
    with pytest.raises(PatchError, match="the window of self-attention is"):
        self_steps(window, 6)


def test_a_window_of_a_word_that_is_not_there_is_an_error():
    """The published code ignores it."""
    with pytest.raises(PromptError, match="that of 'peace'; closest|that of 'peace'"):
        token_windows({"peace": 0.5}, one_tokenizer("a sign that says hello now"), 6)


FAULTS = {
    "the published tail in the corrected mapper": (
        partial(require_swap_mappers, "corrected"),
        mappers,
        "swap_mapper",
        "n if align == OFFICIAL else m",
        "n",
    ),
    "the whole of each piece for each piece": (
        partial(require_swap_mappers, "corrected"),
        mappers,
        "_shares",
        "1 / new",
        "1 / old",
    ),
    "a mapper that loses what follows a longer word": (
        partial(raw(test_corrected_mappers_lose_nothing), [(3, 1), (2, 2)]),
        mappers,
        "swap_mapper",
        "m = old[-1] + 1",
        "m = new[-1] + 1",
    ),
    "ties go up first": (
        require_refine_mappers,
        mappers,
        "_aligned",
        "if best[m][n] == best[m][n - 1] + GAP",
        "if best[m][n] == best[m][n - 1] + GAP != best[m - 1][n]",
    ),
    "what differs matches": (
        require_refine_mappers,
        mappers,
        "_scores",
        "own == other",
        "own != other",
    ),
    "windows of N": (
        require_recorded_windows,
        word_windows,
        "word_steps",
        "first * (steps + 1)",
        "first * steps",
    ),
    "self-attention's windows of N + 1": (
        require_recorded_windows,
        word_windows,
        "self_steps",
        "int(last * steps)",
        "int(last * (steps + 1))",
    ),
    "a blank before a word belongs to the word before": (
        partial(require_words_found, unigram),
        tokens,
        "_without_blanks",
        "first < len(text) and",
        "False and",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, monkeypatch):
    """The check holds, and with the fault in place it does not."""
    FAULTS[fault][0]()
    require_noticed(monkeypatch, FAULTS[fault])

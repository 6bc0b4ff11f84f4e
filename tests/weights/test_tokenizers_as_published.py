"""Tokenizers give what their published class gives, ids and padding, from whatever files a folder holds."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import transformers

from support.planting import plant
from textpatch.weights import tokenizers
from textpatch.weights.building import Builder
from textpatch.weights.reading.terms import Terms
from textpatch.weights.tokenizers import read_tokenizer

PROMPTS = ["red a", "b", ""]
SPECIAL = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "!",
}


def vocabulary() -> dict[str, int]:
    """Letters, letters that end a word, one merged word, and CLIP's two marks."""
    letters = '!"abcdefghijklmnopqrstuvwxyz'
    words = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>"]
    return {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}


def of_files(folder: Path) -> None:
    """The files that CLIP was published with: vocabulary and merges."""
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")


def with_configuration(folder: Path) -> None:
    of_files(folder)
    said = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **SPECIAL}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def with_map(folder: Path) -> None:
    of_files(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps(SPECIAL))


def saved(folder: Path) -> None:
    with_configuration(folder)
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)


def one_file(folder: Path) -> None:
    """tokenizer.json alone."""
    saved(folder)
    for path in folder.iterdir():
        if path.name != "tokenizer.json":
            path.unlink()


FOLDERS = [of_files, with_configuration, with_map, saved, one_file]


def require_published(folder: Path, named: str | None) -> None:
    """The ids, padding included, are those of the published class."""
    published = transformers.CLIPTokenizer.from_pretrained(folder)
    ours = read_tokenizer(folder, named, t5=False)
    for tokenizer in (published, ours):
        assert tokenizer.pad_token_id is not None
    wanted, found = (
        tokenizer(PROMPTS, padding="max_length", max_length=8, truncation=True).input_ids
        for tokenizer in (published, ours)
    )
    assert found == wanted and type(ours) is type(published)


@pytest.mark.parametrize("named", ["CLIPTokenizer", "CLIPTokenizerFast", None, "MyTokenizer"])
@pytest.mark.parametrize("files", FOLDERS, ids=lambda files: files.__name__)
def test_a_clip_tokenizer_is_that_of_its_class(tmp_path, files, named):
    """From a vocabulary and merges, one tokenizer.json, with and without configuration, named or not."""
    files(tmp_path)
    require_published(tmp_path, named)


def test_a_class_that_is_guessed_is_noticed(tmp_path, monkeypatch):
    """Fault: transformers guesses the class, and a folder without a configuration has no padding."""
    one_file(tmp_path)
    plant(monkeypatch, tokenizers, "_class", "named in GENERAL", "True")
    with pytest.raises((AssertionError, tokenizers.WeightsError)):
        require_published(tmp_path, "CLIPTokenizer")


def test_both_paddings_are_there(tmp_path):
    """The folders differ where it matters: CLIP's own padding is its end, and files may say another."""
    padding = set()
    for i, files in enumerate(FOLDERS):
        folder = tmp_path / str(i)
        folder.mkdir()
        files(folder)
        padding.add(read_tokenizer(folder, None, t5=False).pad_token)
        shutil.rmtree(folder)
    assert padding == {"!", "<|endoftext|>"}


def sentencepiece_of(folder: Path) -> None:
    """A sentencepiece file alone, as T5 was published with."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    sentences = [
        "a red sign on a blue wall",
        "a green badge that says hello",
        "zebra quick fox jumps",
    ]
    trainer.train(
        sentence_iterator=iter(sentences * 20),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()


def test_a_sentencepiece_file_is_t5s_tokenizer(tmp_path):
    """The ids of T5's class, its end and padding included, though nothing in the folder names it."""
    sentencepiece_of(tmp_path)
    ours, published = (
        read_tokenizer(tmp_path, None, t5=True),
        transformers.T5Tokenizer.from_pretrained(tmp_path),
    )
    wanted, found = (
        tokenizer(PROMPTS, padding="max_length", max_length=12, truncation=True).input_ids
        for tokenizer in (published, ours)
    )
    assert found == wanted and type(ours) is transformers.T5Tokenizer
    assert all(ours.eos_token_id in ids and ids[-1] == ours.pad_token_id for ids in found)


@pytest.mark.parametrize(
    "positions, says, reads",
    [(248, 77, 248), (248, 200, 200), (77, 77, 77), (22, 22, 22), (100, 22, 22)],
)
def test_a_clip_of_more_positions_is_read_in_full(positions, says, reads):
    """Where a tokenizer says the usual 77 and its CLIP has more, all are read and told; a choice stays."""
    clip = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions))
    tokenizer = SimpleNamespace(model_max_length=says)
    terms = Terms()
    Builder(SimpleNamespace(terms=terms), None, None).read_in_full([clip], [tokenizer])
    assert tokenizer.model_max_length == reads
    assert [note for note in terms.notes if "prompts of 248 tokens" in note] == terms.notes
    assert bool(terms.notes) == (reads > says)

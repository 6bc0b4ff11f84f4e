"""Tokenizers give what their published class gives, ids and padding, from whatever files a folder holds."""

import json
import shutil
from pathlib import Path

import pytest
import transformers

from support.planting import plant
from textpatch.weights import tokenizers
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

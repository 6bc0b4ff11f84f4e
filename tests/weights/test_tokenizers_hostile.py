"""Tokenizers somebody else wrote, and prompts as long as books: done, or refused in one line, and nobody
waits."""

import json
import os
import shutil
import signal

import pytest
import torch

from support.planting import plant
from support.small_models import PROMPTS, save_small
from support.sweeps import forked
from textpatch import cli, exits, load
from textpatch.errors import PromptError, WeightsError
from textpatch.reference_models import text_encoders, tokenizing
from textpatch.reference_models.tokenizing import LONGEST, tokenize
from textpatch.weights import tokenizers
from textpatch.weights.building import Builder
from textpatch.weights.folders import Folder
from textpatch.weights.loading import SHIPPED

KINDS = {
    "CLIP": ("tiny-mmdit", "tokenizer"),
    "T5": ("tiny-mmdit", "tokenizer_3"),
    "IF": ("tiny-if", "tokenizer"),
}
DEEP = 100_000
HOLDS = "holds no tokenizer transformers can read: "


def put(*path, value=None, without=False):
    """A change of one entry of a JSON file: another value, or none."""

    def change(data: bytes) -> bytes:
        body = at = json.loads(data)
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        if without:
            del at[path[-1]]
        return json.dumps(body).encode()

    return change


def instead(data: bytes):
    return lambda _: data


def word(value):
    """Another id for a word of the vocabulary."""
    return put("model", "vocab", "wall", value=value)


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<gone>", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}
TRUNCATING = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 9}
BAD = {
    "empty": instead(b""),
    "half": lambda data: data[: len(data) // 2],
    "a brace short": lambda data: data.rstrip()[:-1],
    "a word": instead(b"tokenizer"),
    "a binary": instead(bytes(range(256)) * 99),
    "a pickle": instead(b"\x80\x04\x95" + bytes(99)),
    "gzip": instead(b"\x1f\x8b\x08" + bytes(99)),
    "zeros": instead(bytes(4096)),
    "a zero first": lambda data: b"\0" + data,
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "no UTF-8 in a word": lambda data: data.replace(b'"wall"', b'"w\xffll"'),
    "null": instead(b"null"),
    "a list": instead(b"[]"),
    "a number": instead(b"1"),
    "a string": instead(b'"a"'),
    "an empty object": instead(b"{}"),
    "arrays without end": instead(b"[" * DEEP),
    "arrays in arrays": instead(b"[" * DEEP + b"]" * DEEP),
    "objects in objects": instead(b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "arrays for an id": lambda data: data.replace(
        b'"wall": 8', b'"wall": ' + b"[" * DEEP + b"]" * DEEP
    ),
    "no model": put("model", without=True),
    "a model that is null": put("model"),
    "a model that is a list": put("model", value=[]),
    "an unknown model": put("model", "type", value="Pickle"),
    "a model without words": put("model", "vocab", without=True),
    "words in a list": put("model", "vocab", value=["wall"]),
    "words null": put("model", "vocab"),
    "no words": put("model", "vocab", value={}),
    "an id in quotes": word("8"),
    "an id below zero": word(-1),
    "a fraction": word(8.5),
    "an id of null": word(None),
    "2^32": word(2**32),
    "2^63": word(2**63),
    "400 digits": word(10**400),
    "an unknown word that is null": put("model", "unk_token"),
    "an unknown word nobody knows": put("model", "unk_token", value="<gone>"),
    "added words in a string": put("added_tokens", value="x"),
    "added words that are numbers": put("added_tokens", value=[1]),
    "no added words": put("added_tokens", without=True),
    "an added id in quotes": put("added_tokens", 1, "id", value="x"),
    "another version": put("version", value="9.9"),
    "a version that is a number": put("version", value=1),
    "half a regular expression": put(
        "pre_tokenizer",
        value={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    ),
    "an unknown step": put("pre_tokenizer", value={"type": "Exec"}),
    "a step that is a number": put("pre_tokenizer", value=3),
    "an end that is no word": put("post_processor", value=TEMPLATE),
    "a number at the end": put("post_processor", value=7),
    "a stride longer than all": put("truncation", value=TRUNCATING),
    "cut by a string": put("truncation", value="x"),
    "merges of other words": put(
        "model", value={"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}
    ),
    "pieces without words": put("model", value={"type": "Unigram", "vocab": [], "unk_id": 99}),
    "a map that is none": put(
        "normalizer", value={"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    ),
}
CLASS = put("tokenizer_class", value="Evil")
BAD_CONFIG = {
    "empty": instead(b""),
    "a list": instead(b"[]"),
    "null": instead(b"null"),
    "a binary": instead(bytes(range(256))),
    "objects in objects": instead(b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "no padding": put("pad_token"),
    "a class that is a number": put("tokenizer_class", value=3),
    "padding that is a number": put("pad_token", value=3),
    "a length in words": put("model_max_length", value="x"),
    "a fraction of a length": put("model_max_length", value=22.5),
    "no length": put("model_max_length", value=0),
    "a length below zero": put("model_max_length", value=-1),
    "code of its own": lambda data: put("auto_map", value={"AutoTokenizer": ["evil.Evil", None]})(
        CLASS(data)
    ),
    "padding above": put("padding_side", value="up"),
    "inputs that are a number": put("model_input_names", value=3),
    "added words in a list": put("added_tokens_decoder", value=[1]),
}


@pytest.fixture
def tokenizer_of(tmp_path):
    """(kind, file, change) -> the tokenizer of a shipped model with one file changed, as `load` reads it."""

    def read(kind: str, file: str = "tokenizer.json", change=lambda data: data):
        model, component = KINDS[kind]
        shutil.copytree(SHIPPED / model / component, tmp_path / component, dirs_exist_ok=True)
        shutil.copy(SHIPPED / model / "model_index.json", tmp_path)
        path = tmp_path / component / file
        path.write_bytes(change(before := path.read_bytes()))
        assert path.read_bytes() != before or change(b"{}") == b"{}"
        return Builder(Folder(tmp_path), torch.device("cpu"), torch.float32).tokenizer(component)

    return read


def refused(read, *arguments) -> None:
    """One line of WeightsError: which folder, what is wrong with it, what to do."""
    with pytest.raises(WeightsError) as caught:
        read(*arguments)
    told = str(caught.value)
    assert (
        HOLDS in told
        and told.split(HOLDS)[1][0].isalpha()
        and told.endswith("; fetch it again")
        and told.isprintable()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_that_is_none_is_refused(kind, tokenizer_of):
    """Whatever is wrong with tokenizer.json, when it is loaded: never another error, never later."""
    assert len(tokenizer_of(kind)) == 59
    for change in BAD.values():
        refused(tokenizer_of, kind, "tokenizer.json", change)


@pytest.mark.parametrize("name", BAD_CONFIG)
def test_a_configuration_that_is_none_is_refused(name, tokenizer_of):
    """The same of tokenizer_config.json; code that it names is not run."""
    refused(tokenizer_of, "CLIP", "tokenizer_config.json", BAD_CONFIG[name])


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_beyond_the_encoder_is_refused(kind, tokenizer_of):
    """A token for which the encoder has no vector: both numbers, before the encoder reads it; on a GPU it
    would be the last."""
    pipeline, (_, component) = load(KINDS[kind][0]), KINDS[kind]
    place = [f"tokenizer{part}" for part in ("", "_2", "_3")].index(component)
    good = list(pipeline.encoders.tokenizers)
    end = put("post_processor", "special_tokens", "<eos>", "ids", value=[2**32 - 1])
    for change, token in [
        (word(59), 59),
        (word(10**6), 10**6),
        (word(2**32 - 1), 2**32 - 1),
        (end, 2**32 - 1),
    ]:
        pipeline.encoders.tokenizers = [
            *good[:place],
            tokenizer_of(kind, "tokenizer.json", change),
            *good[place + 1 :],
        ]
        with pytest.raises(
            WeightsError, match=f"gave token {token}, its encoder has 0 to 58; fetch both again"
        ):
            pipeline.encode([PROMPTS[0]])
    pipeline.encoders.tokenizers = [
        *good[:place],
        tokenizer_of(kind, "tokenizer.json", word(58)),
        *good[place + 1 :],
    ]
    assert pipeline.encode([PROMPTS[0]]).tokens.isfinite().all()


# --- prompts

MILLION = 10**6
BOOKS = {
    "one word": "a" * MILLION,
    "a quoted word": f'"{"A" * MILLION}"',
    "quotes": '"' * MILLION,
    "words": "a " * (MILLION // 2),
    "blanks": "a" + " " * MILLION + "a",
    "lines": "a" + "\n" * MILLION + "a",
    "zeros": "\0" * MILLION,
    "faces": "\N{GRINNING FACE}" * MILLION,
    "one letter, many accents": "a" + "\u0301" * MILLION,
    "right to left": "\u202e" * MILLION,
    "just too long": "a" * (LONGEST + 1),
    "as long as may be": "a" * LONGEST,
    "as many quotes as may be": '"' * LONGEST,
}


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_a_book_is_refused_at_once(tmp_path):
    """A million characters, whichever, as a prompt of every kind of model; and the longest that are looked
    at.

    In a process with a minute for all: without a limit tiny-if's tokenizer took more than five for the first.
    """

    def read():
        signal.alarm(60)
        with open(tmp_path / "refused", "w") as file:
            for name in ("tiny-mmdit", "tiny-sdxl", "tiny-if"):
                encode = load(name).encode
                for prompt in BOOKS.values():
                    with pytest.raises(PromptError) as caught:
                        encode([prompt])
                    file.write(f"{len(str(caught.value))}\n")

    assert forked(read) == 0
    lengths = [int(line) for line in (tmp_path / "refused").read_text().splitlines()]
    assert len(lengths) == 3 * len(BOOKS) and max(lengths) < 2 * LONGEST + 200


def test_a_book_does_not_flood_the_terminal(tmp_path, monkeypatch, capfd):
    """In a file of prompts: exit code 2 and a line with its beginning, its length and what to do."""
    monkeypatch.chdir(tmp_path)
    model = str(save_small(tmp_path / "small"))
    for book, says in (
        (f'a "{"A" * MILLION}"', "is 1,000,004 characters long"),
        ("\x1b" * MILLION, "no quoted word"),
    ):
        (tmp_path / "pairs.tsv").write_text(f"{book}\t{PROMPTS[0]}\n")
        assert cli.main(["localize", model, "--prompts", "pairs.tsv"]) == 2
        # of a longer line as much as shows that it is, because a failing test would print it
        err = capfd.readouterr().err[:10_000]
        assert says in err and err.count("\n") == 1 and len(err) < 10_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", ["\ud800", "a red sign \udcff", "\udc00\ud800"])
def test_half_a_character_is_refused(kind, prompt, tokenizer_of):
    """A lone surrogate, such as the shell's bytes that are no UTF-8 become, is named and not a fault of
    ours."""
    with pytest.raises(
        PromptError, match=r"holds half a character \(a lone surrogate\); give it as UTF-8"
    ):
        tokenize([prompt], [tokenizer_of(kind)], [77])


# --- planted faults


def test_planted_a_loader_that_expects_too_few_errors_is_noticed(tokenizer_of, monkeypatch):
    """Fault: only the errors that transformers documents, or only those that are Exceptions, are
    explained."""
    for narrow, name in (
        ("(OSError, ValueError)", "null"),
        ("Exception", "an end that is no word"),
    ):
        with monkeypatch.context() as faulty:
            plant(
                faulty,
                tokenizers,
                "read_tokenizer",
                "except BaseException as",
                f"except {narrow} as",
            )
            with pytest.raises(BaseException) as caught:
                refused(tokenizer_of, "CLIP", "tokenizer.json", BAD[name])
            assert not isinstance(caught.value, WeightsError)


def test_planted_a_tokenizer_that_is_not_tried_is_noticed(tokenizer_of, monkeypatch):
    """Fault: it is read and not tried.  What cannot pad or has no unknown word would then fail in a run."""
    plant(monkeypatch, tokenizers, "read_tokenizer", 'tokenizer("\\uffff")', "pass")
    with pytest.raises(pytest.fail.Exception):
        refused(tokenizer_of, "CLIP", "tokenizer.json", BAD["an unknown word nobody knows"])


def test_planted_limits_that_are_none_are_noticed(tokenizer_of, monkeypatch):
    """Fault: any length is read, any id is looked up."""
    monkeypatch.setattr(tokenizing, "LONGEST", 10 * MILLION)
    with pytest.raises(PromptError, match="tokens long, and the model reads at most 22"):
        tokenize(["a " * LONGEST], [tokenizer_of("T5")], [77])
    plant(monkeypatch, text_encoders, "_ids", "highest >= known", "highest > known")
    with pytest.raises(IndexError):
        test_an_id_beyond_the_encoder_is_refused("CLIP", tokenizer_of)


def test_planted_a_line_without_end_is_noticed(tmp_path, monkeypatch, capfd):
    """Fault: an error's line is as long as what it quotes."""
    monkeypatch.setattr(exits, "LONGEST", 10 * MILLION)
    with pytest.raises(AssertionError):
        test_a_book_does_not_flood_the_terminal(tmp_path, monkeypatch, capfd)

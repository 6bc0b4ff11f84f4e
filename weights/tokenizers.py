"""Tokenizers from folders, by the class that the published pipeline reads them with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from textpatch.errors import WeightsError
from textpatch.reference_models.text_encoders import T5_LENGTH
from textpatch.reference_models.tokenizing import tokenize
from textpatch.weights.reading.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# what the tokenizer of every published CLIP says, and the positions that the CLIP has
CLIP_LENGTH = 77
# Classes of published tokenizers.  Their defaults, such as the padding, stand where no file says another.
CLASSES = {
    "CLIPTokenizer": "CLIPTokenizer",
    "CLIPTokenizerFast": "CLIPTokenizer",
    "T5Tokenizer": "T5Tokenizer",
    "T5TokenizerFast": "T5Tokenizer",
}
# classes of a tokenizer.json that says everything by itself
GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend")


def read_tokenizer(folder: Path, named: str | None, *, t5: bool) -> PreTrainedTokenizerBase:
    """Tokenizer of a folder, tried on two prompts, because a file may be read and still be of no use.

    named  class that the model's index names; without one of ours the folder's configuration decides
    t5     True for the tokenizer of a T5, False for a CLIP's, where neither says a class

    Raises WeightsError for one that transformers cannot read, and for one that pads or cuts at the left,
    because the encoders here read prompts from their first token on.
    """
    try:
        tokenizer = _class(folder, named, t5).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        tokenize([""], [tokenizer], [T5_LENGTH])
        tokenizer("\uffff")  # a word that nobody knows
    except BaseException as error:
        # tokenizers raises bare Exceptions and Rust's panics.  A panic is no Exception, and its class has
        # no name to import.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise WeightsError(
            f"{folder} holds no tokenizer transformers can read: {reason[:400]}; fetch it again"
        ) from None
    for side in ("padding_side", "truncation_side"):
        found = getattr(tokenizer, side)
        if found != "right":
            raise WeightsError(
                f"{folder} says {side} {found!r}, and its encoder reads prompts that begin at their first "
                f"token; write {side} 'right' in tokenizer_config.json"
            )
    return tokenizer


def _class(folder: Path, named: str | None, t5: bool):
    """Class of transformers that reads a tokenizer."""
    import transformers

    if not isinstance(named, str) or named not in (*CLASSES, *GENERAL):
        named = _configured(folder)
    if named in GENERAL:
        return transformers.AutoTokenizer
    default = "T5Tokenizer" if t5 else "CLIPTokenizer"
    return getattr(transformers, CLASSES.get(named, default))


def _configured(folder: Path) -> str:
    """Class that a tokenizer's own configuration names, "" without one."""
    if not (folder / "tokenizer_config.json").is_file():
        return ""
    # others' links have been looked at when the folder was found
    named = read_json(folder, "tokenizer_config.json", follow_links=True).get("tokenizer_class")
    return named if isinstance(named, str) else ""

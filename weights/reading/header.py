"""The header of a safetensors file, read without trust before anything is built from it.

The file is 8 bytes of little-endian length, that many bytes of JSON {name: {dtype, shape, data_offsets}}, and
the data (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import codecs
import io
import json
import os
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from textpatch.errors import WeightsError
from textpatch.weights.reading.entry import DTYPES, TensorEntry, identity_of, opened

FIELDS = ["data_offsets", "dtype", "shape"]
HEADER_BYTES, MAX_TENSORS, MAX_RANK, MAX_NAME = (
    16 << 20,
    20_000,
    8,
    512,
)  # SDXL: 0.4 MB, 2,515 tensors
TOO_MANY = 1 << 60  # elements of eight bytes: their number of bytes fits into 63 bits
PIECE = 1 << 18

PICKLE = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]|\x93NUMPY")
CONVERT = (
    "a pickle can run any code, so none is opened here; fetch the safetensors version, or convert it on a "
    "machine you can lose: safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')"
)
CHARACTER = rb'[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}'
GRAMMAR = {
    "an object": re.compile(rb'\{[ \t\n\r]*(?=["}])'),
    "a name": re.compile(
        rb'"(?:%s){0,%d}"' % (CHARACTER, 4 * MAX_NAME)
    ),  # 4 bytes or two escapes a character
    "a colon": re.compile(rb"[ \t\n\r]*:[ \t\n\r]*"),
    "one flat object": re.compile(rb"\{[^{}]{0,1024}\}"),
    "a string": re.compile(rb'"'),
    "the rest of a string": re.compile(rb"(?:%s){1,4096}" % CHARACTER.replace(b"]", b"]+", 1)),
    "a name or the end of the object": re.compile(rb'[ \t\n\r]*(?:,[ \t\n\r]*(?=")|(?=\}))'),
    "spaces to the end of the header": re.compile(rb" *\Z"),
}


def read_header(where: str | os.PathLike) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, in the order of their bytes; the data is not read.

    Raises WeightsError naming the file, the fault and its `code` for all that is not exactly the format.
    """
    path = Path(where)
    with opened(path) as file:
        identity = identity_of(file)
        try:
            text, start = _header_text(file, size=identity[0])
            entries = [_entry(*item, start, path, identity) for item in _parsed(text).items()]
            return _laid_out(entries, start, end=identity[0])
        except (WeightsError, ValueError, RecursionError) as error:
            code = getattr(error, "code", "not-json")
            advice = CONVERT if code == "pickle" else "fetch it again"
            found = str(error)[:400]  # it quotes the file
            raise WeightsError(
                f"{path} is damaged or no safetensors file ({found}); {advice}", code
            ) from None


def _header_text(file: io.FileIO, size: int) -> tuple[bytes, int]:
    """The JSON, and where the data starts; the length is compared before that much is read."""
    first = file.read(9)
    length = int.from_bytes(first[:8], "little")
    if PICKLE.match(first) and (length > HEADER_BYTES or first[8:] != b"{"):
        raise WeightsError(f"it starts as a pickle, zip or NumPy file does: {first!r}", "pickle")
    if size < 8:
        raise WeightsError(f"{size} bytes; expected at least 8", "too-short")
    if length > HEADER_BYTES:
        raise WeightsError(
            f"a header of {length} bytes; expected at most {HEADER_BYTES}", "header-too-large"
        )
    if length > size - 8:
        raise WeightsError(
            f"a header of {length} bytes, of which {size - 8} are there", "header-beyond-file"
        )
    file.seek(8)
    text = file.read(length)
    _require_utf8(text)
    return text, 8 + length


def _require_utf8(text: bytes) -> None:
    """A piece at a time: in a string with one emoji, every character takes four bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(0, len(text), PIECE):
        decoder.decode(text[at : at + PIECE], final=at + PIECE >= len(text))


def _parsed(text: bytes) -> dict[str, dict[str, Any]]:
    """Name -> fields of all tensors of a header."""

    def value(name: str, at: int) -> tuple[Any, int]:
        if name == "__metadata__":
            return _object(text, at, lambda _, at: (None, _string_end(text, at)))
        end = _token("one flat object", text, at)
        return decode(text[at:end].decode()), end

    if text.count(b'"data_offsets"') > MAX_TENSORS:  # unescaped, it stands in no string
        raise WeightsError(f"more than {MAX_TENSORS} tensors", "too-many-tensors")
    decode = json.JSONDecoder(object_pairs_hook=unique).decode
    found, end = _object(text, 0, value)
    _token("spaces to the end of the header", text, end)
    found.pop("__metadata__", None)
    return found


def _object(
    text: bytes, at: int, value: Callable[[str, int], tuple[Any, int]]
) -> tuple[dict[str, Any], int]:
    """The object at a byte, and where it ends; value(name, at) is one of its values, and where that ends.

    Member by member: what is too much is refused before it is in memory, and what is too deep never entered.
    """
    found: dict[str, Any] = {}
    at = _token("an object", text, at)
    while text[at] != ord("}"):
        end = _token("a name", text, at)
        name = json.loads(text[at:end].decode())
        _require_new(name, found)
        found[name], at = value(name, _token("a colon", text, end))
        if len(found) > MAX_TENSORS + ("__metadata__" in found):
            raise WeightsError(f"more than {MAX_TENSORS} names", "too-many-tensors")
        at = _token("a name or the end of the object", text, at)
    return found, at + 1


def _string_end(text: bytes, at: int) -> int:
    """Where the string at a byte ends; in pieces, because a match of a million escapes takes much memory."""
    at = _token("a string", text, at)
    while text[at : at + 1] != b'"':
        at = _token("the rest of a string", text, at)
    return at + 1


def _token(wanted: str, text: bytes, at: int) -> int:
    """Where the token of the grammar that must stand at a byte ends."""
    if match := GRAMMAR[wanted].match(text, at):
        return match.end()
    raise WeightsError(
        f"{text[at : at + 40]!r} at byte {at} of the header; expected {wanted}", "not-json"
    )


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, for `json.loads`.  Raises WeightsError for a name that is there twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        _require_new(name, found)
        found[name] = value
    return found


def _require_new(name: str, found: dict[str, Any]) -> None:
    if name in found:
        raise WeightsError(f"{name[:80]!r} is there twice; expected once", "duplicate-key")


def _entry(name: str, fields: dict[str, Any], start: int, *file) -> TensorEntry:
    """The entry of checked fields.  Anything may stand in them; JSON's true and 1.0 are no counts."""
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        found = f"a name of {len(name)} characters, {name[:80]!r}"
        raise WeightsError(f"{found}; expected 1 to {MAX_NAME} printable ones", "bad-name")
    if sorted(fields) != FIELDS:
        raise WeightsError(
            f"tensor {name!r} has the fields {sorted(fields)}; expected {FIELDS}", "bad-fields"
        )
    offsets, dtype, shape = (fields[key] for key in FIELDS)
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise WeightsError(
            f"tensor {name!r} is of dtype {dtype!r}; known: {', '.join(DTYPES)}", "unknown-dtype"
        )
    if not _counts(shape) or len(shape) > MAX_RANK or prod(n or 1 for n in shape) >= TOO_MANY:
        raise WeightsError(
            f"tensor {name!r} is of shape {shape}; expected at most {MAX_RANK} sizes", "bad-shape"
        )
    if not _counts(offsets) or len(offsets) != 2:
        raise WeightsError(
            f"tensor {name!r} is at {offsets}; expected two counts of bytes", "bad-offsets"
        )
    wanted, found = prod(shape) * DTYPES[dtype].itemsize, offsets[1] - offsets[0]
    if wanted != found:
        raise WeightsError(
            f"tensor {name!r}, {dtype} {shape}, is {wanted} bytes; {found} are given", "bad-span"
        )
    return TensorEntry(dtype, tuple(shape), start + offsets[0], start + offsets[1], name, *file)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < TOO_MANY for n in values)


def _laid_out(entries: list[TensorEntry], start: int, end: int) -> dict[str, TensorEntry]:
    """The entries by name, if one follows on the other from start to end."""
    entries, at = sorted(entries, key=lambda entry: (entry.start, entry.end)), start
    for entry in entries:
        if entry.start != at:
            found = f"tensor {entry.name!r} starts at byte {entry.start}; expected {at}"
            raise WeightsError(found, "overlap" if entry.start < at else "gap")
        at = entry.end
    if at != end:
        found = f"the tensors end at byte {at}, the file at {end}"
        raise WeightsError(found, "truncated" if at > end else "trailing-bytes")
    return {entry.name: entry for entry in entries}

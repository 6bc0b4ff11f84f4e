"""Header of a safetensors file, read without trust before anything is built from it.

The file is 8 bytes of little-endian length, that many bytes of JSON {name: {dtype, shape, data_offsets}}, and
then the data (https://github.com/huggingface/safetensors#format).
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
from textpatch.weights.reading.impostors import ENOUGH, posing

FIELDS = ["data_offsets", "dtype", "shape"]
# SDXL's header is 0.4 MB and names 2,515 tensors
HEADER_BYTES = 16 << 20
MAX_TENSORS = 20_000
MAX_RANK = 8
MAX_NAME = 512
# of fewer elements than these, eight bytes each, the number of bytes fits into 63 bits
TOO_MANY = 1 << 60
# bytes decoded at a time
PIECE = 1 << 18

PICKLE = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]|\x93NUMPY")
CONVERT = (
    "a pickle can run any code, so none is opened here; "
    "fetch the safetensors version, or convert it on a machine you can lose: "
    "safetensors.torch.save_file(torch.load(file, weights_only=True), 'model.safetensors')"
)
# an escape that is no half of a surrogate pair, or a whole pair
ESCAPE = (
    rb"\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}"
    rb"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
CHARACTER = rb'[^"\\\x00-\x1f]|\\["\\/bfnrt]|' + ESCAPE
GRAMMAR = {
    "an object": re.compile(rb'\{[ \t\n\r]*(?=["}])'),
    # a character is at most 4 bytes or two escapes
    "a name": re.compile(rb'"(?:%s){0,%d}"' % (CHARACTER, 4 * MAX_NAME)),
    "a colon": re.compile(rb"[ \t\n\r]*:[ \t\n\r]*"),
    "one flat object": re.compile(rb"\{[^{}]{0,1024}\}"),
    "a string": re.compile(rb'"'),
    "the rest of a string": re.compile(rb"(?:%s){1,4096}" % CHARACTER.replace(b"]", b"]+", 1)),
    "a name or the end of the object": re.compile(rb'[ \t\n\r]*(?:,[ \t\n\r]*(?=")|(?=\}))'),
    "spaces to the end of the header": re.compile(rb" *\Z"),
}


def read_header(where: str | os.PathLike[str]) -> dict[str, TensorEntry]:
    """Read the entries of a safetensors file, in the order of their bytes, without the data.

    Raises WeightsError with the file, the fault and its `code` for anything but exactly the format.
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
            _require_safetensors(path, file, code)
            advice = CONVERT if code == "pickle" else "fetch it again"
            fault = str(error)[:400]  # it quotes the file
            raise WeightsError(
                f"{path} is damaged or no safetensors file ({fault}); {advice}", code
            ) from None


def said_in_header(where: str | os.PathLike[str], name: str) -> str | None:
    """Short text without escapes that the metadata of a file has under a name, None without one.

    The header must have been read by `read_header`, so that between unescaped quotes stands a name.
    Raises WeightsError for a file that changed since.
    """
    path = Path(where)
    with opened(path) as file:
        text, _ = _header_text(file, size=identity_of(file)[0])
    said = re.search(rb'"%s"[ \t\n\r]*:[ \t\n\r]*"([^"\\]{0,64})"' % re.escape(name.encode()), text)
    return said[1].decode() if said else None


def _require_safetensors(path: Path, file: io.FileIO, code: str) -> None:
    """Raise WeightsError with what a file is instead, if its header cannot be and that is known."""
    if code not in ("header-too-large", "header-beyond-file"):
        return
    file.seek(0)
    found = posing(file.read(ENOUGH))
    if found:
        what, code, advice = found
        raise WeightsError(f"{path} is {what}; {advice}", code)


def _header_text(file: io.FileIO, size: int) -> tuple[bytes, int]:
    """Read the JSON, if the file is long enough for it.   Returns where the data starts, too."""
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
    """Raise UnicodeDecodeError for a text that is not UTF-8.

    Pieces are decoded one by one, because in a Python string with one emoji every character takes four bytes.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(0, len(text), PIECE):
        decoder.decode(text[at : at + PIECE], final=at + PIECE >= len(text))


def _parsed(text: bytes) -> dict[str, dict[str, Any]]:
    """Fields of all tensors of a header, by name."""

    def value(name: str, at: int) -> tuple[Any, int]:
        if name == "__metadata__":
            return _object(text, at, lambda _, at: (None, _string_end(text, at)))
        end = _token("one flat object", text, at)
        return decode(text[at:end].decode()), end

    # counted before any is decoded; no string holds these quotes unescaped
    if text.count(b'"data_offsets"') > MAX_TENSORS:
        raise WeightsError(f"more than {MAX_TENSORS} tensors", "too-many-tensors")
    decode = json.JSONDecoder(object_pairs_hook=unique).decode
    tensors, end = _object(text, 0, value)
    _token("spaces to the end of the header", text, end)
    tensors.pop("__metadata__", None)
    return tensors


def _object(
    text: bytes, at: int, value: Callable[[str, int], tuple[Any, int]]
) -> tuple[dict[str, Any], int]:
    """Read the object that starts at a byte.   Returns it and where it ends.

    value  value(name, at) reads the value that starts at a byte, and returns it and where it ends

    Members are read one by one, so that too many are refused before they are in memory, and none is read
    deeper than its format goes.
    """
    members: dict[str, Any] = {}
    at = _token("an object", text, at)
    while text[at] != ord("}"):
        end = _token("a name", text, at)
        name = json.loads(text[at:end].decode())
        _require_new(name, members)
        members[name], at = value(name, _token("a colon", text, end))
        if len(members) > MAX_TENSORS + ("__metadata__" in members):
            raise WeightsError(f"more than {MAX_TENSORS} names", "too-many-tensors")
        at = _token("a name or the end of the object", text, at)
    return members, at + 1


def _string_end(text: bytes, at: int) -> int:
    """End of the string that starts at a byte.

    It is matched in pieces, because one match of a million escapes takes much memory.
    """
    at = _token("a string", text, at)
    while text[at : at + 1] != b'"':
        at = _token("the rest of a string", text, at)
    return at + 1


def _token(wanted: str, text: bytes, at: int) -> int:
    """End of the token that must stand at a byte.   Raises WeightsError for another."""
    match = GRAMMAR[wanted].match(text, at)
    if match is None:
        raise WeightsError(
            f"{text[at : at + 40]!r} at byte {at} of the header; expected {wanted}", "not-json"
        )
    return match.end()


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Object of these pairs, for `json.loads`.   Raises WeightsError for a name that is there twice."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        _require_new(name, members)
        members[name] = value
    return members


def _require_new(name: str, members: dict[str, Any]) -> None:
    if name in members:
        raise WeightsError(f"{name[:80]!r} is there twice; expected once", "duplicate-key")


def _entry(name: str, fields: dict[str, Any], start: int, *file) -> TensorEntry:
    """Entry of a tensor, after all its fields are checked.

    Anything may stand in the fields.  JSON's true and 1.0 are no counts.
    """
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise WeightsError(
            f"a name of {len(name)} characters, {name[:80]!r}; expected 1 to {MAX_NAME} printable ones",
            "bad-name",
        )
    if sorted(fields) != FIELDS:
        raise WeightsError(
            f"tensor {name!r} has the fields {sorted(fields)}; expected {FIELDS}", "bad-fields"
        )
    dtype = fields["dtype"]
    shape = fields["shape"]
    offsets = fields["data_offsets"]
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
    wanted = prod(shape) * DTYPES[dtype].itemsize
    given = offsets[1] - offsets[0]
    if wanted != given:
        raise WeightsError(
            f"tensor {name!r}, {dtype} {shape}, is {wanted} bytes; {given} are given", "bad-span"
        )
    return TensorEntry(dtype, tuple(shape), start + offsets[0], start + offsets[1], name, *file)


def _counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < TOO_MANY for n in values)


def _laid_out(entries: list[TensorEntry], start: int, end: int) -> dict[str, TensorEntry]:
    """Entries by name, in the order of their bytes.

    Raises WeightsError unless each begins where the one before it ends, from start to end.
    """
    entries = sorted(entries, key=lambda entry: (entry.start, entry.end))
    at = start
    for entry in entries:
        if entry.start != at:
            code = "overlap" if entry.start < at else "gap"
            raise WeightsError(
                f"tensor {entry.name!r} starts at byte {entry.start}; expected {at}", code
            )
        at = entry.end
    if at != end:
        code = "truncated" if at > end else "trailing-bytes"
        raise WeightsError(f"the tensors end at byte {at}, the file at {end}", code)
    return {entry.name: entry for entry in entries}

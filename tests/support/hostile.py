"""Files that must be refused, each with the code of its refusal: one fault each, planted into a good file."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
from itertools import accumulate

import numpy as np
import pytest
import torch

from textpatch.errors import WeightsError

GOOD = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
DATA = bytes(8)
TWO = (
    b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[1],"data_offsets":[8,16]},'
    b'"__metadata__":{"format":"pt","title":"Gr\xc3\xbc\\u00dfe \\"x\\""}}'
)
CAP, MANY = 16 << 20, 20_001  # the first header too large, the first number of tensors too many


def framed(header: bytes, data: bytes = DATA, length: int | None = None) -> bytes:
    """A file of this header and data; length is what its first eight bytes say, the truth if None."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def refusal(read, *args) -> WeightsError:
    """The one line with which a call is refused."""
    with pytest.raises(WeightsError) as caught:
        read(*args)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000 and caught.value.code
    return caught.value


def tensors(count: int) -> bytes:
    """A header of so many tensors without elements."""
    return int8(**{f"t{i}": 0 for i in range(count)})


def int8(**sizes: int) -> bytes:
    """A header of tensors of so many bytes, one behind the other."""
    ends = list(accumulate(sizes.values()))
    offsets = zip([0, *ends], ends, strict=False)  # there are as many ends as tensors
    entries = [
        {"dtype": "I8", "shape": [end - start], "data_offsets": [start, end]}
        for start, end in offsets
    ]
    return json.dumps(dict(zip(sizes, entries, strict=True))).encode()


def metadata(body: bytes) -> bytes:
    return b'{"__metadata__":' + body + b"," + GOOD[1:]


# (in the good header, in its place, the code)
REPLACED = {
    "leading space": (b'{"a"', b' {"a"', "not-json"),
    "leading BOM": (b'{"a"', b'\xef\xbb\xbf{"a"', "not-json"),
    "leading zero byte": (b'{"a"', b'\0{"a"', "not-json"),
    "comment": (b'{"a"', b'{/**/"a"', "not-json"),
    "single quotes": (b'"a"', b"'a'", "not-json"),
    "name without quotes": (b'"a"', b"a", "not-json"),
    "no colon": (b'"a":', b'"a" ', "not-json"),
    "no comma": (b'"F32",', b'"F32" ', "not-json"),
    "trailing comma": (b"]}}", b"]},}", "not-json"),
    "unclosed": (b"]}}", b"]}", "not-json"),
    "closed twice": (b"]}}", b"]}}}", "not-json"),
    "second object": (b"]}}", b"]}}{}", "not-json"),
    "padded with zeros": (b"]}}", b"]}}\0\0", "not-json"),
    "padded with lines": (b"]}}", b"]}}\n\n", "not-json"),
    "an array": (GOOD, b"[]", "not-json"),
    "a number": (GOOD, b"12", "not-json"),
    "a string": (GOOD, b'"aaaaaaaa"', "not-json"),
    "null": (GOOD, b"null", "not-json"),
    "nothing": (GOOD, b"", "not-json"),
    "spaces": (GOOD, b" " * 64, "not-json"),
    "UTF-16": (GOOD, GOOD.decode().encode("utf-16-le"), "not-json"),
    "no UTF-8 in a name": (b'"a"', b'"\xff"', "not-json"),
    "overlong UTF-8": (b'"a"', b'"\xc0\xaf"', "not-json"),
    "half a character": (b'"a"', b'"\xe2\x82"', "not-json"),
    "unknown escape": (b'"a"', rb'"\q"', "not-json"),
    "half an escape": (b'"a"', rb'"\u00"', "not-json"),
    "zero byte in a name": (b'"a"', b'"\0"', "not-json"),
    "line in a name": (b'"a"', b'"a\nb"', "not-json"),
    "arrays 200,000 deep": (b"[2]", b"[" * 200_000, "not-json"),
    "arrays 450 deep": (b"[2]", b"[" * 450 + b"]" * 450, "bad-shape"),
    "arrays 960 deep": (b"[2]", b"[" * 960, "not-json"),
    "objects 100,000 deep": (b"[2]", b'{"a":' * 100_000, "not-json"),
    "empty name": (b'"a"', b'""', "bad-name"),
    "escaped zero": (b'"a"', rb'"a\u0000"', "bad-name"),
    "escaped line": (b'"a"', rb'"a\nb"', "bad-name"),
    "terminal escape": (b'"a"', rb'"\u001b[2J"', "bad-name"),
    "half a surrogate": (b'"a"', rb'"\ud800"', "not-json"),
    "the other half": (b'"a"', rb'"\udc00\ud800"', "not-json"),
    "half a surrogate in the metadata": (GOOD, metadata(rb'{"a":"\ud83d"}'), "not-json"),
    "right to left": (b'"a"', '"\u202ea"'.encode(), "bad-name"),
    "513 characters": (b'"a"', b'"%s"' % (b"a" * 513), "bad-name"),
    "a megabyte of name": (b'"a"', b'"%s"' % (b"a" * (1 << 20)), "not-json"),
    "same name": (b"]}}", b"]}," + GOOD[1:], "duplicate-key"),
    "same name, escaped": (
        b"]}}",
        b"]}," + GOOD[1:].replace(b'"a"', rb'"\u0061"'),
        "duplicate-key",
    ),
    "same field": (b'"F32",', b'"F32","dtype":"F32",', "duplicate-key"),
    "same field, another value": (b'"F32",', b'"F32","dtype":"I8",', "duplicate-key"),
    "unknown field": (b'"F32",', b'"F32","strides":[1],', "bad-fields"),
    "no dtype": (b'"dtype":"F32",', b"", "bad-fields"),
    "no shape": (b'"shape":[2],', b"", "bad-fields"),
    "no offsets": (b',"data_offsets":[0,8]', b"", "bad-fields"),
    "no fields": (GOOD[5:-1], b"{}", "bad-fields"),
    "a tensor that is null": (GOOD[5:-1], b"null", "not-json"),
    "a tensor that is an array": (GOOD[5:-1], b'["F32",[2],[0,8]]', "not-json"),
    "F4": (b'"F32"', b'"F4"', "unknown-dtype"),
    "C64": (b'"F32","shape":[2]', b'"C64","shape":[1]', "unknown-dtype"),
    "small letters": (b'"F32"', b'"f32"', "unknown-dtype"),
    "no dtype's name": (b'"F32"', b'""', "unknown-dtype"),
    "dtype null": (b'"F32"', b"null", "unknown-dtype"),
    "dtype in a list": (b'"F32"', b'["F32"]', "unknown-dtype"),
    "negative size": (b"[2]", b"[-2]", "bad-shape"),
    "two negative sizes": (b"[2]", b"[-1,-2]", "bad-shape"),
    "fraction": (b"[2]", b"[2.0]", "bad-shape"),
    "exponent": (b"[2]", b"[2e0]", "bad-shape"),
    "true": (b"[2]", b"[2,true]", "bad-shape"),
    "NaN": (b"[2]", b"[NaN]", "bad-shape"),
    "infinite": (b"[2]", b"[1e999]", "bad-shape"),
    "size in quotes": (b"[2]", b'["2"]', "bad-shape"),
    "shape in shape": (b"[2]", b"[[2]]", "bad-shape"),
    "shape a number": (b"[2]", b"2", "bad-shape"),
    "shape null": (b"[2]", b"null", "bad-shape"),
    "nine axes": (b"[2]", b"[2,1,1,1,1,1,1,1,1]", "bad-shape"),
    "2^64 elements": (b"[2]", b"[18446744073709551616]", "bad-shape"),
    "wraps to two elements": (b"[2]", b"[9223372036854775809,2]", "bad-shape"),
    "2^62 times zero": (b"[2]", b"[4611686018427387904,4,0]", "bad-shape"),
    "2^80 times zero": (
        b'2],"data_offsets":[0,8',
        b'%d,%d,0],"data_offsets":[0,0' % (1 << 40, 1 << 40),
        "bad-shape",
    ),
    "a thousand digits": (b"[2]", b"[%s]" % (b"9" * 900), "bad-shape"),
    "leading zero": (b"[2]", b"[02]", "not-json"),
    "hexadecimal": (b"[2]", b"[0x2]", "not-json"),
    "one offset": (b"[0,8]", b"[8]", "bad-offsets"),
    "three offsets": (b"[0,8]", b"[0,8,8]", "bad-offsets"),
    "negative offset": (b"[0,8]", b"[-8,0]", "bad-offsets"),
    "fractional offset": (b"[0,8]", b"[0.0,8.0]", "bad-offsets"),
    "offset true": (b"[0,8]", b"[false,8]", "bad-offsets"),
    "offsets null": (b"[0,8]", b"null", "bad-offsets"),
    "offset of 2^64": (b"[0,8]", b"[18446744073709551608,18446744073709551616]", "bad-offsets"),
    "reversed offsets": (b"[0,8]", b"[8,0]", "bad-span"),
    "too few bytes": (b"[0,8]", b"[0,7]", "bad-span"),
    "too many bytes": (b"[2]", b"[1]", "bad-span"),
    "no bytes for a number": (b"[2]", b"[]", "bad-span"),
    "not at the start": (b"[0,8]", b"[1,9]", "gap"),
    "far away": (b"[0,8]", b"[1099511627776,1099511627784]", "gap"),
    "larger than the file": (
        b'[2],"data_offsets":[0,8]',
        b'[4],"data_offsets":[0,16]',
        "truncated",
    ),
    "same bytes twice": (b"]}}", b"]}," + GOOD[1:].replace(b'"a"', b'"b"'), "overlap"),
    "metadata a number": (GOOD, metadata(b"1"), "not-json"),
    "metadata null": (GOOD, metadata(b"null"), "not-json"),
    "metadata a list": (GOOD, metadata(b'["a"]'), "not-json"),
    "metadata of numbers": (GOOD, metadata(b'{"a":1}'), "not-json"),
    "metadata of objects": (GOOD, metadata(b'{"a":{"b":"c"}}'), "not-json"),
    "metadata unclosed": (GOOD, metadata(b'{"a":"b'), "not-json"),
    "metadata not UTF-8": (GOOD, metadata(b'{"a":"\xff"}'), "not-json"),
    "metadata with a bad escape": (GOOD, metadata(rb'{"a":"\x"}'), "not-json"),
    "metadata 100,000 deep": (GOOD, metadata(b'{"a":' * 100_000), "not-json"),
    "metadata names one thing twice": (GOOD, metadata(b'{"a":"","a":""}'), "duplicate-key"),
    "metadata twice": (
        GOOD,
        metadata(b"{}").replace(b"{}", b'{},"__metadata__":{}'),
        "duplicate-key",
    ),
    "20,001 tensors": (GOOD, tensors(MANY), "too-many-tensors"),
    "20,001 escaped tensors": (
        GOOD,
        tensors(MANY).replace(b'ts"', rb't\u0073"'),
        "too-many-tensors",
    ),
    "20,001 notes": (
        GOOD,
        metadata(json.dumps(dict.fromkeys(range(MANY), "")).encode()),
        "too-many-tensors",
    ),
}


def beside(start: int) -> bytes:
    """The good header with a second tensor, which starts there."""
    second = GOOD.replace(b'"a"', b'"b"').replace(b"[0,8]", b"[%d,%d]" % (start, start + 8))
    return GOOD[:-1] + b"," + second[1:]


def starting(magic: bytes) -> bytes:
    return magic + bytes(64)


# (the whole file, the code)
WHOLE = {
    "empty": (b"", "too-short"),
    "one byte": (b"{", "too-short"),
    "seven bytes": (framed(GOOD)[:7], "too-short"),
    "a header of no bytes": (framed(b""), "not-json"),
    "a length alone": (framed(GOOD)[:8], "header-beyond-file"),
    "half a header": (framed(GOOD)[:30], "header-beyond-file"),
    "a header longer than the file": (framed(GOOD, length=len(GOOD) + 9), "header-beyond-file"),
    "a header into the data": (framed(GOOD, length=len(GOOD) + 8), "not-json"),
    "a header a byte short": (framed(GOOD, length=len(GOOD) - 1), "not-json"),
    "2^64 - 1": (framed(GOOD, length=2**64 - 1), "header-too-large"),
    "2^63": (framed(GOOD, length=2**63), "header-too-large"),
    "the cap and one": (framed(GOOD, length=CAP + 1), "header-too-large"),
    "100 MB of spaces": (framed(GOOD, length=100_000_000), "header-too-large"),
    "big-endian length": (len(GOOD).to_bytes(8, "big") + GOOD + DATA, "header-too-large"),
    "no data": (framed(GOOD, b""), "truncated"),
    "a byte short": (framed(GOOD, DATA[1:]), "truncated"),
    "a byte more": (framed(GOOD, DATA + b"\0"), "trailing-bytes"),
    "a zip behind": (framed(GOOD, DATA + b"PK\x03\x04" + bytes(40)), "trailing-bytes"),
    "data without tensors": (framed(b"{}"), "trailing-bytes"),
    "a gap at the end": (framed(GOOD, DATA * 2), "trailing-bytes"),
    "a gap between": (framed(beside(9), DATA * 3), "gap"),
    "half over another": (framed(beside(4), DATA + DATA[:4]), "overlap"),
    "a text": (b"a text of more than eight bytes\n", "header-too-large"),
    "a page": (b"<!DOCTYPE html><html>Access denied</html>", "web-page"),
    "a pointer of Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "lfs-pointer",
    ),
    "JSON alone": (GOOD + DATA, "json"),
    "PNG": (starting(b"\x89PNG\r\n\x1a\n"), "header-too-large"),
    "GGUF": (starting(b"GGUF\3\0\0\0"), "gguf"),
    "gzip": (starting(b"\x1f\x8b\x08\x00\x00\x00\x00\x00"), "archive"),
    "zip": (starting(b"PK\x03\x04"), "pickle"),
    "pickle of protocol 2": (starting(b"\x80\x02}q\x00."), "pickle"),
    "pickle of protocol 5": (starting(b"\x80\x05\x95\x10"), "pickle"),
    "NumPy": (starting(b"\x93NUMPY\x01\x00"), "pickle"),
}
FILES = {
    name: (framed(GOOD.replace(old, new)), code) for name, (old, new, code) in REPLACED.items()
} | WHOLE

INTEGERS = [
    0,
    1,
    -1,
    2,
    4,
    7,
    8,
    9,
    12,
    16,
    255,
    2**31,
    2**32,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
]
VALUES = [
    b"null",
    b"true",
    b"1.5",
    b"1e3",
    b'"x"',
    b"[]",
    b"{}",
    b"[0]",
    b'{"a":1}',
    b"NaN",
    b'""',
    b"-",
]
STRINGS = [
    b'"%s"' % text
    for text in b"F32 F16 I8 BOOL F4 f32 U64 F8_E4M3 a b shape dtype __metadata__".split()
]
BYTES = [
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b'"',
    b"\\",
    b" ",
    b"\n",
    b"\0",
    b"\xff",
    b"0",
    b"9",
    b"-",
    b"e",
]
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+')


def mutant(rng: random.Random, header: bytes, data: bytes) -> bytes:
    """A good file with one to three faults of its tokens, its bytes, its length or its data."""
    length = None
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        kind = rng.random()
        if kind < 0.75:
            header = _other_token(rng, header)
        elif kind < 0.85:
            header = _other_bytes(rng, header)
        elif kind < 0.95:
            data = _other_bytes(rng, data)
        else:
            length = len(header) + rng.choice([-8, -1, 1, 8, 1 << 30])
    return framed(header, data, None if length is None else max(length, 0))


def _other_token(rng: random.Random, header: bytes) -> bytes:
    """A string or number replaced by another; now and then by something else, by nothing, or by
    itself twice.
    """
    token = rng.choice(list(TOKEN.finditer(header)) or [re.match(b"", header)])
    found = token.group()
    alike = STRINGS if found[:1] == b'"' else [b"%d" % n for n in INTEGERS]
    new = rng.choice([rng.choice(alike)] * 9 + [rng.choice(VALUES), b"", found + b"," + found])
    return header[: token.start()] + new + header[token.end() :]


def _other_bytes(rng: random.Random, body: bytes) -> bytes:
    """A piece replaced, inserted, deleted, repeated, or a bit flipped."""
    at = rng.randrange(len(body) + 1)
    end = min(len(body), at + rng.choice([0, 1, 1, 2, 9]))
    piece = body[at:end]
    flipped = bytes([piece[0] ^ 1 << rng.randrange(8)]) + piece[1:] if piece else b""
    return body[:at] + rng.choice([rng.choice(BYTES), flipped, b"", piece * 2]) + body[end:]


INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
# what an index may not give as the file of a tensor
BAD_NAMES = [
    "../outside.safetensors",
    "../model/" + SECOND,
    "sub/../" + SECOND,
    "./" + SECOND,
    "sub/" + SECOND,
    "/" + SECOND,
    "//server/share/" + SECOND,
    "/dev/stdin",
    "/dev/zero",
    "/proc/self/environ",
    "~/" + SECOND,
    "..\\outside.safetensors",
    ".\\" + SECOND,
    "C:" + SECOND,
    "C:\\" + SECOND,
    "\\\\?\\C:\\" + SECOND,
    SECOND + "\0",
    "\0" + SECOND,
    SECOND + "\0.safetensors",
    SECOND + "\n",
    SECOND + " ",
    "\u202e" + SECOND,
    "%2e%2e%2foutside.safetensors",
    "..%2foutside.safetensors",
    "..\u2215outside.safetensors",
    "..\u2044outside.safetensors",
    "\uff0e\uff0e\uff0foutside.safetensors",
    "$HOME/" + SECOND,
    "file:///" + SECOND,
    "https://localhost/" + SECOND,
    "",
    ".",
    "..",
    ".safetensors",
    "-rf.safetensors",
    INDEX,
    "model",
    "pytorch_model.bin",
    "a" * 5000 + ".safetensors",
    1,
    None,
    True,
    ["x.safetensors"],
    {"x": "x.safetensors"},
    1.5,
]


class Canary:
    """An object whose unpickling makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def pickled(protocol):
    return lambda path, canary: path.write_bytes(pickle.dumps({"a": canary}, protocol))


def saved(zipped):
    return lambda path, canary: torch.save(
        {"a": canary}, path, _use_new_zipfile_serialization=zipped
    )


def numpy_array(path, canary):
    with open(path, "wb") as file:
        np.save(file, np.array([canary], dtype=object), allow_pickle=True)


def numpy_archive(path, canary):
    with open(path, "wb") as file:
        np.savez(file, a=np.array([canary], dtype=object))


def polyglot(path, canary):
    saved(True)(path, canary)
    path.write_bytes(framed(GOOD, DATA + path.read_bytes()))


# name -> (what writes the file with a canary in it, the code)
PICKLES = {
    "model.ckpt": (pickled(2), "pickle"),
    "model.pt": (saved(True), "pickle"),
    "model.pth": (saved(False), "pickle"),
    "pytorch_model.bin": (saved(True), "pickle"),
    "MODEL.PKL": (pickled(5), "pickle"),
    "model.npy": (numpy_array, "pickle"),
    "model.npz": (numpy_archive, "pickle"),
    "pytorch_model.bin.index.json": (pickled(4), "pickle"),
    "zip.safetensors": (saved(True), "pickle"),
    "legacy.safetensors": (saved(False), "pickle"),
    "protocol2.safetensors": (pickled(2), "pickle"),
    "protocol4.safetensors": (pickled(4), "pickle"),
    "array.safetensors": (numpy_array, "pickle"),
    "archive.safetensors": (numpy_archive, "pickle"),
    "protocol0.safetensors": (pickled(0), "header-too-large"),
    "polyglot.safetensors": (polyglot, "trailing-bytes"),
    "model.pickled": (pickled(4), "unknown-file"),
}

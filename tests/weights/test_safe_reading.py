"""Weights from strangers: only exact files are read, bit for bit; all others are refused, by name and at
once."""

import os
import random
import tempfile
import tracemalloc
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from support.by_default import taking
from support.costs import require_cheap
from support.hostile import (
    CAP,
    DATA,
    FILES,
    GOOD,
    MANY,
    REPLACED,
    TWO,
    framed,
    int8,
    metadata,
    mutant,
    refusal,
    tensors,
)
from support.sweeps import forked
from textpatch.errors import WeightsError
from textpatch.weights.reading import entry
from textpatch.weights.reading.entry import CHUNK, DTYPES, read_tensor, scan
from textpatch.weights.reading.files import open_tensors
from textpatch.weights.reading.header import read_header


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.safetensors"


# one file


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_by_name_and_code(path, name):
    """Each of the corpus is refused with the code of its own fault, in one line that names the file."""
    body, code = FILES[name]
    path.write_bytes(body)
    error = refusal(open_tensors, path)
    assert error.code == code and str(path) in str(error)


@pytest.mark.long
def test_a_refusal_is_cheap(path):
    """Long, since it is timed; test_a_hostile_file_is_refused_by_name_and_code has the same files."""
    for body, _ in FILES.values():
        path.write_bytes(body)
        require_cheap(open_tensors, path)


def test_the_corpus_is_large_and_each_fault_is_planted():
    """At least 73 files; each differs from the good file, which is accepted as its text says."""
    assert len(FILES) >= 73 and all(old in GOOD and old != new for old, new, _ in REPLACED.values())


def test_the_good_files_are_read(path):
    """The files into which the faults are planted are good: each tensor where its offsets say."""
    path.write_bytes(framed(GOOD))
    (entry,) = read_header(path).values()
    assert (entry.dtype, entry.shape, entry.start, entry.end) == (
        "F32",
        (2,),
        8 + len(GOOD),
        16 + len(GOOD),
    )
    path.write_bytes(framed(TWO, DATA * 2))
    assert [(e.name, e.dtype, e.shape, e.end - e.start) for e in read_header(path).values()] == [
        ("a", "F32", (2,), 8),
        ("b", "I64", (1,), 8),
    ]


def test_a_length_may_look_like_a_pickle(path):
    """A header of 0x0280 bytes begins with the two bytes of a pickle of protocol 2, and is none."""
    path.write_bytes(framed(GOOD.ljust(0x0280)))
    assert path.read_bytes()[:2] == b"\x80\x02" and open_tensors(path).read("a").tolist() == [0, 0]


BOOL = GOOD.replace(b"F32", b"BOOL").replace(b"[2]", b"[8]")
LISTED = {  # safetensors accepts all of these; (file, our code or None where we accept it too)
    "duplicate key": (FILES["same name"][0], "duplicate-key"),
    "leading space": (FILES["leading space"][0], "not-json"),
    "padded with lines": (FILES["padded with lines"][0], "not-json"),
    "unknown field": (FILES["unknown field"][0], "bad-fields"),
    "NUL in a name": (FILES["escaped zero"][0], "bad-name"),
    "empty name": (FILES["empty name"][0], "bad-name"),
    "BOOL of 2": (framed(BOOL, b"\2" + DATA[1:]), "bad-bool"),
    "BOOL of 255": (framed(BOOL, DATA[1:] + b"\xff"), "bad-bool"),
    "20,001 tensors": (framed(tensors(MANY), b""), "too-many-tensors"),
    "rank 9": (FILES["nine axes"][0], "bad-shape"),
    "C64": (FILES["C64"][0], "unknown-dtype"),
    "F4": (framed(GOOD.replace(b"F32", b"F4").replace(b"[2]", b"[16]")), "unknown-dtype"),
    "space padding": (framed(GOOD + b"  "), None),
    "F64": (framed(GOOD.replace(b"F32", b"F64").replace(b"[2]", b"[1]")), None),
    "zero-size": (framed(GOOD.replace(b"[2]", b"[3,0]").replace(b"0,8", b"0,0"), b""), None),
    "20,000 tensors": (framed(tensors(MANY - 1), b""), None),
}


@pytest.mark.parametrize("name", LISTED)
def test_what_safetensors_lets_through(path, name):
    """Of 16 files that the safetensors package accepts, those that break its own format or our caps are
    refused."""
    body, code = LISTED[name]
    path.write_bytes(body)
    theirs = safetensors.deserialize(body)
    if code is None:
        found = open_tensors(path)
        assert (
            sorted(found) == sorted(name for name, _ in theirs)
            and len(found.read(next(iter(found)))) <= 3
        )
    else:
        assert (
            refusal(lambda: [read_tensor(entry) for entry in open_tensors(path).values()]).code
            == code
        )


def test_what_mutants_are_accepted_safetensors_accepts_too(path, long):
    """Of 5,000 mutants, --long 20,000, all are refused with a WeightsError, or read as safetensors does."""
    rng, accepted, codes = random.Random(0), 0, set()
    for number in range(20_000 if long else 5_000):
        body = mutant(rng, *((GOOD, DATA), (TWO, DATA * 2))[number % 2])
        # a file written anew where it was is flushed to the disk, which takes long
        path.unlink(missing_ok=True)
        path.write_bytes(body)
        try:
            found = open_tensors(path)
            values = {
                name: (found[name].dtype, list(found[name].shape), bits(found.read(name)))
                for name in found
            }
        except WeightsError as error:
            codes.add(error.code)
            continue
        accepted += 1
        theirs = {
            name: (t["dtype"], t["shape"], bytes(t["data"]))
            for name, t in safetensors.deserialize(body)
        }
        assert values == theirs, body
    assert accepted > (500 if long else 125) and len(codes) >= 12


def fifo(path):
    os.mkfifo(path)


def sparse(path):
    path.touch()
    os.truncate(path, 1 << 40)


def link(to):
    return lambda path: path.symlink_to(to)


PLACES = {
    "FIFO": (fifo, "not-a-file"),
    "folder": (lambda path: path.mkdir(), "not-a-file"),
    "/dev/zero": (link("/dev/zero"), "not-a-file"),
    "/dev/null": (link("/dev/null"), "not-a-file"),
    "a terabyte of nothing": (sparse, "not-json"),
    "a link to itself": (link("model.safetensors"), "unreadable"),
    "a link to nothing": (link("elsewhere"), "unreadable"),
    "nothing": (lambda path: None, "unreadable"),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_file_is_refused_without_waiting(path, name):
    """What cannot be read as a plain file is refused before a byte of it is read; a FIFO has no writer
    here."""
    make, code = PLACES[name]
    make(path)
    assert refusal(read_header, path).code == code


def test_a_path_with_a_zero_byte_is_refused(tmp_path):
    """Not even the name of a file need be one."""
    assert refusal(read_header, tmp_path / "a\0.safetensors").code == "unreadable"


def test_a_file_without_permission_is_refused():
    """Mode 000 is a WeightsError with the system's reason; root, who may read everything, becomes nobody
    for it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "model.safetensors"
        path.write_bytes(framed(GOOD))
        path.chmod(0)
        user = os.geteuid()
        os.seteuid(user or 65534)
        try:
            error = refusal(read_header, path)
        finally:
            os.seteuid(user)
    assert error.code == "unreadable" and "Permission denied" in str(error)


BOMBS = {
    "spaces": lambda: b" " * CAP,
    "a million notes": lambda: metadata(
        b"{" + b",".join(b'"%d":""' % i for i in range(1_000_000)) + b"}"
    ),
    "250,000 tensors": lambda: (
        b"{" + b",".join(b'"%d":%s' % (i, GOOD[5:-1]) for i in range(250_000)) + b"}"
    ),
    "15 million deep": lambda: GOOD.replace(b"[2]", b"[" * (15 << 20)),
    "a long shape": lambda: GOOD.replace(b"[2]", b"[" + b"0," * (7 << 20) + b"0]"),
    "a long name": lambda: GOOD.replace(b'"a"', b'"' + b"a" * (15 << 20) + b'"'),
    "a long note, unclosed": lambda: metadata(
        b'{"a":"' + "\U0001f600".encode() + b"a" * (15 << 20)
    ),
    "escapes, unclosed": lambda: metadata(b'{"a":"' + rb"\ud83d\ude00" * (1 << 20)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_no_memory(path, name):
    """A header of up to 16 MiB is refused within 4 MiB more; one that says it is larger is not even read."""
    bomb = BOMBS[name]()
    assert len(bomb) <= CAP
    for length, most in ((len(bomb), len(bomb) + (4 << 20)), (CAP + 1, 1 << 20)):
        path.write_bytes(framed(bomb, length=length))
        tracemalloc.start()
        refusal(read_header, path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most


# values


@st.composite
def any_tensor(draw) -> torch.Tensor:
    """Any bits of any dtype and shape; 0-d, of no elements, or strided too."""
    name, shape = draw(st.sampled_from(list(DTYPES))), draw(st.lists(st.integers(0, 4), max_size=4))
    dice = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    most = 2 if name == "BOOL" else 256
    values = torch.randint(
        most, (2, *shape, DTYPES[name].itemsize), dtype=torch.uint8, generator=dice
    )
    values = values.view(DTYPES[name]).squeeze(-1)[0]  # (*shape,)
    return values.mT if len(shape) > 1 and draw(st.booleans()) else values


names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20).filter(
    lambda name: name.isprintable() and name != "__metadata__"
)
# safetensors 0.8.0 writes what it cannot read for no tensors and no notes
notes = st.none() | st.dictionaries(
    st.text(max_size=9), st.text(max_size=20), min_size=1, max_size=3
)


@settings(max_examples=40)
@given(st.dictionaries(names, any_tensor(), max_size=5), notes)
def test_what_safetensors_writes_is_read_bit_for_bit(tmp_path_factory, made, said):
    """read(save_file(x)) = x in name, dtype, shape and bits, as by the safetensors package itself."""
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    save_file({name: value.contiguous() for name, value in made.items()}, path, metadata=said)
    found, theirs = open_tensors(path), load_file(path)
    assert found.keys() == made.keys() == theirs.keys()
    for name, value in made.items():
        read = found.read(name)
        assert (read.dtype, read.shape, bits(read)) == (value.dtype, value.shape, bits(value))
        assert DTYPES[found[name].dtype] == read.dtype and found[name].shape == tuple(read.shape)
        assert bits(read) == bits(theirs[name]) and read.is_contiguous()
    assert found.nbytes == sum(len(bits(value)) for value in made.values())


def test_every_dtype_is_read(path):
    """256 values of each dtype, one 0-d and none at all."""
    for name, dtype in DTYPES.items():
        values = torch.arange(256 * dtype.itemsize) % (2 if name == "BOOL" else 251)
        values = values.to(torch.uint8).view(dtype)
        made = {"all": values, "one": values[0].clone(), "none": values[:0].reshape(3, 0, 2)}
        save_file(made, path)
        found = open_tensors(path)
        assert {
            key: (found[key].dtype, found[key].shape, bits(found.read(key))) for key in found
        } == {key: (name, tuple(value.shape), bits(value)) for key, value in made.items()}


def test_a_published_size_is_no_obstacle(path):
    """Offsets beyond 32 bits, as in a file of 40 GiB, are read where they point; only the tensor asked for
    is."""
    end = 40 << 30
    path.write_bytes(framed(int8(a=end, b=2), b""))
    with open(path, "r+b") as file:
        file.seek(end, os.SEEK_END)
        file.write(b"\x05\x06")
    assert open_tensors(path).read("b").tolist() == [5, 6]


def test_a_tensor_larger_than_memory_is_refused(path):
    """A sparse file of 8 TiB, good by its header, is refused when its one tensor is asked for."""
    size = 1 << 43
    path.write_bytes(framed(int8(a=size), b""))
    os.truncate(path, path.stat().st_size + size)
    error = refusal(open_tensors(path).read, "a")
    assert error.code == "no-memory" and str(size) in str(error)


def test_an_unknown_tensor_is_answered_with_the_closest(path):
    """No tensor of that name: which file, and what it may have been."""
    path.write_bytes(framed(TWO, DATA * 2))
    assert f"no tensor 'aa' in {path}; closest: a" == str(refusal(open_tensors(path).read, "aa"))


# files that change


def replaced(path):
    other = path.with_name("other")
    other.write_bytes(framed(GOOD, DATA[1:] + b"\1"))
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    other.rename(path)


def overwritten(path):
    path.write_bytes(framed(GOOD, DATA[::-1]))
    os.utime(path, ns=(1, 1))


CHANGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "replaced": replaced,
    "overwritten": overwritten,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_changed_is_not_read(path, name):
    """Between its header and its data a file must keep its size, time and inode."""
    path.write_bytes(framed(GOOD))
    found = open_tensors(path)
    assert found.read("a").tolist() == [0, 0]
    CHANGES[name](path)
    error = refusal(found.read, "a")
    assert error.code == "changed" and "'a'" in str(error)


def test_a_short_read_is_not_read(path, monkeypatch):
    """A file that was too short for a moment leaves bytes unread, though it is the same before and after."""
    path.write_bytes(framed(GOOD))
    found = open_tensors(path)
    monkeypatch.setattr("textpatch.weights.reading.entry._filled", lambda buffer, file: False)
    assert refusal(found.read, "a").code == "changed"


@pytest.mark.parametrize("name, code", [("gone", "unreadable"), ("a FIFO", "not-a-file")])
def test_a_file_that_went_away_is_not_waited_for(path, name, code):
    """What stands in the file's place after its header was read is opened as carefully as the file was."""
    path.write_bytes(framed(GOOD))
    found = open_tensors(path)
    path.unlink()
    if name == "a FIFO":
        os.mkfifo(path)
    assert refusal(found.read, "a").code == code


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_truncation_while_reading_is_an_error_and_no_signal(path):
    """A file cut after it was opened, at 20 places, gives 20 WeightsErrors; a mapped one would kill the
    process."""
    filled = entry._filled

    def read():
        for cut in range(20):
            save_file({"a": torch.ones(1 << 16)}, path)
            size = os.path.getsize(path)
            tensors = open_tensors(path)

            def cut_and_filled(buffer, file, size=size * cut // 20):
                os.truncate(path, size)
                return filled(buffer, file)

            entry._filled = cut_and_filled
            assert refusal(tensors.read, "a").code == "changed"

    assert forked(read) == 0


# values that are not finite

BITS = {  # dtype -> (integers of its size, bits of the mantissa, bits of the exponent)
    "F64": (torch.int64, 52, 11),
    "F32": (torch.int32, 23, 8),
    "F16": (torch.int16, 10, 5),
    "BF16": (torch.int16, 7, 8),
    "F8_E5M2": (torch.int8, 2, 5),
}


def poisons() -> dict:
    """Both signs of infinity, and of NaN the quiet, the signalling and the full one: (dtype, signed
    pattern)."""
    found = {}
    for dtype, (_, mantissa, exponent) in BITS.items():
        infinity, sign = (2**exponent - 1) << mantissa, -(1 << mantissa + exponent)
        payloads = {"inf": 0, "quiet": 1 << mantissa - 1, "signalling": 1, "full": 2**mantissa - 1}
        for kind, payload in payloads.items():
            found[f"{dtype} {kind}"] = dtype, infinity + payload
            found[f"{dtype} -{kind}"] = dtype, sign + infinity + payload
    return found | {"F8_E4M3 full": ("F8_E4M3", 0x7F), "F8_E4M3 -full": ("F8_E4M3", -1)}


POISONS = poisons()


@pytest.mark.parametrize("name", POISONS)
@pytest.mark.parametrize("index", taking(((1, CHUNK),), [(0, 0), (1, CHUNK), (2, 2)], whole=True))
def test_a_value_that_is_not_finite_is_named(path, name, index):
    """The first of one, two and three poisoned values is named, with its index and their number, in any
    chunk.

    By default the first lies in the middle, and others come after it.
    """
    dtype, pattern = POISONS[name]
    values = torch.ones(3, CHUNK + 7).to(DTYPES[dtype])
    raw = values.view(BITS.get(dtype, [torch.int8])[0])
    raw[index] = pattern
    for count, at in enumerate([index, (2, CHUNK - 1), (2, 3)], start=1):
        raw[at] = pattern
        save_file({"good": torch.ones(2), "bad": values}, path)
        found = open_tensors(path)
        scan(found["good"], found.read("good"))
        error = refusal(scan, found["bad"], found.read("bad"))
        said = (
            f"{count} of {values.numel()} values are not finite, "
            f"the first is {float(values[index])} at {index}"
        )
        assert error.code == "not-finite" and said in str(error) and "tensor 'bad'" in str(error)


@pytest.mark.parametrize("dtype", [*BITS, "F8_E4M3", "I64", "BOOL"])
def test_finite_values_are_no_poison(path, dtype):
    """The largest values of a dtype, whose sum overflows, its smallest, zeros, integers and no values at
    all."""
    values = torch.zeros(CHUNK + 1).to(DTYPES[dtype])
    if dtype not in ("I64", "BOOL"):
        values[:-1], values[-1] = (
            torch.finfo(values.dtype).max,
            torch.finfo(values.dtype).smallest_normal / 2,
        )
    save_file({"a": values, "b": values[:0].clone(), "c": values[0].clone()}, path)
    found = open_tensors(path)
    for name in found:
        scan(found[name], found.read(name))


def test_infinities_of_both_signs_do_not_cancel(path):
    """inf - inf is NaN, so a sum that is finite has no infinite term."""
    save_file({"a": torch.tensor([float("inf"), -float("inf"), 1.0])}, path)
    found = open_tensors(path)
    assert "2 of 3 values" in str(refusal(scan, found["a"], found.read("a")))

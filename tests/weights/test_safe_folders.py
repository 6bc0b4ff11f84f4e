"""Folders of weights from strangers: no path leads out of them, no pickle is opened, nothing is fetched."""

import importlib.util
import json
import os
import pickle
import re
import shutil
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, snapshot_download
from safetensors.torch import save_file

from support.hostile import (
    BAD_NAMES,
    DATA,
    FIRST,
    GOOD,
    INDEX,
    MANY,
    PICKLES,
    SECOND,
    Canary,
    framed,
    refusal,
)
from textpatch.weights.reading.files import (
    CONFIG_BYTES,
    INDEX_BYTES,
    component_file,
    inside,
    open_tensors,
    read_config,
    read_json,
)
from textpatch.weights.reading.hub import cached_snapshot
from textpatch.weights.reading.terms import Terms

WHERE = {"x": FIRST, "y": FIRST, "z": SECOND}
VALUES = {
    "x": torch.arange(6.0).reshape(2, 3),
    "y": torch.ones(2, dtype=torch.int8),
    "z": torch.zeros(3, 0),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever connects to anything fails."""

    def refused(*args):
        raise AssertionError(f"a connection to {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refused)


OPENED: list[str] | None = None


def listen(event, args):
    if OPENED is not None and event == "open" and isinstance(args[0], str):
        OPENED.append(os.path.realpath(args[0]))


sys.addaudithook(listen)  # for good: an audit hook cannot be taken away


@pytest.fixture
def opened():
    """The real path of every file that is opened during the test, by whatever code."""
    global OPENED
    OPENED = []
    yield OPENED
    OPENED = None


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two shards and their index, beside a good file that lies outside."""
    return sharded(tmp_path / "model")


def sharded(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_file(VALUES, folder.parent / "outside.safetensors")
    save_file({name: VALUES[name] for name in "xy"}, folder / FIRST)
    save_file({"z": VALUES["z"]}, folder / SECOND)
    write_index(folder, WHERE, {"total_size": 26})
    return folder


def write_index(folder: Path, weight_map, metadata) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))


def same(found, wanted) -> bool:
    return found.keys() == wanted.keys() and all(
        torch.equal(found.read(name), wanted[name]) for name in wanted
    )


def test_shards_are_one_mapping(folder):
    """The tensors of all shards by name, each read from its own file; files and bytes as they are on disk."""
    found = open_tensors(folder / INDEX)
    assert same(found, VALUES) and found.nbytes == 26 and len(found) == 3
    assert found.files == (folder / FIRST, folder / SECOND) and found["z"].path == folder / SECOND
    assert "no tensor 'xx'" in str(refusal(found.read, "xx"))
    write_index(folder, WHERE, {})
    assert same(open_tensors(folder / INDEX), VALUES)


def names(**changed):
    """The index with other files for some tensors."""
    return lambda folder: write_index(folder, WHERE | changed, {"total_size": 26})


def absolute(name):
    return lambda folder: names(z=os.path.abspath(folder / name))(folder)


def whole(weight_map, metadata=None):
    return lambda folder: write_index(folder, weight_map, metadata or {})


def total(size):
    return whole(WHERE, {"total_size": size})


def text(body: bytes):
    return lambda folder: (folder / INDEX).write_bytes(body)


def instead(make, name=SECOND):
    """Something else in the place of a shard."""

    def change(folder):
        (folder / name).unlink()
        make(folder / name)

    return change


def link(to):
    return lambda path: path.symlink_to(to)


def chain(path):
    path.with_name("first").symlink_to("../outside.safetensors")
    path.with_name("second").symlink_to("first")
    path.symlink_to("second")


def linked_folder(path):
    path.with_name("sub").symlink_to("..")
    path.symlink_to("sub/outside.safetensors")


def same_tensor_twice(folder):
    save_file({"z": VALUES["z"], "x": VALUES["x"]}, folder / SECOND)


def many(count, shard=FIRST):
    return lambda folder: write_index(folder, {f"t{i}": shard.format(i) for i in range(count)}, {})


def a_million(folder):
    """Write an index of a million tensors, 30 MB long."""
    names = b",".join(b'"t%d":"%b"' % (i, FIRST.encode()) for i in range(1_000_000))
    text(b'{"weight_map":{' + names + b"}}")(folder)


INDEXES = {f"shard {str(name)[:40]!r}": (names(z=name), "bad-shard-name") for name in BAD_NAMES} | {
    "absolute": (absolute(SECOND), "bad-shard-name"),
    "absolute and outside": (absolute("../outside.safetensors"), "bad-shard-name"),
    "no map": (text(b"{}"), "bad-index"),
    "map null": (whole(None), "bad-index"),
    "map a list": (whole(["x"]), "bad-index"),
    "map a string": (whole("x"), "bad-index"),
    "map empty": (whole({}), "bad-index"),
    "20,001 tensors": (many(MANY), "bad-index"),
    "a million tensors": (a_million, "no-object"),
    "100,000 deep": (text(b'{"weight_map":' * 100_000), "not-json"),
    "100,000 deep in the metadata": (text(b'{"metadata":' + b"[" * 100_000), "not-json"),
    "400 deep for a shard": (whole({"x": json.loads("[" * 400 + "]" * 400)}), "bad-shard-name"),
    "one name twice": (
        text(b'{"weight_map":{"x":"a.safetensors","x":"b.safetensors"}}'),
        "not-json",
    ),
    "two maps": (text(b'{"weight_map":{},"weight_map":{"x":"b.safetensors"}}'), "not-json"),
    "no JSON": (text(b"{oops"), "not-json"),
    "no UTF-8": (text(b'{"weight_map":{"\xff":"a.safetensors"}}'), "not-json"),
    "an array": (text(b"[]"), "no-object"),
    "nothing": (text(b""), "not-json"),
    "too large": (text(b" " * INDEX_BYTES + b"{}"), "no-object"),
    "a shard less": (lambda folder: (folder / SECOND).unlink(), "no-shard"),
    "fifty shards less": (many(50, "{:05d}.safetensors"), "no-shard"),
    "shard a folder": (instead(lambda path: path.mkdir()), "no-shard"),
    "shard a FIFO": (instead(os.mkfifo), "no-shard"),
    "shard a link to itself": (instead(link(SECOND)), "no-shard"),
    "shard a link to nothing": (instead(link("nothing")), "no-shard"),
    "shard a device": (instead(link("/dev/zero")), "no-shard"),
    "shard linked out": (instead(link("../outside.safetensors")), "leads-out"),
    "shard linked out by a chain": (instead(chain), "leads-out"),
    "shard linked out by a folder": (instead(linked_folder), "leads-out"),
    "shard linked to the system": (instead(link("/etc/passwd")), "leads-out"),
    "index linked out": (instead(link("../outside.safetensors"), INDEX), "leads-out"),
    "index a FIFO": (instead(os.mkfifo, INDEX), "no-file"),
    "shard damaged": (instead(lambda path: path.write_bytes(framed(GOOD, DATA[1:]))), "truncated"),
    "shard a zip": (instead(lambda path: path.write_bytes(b"PK\x03\x04" + bytes(99))), "pickle"),
    "tensor in the other shard": (names(z=FIRST, x=SECOND), "wrong-shard"),
    "tensor in no shard": (names(w=SECOND), "wrong-shard"),
    "tensor not listed": (whole({"x": FIRST, "z": SECOND}), "wrong-shard"),
    "tensor in two shards": (same_tensor_twice, "wrong-shard"),
}
# what indices say beside their map, as programs write it
TOTALS = {
    "a byte too much": total(27),
    "a negative size": total(-26),
    "a size in words": total("26"),
    "a size of nothing": total(None),
    "metadata a list": whole(WHERE, [26]),
    "metadata a text": text(
        json.dumps({"metadata": "total_size: 26", "weight_map": WHERE}).encode()
    ),
    "metadata null": text(json.dumps({"metadata": None, "weight_map": WHERE}).encode()),
}


@pytest.mark.parametrize("name", TOTALS)
def test_the_tensors_decide_whatever_an_index_says_of_their_size(folder, name):
    """A total size of another precision, of the files or of nothing: all is read, and a note tells."""
    TOTALS[name](folder)
    terms = Terms()
    assert same(open_tensors(folder / INDEX, terms), VALUES)
    (note,) = terms.notes
    assert "its index says" in note and "the tensors are 26 bytes, which decide" in note


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_that_is_not_exact_is_refused(folder, opened, name):
    """Each fault of an index or its shards has its code, and no file outside the folder is opened to find
    it."""
    change, code = INDEXES[name]
    change(folder)
    opened.clear()
    assert refusal(open_tensors, folder / INDEX).code == code
    assert [path for path in opened if folder not in Path(path).parents] == []


def test_there_are_enough_hostile_indexes(folder, opened):
    """At least 40, and the listener hears what is opened: the index and the shards."""
    assert len(INDEXES) >= 40
    open_tensors(folder / INDEX)
    assert {str(folder / name) for name in (INDEX, FIRST, SECOND)} <= set(opened)


def test_missing_shards_are_counted_and_ten_of_them_named(folder):
    """Of fifty missing shards the message gives the number and the first ten."""
    many(50, "{:05d}.safetensors")(folder)
    said = str(refusal(open_tensors, folder / INDEX))
    assert (
        "50: '00000.safetensors'" in said
        and "'00009.safetensors', ..." in said
        and "00010" not in said
    )


def test_a_link_within_the_folder_is_followed(folder):
    """A shard may lie elsewhere in its folder."""
    (folder / "sub").mkdir()
    (folder / SECOND).rename(folder / "sub/z")
    (folder / SECOND).symlink_to("sub/z")
    assert same(open_tensors(folder / INDEX), VALUES)


# configurations


@pytest.mark.parametrize(
    "body, code, says",
    [
        (b"{oops", "not-json", "cannot be read as JSON"),
        (b"[]", "no-object", "holds no JSON object"),
        (b"\xff\xfe{}", "not-json", "cannot be read as JSON"),
        (b" " * (CONFIG_BYTES + 1), "no-object", f"at most {CONFIG_BYTES} bytes"),
        (b"[" * 100_000, "not-json", "cannot be read as JSON"),
        (b'{"a":1,"a":2}', "not-json", "'a' is there twice"),
        (b'{"a":' + b"9" * 5000 + b"}", "not-json", "cannot be read as JSON"),
        (b'{"a":{"b":1}}', "bad-config", "a is {'b': 1}; expected numbers"),
        (b'{"a":[[1]]}', "bad-config", "expected numbers"),
        (b'{"a":' + b"[" * 400 + b"]" * 400 + b"}", "bad-config", "expected numbers"),
    ],
)
def test_a_configuration_that_is_none_is_refused(tmp_path, body, code, says):
    """Only a small flat JSON object is a configuration."""
    (tmp_path / "config.json").write_bytes(body)
    error = refusal(read_config, tmp_path, ["a"])
    assert error.code == code and says in str(error)


def test_a_giant_configuration_is_not_read(tmp_path):
    """A terabyte of nothing is refused after the first megabyte."""
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 1 << 40)
    assert refusal(read_config, tmp_path, ["a"]).code == "no-object"


def test_a_configuration_is_its_allowed_entries(tmp_path):
    """Lists become tuples; what is not asked for is not looked at."""
    (tmp_path / "config.json").write_text(
        '{"a": [1, 2.5], "b": null, "c": {"d": [1]}, "e": true, "f": "g"}'
    )
    assert read_config(tmp_path, ["a", "b", "e", "f", "h"]) == {
        "a": (1, 2.5),
        "b": None,
        "e": True,
        "f": "g",
    }
    assert read_json(tmp_path, "config.json")["c"] == {"d": [1]}


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "linked"])
def test_a_file_outside_is_not_inside(tmp_path, name):
    """By its name or by a link: what leads out of the folder is refused, and said where it leads."""
    (tmp_path / "model").mkdir()
    (tmp_path / "outside").touch()
    (tmp_path / "model/linked").symlink_to("../outside")
    error = refusal(inside, tmp_path / "model", name)
    assert error.code == "leads-out" and "copy the file itself" in str(error)


@pytest.mark.parametrize("name", ["nothing", "a\0b", "folder", "x" * 300, "loop"])
def test_what_is_no_file_is_not_inside(tmp_path, name):
    """Whatever the system calls it, a name that leads to no file is no file."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    error = refusal(inside, tmp_path, name)
    assert error.code == "no-file" and "the folder is incomplete or is no model" in str(error)


# pickles


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_refused_and_never_run(tmp_path, name):
    """By its name or by its first bytes; the canary in it stays alone, and the answer says how to convert."""
    make, code = PICKLES[name]
    make(tmp_path / name, Canary(tmp_path / "sprung"))
    error = refusal(open_tensors, tmp_path / name)
    assert error.code == code and not (tmp_path / "sprung").exists()
    assert ("convert it on a machine you can lose" in str(error)) == (code == "pickle")


def test_the_canary_is_alive(tmp_path):
    """Were one of these files unpickled, it would be seen."""
    pickle.loads(pickle.dumps(Canary(tmp_path / "sprung")))
    assert len(PICKLES) >= 12 and (tmp_path / "sprung").is_dir()


# components


FULL, HALF = (
    ("model.safetensors", INDEX),
    ("model.fp16.safetensors", "model.safetensors.index.fp16.json"),
)


def holding(folder: Path, names: Iterable[str]) -> Path:
    """The folder with these of the four files of a component, and its shards."""
    shards = (folder / INDEX).read_bytes()
    (folder / INDEX).unlink()
    for name in names:
        (folder / name).write_bytes(
            shards
            if name.endswith(".json")
            else (folder.parent / "outside.safetensors").read_bytes()
        )
    return folder


@pytest.mark.parametrize("half", [(), HALF[:1], HALF[1:], HALF])
@pytest.mark.parametrize("full", FULL)
def test_a_components_file_is_of_full_precision(folder, full, half):
    """Whole or sharded, whatever there is in half precision and of pickles."""
    (holding(folder, [full, *half]) / "model.bin").touch()
    assert component_file(folder, "model") == folder / full
    assert same(open_tensors(component_file(folder, "model")), VALUES)


@pytest.mark.parametrize("half", HALF)
def test_a_components_file_is_of_half_precision_where_there_is_no_other(folder, half):
    """Whole or sharded."""
    assert component_file(holding(folder, [half]), "model") == folder / half
    assert same(open_tensors(component_file(folder, "model")), VALUES)


@pytest.mark.parametrize("both", [FULL, HALF, FULL + HALF, FULL + HALF[:1]])
def test_a_whole_file_beside_shards_is_refused(folder, both):
    """Either may be what is left of an older download: both are named, and what to do is said."""
    error = refusal(component_file, holding(folder, both), "model")
    assert error.code == "whole-and-sharded" and str(folder) in str(error)
    assert (
        f"holds {both[0]!r} and the shards of {both[1]!r}, and nothing says which is meant; move one"
        in str(error)
    )


def test_a_component_without_weights_says_what_is_missing(tmp_path):
    """Pickles alone are refused with the way to convert them; nothing at all with the names looked for."""
    error = refusal(component_file, tmp_path, "model")
    wanted = "no file 'model.safetensors' in .*, nor an index .*; the folder is incomplete"
    assert error.code == "no-file" and re.search(wanted, str(error))
    (tmp_path / "model.bin").touch()
    error = refusal(component_file, tmp_path, "model")
    assert error.code == "pickle" and "only pickles (1: 'model.bin')" in str(error)


@pytest.mark.parametrize(
    "make, code", [(link("../outside.safetensors"), "leads-out"), (os.mkfifo, "no-file")]
)
def test_a_components_file_lies_in_its_folder(folder, make, code):
    """A weights file that is a link out, or no file, is refused, though others could be read instead."""
    make(holding(folder, HALF[:1]) / "model.safetensors")
    assert refusal(component_file, folder, "model").code == code


# the Hugging Face cache

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A cache with one sharded model: every file of its snapshot is a link into its blobs."""
    repository = tmp_path / ".cache/huggingface/hub/models--org--name"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(repository.parent))
    sharded(repository / "made")
    component = repository / "snapshots" / SHA / "transformer"
    component.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted((repository / "made").iterdir())):
        file.rename(repository / "blobs" / str(number))
        (component / file.name).symlink_to(f"../../../blobs/{number}")
    for name in ("main", "refs/pr/1"):
        (repository / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs" / name).write_text(SHA)
    return repository.parent


def test_a_snapshot_is_found_as_by_the_hub_itself(hub):
    """refs/<revision> -> snapshots/<commit>, as huggingface_hub finds it offline; its links into blobs are
    read."""
    for revision in ("main", "refs/pr/1", SHA):
        found = cached_snapshot("org/name", revision)
        theirs = snapshot_download(
            "org/name", revision=revision, cache_dir=hub, local_files_only=True
        )
        assert found == Path(theirs) == hub / "models--org--name/snapshots" / SHA
    assert same(open_tensors(component_file(found / "transformer", "model")), VALUES)
    assert read_json(found / "transformer", INDEX)["metadata"] == {"total_size": 26}


PLACES = {
    "the home": ({}, "home/.cache/huggingface/hub"),
    "XDG_CACHE_HOME": ({"XDG_CACHE_HOME": "xdg"}, "xdg/huggingface/hub"),
    "HF_HOME": ({"HF_HOME": "~/hf"}, "home/hf/hub"),
    "HUGGINGFACE_HUB_CACHE": ({"HUGGINGFACE_HUB_CACHE": "old", "HF_HOME": "~/hf"}, "old"),
    "HF_HUB_CACHE": ({"HF_HUB_CACHE": "$HOME/new", "HUGGINGFACE_HUB_CACHE": "old"}, "home/new"),
}


@pytest.mark.parametrize("place", PLACES)
def test_where_the_cache_is(tmp_path, monkeypatch, place):
    """Wherever huggingface_hub looks for it, by every variable that it reads."""
    variables, wanted = PLACES[place]
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for name, value in {"HOME": str(tmp_path / "home"), **variables}.items():
        monkeypatch.setenv(name, value)
    # huggingface_hub reads the environment when it is imported
    fresh = importlib.util.find_spec("huggingface_hub.constants")
    module = importlib.util.module_from_spec(fresh)
    fresh.loader.exec_module(module)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", module.HF_HUB_CACHE)
    error = refusal(cached_snapshot, "org/name")
    assert error.code == "not-cached" and "hf download org/name" in str(error)
    assert f"is not in {Path(module.HF_HUB_CACHE)};" in str(error)
    assert Path(module.HF_HUB_CACHE).resolve() == tmp_path / wanted


def test_a_repository_fetched_by_its_commit_is_found(hub):
    """Without a ref the only commit is taken and told; of two the error names both; a wrong one is told."""
    repository = hub / "models--org--name"
    (repository / "refs/main").unlink()
    terms = Terms()
    assert cached_snapshot("org/name", terms=terms).name == SHA
    assert terms.notes == [f"org/name: its commit {SHA[:12]}, the only one in the cache"]
    (repository / "snapshots" / ("f" * 40)).mkdir()
    error = refusal(cached_snapshot, "org/name")
    assert error.code == "not-cached" and f"there are org/name@{SHA}, org/name@fff" in str(error)
    assert cached_snapshot("org/name", SHA).name == SHA


NO_NAMES = [
    "name",
    "org/name/more",
    "../name",
    "org/..",
    "/name",
    "org/",
    "org--x/name",
    "org/na me",
    "org\\name",
    "",
    ".hidden/name",
    "org/a\0b",
    "o/" + "n" * 97,
    "org/name\n",
]
NO_REVISIONS = [
    "..",
    "../main",
    "a/../../main",
    "/etc/passwd",
    "",
    "a//b",
    "main\0",
    "main\n",
    "-x y",
]
NOWHERE = [(name, "main") for name in NO_NAMES] + [
    ("org/name", revision) for revision in NO_REVISIONS
]


@pytest.mark.parametrize("name, revision", NOWHERE)
def test_what_is_no_name_is_not_looked_for(hub, opened, name, revision):
    """A name or revision that is a path is refused before a file is opened."""
    opened.clear()
    assert refusal(cached_snapshot, name, revision).code == "bad-repository" and opened == []


def ref(body):
    return lambda repository: (repository / "refs/main").write_text(body)


def linked(name, to):
    """A part of the repository moved to another place, and a link to it."""

    def change(repository):
        (repository / name).rename(repository.parent / "moved")
        (repository / name).symlink_to(to)

    return change


def piped(repository):
    (repository / "refs/main").unlink()
    os.mkfifo(repository / "refs/main")


CACHES = {
    "no model": (lambda repository: shutil.rmtree(repository), "not-cached"),
    "no snapshot": (ref("f" * 40), "not-cached"),
    "revision a FIFO": (piped, None),  # the only commit is taken instead
    "ref leads out": (ref("../../../../elsewhere"), "bad-ref"),
    "ref too short": (ref("f" * 39), "bad-ref"),
    "ref of a megabyte": (ref("f" * (1 << 20)), "bad-ref"),
    "ref not ASCII": (ref("\u0661" * 40), "bad-ref"),
    "ref linked out": (linked("refs/main", "../../moved"), "leads-out"),
    "snapshot linked out": (linked(f"snapshots/{SHA}", "../../moved"), "leads-out"),
    "snapshots linked out": (linked("snapshots", "../moved"), "leads-out"),
    "blobs linked out": (linked("blobs", "../moved"), "leads-out"),
    "blob linked out": (linked("blobs/2", "../../moved"), "leads-out"),
    "another model's blob": (linked("blobs/2", "../../models--org--other/blobs/2"), "leads-out"),
}


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_that_leads_out_is_refused(hub, opened, name):
    """Links lead from a snapshot into the blobs of its own repository, and no further."""
    change, code = CACHES[name]
    shutil.copytree(hub / "models--org--name", hub / "models--org--other", symlinks=True)
    change(hub / "models--org--name")
    opened.clear()

    def read():
        folder = cached_snapshot("org/name") / "transformer"
        return open_tensors(component_file(folder, "model"))

    if code:
        assert refusal(read).code == code
    else:
        assert same(read(), VALUES)
    assert [path for path in opened if hub / "models--org--name" not in Path(path).parents] == []

"""Files of weights, in folders in diffusers layout, in shards under an index and in the Hugging Face cache.

No path leaves the folder it was looked for in, no pickle is opened, and nothing is fetched.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from reprlib import repr as shown  # short and shallow, for what other people wrote

from torch import Tensor

from textpatch.errors import WeightsError, closest
from textpatch.weights.reading.entry import TensorEntry, opened, read_tensor
from textpatch.weights.reading.header import CONVERT, MAX_TENSORS, read_header, unique

CONFIG_BYTES = 1 << 20
# FLUX.1's index is 0.1 MB and names 1,160 tensors
INDEX_BYTES = 4 << 20
PICKLES = {".bin", ".ckpt", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}

INDEX = re.compile(r".+\.safetensors\.index(\.\w+)?\.json")
# without a separator of any system
SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")
# a piece of a repository's or a revision's name
PIECE = re.compile(r"(?!.*(?:\.\.|--))[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
COMMIT = re.compile(r"[0-9a-f]{40}")


def inside(folder: Path, name: str) -> Path:
    """Path of a regular file in a folder.   Raises WeightsError for another, and for one that leads out.

    A snapshot of the Hugging Face cache may also link to the `blobs` of its own repository.
    """
    path = folder / name
    if not os.path.isfile(path):
        raise WeightsError(
            f"no file {name!r} in {folder}; the folder is incomplete or is no model", "no-file"
        )
    parents = Path(os.path.realpath(path)).parents
    if not any(home in parents for home in _homes(Path(os.path.realpath(folder)))):
        raise WeightsError(
            f"{path} leads out of its folder to {os.path.realpath(path)}; copy the file itself",
            "leads-out",
        )
    return path


def _homes(folder: Path) -> list[Path]:
    """Folders in which the files of a folder may really lie.

    They are the folder itself and, under models--org--name/snapshots, the blobs of that repository.
    """
    for path in folder.parents:
        if path.name == "snapshots" and path.parent.name.startswith("models--"):
            return [folder, path.parent / "blobs"]
    return [folder]


def read_json(folder: Path, name: str, most: int = CONFIG_BYTES) -> dict:
    """Read a JSON object of at most so many bytes.   Raises WeightsError for others, and for a name twice."""
    path = inside(folder, name)
    with opened(path) as file:
        text = file.read(most + 1)
    body = None
    try:
        if len(text) <= most:
            body = json.loads(text, object_pairs_hook=unique)
    except (WeightsError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}", "not-json") from None
    if not isinstance(body, dict):
        raise WeightsError(f"{path} holds no JSON object of at most {most} bytes", "no-object")
    return body


def read_config(folder: Path, allowed: Iterable[str], name: str = "config.json") -> dict:
    """Read the allowed fields of a configuration, and no others, with tuples for lists.

    Raises WeightsError for a value that is neither a number, string, flag or null nor a list of these.
    """
    body = read_json(folder, name)
    allowed = set(allowed)
    chosen = {}
    for key, value in body.items():
        if key not in allowed:
            continue
        items = value if isinstance(value, list) else [value]
        if not all(item is None or isinstance(item, (int, float, str, bool)) for item in items):
            raise WeightsError(
                f"{folder / name}: {key} is {shown(_tupled(value))}; "
                "expected numbers, strings or lists of numbers",
                "bad-config",
            )
        chosen[key] = _tupled(value)
    return chosen


def _tupled(value):
    return tuple(value) if isinstance(value, list) else value


class Tensors(Mapping[str, TensorEntry]):
    """Entries by name of a file, or of the shards under an index, whose values are read one at a time."""

    def __init__(self, entries: dict[str, TensorEntry], files: Iterable[Path]):
        self._entries = entries
        self.files = tuple(files)

    def __getitem__(self, name: str) -> TensorEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Number of bytes of all tensors together."""
        return sum(entry.end - entry.start for entry in self.values())

    def read(self, name: str) -> Tensor:
        """Read one tensor.   Raises WeightsError as `read_tensor` does, and for an unknown name."""
        if name not in self:
            raise WeightsError(
                f"no tensor {name!r} in {self.files[0]}{closest(name, self)}", "no-tensor"
            )
        return read_tensor(self[name])


def open_tensors(where: str | os.PathLike) -> Tensors:
    """Open a .safetensors file, or the shards that a *.safetensors.index.json names.

    The file asked for may be a link.  A shard may not lead out of its folder.
    Raises WeightsError for what `read_header` refuses, for a pickle, and for an index that does not fit its
    shards exactly.
    """
    path = Path(where)
    if INDEX.fullmatch(path.name):
        return _sharded(path)
    if _is_pickle(path):
        raise WeightsError(f"{path} is a pickle by its name; {CONVERT}", "pickle")
    if path.suffix.lower() != ".safetensors":
        raise WeightsError(
            f"{path} is no .safetensors file and no index; give one of these", "unknown-file"
        )
    return Tensors(read_header(path), [path])


def component_file(folder: Path, stem: str) -> Path:
    """File of a component's weights, the whole one or the index of its shards.

    A file of half precision is taken if there is no other.
    Raises WeightsError if there is none, and says so if there are pickles instead.  Raises it also for a
    whole file beside shards of one precision, because either may be the older (diffusers reads the shards
    there, transformers the whole file).
    """
    full = [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
    half = [f"{stem}.fp16.safetensors", f"{stem}.safetensors.index.fp16.json"]
    for whole, index in (full, half):
        there = [name for name in (whole, index) if os.path.lexists(folder / name)]
        if len(there) == 2:
            raise WeightsError(
                f"{folder} holds {whole!r} and the shards of {index!r}, "
                "and nothing says which is meant; move one of them away",
                "whole-and-sharded",
            )
        if there:
            return inside(folder, there[0])
    names = full + half
    missing = f"no file {names[0]!r} in {folder}"
    pickles = [path.name for path in folder.glob("*") if _is_pickle(path)]
    if pickles:
        raise WeightsError(f"{missing}, only pickles ({_few(pickles)}); {CONVERT}", "pickle")
    others = ", ".join(names[1:])
    raise WeightsError(
        f"{missing}, nor {others}; the folder is incomplete or is no model", "no-file"
    )


def _is_pickle(path: Path) -> bool:
    return Path(path.name.removesuffix(".index.json")).suffix.lower() in PICKLES


def _sharded(index: Path) -> Tensors:
    """Open the shards that an index names, after all are compared with it."""
    body = read_json(index.parent, index.name, INDEX_BYTES)
    shards = _shards(index, body.get("weight_map"))
    missing = [shard for shard in shards if not os.path.isfile(index.parent / shard)]
    if missing:
        raise WeightsError(
            f"{index} names {len(shards)} files and lacks {_few(missing)}; fetch them", "no-shard"
        )
    entries = {}
    for shard, names in shards.items():
        header = read_header(inside(index.parent, shard))
        if header.keys() != names:
            lacks = _few(names - header.keys())
            unlisted = _few(header.keys() - names)
            raise WeightsError(
                f"{index} does not fit {shard}, which lacks {lacks} and has others {unlisted}; "
                "fetch both again",
                "wrong-shard",
            )
        entries |= header
    tensors = Tensors(entries, [index.parent / shard for shard in shards])
    _require_total(index, body.get("metadata", {}), tensors.nbytes)
    return tensors


def _shards(index: Path, weight_map) -> dict[str, set[str]]:
    """Names of tensors by the file that holds them.   Raises WeightsError unless all lie beside the index."""
    if not isinstance(weight_map, dict) or not 0 < len(weight_map) <= MAX_TENSORS:
        raise WeightsError(
            f"{index} has {shown(weight_map)} for its weight_map; "
            f"expected 1 to {MAX_TENSORS} names of tensors and their files",
            "bad-index",
        )
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise WeightsError(
                f"{index} puts tensor {shown(name)} into {shown(shard)}; "
                "expected the name of a .safetensors file beside it",
                "bad-shard-name",
            )
        shards.setdefault(shard, set()).add(name)
    return shards


def _require_total(index: Path, metadata, held: int) -> None:
    total = metadata
    if isinstance(metadata, dict):
        total = metadata.get("total_size", held)
    if total != held:
        raise WeightsError(
            f"{index} says {shown(total)} bytes; its files hold {held}; fetch them again",
            "wrong-total",
        )


def _few(names: Iterable[str]) -> str:
    """Number of names, and at most ten of them, quoted because they are other people's."""
    names = sorted(names)
    more = ", ..." if len(names) > 10 else ""
    return f"{len(names)}: {', '.join(shown(name) for name in names[:10])}{more}"


def cached_snapshot(name: str, revision: str = "main") -> Path:
    """Folder of `org/name` in the Hugging Face cache, which is only read.

    The cache is HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub.  In it refs/<revision> names a
    commit, and snapshots/<commit> is the folder.
    Raises WeightsError with the command that fetches the model if it is not there.
    """
    pieces = [*name.split("/"), *revision.split("/")]
    if name.count("/") != 1 or not all(map(PIECE.fullmatch, pieces)):
        raise WeightsError(
            f"{name!r} at {revision!r} is no model's name and revision; "
            "expected org/name, and a branch, tag or commit",
            "bad-repository",
        )
    hub = _hub()
    repository = hub / f"models--{name.replace('/', '--')}"
    commit = _commit(repository / "refs", revision)
    snapshot = repository / "snapshots" / commit
    if not commit or not os.path.isdir(snapshot):
        command = f"hf download {name}"
        if revision != "main":
            command += f" --revision {revision}"
        raise WeightsError(
            f"{name} at {revision} is not in {hub}; fetch it: {command}", "not-cached"
        )
    target = os.path.realpath(snapshot)
    if Path(target) != Path(os.path.realpath(repository)) / "snapshots" / commit:
        raise WeightsError(f"{snapshot} leads out to {target}; fetch it again", "leads-out")
    return snapshot


def _hub() -> Path:
    """Folder of the Hugging Face cache."""
    home = os.environ.get("HF_HOME") or os.path.join("~", ".cache", "huggingface")
    hub = os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expanduser(hub))


def _commit(refs: Path, revision: str) -> str:
    """Commit of a revision, "" if the cache does not know it."""
    if COMMIT.fullmatch(revision):
        return revision
    if not os.path.isfile(refs / revision):
        return ""
    with opened(inside(refs, revision)) as file:
        commit = file.read(64).decode("ascii", "replace").strip()
    if not COMMIT.fullmatch(commit):
        raise WeightsError(
            f"{refs / revision} holds {commit!r}; expected a commit, 40 hex digits", "bad-ref"
        )
    return commit

"""Where weights are: folders in diffusers layout, shards under an index, the Hugging Face cache.

No path leaves the folder it was looked for in, no pickle is opened, nothing is fetched.
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

CONFIG_BYTES, INDEX_BYTES = 1 << 20, 4 << 20  # FLUX.1's index: 0.1 MB, 1,160 tensors
PICKLES = {".bin", ".ckpt", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}

INDEX = re.compile(r".+\.safetensors\.index(\.\w+)?\.json")
SHARD = re.compile(
    r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors"
)  # no separator of any system, no escape
PART = re.compile(r"(?!.*(?:\.\.|--))[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
COMMIT = re.compile(r"[0-9a-f]{40}")


def inside(folder: Path, name: str) -> Path:
    """`folder/name`, which must be a regular file that does not leave the folder.  Raises WeightsError.

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
    """Where the files of a folder may really lie: in it; under models--org--name/snapshots also in blobs."""
    snapshots = [
        p for p in folder.parents if p.name == "snapshots" and p.parent.name.startswith("models--")
    ]
    return [folder, *(path.parent / "blobs" for path in snapshots[:1])]


def read_json(folder: Path, name: str, most: int = CONFIG_BYTES) -> dict:
    """A JSON object of at most so many bytes, no name in it twice.  Raises WeightsError."""
    path = inside(folder, name)
    with opened(path) as file:
        text = file.read(most + 1)
    try:
        body = json.loads(text, object_pairs_hook=unique) if len(text) <= most else None
    except (WeightsError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}", "not-json") from None
    if not isinstance(body, dict):
        raise WeightsError(f"{path} holds no JSON object of at most {most} bytes", "no-object")
    return body


def read_config(folder: Path, allowed: Iterable[str], name: str = "config.json") -> dict:
    """The allowed entries of a configuration, each a number, string, flag or list of these; the rest unread."""
    body, allowed = read_json(folder, name), set(allowed)
    chosen = {
        key: tuple(v) if isinstance(v, list) else v for key, v in body.items() if key in allowed
    }
    for key, value in chosen.items():
        items = value if isinstance(value, tuple) else (value,)
        if not all(item is None or isinstance(item, (int, float, str, bool)) for item in items):
            found = f"{folder / name}: {key} is {shown(value)}"
            raise WeightsError(
                f"{found}; expected numbers, strings or lists of numbers", "bad-config"
            )
    return chosen


class Tensors(Mapping[str, TensorEntry]):
    """The tensors of a file, or of the shards under an index: entries by name, values read one at a time."""

    def __init__(self, entries: dict[str, TensorEntry], files: Iterable[Path]):
        self._entries, self.files = entries, tuple(files)

    def __getitem__(self, name: str) -> TensorEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(entry.end - entry.start for entry in self.values())

    def read(self, name: str) -> Tensor:
        """One tensor.  Raises WeightsError as `read_tensor` does, and for an unknown name."""
        if name not in self:
            raise WeightsError(
                f"no tensor {name!r} in {self.files[0]}{closest(name, self)}", "no-tensor"
            )
        return read_tensor(self[name])


def open_tensors(where: str | os.PathLike) -> Tensors:
    """The tensors of a .safetensors file, or of the shards that a *.safetensors.index.json names.

    A file that is itself asked for may be a link; a shard may not lead out of its folder.  Raises WeightsError
    for what `read_header` refuses, for a pickle, and for an index that does not fit its shards exactly.
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
    """The file of a component's weights, whole or the index of its shards; of half precision if there is no other.

    Raises WeightsError if there is none, and says so if there are pickles instead; and for both of one precision, of
    which either may be the older (diffusers reads the shards there, transformers the whole file).
    """
    full = [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
    half = [f"{stem}.fp16.safetensors", f"{stem}.safetensors.index.fp16.json"]
    for whole, index in (full, half):
        there = [name for name in (whole, index) if os.path.lexists(folder / name)]
        if len(there) == 2:
            raise WeightsError(
                f"{folder} holds {whole!r} and the shards of {index!r}, and nothing says which is meant; "
                "move one of them away",
                "whole-and-sharded",
            )
        if there:
            return inside(folder, there[0])
    names = full + half
    missing = f"no file {names[0]!r} in {folder}"
    if pickles := [path.name for path in folder.glob("*") if _is_pickle(path)]:
        raise WeightsError(f"{missing}, only pickles ({_few(pickles)}); {CONVERT}", "pickle")
    others = ", ".join(names[1:])
    raise WeightsError(
        f"{missing}, nor {others}; the folder is incomplete or is no model", "no-file"
    )


def _is_pickle(path: Path) -> bool:
    return Path(path.name.removesuffix(".index.json")).suffix.lower() in PICKLES


def _sharded(index: Path) -> Tensors:
    body, entries = read_json(index.parent, index.name, INDEX_BYTES), {}
    shards = _shards(index, body.get("weight_map"))
    missing = [shard for shard in shards if not os.path.isfile(index.parent / shard)]
    if missing:
        raise WeightsError(
            f"{index} names {len(shards)} files and lacks {_few(missing)}; fetch them", "no-shard"
        )
    for shard, names in shards.items():
        header = read_header(inside(index.parent, shard))
        if header.keys() != names:
            lacks, unlisted = _few(names - header.keys()), _few(header.keys() - names)
            found = f"{index} does not fit {shard}, which lacks {lacks} and has others {unlisted}"
            raise WeightsError(f"{found}; fetch both again", "wrong-shard")
        entries |= header
    tensors = Tensors(entries, [index.parent / shard for shard in shards])
    _require_total(index, body.get("metadata", {}), tensors.nbytes)
    return tensors


def _shards(index: Path, weight_map) -> dict[str, set[str]]:
    """File name -> names of its tensors; only plain names of files beside the index."""
    if not isinstance(weight_map, dict) or not 0 < len(weight_map) <= MAX_TENSORS:
        found = f"{index} has {shown(weight_map)} for its weight_map"
        raise WeightsError(
            f"{found}; expected 1 to {MAX_TENSORS} names of tensors and their files", "bad-index"
        )
    shards: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            found = f"{index} puts tensor {shown(name)} into {shown(shard)}"
            raise WeightsError(
                f"{found}; expected the name of a .safetensors file beside it", "bad-shard-name"
            )
        shards.setdefault(shard, set()).add(name)
    return shards


def _require_total(index: Path, metadata, found: int) -> None:
    said = metadata.get("total_size", found) if isinstance(metadata, dict) else metadata
    if said != found:
        said = f"{index} says {shown(said)} bytes; its files hold {found}"
        raise WeightsError(f"{said}; fetch them again", "wrong-total")


def _few(names: Iterable[str]) -> str:
    """The number of names, and at most ten of them, quoted: they are other people's."""
    names = sorted(names)
    return f"{len(names)}: {', '.join(shown(name) for name in names[:10])}{', ...' if len(names) > 10 else ''}"


def cached_snapshot(name: str, revision: str = "main") -> Path:
    """The folder of `org/name` in the Hugging Face cache, found by reading its files alone.

    The cache is HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub; there refs/<revision> names a
    commit, and snapshots/<commit> is the folder.  Raises WeightsError with the command that fetches it.
    """
    if name.count("/") != 1 or not all(
        map(PART.fullmatch, [*name.split("/"), *revision.split("/")])
    ):
        found = f"{name!r} at {revision!r} is no model's name and revision"
        raise WeightsError(
            f"{found}; expected org/name, and a branch, tag or commit", "bad-repository"
        )
    home = os.environ.get("HF_HOME") or os.path.join("~", ".cache", "huggingface")
    hub = Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")))
    repository = hub / f"models--{name.replace('/', '--')}"
    commit = _commit(repository / "refs", revision)
    snapshot = repository / "snapshots" / commit
    if not commit or not os.path.isdir(snapshot):
        command = f"hf download {name}" + (f" --revision {revision}" if revision != "main" else "")
        raise WeightsError(
            f"{name} at {revision} is not in {hub}; fetch it: {command}", "not-cached"
        )
    if (
        Path(os.path.realpath(snapshot))
        != Path(os.path.realpath(repository)) / "snapshots" / commit
    ):
        raise WeightsError(
            f"{snapshot} leads out to {os.path.realpath(snapshot)}; fetch it again", "leads-out"
        )
    return snapshot


def _commit(refs: Path, revision: str) -> str:
    """The commit of a revision, empty if the cache does not know it."""
    if COMMIT.fullmatch(revision) or not os.path.isfile(refs / revision):
        return revision if COMMIT.fullmatch(revision) else ""
    with opened(inside(refs, revision)) as file:
        commit = file.read(64).decode("ascii", "replace").strip()
    if not COMMIT.fullmatch(commit):
        raise WeightsError(
            f"{refs / revision} holds {commit!r}; expected a commit, 40 hex digits", "bad-ref"
        )
    return commit

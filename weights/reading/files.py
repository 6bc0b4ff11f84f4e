"""Files of weights, in folders in diffusers layout and in shards under an index.

No path leaves the folder it was looked for in, no pickle is opened, and nothing is fetched.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from reprlib import Repr

from textpatch.errors import WeightsError
from textpatch.weights.reading.entry import TensorEntry, opened
from textpatch.weights.reading.header import CONVERT, MAX_TENSORS, read_header, unique
from textpatch.weights.reading.impostors import ENOUGH, posing
from textpatch.weights.reading.tensors import Tensors
from textpatch.weights.reading.terms import Terms

CONFIG_BYTES = 1 << 20
# FLUX.1's index is 0.1 MB and names 1,160 tensors
INDEX_BYTES = 4 << 20
# short and shallow, for what other people wrote, and long enough for the name of a file
SHORT = Repr()
SHORT.maxstring = 100
shown = SHORT.repr

SUFFIXES = {".safetensors", ".sft"}
PICKLES = {".bin", ".ckpt", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"}

INDEX = re.compile(r".+\.safetensors\.index(\.\w+)?\.json")
# one of a set of shards, whose name says how many there are; the variant stands at either place
OF_SET = re.compile(
    r"(?P<stem>.+?)(?:\.(?P<before>\w+))?-(?P<place>\d{5})-of-(?P<count>\d{5})"
    r"(?:\.(?P<after>\w+))?\.safetensors"
)
# without a separator of any system
SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")
# a name that leads nowhere but by a link
SIMPLE = re.compile(r"(?!\.+\Z)[^/\\\0]+")


def inside(folder: Path, name: str, *, follow_links: bool = False) -> Path:
    """Path of a regular file in a folder.   Raises WeightsError for another, and for one that leads out.

    A snapshot of the Hugging Face cache may also link to the `blobs` of its own repository.
    follow_links  True allows a link that leads out, though no name that does
    """
    path = folder / name
    if not os.path.isfile(path):
        raise WeightsError(
            f"no file {name!r} in {folder}; the folder is incomplete or is no model", "no-file"
        )
    if follow_links and SIMPLE.fullmatch(name):
        return path
    parents = Path(os.path.realpath(path)).parents
    if not any(home in parents for home in _homes(Path(os.path.realpath(folder)))):
        raise WeightsError(
            f"{path} leads out of its folder to {os.path.realpath(path)}; "
            "copy the file itself, or allow it: follow_links=True",
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


def read_json(
    folder: Path, name: str, most: int = CONFIG_BYTES, *, follow_links: bool = False
) -> dict:
    """Read a JSON object of at most so many bytes.   Raises WeightsError for others, and for a name twice."""
    path = inside(folder, name, follow_links=follow_links)
    with opened(path) as file:
        text = file.read(most + 1)
    body = None
    try:
        if len(text) <= most:
            body = json.loads(text, object_pairs_hook=unique)
    except (WeightsError, ValueError, RecursionError) as error:
        found = posing(text[:ENOUGH])
        if found and found[1] != "json":
            what, code, advice = found
            raise WeightsError(f"{path} is {what}; {advice}", code) from None
        raise WeightsError(f"{path} cannot be read as JSON: {error}", "not-json") from None
    if not isinstance(body, dict):
        raise WeightsError(f"{path} holds no JSON object of at most {most} bytes", "no-object")
    return body


def read_config(
    folder: Path,
    allowed: Iterable[str],
    name: str = "config.json",
    *,
    follow_links: bool = False,
) -> dict:
    """Read the allowed fields of a configuration, and no others, with tuples for lists.

    Raises WeightsError for a value that is neither a number, string, flag or null nor a list of these.
    """
    body = read_json(folder, name, follow_links=follow_links)
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


def open_tensors(where: str | os.PathLike[str], terms: Terms | None = None) -> Tensors:
    """Open a .safetensors file, the shards that a *.safetensors.index.json names, or those of one of them.

    The file asked for may be a link.  A shard may not lead out of its folder, unless the terms follow links.
    Raises WeightsError for what `read_header` refuses, for a pickle, for an index that does not fit its
    shards exactly, and for a shard whose set is not whole.
    """
    path = Path(where)
    if INDEX.fullmatch(path.name):
        return _sharded(path, terms or Terms())
    if OF_SET.fullmatch(path.name):
        return _set_of(path, terms or Terms())
    if _is_pickle(path):
        raise WeightsError(f"{path} is a pickle by its name; {CONVERT}", "pickle")
    if path.suffix.lower() not in SUFFIXES:
        raise WeightsError(
            f"{path} is no .safetensors file and no index; give one of these", "unknown-file"
        )
    return Tensors(read_header(path), [path])


def component_file(folder: Path, stem: str, terms: Terms | None = None) -> Path:
    """File of a component's weights, the whole one or the index of its shards.

    - A variant asked for is taken where there is one, and the plain file elsewhere.
    - Without a plain file the one variant that there is is taken.  Of several the caller must choose.
    - A whole file is taken beside the index of shards that are not there.
    - Without an index one shard stands for its set.

    Raises WeightsError if there is none, and says so if there are pickles instead.  Raises it also for a
    whole file beside shards of one variant, because either may be the older (diffusers reads the shards
    there, transformers the whole file).
    """
    terms = terms or Terms()
    found = _variants(folder, stem)
    if terms.ema and "ema" in found:
        terms.met.add("ema")
        return _one(folder, found["ema"], "ema", terms)
    if terms.variant is not None and terms.variant in found:
        terms.met.add("variant")
        return _one(folder, found[terms.variant], terms.variant, terms)
    if "" in found:
        if terms.variant is not None:
            terms.note(f"{folder.name}: its plain file, as there is none of {terms.variant!r}")
        return _one(folder, found[""], "", terms)
    if len(found) == 1:
        (variant,) = found
        terms.note(f"{folder.name}: its variant {variant!r}, the only one that is there")
        return _one(folder, found[variant], variant, terms)
    if found:
        raise WeightsError(
            f"{folder} holds the variants {', '.join(sorted(found))} and no plain file; "
            "choose one: variant=...",
            "several-variants",
        )
    raise _no_weights(folder, stem)


def _variants(folder: Path, stem: str) -> dict[str, list[str]]:
    """Files of weights by variant, "" for the plain ones.

    Each has a whole file, an index or both.  Where no variant has either, each has the first of its shards.
    """
    stem = re.escape(stem)
    names = re.compile(
        rf"{stem}(?:\.(?P<whole>\w+))?\.safetensors"
        rf"|{stem}\.safetensors\.index(?:\.(?P<index>\w+))?\.json"
    )
    found: dict[str, list[str]] = {}
    # os.listdir names links to nothing, too
    there = sorted(os.listdir(folder) if folder.is_dir() else ())
    for name in there:
        match = names.fullmatch(name)
        if match:
            found.setdefault(match["whole"] or match["index"] or "", []).append(name)
    if found:
        return found
    for name in there:
        match = OF_SET.fullmatch(name)
        if match and re.fullmatch(stem, match["stem"]):
            found.setdefault(match["before"] or match["after"] or "", [name])
    return found


def _one(folder: Path, names: list[str], variant: str, terms: Terms) -> Path:
    """The whole file or the index of one variant.   Raises WeightsError for both, if the shards are there."""
    if len(names) == 2:
        whole, index = names
        missing = _missing_shards(folder / index, terms)
        if not missing:
            raise WeightsError(
                f"{folder} holds {whole!r} and the shards of {index!r}, "
                "and nothing says which is meant; move one of them away",
                "whole-and-sharded",
            )
        terms.note(f"{folder.name}: {whole}, because {index} lacks shards ({_few(missing)})")
        names = [whole]
    return inside(folder, names[0], follow_links=terms.follow_links)


def _missing_shards(index: Path, terms: Terms) -> list[str]:
    body = read_json(index.parent, index.name, INDEX_BYTES, follow_links=terms.follow_links)
    shards = _shards(index, body.get("weight_map"))
    return [shard for shard in shards if not os.path.isfile(index.parent / shard)]


def _no_weights(folder: Path, stem: str) -> WeightsError:
    """Error of a component without weights, which says what is there instead."""
    missing = f"no file '{stem}.safetensors' in {folder}"
    pickles = [path.name for path in folder.glob("*") if _is_pickle(path)]
    if pickles:
        return WeightsError(f"{missing}, only pickles ({_few(pickles)}); {CONVERT}", "pickle")
    return WeightsError(
        f"{missing}, nor an index of its shards, nor a variant of either; "
        "the folder is incomplete or is no model",
        "no-file",
    )


def _is_pickle(path: Path) -> bool:
    return Path(path.name.removesuffix(".index.json")).suffix.lower() in PICKLES


def _sharded(index: Path, terms: Terms) -> Tensors:
    """Open the shards that an index names, after all are compared with it."""
    links = terms.follow_links
    body = read_json(index.parent, index.name, INDEX_BYTES, follow_links=links)
    shards = _shards(index, body.get("weight_map"))
    missing = [shard for shard in shards if not os.path.isfile(index.parent / shard)]
    if missing:
        raise WeightsError(
            f"{index} names {len(shards)} files and lacks {_few(missing)}; fetch them", "no-shard"
        )
    entries = {}
    for shard, names in shards.items():
        header = read_header(inside(index.parent, shard, follow_links=links))
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
    _note_total(index, body.get("metadata", {}), tensors.nbytes, terms)
    return tensors


def _set_of(shard: Path, terms: Terms) -> Tensors:
    """Open the whole set of a shard, whose names count them, where no index names their tensors."""
    names = _names_of_set(shard)
    entries: dict[str, TensorEntry] = {}
    for name in names:
        path = shard
        if name != shard.name:
            path = inside(shard.parent, name, follow_links=terms.follow_links)
        header = read_header(path)
        twice = entries.keys() & header.keys()
        if twice:
            raise WeightsError(
                f"{path} holds {_few(twice)}, which another of its shards holds, too; fetch both again",
                "twice",
            )
        entries |= header
    terms.note(f"{shard.parent.name}: {len(names)} shards without their index")
    return Tensors(entries, [shard.parent / name for name in names])


def _names_of_set(shard: Path) -> list[str]:
    """Names of all shards of the set of one.

    Raises WeightsError for a set that is not whole, and for two sets of which either may be meant.
    """
    asked = OF_SET.fullmatch(shard.name).groupdict()
    own = {**asked, "place": None}
    files = {}
    for name in sorted(os.listdir(shard.parent)):
        match = OF_SET.fullmatch(name)
        if match is None or match["stem"] != asked["stem"]:
            continue
        if {**match.groupdict(), "place": None} == own:
            files[int(match["place"])] = name
        elif (match["before"], match["after"]) == (asked["before"], asked["after"]):
            raise WeightsError(
                f"{shard.parent} holds {shard.name!r} and {name!r}, of two sets of shards, and no index "
                "says which is meant; fetch the index, or move one set away",
                "two-sets",
            )
    lacking = [str(place) for place in range(1, int(asked["count"]) + 1) if place not in files]
    if lacking:
        raise WeightsError(
            f"{shard} is one of {int(asked['count'])} shards, of which {_few(lacking)} are not there; "
            "fetch them",
            "no-shard",
        )
    return list(files.values())


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


def _note_total(index: Path, metadata, held: int, terms: Terms) -> None:
    """Note a total size that is not the tensors', which decide.

    Programs write there the size of another precision, of the files, or nothing of use.
    """
    size = held
    if not isinstance(metadata, dict):
        size = metadata
    elif "total_size" in metadata:
        size = metadata["total_size"]
    if size != held:
        terms.note(
            f"{index.parent.name}: its index says {shown(size)} of the total size, "
            f"and the tensors are {held} bytes, which decide"
        )


def _few(names: Iterable[str]) -> str:
    """Number of names, and at most ten of them, quoted because they are other people's."""
    names = sorted(names)
    more = ", ..." if len(names) > 10 else ""
    return f"{len(names)}: {', '.join(shown(name) for name in names[:10])}{more}"

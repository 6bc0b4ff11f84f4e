"""Components of a file, by the names that are its own, in whatever layout it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from textpatch.errors import PatchError, WeightsError
from textpatch.weights.fill import Part
from textpatch.weights.identify import identify_tensors
from textpatch.weights.layouts import Layout, SingleFile, listed, recognise
from textpatch.weights.reading.files import open_tensors, read_config, read_json
from textpatch.weights.reading.tensors import Tensors
from textpatch.weights.reading.terms import Terms
from textpatch.weights.strays import Named, named

# prefixes of denoisers and VAEs alone, and those of whole original files
SHORTENED = (
    ("", "model.diffusion_model."),
    ("diffusion_model.", "model.diffusion_model."),
    ("first_stage_model.", ""),
    ("vae.", ""),
)


def identified(tensors: Tensors) -> str:
    """Report on what a file is, in one line."""
    finding = identify_tensors(
        {name: (entry.dtype, entry.shape) for name, entry in tensors.items()}
    )
    return finding.report().replace("\n", "; ")


def recognised(names: Named, terms: Terms) -> tuple[Named, SingleFile | None]:
    """Kind of an original file, and its tensors by the names that it has there.

    Programs that write a denoiser or a VAE alone leave out the prefix of its names.
    """
    kind = recognise(names)
    if kind is not None:
        return names, kind
    for have, whole in SHORTENED:
        keys = {
            whole + name.removeprefix(have): key
            for name, key in names.keys.items()
            if name.startswith(have)
        }
        kind = recognise(keys)
        if kind is not None and len(keys) == len(names.keys):
            terms.note(f"names of an original {kind.name} file without {whole or have!r}")
            return Named(names.tensors, keys, names.scales), kind
    return names, None


def split_names(names: Named, terms: Terms) -> tuple[Named, SingleFile | None, dict[str, Part]]:
    """Tensors by the names of the original file that they are of, its kind, and its components."""
    names, kind = recognised(names, terms)
    return names, kind, parts_of(names, kind, terms) if kind else {}


def built(folder: Path, build: Callable[[dict], Any], terms: Terms, name="config.json") -> Any:
    """Object that `build` makes of all entries of a folder's flat configuration.   Raises WeightsError."""
    links = terms.follow_links
    known = read_json(folder, name, follow_links=links)
    config = read_config(folder, known, name, follow_links=links)
    with explained(folder / name):
        return build(config)


def part_of(path: Path, component: str, layout: Layout | None, terms: Terms) -> Part:
    """Tensors of a component's file, which half-converted folders hold under its original names."""
    tensors = open_tensors(path, terms)
    names, kind = recognised(named(tensors, component, terms), terms)
    if kind is not None:
        parts = parts_of(names, kind, terms)
        if component in parts:
            terms.note(f"{component}: converted from the names of an original {kind.name} file")
            return parts[component]
    return _kept(
        Part(tensors, {key: n for n, key in names.keys.items()}, layout, names.scales),
        component,
        terms,
    )


def parts_of(names: Named, kind: SingleFile, terms: Terms) -> dict[str, Part]:
    """Components of an original file of a kind, after a note on what is dropped of each."""
    parts = {}
    dropped = [name for name in names if name in kind.dropped]
    if dropped:
        terms.note(f"dropped {listed(dropped)}, which no text is encoded with")
    for component, below in kind.split(names).items():
        keys = {names.keys[name]: short for name, short in below.items()}
        part = Part(names.tensors, keys, kind.layout(component), names.scales)
        parts[component] = _kept(part, component, terms)
    return parts


def _kept(part: Part, component: str, terms: Terms) -> Part:
    """The part, after a note on what its layout drops."""
    if part.layout is None:
        return part
    groups = defaultdict(list)
    for name in part.keys.values():
        if name in part.layout.dropped:
            groups[part.layout.dropped[name]].append(name)
    for reason, dropped in groups.items():
        terms.note(f"{component}: dropped {listed(dropped)}, {reason}")
    return part


@contextmanager
def explained(where: object) -> Iterator[None]:
    """Turn an error inside the block into a WeightsError of one line that names the file.

    All exceptions are caught, because transformers raises many kinds for values that build nothing.
    """
    try:
        yield
    except PatchError as error:
        raise WeightsError(f"{where}: {error}") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise WeightsError(f"{where} describes no model that can be built ({reason})") from None

"""Pictures with captions, and latents with captions, in files.

FOLDER/x.png, FOLDER/x.txt                                  a caption beside each picture
FOLDER/metadata.jsonl   {"file_name": "x.png", "text": "..."}   one line a picture, as `datasets` reads it
FILE.safetensors        latents (N, C, H, W), and in the header "captions", a JSON list of N texts
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from textpatch.disk import as_json, explained, placed
from textpatch.errors import PatchError, StoreError
from textpatch.pictures import as_rgb

PICTURES = ".png", ".jpg", ".jpeg", ".webp", ".bmp"
METADATA = "metadata.jsonl"
NUMBERED = re.compile(r"[0-9]{6,}\.png")  # pictures of `write_folder`
Pairs = list[tuple[str, Any]]


def read_data(path: str | os.PathLike[str]) -> Pairs:
    """Captions with pictures or latents, of a folder or of a .safetensors file.

    Raises PatchError

    - for a place where neither is
    - for a picture without a caption, and a caption without a picture
    - for a picture that is damaged, or whose colours have no 8 bits
    """
    path = Path(path)
    if path.is_dir():
        return read_folder(path)
    if path.suffix == ".safetensors" and path.is_file():
        return read_latents(path)
    raise PatchError(
        f"no data at {path}; give a folder of pictures with captions, or a .safetensors file of latents"
    )


def read_folder(folder: Path) -> Pairs:
    """Captions and RGB pictures of a folder, in the order of their names or of metadata.jsonl."""
    with explained(folder, "read"):
        if (folder / METADATA).is_file():
            captions = _captions_of_metadata(folder)
        else:
            captions = _captions_beside(folder)
    if not captions:
        raise PatchError(f"{folder} holds no picture; a picture ends in {', '.join(PICTURES)}")
    return [(caption, _picture(folder / name)) for name, caption in captions.items()]


def _pictures_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix.lower() in PICTURES)


def _captions_beside(folder: Path) -> dict[str, str]:
    """Captions by picture, from the .txt file beside each."""
    captions = {}
    names = _pictures_in(folder)
    for name in names:
        beside = (folder / name).with_suffix(".txt")
        if not beside.is_file():
            raise PatchError(
                f"{folder / name} has no caption, {beside.name} beside it or a line of {METADATA}; "
                "write one, or take the picture out"
            )
        captions[name] = _text(beside).strip()
    stems = {Path(name).stem for name in names}
    alone = sorted(path.name for path in folder.glob("*.txt") if path.stem not in stems)
    if alone:
        raise PatchError(f"{folder / alone[0]} is the caption of no picture; take it out")
    return captions


def _captions_of_metadata(folder: Path) -> dict[str, str]:
    """Captions by picture, from the lines of metadata.jsonl."""
    captions: dict[str, str] = {}
    path = folder / METADATA
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        name, caption = _entry(f"{path}, line {number}", line)
        if name in captions:
            raise PatchError(f"{path}, line {number}: {name!r} has a line already; keep one")
        captions[name] = caption
    named = {*captions}
    there = {*_pictures_in(folder)}
    if there - named:
        raise PatchError(
            f"{folder / min(there - named)} has no line in {METADATA}; write one, or take the picture out"
        )
    if named - there:
        raise PatchError(f"{path} names {min(named - there)!r}, and {folder} has no such picture")
    return captions


def _entry(place: str, line: str) -> tuple[str, str]:
    """File name and caption of a line of metadata.jsonl."""
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise PatchError(f"{place} is no JSON: {error}") from None
    if not isinstance(entry, dict):
        raise PatchError(f"{place} is {line[:60]!r}; give an object with file_name and text")
    found = [entry.get(key) for key in ("file_name", "text")]
    if not all(isinstance(value, str) for value in found):
        raise PatchError(
            f"{place} has the keys {', '.join(map(str, entry))}; give file_name and text, both texts"
        )
    return found[0], found[1]


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PatchError(f"{path} is no UTF-8 text ({error.reason}); save it as UTF-8") from None


def _picture(path: Path) -> Image.Image:
    """Picture of a file as RGB, which knows its path."""
    try:
        with Image.open(path) as file:
            picture = as_rgb(file, str(path)).copy()
    except OSError as error:
        raise PatchError(
            f"{path} is no picture that can be read ({error}); give a whole one"
        ) from None
    picture.filename = str(path)
    return picture


def read_latents(path: Path) -> Pairs:
    """Captions and latents (C, H, W) of a .safetensors file, as `write_latents` writes it."""
    try:
        with safe_open(path, "pt") as file:
            captions = json.loads((file.metadata() or {}).get("captions", "null"))
            latents = file.get_tensor("latents")
    except (SafetensorError, OSError, ValueError) as error:
        raise StoreError(
            f"{path} is no data set: {error}; it holds the tensor latents (N, C, H, W), and in its header "
            "captions, a JSON list of N texts"
        ) from error
    if not isinstance(captions, list) or latents.dim() != 4 or len(captions) != len(latents):
        count = len(captions) if isinstance(captions, list) else "no"
        raise PatchError(
            f"{path} has latents {tuple(latents.shape)} and {count} captions; give (N, C, H, W) and N"
        )
    return list(zip(captions, latents, strict=True))


def write_latents(path: str | os.PathLike[str], captions: Sequence[str], latents: Tensor) -> None:
    """Write latents (N, C, H, W) with N captions to a .safetensors file, whole or not at all."""
    path = Path(path)
    said = {"captions": as_json(list(captions)).decode()}
    with placed(path) as temporary:
        save_file({"latents": latents.detach().cpu().contiguous()}, temporary, metadata=said)


def require_place(folder: Path) -> None:
    """Raise PatchError for a place where something is and no data set of `write_folder`."""
    if not folder.exists():
        return
    held = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    strangers = sorted(name for name in held if name != METADATA and not NUMBERED.fullmatch(name))
    if strangers:
        raise PatchError(
            f"{folder} holds {strangers[0]}, and a data set was to be written there; give another"
        )


def write_folder(folder: str | os.PathLike[str], pairs: Sequence[tuple[str, Image.Image]]) -> None:
    """Write captions and pictures to a folder with metadata.jsonl, whole or not at all.

    A picture is named by its number.  A data set that was written there is replaced.
    Raises PatchError for no pairs, and as `require_place` does.
    """
    folder = Path(folder)
    require_place(folder)
    if not pairs:
        raise PatchError(f"a data set of no pairs was to be written to {folder}; give some")
    lines = []
    with placed(folder) as temporary:
        temporary.mkdir()
        for number, (caption, picture) in enumerate(pairs):
            name = f"{number:06}.png"
            picture.save(temporary / name)
            lines.append(json.dumps({"file_name": name, "text": caption}) + "\n")
        (temporary / METADATA).write_text("".join(lines), "utf-8")

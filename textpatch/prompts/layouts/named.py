"""All layouts of benchmarks by name, with their readers and what their scorers look for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from PIL import Image

from textpatch.disk import write
from textpatch.errors import PromptError, closest
from textpatch.pictures import png
from textpatch.prompts.glyphcontrol import glyphcontrol_pairs
from textpatch.prompts.layouts.asked import Asked
from textpatch.prompts.layouts.cvtg import cvtg_pictures, cvtg_prompts
from textpatch.prompts.layouts.longtext import longtext_pictures, longtext_prompts
from textpatch.prompts.layouts.toxicbench import toxicbench_pairs, toxicbench_pictures
from textpatch.prompts.pairs import Pair, quoted_texts


@dataclass(frozen=True)
class Layout:
    """How a benchmark is published, and how its scorer wants the results.

    prompts   path -> its prompts, of a benchmark of single prompts
    pairs     path -> its prompt pairs, of a benchmark of pairs
    pictures  (prompts, repeat) -> the name of each prompt's picture, None where a name holds prompt text
    """

    prompts: Callable[..., list[Asked]] | None = None
    pairs: Callable[..., list[Pair]] | None = None
    pictures: Callable[[Sequence[Asked], int], list[str]] | None = None

    def asked(self, path) -> list[Asked]:
        """Read the single prompts of a benchmark.  Those of pairs are their sources.

        Raises PromptError as its reader does.
        """
        if self.prompts is not None:
            return self.prompts(path)
        sources = [pair.source for pair in self.pairs(path)]
        return [
            Asked(source, tuple(quoted_texts(source)), str(number))
            for number, source in enumerate(sources)
        ]


LAYOUTS = {
    # the scorer names folders by their words: glyphcontrol_pictures
    "simplebench": Layout(pairs=partial(glyphcontrol_pairs, bench="simple")),
    "creativebench": Layout(pairs=partial(glyphcontrol_pairs, bench="creative")),
    "cvtg-2k": Layout(prompts=cvtg_prompts, pictures=cvtg_pictures),
    "longtext-bench": Layout(prompts=longtext_prompts, pictures=longtext_pictures),
    "toxicbench": Layout(pairs=toxicbench_pairs, pictures=toxicbench_pictures),
}


def layout_named(name: str) -> Layout:
    """Return the layout of a name.   Raises PromptError, with the nearest names, for another."""
    if name not in LAYOUTS:
        raise PromptError(f"no layout {name!r}{closest(name, LAYOUTS)}")
    return LAYOUTS[name]


def write_picture(folder, name: str, picture: Image.Image) -> None:
    """Write a picture as PNG under the name that a scorer looks for, whole or not at all.

    folder  of the scorer, which is made where it is not there
    Raises PromptError for a name that leads out of the folder or is no .png.
    """
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or not name.endswith(".png"):
        raise PromptError(
            f"{name!r} cannot name a picture in {folder}; give a relative name that ends in .png"
        )
    write(Path(folder) / name, png(picture), "pictures")

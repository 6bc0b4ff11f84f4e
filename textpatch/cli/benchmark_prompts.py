"""Prompts that `generate` is given or reads from a benchmark, and pictures under the names of its scorer."""

from __future__ import annotations

from dataclasses import dataclass

from textpatch.errors import PatchError


@dataclass(frozen=True)
class AskedPrompts:
    """Prompts of a command.

    layout  the benchmark that they are of, "" for prompts that were typed
    names   of each prompt's picture with each seed, a list a seed, none where its scorer looks for none
    """

    prompts: list[str]
    layout: str = ""
    names: tuple[list[str], ...] = ()


def asked_prompts(options) -> AskedPrompts:
    """Return the prompts asked for.

    Raises PatchError for several paths of a benchmark, and for more seeds than its scorer takes pictures of
    a prompt.
    """
    if options.prompts_from is None:
        return AskedPrompts(options.prompts)
    from textpatch.prompts.layouts.named import layout_named

    name = options.prompts_from
    layout = layout_named(name)
    if len(options.prompts) != 1:
        raise PatchError(
            f"--prompts-from {name} reads one file or folder, and {len(options.prompts)} were given; "
            "give one path in place of the prompts"
        )
    entries = layout.asked(options.prompts[0])
    names = ()
    if layout.pictures is not None:
        names = tuple(layout.pictures(entries, repeat) for repeat in range(len(options.seed)))
    return AskedPrompts([one.prompt for one in entries], name, names)


def keep_for_scorer(asked: AskedPrompts, album) -> None:
    """Write the pictures of an album under the names that the benchmark's scorer looks for."""
    from textpatch.pictures import open_picture
    from textpatch.prompts.layouts.named import write_picture

    if not asked.names:
        return
    by_prompt = [name for names in zip(*asked.names, strict=True) for name in names]
    for name, made in zip(by_prompt, album.pictures, strict=True):
        picture = open_picture(album.run.folder / made["image"])
        write_picture(album.run.folder / asked.layout, name, picture)

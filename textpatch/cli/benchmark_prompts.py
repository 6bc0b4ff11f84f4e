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
        return AskedPrompts(_typed_or_read(options)[: options.limit])
    from textpatch.prompts.layouts.named import layout_named

    name = options.prompts_from
    layout = layout_named(name)
    if len(options.prompt) != 1 or options.prompts is not None:
        raise PatchError(
            f"--prompts-from {name} reads one file or folder, and {len(options.prompt)} were given; "
            "give one path in place of the prompts"
        )
    entries = layout.asked(options.prompt[0])[: options.limit]
    names = ()
    if layout.pictures is not None:
        names = tuple(layout.pictures(entries, repeat) for repeat in range(len(options.seeds)))
    return AskedPrompts([one.prompt for one in entries], name, names)


def _typed_or_read(options) -> list[str]:
    """Return the prompts that were typed, or those of --prompts.

    Raises PatchError for both, for neither, and for --limit without a file.
    """
    if options.prompts is None and not options.prompt:
        raise PatchError(
            "no prompt was given; type prompts after the model, or name a file of them with --prompts"
        )
    if options.prompts is not None:
        if options.prompt:
            raise PatchError(
                f"--prompts {options.prompts} was given, and {options.prompt[0]!r} typed; "
                "leave one of them out"
            )
        from textpatch.prompts.files import read_prompts

        return read_prompts(options.prompts)
    if options.limit is not None:
        raise PatchError(
            f"--limit {options.limit} takes the first of a file of prompts, and they were typed; leave it out"
        )
    return options.prompt


def keep_for_scorer(asked: AskedPrompts, album) -> None:
    """Write the pictures of an album under the names that the benchmark's scorer looks for."""
    from textpatch.prompts.layouts.named import write_picture

    if not asked.names:
        return
    by_prompt = [name for names in zip(*asked.names, strict=True) for name in names]
    for name, made in zip(by_prompt, album.pictures, strict=True):
        picture = album.run.picture(made["image"])
        write_picture(album.run.folder / asked.layout, name, picture)

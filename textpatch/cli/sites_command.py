"""The verb `textpatch sites`."""

from __future__ import annotations

import argparse

from textpatch.cli.models import chosen
from textpatch.cli.options import MODEL_HELP, READING, Help, add_reading_options
from textpatch.cli.outcome import Outcome
from textpatch.cli.site_lines import described, site_table
from textpatch.errors import PatchError

TITLES = ("site", "kind", "heads", "width", "text K/V", "share", "paper")
HELP = Help(
    usage="textpatch sites MODEL | --diffusers FOLDER",
    summary="list where text enters a model",
    about="""\
List the sites of a model, the attention layers through which text enters it.

The table has a line per site, in the order in which they run: index, kind, heads, width, the
parameters of the text's key and value projections with their share of the whole model, and
the name. A star marks the sites that the paper names for a published model. The indices
are what --sites of `localize` and `edit` takes.

With --diffusers the model is one of diffusers' own classes, such as FLUX or Qwen-Image,
for which a table of sites is shipped (textpatch/ports/README.md has them all).

Cost: a second. Only the configuration or the header of a file is read, no weights.\
""",
    examples=(
        ("the sites of a shipped model", "textpatch sites tiny-mmdit"),
        (
            "those of a folder in diffusers layout",
            "textpatch sites --model /models/stable-diffusion-xl-base-1.0",
        ),
        (
            "those of somebody else's model, by diffusers' class",
            "textpatch sites --diffusers /models/FLUX.1-dev",
        ),
    ),
)


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch sites`."""
    command.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help=f"{MODEL_HELP}; or a published name, such as sdxl-base-1.0",
    )
    command.add_argument("--model", dest="path", metavar="PATH", help="the same, spelled out")
    command.add_argument(
        "--diffusers",
        metavar="FOLDER",
        help="a pipeline or denoiser of a class of diffusers, which must be installed",
    )
    add_reading_options(command)
    command.set_defaults(run=sites)


def sites(options) -> Outcome:
    """Return the table of a model's sites, from its configuration or its file's header alone."""
    from textpatch.cli.foreign_sites import listed_in
    from textpatch.ports.shipped import find_sites
    from textpatch.weights.loading import outline
    from textpatch.weights.published import COUNTED, localized_sites

    named = _one_model(options)
    asked = chosen(options, READING)
    if options.diffusers is not None:
        _require_none(asked)
        return listed_in(named)
    model = outline(named, **asked)
    found = find_sites(model)
    marked = localized_sites(model)
    total = sum(p.numel() for p in model.parameters())
    lines = [
        f"{total:,} parameters, {len(found)} sites in execution order",
        *site_table(
            TITLES,
            [_cells(model, site, total, site.index in marked) for site in found],
            [site.name for site in found],
        ),
        f"share: of the text's key and value projections in all parameters; paper: that of "
        f"{' and '.join(COUNTED[found[0].kind])}, its convention",
    ]
    if marked:
        lines.append(_marked(model, [site for site in found if site.index in marked], total))
    if found[0].kind == "added":
        lines.append(
            "they differ: in this model to_k and to_v are the image's; the text's, which a swap changes, "
            "are add_k_proj and add_v_proj"
        )
    result = {"parameters": total, "sites": [described(site) for site in found]}
    return Outcome("\n".join(lines), result | {"marked": list(marked)})


def _require_none(asked: dict) -> None:
    """Raise PatchError for options of files, of which diffusers' classes read their configuration alone."""
    if asked:
        option = next(iter(asked)).replace("_", "-")
        raise PatchError(
            f"--{option} chooses among files of weights, and --diffusers reads a configuration alone; "
            "leave it out"
        )


def _cells(model, site, total: int, marked: bool) -> list[str]:
    """Cells of a site's line, in the order of TITLES."""
    from textpatch.weights.published import counted_parameters

    return [
        f"*{site.index}" if marked else str(site.index),
        site.kind,
        str(site.heads),
        str(site.heads * site.head_dim),
        f"{site.parameters:,}",
        f"{site.parameters / total:.4%}",
        f"{counted_parameters(model, site) / total:.4%}",
    ]


def _marked(model, marked: list, total: int) -> str:
    """The share of the paper's sites together, in words."""
    from textpatch.weights.published import counted_parameters

    text = sum(site.parameters for site in marked) / total
    paper = sum(counted_parameters(model, site) for site in marked) / total
    return (
        f"* the paper's sites (ICLR 2025): together {text:.2%} of the parameters, "
        f"{paper:.2%} in its convention"
    )


def _one_model(options) -> str:
    """Return the model named by its place, by --model or by --diffusers.

    Raises PatchError where none or several name one.
    """
    given = [options.model, options.path, options.diffusers]
    named = [name for name in given if name is not None]
    if len(named) != 1:
        raise PatchError(
            "name one model: textpatch sites MODEL, textpatch sites --model PATH, or textpatch sites "
            "--diffusers FOLDER"
        )
    return named[0]

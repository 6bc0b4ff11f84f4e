"""Sites of a denoiser in a folder of diffusers' layout, from its configuration alone."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import nn

from textpatch.cli.outcome import Outcome
from textpatch.cli.site_lines import described, site_table
from textpatch.disk import read_json
from textpatch.errors import PatchError, closest
from textpatch.ports.shipped import TABLES, find_sites
from textpatch.sites import Site, parameter_count

PARTS = ("", "transformer", "unet")  # folders of a pipeline that may hold its denoiser


def listed_in(folder: str) -> Outcome:
    """Return a line per site of the denoiser in a folder.  Raises PatchError as `foreign_outline`."""
    model = foreign_outline(Path(folder))
    found = find_sites(model)
    total = parameter_count(model)
    lines = [
        f"{type(model).__name__}: {total:,} parameters, {len(found)} sites in execution order",
        *site_table(
            ("site", "kind", "heads", "width", "text K/V", "share", "text"),
            [_cells(site, total) for site in found],
            [site.name for site in found],
        ),
        "share: of the text's key and value projections in all parameters; text: the argument of the "
        "denoiser that holds it",
    ]
    return Outcome(
        "\n".join(lines), {"parameters": total, "sites": [described(site) for site in found]}
    )


def _cells(site: Site, total: int) -> list[str]:
    """Cells of a site's line."""
    return [
        str(site.index),
        site.kind,
        str(site.heads),
        str(site.text_heads * site.head_dim),
        f"{site.parameters:,}",
        f"{site.parameters / total:.4%}",
        ", ".join(site.span.texts),
    ]


def foreign_outline(folder: Path) -> nn.Module:
    """Model of diffusers' class without weights, as the configuration in a folder describes it.

    folder  a denoiser's own, or a pipeline's, which holds it
    Raises PatchError if there is no configuration, if no table is shipped for its class, if diffusers is not
    installed or has no such class, and for a configuration that builds nothing.
    """
    path, name = _configuration(folder)
    if name not in TABLES:
        known = ", ".join(sorted(TABLES))
        raise PatchError(
            f"{path} describes a {name}, for which no table is shipped{closest(name, TABLES)}; write one as "
            f"textpatch/ports/README.md shows, or give one of: {known}"
        )
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError as error:
        raise PatchError(
            f"the sites of a {name} are read off diffusers' class ({error}); install it: "
            "pip install 'textpatch[reference]'"
        ) from error
    kind = getattr(diffusers, name, None)
    if kind is None:
        raise PatchError(
            f"diffusers {diffusers.__version__} has no {name}, which {path} describes; install a newer one"
        )
    try:
        with torch.device("meta"):
            return kind.from_config(read_json(path))
    except Exception as error:
        raise PatchError(f"{path} builds no {name} ({type(error).__name__}: {error})") from error


def _configuration(folder: Path) -> tuple[Path, str]:
    """Path of the denoiser's configuration in a folder, and the class that it names."""
    for part in PARTS:
        path = folder / part / "config.json"
        if path.is_file():
            body = read_json(path)
            name = body.get("_class_name") if isinstance(body, dict) else None
            if not isinstance(name, str):
                raise PatchError(
                    f"{path} names no `_class_name`; give a folder of diffusers' layout, in which it does"
                )
            return path, name
    looked = ", ".join(str(folder / part / "config.json") for part in PARTS)
    raise PatchError(f"no configuration of a denoiser: looked for {looked}")

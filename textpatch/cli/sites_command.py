"""`textpatch sites`: its options, and what it does."""

from __future__ import annotations

import argparse

from textpatch.cli.options import MODEL_HELP
from textpatch.errors import PatchError


def add_sites_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model", nargs="?", help=f"{MODEL_HELP}; or a published name, such as sdxl-base-1.0"
    )
    command.add_argument("--model", dest="path", metavar="PATH", help="the same, spelled out")
    command.set_defaults(run=sites)


def sites(options) -> None:
    """`textpatch sites`: the table of a model's sites, from its configuration or its file's header alone."""
    from textpatch.ports.shipped import find_sites
    from textpatch.weights.loading import outline
    from textpatch.weights.published import COUNTED, counted_parameters, localized_sites

    model = outline(_one_model(options))
    found, total = find_sites(model), sum(p.numel() for p in model.parameters())
    marked, width = localized_sites(model), max(len(site.name) for site in found)
    print(f"{total:,} parameters, {len(found)} sites in execution order")
    titles = f"{'kind':<6}{'heads':>5}{'width':>7}{'text K/V':>12}{'share':>9}{'paper':>9}"
    print(f"{'site':>5}  {'name':<{width}}  {titles}")
    for site in found:
        shares = site.parameters / total, counted_parameters(model, site) / total
        index = f"{'*' if site.index in marked else ''}{site.index}"
        print(
            f"{index:>5}  {site.name:<{width}}  {site.kind:<6}{site.heads:>5}"
            f"{site.heads * site.head_dim:>7}{site.parameters:>12,}{shares[0]:>9.4%}{shares[1]:>9.4%}"
        )
    print(
        "share: parameters of the text's own key and value projections; "
        f"paper: those of {' and '.join(COUNTED[found[0].kind])}, the paper's convention"
    )
    if marked:
        chosen = [site for site in found if site.index in marked]
        text, paper = (
            sum(counts) / total
            for counts in (
                [site.parameters for site in chosen],
                [counted_parameters(model, site) for site in chosen],
            )
        )
        print(
            f"* the paper's sites (ICLR 2025): together {text:.2%} of the parameters, {paper:.2%} in its convention"
        )
    if found[0].kind == "added":
        print(
            "they differ: in this model to_k and to_v are the image's; the text's, which a swap changes, "
            "are add_k_proj and add_v_proj"
        )


def _one_model(options) -> str:
    """The model named by its place or by --model; naming none or two is an error."""
    if (options.model is None) == (options.path is None):
        raise PatchError("name one model: textpatch sites MODEL, or textpatch sites --model PATH")
    return options.model or options.path

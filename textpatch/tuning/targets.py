"""Projections of sites that an adapter is trained on, named in full so that no other module is hit."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from textpatch.anatomy import EXITS, KEYS, QUERIES, TEXT_PROJECTIONS, VALUES
from textpatch.errors import PatchError, closest
from textpatch.sites import Site

IMAGE = "to_q", "to_k", "to_v", "to_out.0"
ADDED = "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"
KINDS = "text_kv", "qkvo", "text_all", "all"


def target_names(model: nn.Module, sites: Sequence[Site], targets: str) -> list[str]:
    """Names of the linear layers that are trained.

    targets  "text_kv"   the projections of the text's keys and values, which a swap replaces
             "qkvo"      to_q, to_k, to_v and to_out.0, as in the paper's LoRA
             "text_all"  all projections of the text: on SD3 its queries and its way out, too, in a block
                         of one stream those of the image
             "all"       all projections of the sites

    One that a site does not have is passed over, such as the text's way out of SD3's last block.
    Raises PatchError for unknown targets, and where no site has any of them.
    """
    if targets not in KINDS:
        raise PatchError(f"targets is {targets!r}{closest(targets, KINDS)}")
    modules = dict(model.named_modules())
    names = [f"{site.name}.{part}" for site in sites for part in _parts(site.kind, targets)]
    found = [name for name in names if isinstance(modules.get(name), nn.Linear)]
    if not found:
        raise PatchError(
            f"no site of {[site.name for site in sites][:3]} has a projection of {targets!r}; "
            f"give one of {', '.join(KINDS)}, or other sites"
        )
    return found


def _parts(kind: str, targets: str) -> Sequence[str]:
    """Names of the projections below an attention module of a kind."""
    text = TEXT_PROJECTIONS[kind]
    if targets == "text_kv":
        return text
    if targets == "qkvo":
        return IMAGE
    if kind == "single":  # image and text share these, and the tables name what follows them
        return IMAGE
    whole = [part for table in (QUERIES, KEYS, VALUES, EXITS) for part in table.get(kind, ())]
    if targets == "text_all":
        return [part for part in whole if part in (*text, *ADDED)]
    return whole

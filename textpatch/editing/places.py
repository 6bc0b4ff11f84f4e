"""Attentions of a model whose maps can be edited, the sites and the self-attentions in their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from textpatch.errors import PatchError
from textpatch.recording import AttentionModules, attention_modules
from textpatch.sites import Site

SELF = "self"  # kind of an attention of the picture to itself
EDITED_KINDS = "cross", "added", "joint"


@dataclass(frozen=True)
class Place:
    """One attention of a model, a site or an attention of the picture to itself.

    kind  that of the site, or SELF
    site  the site itself, or the one in whose block the self-attention is
    """

    name: str
    kind: str
    head_dim: int
    site: Site
    modules: AttentionModules

    @property
    def has_text_output(self) -> bool:
        """True where the text has queries and an output of its own."""
        return len(self.modules.out) > 1


def places_of(model: nn.Module, sites: Sequence[Site], chosen: Sequence[Site]) -> list[Place]:
    """The chosen of a model's sites, and the self-attentions that are in their blocks.

    Raises PatchError for sites of another kind, with heads that share keys, or with masked text.
    """
    modules = dict(model.named_modules())
    names = {site.name for site in sites}
    places = []
    for site in chosen:
        _require_editable(site)
        parts = attention_modules(modules, site.name, site.kind)
        places.append(Place(site.name, site.kind, site.head_dim, site, parts))
        for name in _beside(modules, site, names):
            head_dim = modules[f"{name}.to_q"].weight.shape[0] // modules[name].heads
            parts = attention_modules(modules, name, SELF)
            places.append(Place(name, SELF, head_dim, site, parts))
    return places


def _beside(modules: dict[str, nn.Module], site: Site, sites: set[str]) -> list[str]:
    """Names of the self-attentions in the block of a site."""
    block = site.name.rpartition(".")[0]
    names = [f"{block}.{child}" for child, _ in modules[block].named_children()]
    return [name for name in names if name not in sites and f"{name}.to_q" in modules]


def _require_editable(site: Site) -> None:
    wrong = ""
    if site.kind not in EDITED_KINDS:
        wrong = f"is of kind {site.kind!r}, and maps are edited at kinds {', '.join(EDITED_KINDS)}"
    elif site.text_heads != site.heads:
        wrong = f"shares the keys of {site.text_heads} heads among {site.heads} of queries"
    elif site.span.mask is not None:
        wrong = f"hides text by the mask {site.span.mask!r}, which another row's map would not have"
    if wrong:
        raise PatchError(
            f"site {site.name!r} {wrong}; edit by a swap of keys and values at localised sites instead"
        )

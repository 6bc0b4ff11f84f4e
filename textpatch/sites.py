"""Where text enters: the sites of a model, in execution order, and which modules make their keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Iterable

from torch import nn

from textpatch.errors import PatchError, closest


@dataclass(frozen=True)
class Site:
    """One attention module that reads text.

    index is its place in execution order (down, mid, up), the numbering of the paper (ICLR 2025, sec. 4);
    name the module path; kind is `cross | added | joint | single`; parameters counts the text K and V
    projections alone, with biases.
    """

    index: int
    name: str
    kind: str
    heads: int
    head_dim: int
    parameters: int
    kv_heads: int | None = None
    text_input: str = "text"


# Names, below the attention module, of the projections whose outputs are the text keys and values.
TEXT_PROJECTIONS = {
    "cross": ("to_k", "to_v"),
    "added": ("add_k_proj", "add_v_proj"),
    "joint": ("add_k_proj", "add_v_proj"),
}


def make_site(index: int, name: str, kind: str, module: nn.Module, heads: int, head_dim: int) -> Site:
    """A Site whose parameter count is read off the module's own text projections."""
    projections = [module.get_submodule(path) for path in TEXT_PROJECTIONS[kind]]
    count = sum(p.numel() for projection in projections for p in projection.parameters())
    return Site(index, name, kind, heads, head_dim, count)


def find_sites(model: nn.Module) -> tuple[Site, ...]:
    """All sites of a model, in execution order.  Raises PatchError if the model does not say where they are."""
    sites = getattr(model, "sites", None)
    if not sites:
        raise PatchError(
            f"no sites known for {type(model).__name__}: it has no `sites`; "
            "give the model a tuple of textpatch.sites.Site in execution order"
        )
    return tuple(sites)


def select_sites(sites: Iterable[Site], wanted) -> tuple[Site, ...]:
    """The sites meant by an index, a name, a glob, a Site, `"all"`, or a list of these; in execution order.

    Raises PatchError for a selector that matches nothing, and for an empty selection.
    """
    sites = tuple(sites)
    selectors = [wanted] if isinstance(wanted, (int, str, Site)) else list(wanted)
    chosen = {site.index for selector in selectors for site in _match(sites, selector)}
    if not chosen:
        raise PatchError(
            f"no site selected by {wanted!r}; give indices 0..{len(sites) - 1}, names, globs or 'all'"
        )
    return tuple(site for site in sites if site.index in chosen)


def _match(sites: tuple[Site, ...], selector) -> list[Site]:
    if isinstance(selector, Site):
        selector = selector.name
    if isinstance(selector, int) and not isinstance(selector, bool):
        found = [site for site in sites if site.index == selector]
    else:
        found = [s for s in sites if selector == "all" or fnmatchcase(s.name, str(selector))]
    if not found:
        asked = f"index {selector}" if isinstance(selector, int) else repr(selector)
        raise PatchError(
            f"no site {asked} among the {len(sites)} of this model (indices 0..{len(sites) - 1})"
            + closest(selector, [site.name for site in sites])
        )
    return found

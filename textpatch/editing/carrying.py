"""Attention of one row edited from another's, in the model's own calls.

Hooks look at the projections of queries, keys and values, and put another input in the place of the
target row's where the attention's output is projected.  All other rows go through as they are, and after
any exit nothing is left on the model.

B batch rows, H heads, N image tokens, T text tokens, D head width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from textpatch.bank import Texts
from textpatch.editing.replacing import Heads, Values
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.plan import Row
from textpatch.recording import AttentionModules, attention_modules, by_head
from textpatch.sites import Site

SELF = "self"


@dataclass(frozen=True)
class Place:
    """One attention of a model, a site or an attention of the picture to itself.

    site  the site itself, or the one in whose block the self-attention is
    """

    name: str
    kind: str
    head_dim: int
    site: Site
    modules: AttentionModules

    @property
    def has_text_queries(self) -> bool:
        """True where the text has an output of its own."""
        return len(self.modules.out) > 1


class MapEdit(Protocol):
    """What is done to the attention of a target's row."""

    def acts(self, place: Place, step: int) -> bool:
        """True where the place's output may be another in a step, or its map is read."""

    def attention(self, place: Place, step: int, heads: Heads) -> Values | None:
        """Attention of the target's row, None where it stays as it is."""

    def edits_text_queries(self, place: Place) -> bool:
        """True where the attention has the text's queries, too."""

    def look(self, place: Place, heads: Heads, attend: Values | None) -> None:
        """Take notice of an attention."""


def places_of(model: nn.Module, sites: Sequence[Site], chosen: Sequence[Site]) -> list[Place]:
    """The chosen of a model's sites, and the self-attentions that are in their blocks.

    Raises PatchError for sites whose modules are not known, that share keys among heads, or whose model
    hides text by masks.
    """
    modules = dict(model.named_modules())
    places = []
    for site in chosen:
        _require_known(site)
        kind = attention_modules(modules, site.name, site.kind)
        places.append(Place(site.name, site.kind, site.head_dim, site, kind))
        for name in _beside(modules, site, {other.name for other in sites}):
            width = modules[f"{name}.to_q"].weight.shape[0]
            parts = attention_modules(modules, name, SELF)
            places.append(Place(name, SELF, width // modules[name].heads, site, parts))
    return places


def _beside(modules: dict[str, nn.Module], site: Site, sites: set[str]) -> list[str]:
    """Names of the self-attentions in the block of a site."""
    block = site.name.rpartition(".")[0]
    return [
        f"{block}.{child}"
        for child, _ in modules[block].named_children()
        if f"{block}.{child}" not in sites and f"{block}.{child}.to_q" in modules
    ]


def _require_known(site: Site) -> None:
    wrong = ""
    if site.kind not in ("cross", "added", "joint"):
        wrong = (
            f"is of kind {site.kind!r}, and maps are edited at those of kind cross, added and joint"
        )
    elif site.text_heads != site.heads:
        wrong = f"shares the keys of {site.text_heads} heads among {site.heads} of queries"
    elif site.span.mask is not None:
        wrong = f"hides text by the mask {site.span.mask!r}, which another row's map would not have"
    if wrong:
        raise PatchError(
            f"site {site.name!r} {wrong}; this model takes a swap of keys and values, method='localized'"
        )


class Carrier:
    """Edit of one row's attention from another's while a model is called.

    rows   numbers of the source's and the target's row in the batch
    bank   keys and values (2, H, T, D) of both rows by site.  None where the model makes them in every call
    step   the step of the model's next call, to be set before it
    edits  number of outputs that were replaced
    """

    def __init__(
        self,
        places: Sequence[Place],
        rows: tuple[int, int],
        edit: MapEdit,
        bank: dict[str, tuple[Tensor, Tensor]] | None,
    ) -> None:
        self.rows = list(rows)
        self.edit = edit
        self.bank = bank
        self.step = 0
        self.edits = 0
        self._owners = {name: place for place in places for name in self._observed(place)}
        self._exits = {name: place for place in places for name in place.modules.out}
        self._latest: dict[str, Tensor] = {}
        self._text_outputs: dict[str, Tensor] = {}

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[Carrier]:
        """A block in which the model's calls are edited."""
        projections = HookRegistry(model, self._owners).observe(self._projected)
        exits = HookRegistry(model, self._exits).replace_input(self._leaving)
        with projections, exits:
            yield self

    def _observed(self, place: Place) -> list[str]:
        """Names of the modules whose outputs are read.  Those of text in the bank do not run."""
        modules = place.modules
        keys = modules.k
        values = modules.v
        if self.bank is not None and place.kind != SELF:
            keys = keys[:-1]
            values = values[:-1]
        return [*modules.q, *keys, *values]

    def _projected(self, name: str, output: Tensor) -> None:
        place = self._owners[name]
        if self.edit.acts(place, self.step):
            self._latest[name] = by_head(output[self.rows], place.head_dim)

    def _leaving(self, name: str, x: Tensor) -> Tensor | None:
        """Attention's output (B, n, H D) with the target's row edited, None where it stays."""
        place = self._exits[name]
        if name != place.modules.out[0]:
            return self._written(x, self._text_outputs.pop(place.name, None))
        if not self.edit.acts(place, self.step):
            return None
        heads = self._heads(place)
        attend = self.edit.attention(place, self.step, heads)
        self.edit.look(place, heads, attend)
        if attend is None:
            return None
        self.edits += 1
        out = attend(heads.v_image, heads.v_text)  # (H, N, D), or (H, N + T, D)
        if self.edit.edits_text_queries(place):
            self._text_outputs[place.name] = out[:, x.shape[1] :]
        return self._written(x, out[:, : x.shape[1]])

    def _written(self, x: Tensor, out: Tensor | None) -> Tensor | None:
        """Tensor x (B, n, H D) with out (H, n, D) as its target's row."""
        if out is None:
            return None
        new = x.clone()
        new[self.rows[1]] = out.transpose(0, 1).flatten(1)
        return new

    def _heads(self, place: Place) -> Heads:
        """Queries, keys and values of a place, which are forgotten here."""
        q_image, q_text = self._pair(place, place.modules.q, text=place.kind == "joint")
        with_text = place.kind != SELF
        k_image, k_text = self._pair(place, place.modules.k, with_text, part=0)
        v_image, v_text = self._pair(place, place.modules.v, with_text, part=1)
        return Heads(q_image, q_text, k_image, k_text, _last(v_image), _last(v_text))

    def _pair(
        self, place: Place, names: list[str], text: bool, part: int | None = None
    ) -> tuple[Any, Any]:
        """Tensors (2, H, n, D) of the image and of the text, None for one that is not there."""
        of_text = None
        if text and self.bank is not None and part is not None:
            of_text = self.bank[place.site.name][part]
            names = names[:-1]
        elif text:
            *names, last = names
            of_text = self._latest.pop(last)
        of_image = self._latest.pop(names[0]) if names else None
        return of_image, of_text


def _last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x[1]


def bank_of_rows(
    texts: Texts, sites: Sequence[Site], rows: Sequence[Row]
) -> dict[str, tuple[Tensor, Tensor]] | None:
    """Keys and values (R, H, T, D) of some rows by site.  None where texts have no bank."""
    if texts.bank is None:
        return None
    places = texts.rows(rows)
    return {
        site.name: (texts.bank[site.index][0][places], texts.bank[site.index][1][places])
        for site in sites
    }

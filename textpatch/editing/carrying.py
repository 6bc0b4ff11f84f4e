"""Attention of one row edited from another's, in the model's own calls.

Hooks look at the projections of queries, keys and values, and put another input in the place of the
target's row where the attention's output is projected.  All other rows go through as they are, and after
any exit nothing is left on the model.

B batch rows, H heads, T text tokens, D head width, n tokens of image or text
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from textpatch.bank import Texts
from textpatch.editing.pair_edit import PairEdit
from textpatch.editing.places import SELF, Place, places_of
from textpatch.editing.replacing import Heads
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.plan import CONDITIONAL, Row
from textpatch.ports.shipped import find_sites
from textpatch.recording import by_head
from textpatch.sites import Site

BankOfRows = dict[str, tuple[Tensor, Tensor]]  # keys and values (2, H, T, D) by site


def bank_of_rows(texts: Texts, sites: Sequence[Site], rows: Sequence[Row]) -> BankOfRows | None:
    """Text keys and values of two rows.  None where a run has no bank."""
    if texts.bank is None:
        return None
    places = texts.rows(rows)
    found = {}
    for site in sites:
        k, v = texts.bank[site.index]
        found[site.name] = k[places], v[places]
    return found


def places_in(batch: Sequence[Row], *names: str) -> list[int]:
    """Numbers of conditional rows in a batch, by their names."""
    labels = [row.label for row in batch]
    return [labels.index((name, CONDITIONAL)) for name in names]


class Carrier:
    """Edit of one row's attention from another's while a model is called.

    rows   numbers of the source's and of the target's row in the batch
    bank   text keys and values of both.  None where the model makes them in every call
    step   the step of the model's next call, to be set before it
    edits  number of outputs that were replaced
    """

    def __init__(
        self,
        places: Sequence[Place],
        rows: Sequence[int],
        edit: PairEdit,
        bank: BankOfRows | None,
    ) -> None:
        self.rows = list(rows)
        self.edit = edit
        self.bank = bank
        self.step = 0
        self.edits = 0
        self._owners = {name: place for place in places for name in self._projections(place)}
        self._exits = {name: place for place in places for name in place.modules.out}
        self._latest: dict[str, Tensor] = {}  # (2, H, n, D) by projection
        self._text_outputs: dict[str, Tensor] = {}  # (H, T, D) by place

    @classmethod
    def of(
        cls, model: nn.Module, edit: PairEdit, texts: Texts, batch: Sequence[Row], *names: str
    ) -> Carrier:
        """Carrier of an edit of the second named row from the first in a batch.

        Raises PatchError for sites that have no map to edit.
        """
        sites = find_sites(model)
        chosen = [site for site in sites if edit.concerns(site)]
        rows = places_in(batch, *names)
        bank = bank_of_rows(texts, chosen, [batch[row] for row in rows])
        return cls(places_of(model, sites, chosen), rows, edit, bank)

    def require_edited(self) -> None:
        """Raise PatchError if no output was replaced."""
        if not self.edits:
            raise PatchError(
                "no attention was edited in this run, so the target's picture is a plain one; give wider "
                "windows, or for self-attention a larger `self_limit`"
            )

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """A block in which the model's calls are edited."""
        projections = HookRegistry(model, self._owners).observe(self._projected)
        exits = HookRegistry(model, self._exits).replace_input(self._leaving)
        with projections, exits:
            yield

    def _projections(self, place: Place) -> list[str]:
        """Names of the modules that make what is read.  Those of text in the bank do not run."""
        k = place.modules.k
        v = place.modules.v
        if self.bank is not None and place.kind != SELF:
            k = k[:-1]
            v = v[:-1]
        return [*place.modules.q, *k, *v]

    def _projected(self, name: str, output: Tensor) -> None:
        """Keep what a projection made of both rows until their attention leaves."""
        place = self._owners[name]
        if self.edit.acts(place, self.step):
            self._latest[name] = by_head(output[self.rows], place.head_dim)

    def _leaving(self, name: str, x: Tensor) -> Tensor | None:
        """Attention's output (B, n, H D) with the target's row edited, None where it stays."""
        place = self._exits[name]
        if name != place.modules.out[0]:
            text = self._text_outputs.pop(place.name, None)
            return None if text is None else self._with_target(x, text)
        if not self.edit.acts(place, self.step):
            return None
        heads = self._heads(place)
        attend = self.edit.attention(place, self.step, heads)
        self.edit.look(place, heads, attend)
        if attend is None:
            return None
        self.edits += 1
        out = attend(heads.v_image, heads.v_text)  # image's queries, then text's
        if self.edit.edits_text_queries(place):
            self._text_outputs[place.name] = out[:, x.shape[1] :]
        return self._with_target(x, out[:, : x.shape[1]])

    def _with_target(self, x: Tensor, out: Tensor) -> Tensor:
        """Tensor x (B, n, H D) with out (H, n, D) as its target's row."""
        new = x.clone()
        new[self.rows[1]] = out.transpose(0, 1).flatten(1)
        return new

    def _heads(self, place: Place) -> Heads:
        """What a place reads, which is forgotten here."""
        q_image, *q_text = [self._latest.pop(name) for name in place.modules.q]
        k_image, k_text = self._image_and_text(place, place.modules.k, 0)
        v_image, v_text = self._image_and_text(place, place.modules.v, 1)
        return Heads(
            q_image,
            q_text[0] if q_text else None,
            k_image,
            k_text,
            None if v_image is None else v_image[1],
            None if v_text is None else v_text[1],
        )

    def _image_and_text(
        self, place: Place, names: list[str], part: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Keys or values (2, H, n, D) of the image and of the text, None where there are none.

        names  their projections, the text's last
        part   0 for keys, 1 for values
        """
        text = None
        if place.kind != SELF:
            *names, of_text = names
            text = self._text(place, of_text, part)
        image = self._latest.pop(names[0]) if names else None
        return image, text

    def _text(self, place: Place, name: str, part: int) -> Tensor:
        """Text keys or values (2, H, T, D), from the bank if there is one, else from their projection."""
        if self.bank is None:
            return self._latest.pop(name)
        return self.bank[place.name][part]

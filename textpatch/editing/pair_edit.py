"""Edit of a target's attention maps from its source's, for one pair of prompts and one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textpatch.editing.local_blend import WordMaps
from textpatch.editing.places import SELF, Place
from textpatch.editing.replacing import (
    Columns,
    Heads,
    TextStep,
    Values,
    by_columns,
    by_queries_and_keys,
    of_row,
)
from textpatch.sites import Site

SELF_LIMIT = 16**2  # most keys of a self-attention whose map is replaced, as published


@dataclass(frozen=True)
class PairEdit:
    """What is done at each place of a model in each step of a run.

    text         text columns that are the source's in each step, None where none are
    image        steps in which image columns and self-attentions are the source's
    sites        names of the sites that are edited, with the self-attentions in their blocks.  All when None
    self_limit   most keys of a self-attention that is edited
    one_call     whether the image's queries and keys are the source's, in place of columns
    all_queries  whether the text's queries are edited as the image's are
    renormalise  whether the edited weights of each query are divided by their sum
    maps         weights of the words of a local blend
    read         names of the sites at which these are read
    """

    text: Sequence[TextStep | None]
    image: range = range(0)
    sites: frozenset[str] | None = None
    self_limit: int = SELF_LIMIT
    one_call: bool = False
    all_queries: bool = False
    renormalise: bool = False
    maps: WordMaps | None = None
    read: frozenset[str] = frozenset()

    def concerns(self, site: Site) -> bool:
        """True where a site is edited or read."""
        return self.sites is None or site.name in self.sites or site.name in self.read

    def acts(self, place: Place, step: int) -> bool:
        """True where the place's output may be another in a step, or its map is read."""
        return place.name in self.read or not self._columns(place, step).nothing

    def attention(self, place: Place, step: int, heads: Heads) -> Values | None:
        """Attention of the target's row, None where it stays as it is."""
        columns = self._columns(place, step)
        too_large = place.kind == SELF and heads.q_image.shape[2] > self.self_limit
        if columns.nothing or too_large:
            return None
        if self.one_call:
            return by_queries_and_keys(heads)
        return by_columns(heads, columns, self.edits_text_queries(place), self.renormalise)

    def edits_text_queries(self, place: Place) -> bool:
        """True where the text has queries and an output, and they are edited, too."""
        return place.has_text_output and (self.all_queries or self.one_call)

    def look(self, place: Place, heads: Heads, attend: Values | None) -> None:
        """Read the words of a local blend in the source's map and in the target's edited one."""
        if self.maps is not None and place.name in self.read:
            self.maps.add(place.name, of_row(heads, 0), attend or of_row(heads, 1), heads)

    def _columns(self, place: Place, step: int) -> Columns:
        """Columns that are the source's at a place in a step."""
        if self.sites is not None and place.site.name not in self.sites:
            return Columns(image=False)
        has_image = place.kind != "cross"
        has_text = place.kind != SELF
        return Columns(
            image=has_image and step in self.image,
            text=self.text[step] if has_text else None,
        )

"""Sites, which are the attention modules where text enters a model, and the language that selects them.

The text keys and values of a site are the output of one module each, which is the site's tap.

    k, v = output[:, span, channels]     (B, S, ...) -> (B, T, W)

B rows, T text tokens, S tokens of a sequence, W = text heads x D

A model names its sites itself (`model.sites`), or a port does for a class of models, by a table of
`SiteSpec`s.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from operator import index
from typing import SupportsIndex, TypeAlias

from torch import Tensor, nn

from textpatch.anatomy import TEXT_PROJECTIONS
from textpatch.errors import PatchError, closest
from textpatch.html import fragment, safe, table
from textpatch.text import aligned

COLUMNS = ("index", "kind", "heads", "parameters", "name")
SHOWN = 5  # sites at a prompt
Texts: TypeAlias = Tensor | Sequence[Tensor]  # (B, T, ...), or (T, ...) of each row


def require_known(what: str, value: object, known: Iterable[object]) -> None:
    """Raise PatchError unless a value is among those known."""
    if value not in tuple(known):  # a dict would hash the value first
        raise PatchError(f"{what} is {value!r}; known here: {', '.join(map(repr, known))}")


def is_count(value: object) -> bool:
    """True for a whole number from 1 on.  True itself is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class Tap:
    """Module that makes the text K or V of a site.

    module    path of the module in the model
    channels  (first, stop) of its output.  All when None
    """

    module: str
    channels: tuple[int, int] | None = None


@dataclass(frozen=True)
class Span:
    """Tokens of a tap's output that are text.

    place   "all" of them, the "first" or "last" T of text and image tokens, or those "where" an
            argument says so
    text    argument of the model's forward whose length is T.  It is a tensor (B, T, ...), or a list
            with one tensor (T, ...) per row.  `name[0]` is the first entry of one that holds a text per
            layer, `name.part` an attribute.  Of several names, which the model joins to one sequence, T is
            the sum
    pad_to  T is rounded up to a multiple of this
    mask    argument of the forward that hides text tokens, as `masks.hidden_tokens` reads it, or
            several, one per text.  None if there is none
    packed  True if the model leaves hidden tokens out of its sequences.  T is then the number of
            tokens that the mask lets be seen
    extra   tokens of the model's own that it joins with the text.  They count as text
    where   (argument, number) for the place "where".  A token is text if this argument (B, S) has that
            number for it
    counts  argument (B,) that tells how many tokens each row's text has, where the picture's positions
            begin behind these.  Rows that read one another then need one number
    Raises PatchError for another place, for packed text without a mask, for a `pad_to` that is no
    whole number from 1 on, and for arguments that are no names.
    """

    place: str = "all"
    text: str | tuple[str, ...] = "encoder_hidden_states"
    pad_to: int = 1
    mask: str | tuple[str, ...] | None = None
    packed: bool = False
    extra: int = 0
    where: tuple[str, int] | None = None
    counts: str | None = None

    def __hash__(self) -> int:  # as that of a Site
        return hash((self.place, self.text))

    def __post_init__(self) -> None:
        require_known("span", self.place, ("all", "first", "last", "where"))
        if not is_count(self.pad_to):
            raise PatchError(f"pad_to is {self.pad_to!r}; give a whole number, 1 for no padding")
        if self.extra != 0 and not is_count(self.extra):
            raise PatchError(f"extra is {self.extra!r}; give a number of tokens, 0 for none")
        for what, names in (("text", self.texts), ("mask", self.masks)):
            if not all(isinstance(name, str) and name for name in names):
                raise PatchError(
                    f"{what} of a span is {getattr(self, what)!r}; give the name of an argument of the "
                    "model's forward, or several"
                )
        if (self.where is None) == (self.place == "where"):
            raise PatchError(
                f"{self} has a `where` without its place, or the place without it; give both, as in "
                "Span('where', where=('indicator', 3))"
            )
        if self.packed and (len(self.masks) != 1 or self.place not in ("first", "last")):
            raise PatchError(
                f"{self} is packed; name the mask that says how many tokens are seen, "
                "and the place 'first' or 'last'"
            )

    @property
    def texts(self) -> tuple[str, ...]:
        """Arguments of the forward that hold text, in order."""
        return self.text if isinstance(self.text, tuple) else (self.text,)

    @property
    def masks(self) -> tuple[str, ...]:
        """Arguments of the forward that hide text tokens."""
        if self.mask is None:
            return ()
        return self.mask if isinstance(self.mask, tuple) else (self.mask,)

    def lengths(self, text: Texts | None, mask: Tensor | None = None) -> list[int]:
        """Number T of tokens of each row of a text with its mask."""
        rows = [] if text is None else list(text)
        if self.packed and mask is not None:
            rows = [row[row != 0] for row in mask]
        return [-(-row.shape[0] // self.pad_to) * self.pad_to for row in rows]

    def length(self, text: Texts | None, mask: Tensor | None = None) -> int:
        """Number T of tokens of a text with its mask.

        Raises PatchError if rows differ in it, or if there is no text.
        """
        return self.one_length(self.lengths(text, mask))

    def one_length(self, lengths: Sequence[int]) -> int:
        """Number T that rows have in common.  Raises PatchError if they differ in it, or without rows."""
        found = sorted(set(lengths))
        if len(found) != 1:
            raise PatchError(
                f"the rows of {self.text!r} hold {found or 'no'} text tokens; rows that read one another "
                f"need one number where the text is the {self.place} tokens, so give texts of equal length"
            )
        return found[0]

    def joined_lengths(
        self, texts: Sequence[Texts | None], mask: Tensor | None = None
    ) -> list[int]:
        """Number T of each row's tokens of several texts together, with those of the model's own.

        A text that was left out counts nothing where another is there.
        """
        given = [self.lengths(text, mask) for text in texts if text is not None]
        return [sum(row) + self.extra for row in zip(*given, strict=False)]

    def found(self, says: Tensor | None) -> slice:
        """Slice of the text by the argument (B, S) that says where it is.

        Raises PatchError if there is no such argument, and unless all rows hold their text in one piece at
        one place.
        """
        name, number = self.where or ("", 0)
        rows = [] if says is None else [row.nonzero()[:, 0].tolist() for row in says == number]
        places = {(row[0], row[-1] + 1, len(row)) for row in rows if row}
        first, stop, count = next(iter(places), (0, 0, 0))
        if len(places) != 1 or not all(rows) or stop - first != count:
            raise PatchError(
                f"the text is where {name!r} is {number}, and the rows of this batch hold "
                f"{list(map(len, rows))} such tokens, not in one piece at one place of all rows; give each "
                "row a text, all of equal length"
            )
        return slice(first, stop)

    def tokens(self, total: int, length: int | None) -> slice:
        """Slice of the text among `total` tokens.

        length  number T of text tokens.  None where it is not known
        Raises PatchError unless there are more tokens than `length`, or all are text.
        """
        if self.place == "all":
            return slice(0, total)
        if length is None or length >= total:
            raise PatchError(
                f"a sequence of {total} tokens, and {length or 'no known number of'} text tokens "
                f"in {self.text!r}; "
                "call the model itself, with its text, and see that the table's span names that argument"
            )
        if self.place == "first":
            return slice(0, length)
        return slice(total - length, total)

    def cut(self, length: int | str, channels: tuple[int, int] | None) -> str:
        """Index in Python that cuts the text out of a tap's output, "" if all of it is text."""
        where = {"all": ":", "first": f":{length}", "last": f"-{length}:"}
        if self.where is not None:
            where["where"] = "{} == {}".format(*self.where)
        parts = [":", where[self.place]]
        if channels:
            parts.append(f"{channels[0]}:{channels[1]}")
        if parts == [":", ":"]:
            return ""
        return f"[{', '.join(parts)}]"


@dataclass(frozen=True)
class Site:
    """One attention module that reads text.

    index       place in execution order (down, mid, up), the numbering of ICLR 2025, sec. 4
    name        path of the module
    kind        "cross", "added", "joint" or "single"
    heads       number of query heads
    head_dim    width D of a head
    parameters  number of parameters of the text K and V projections, biases included
    kv_heads    number of K and V heads where queries share them.  `heads` when None
    text_input  name of the text that is read, where a model reads several.  It is for people alone, and
                the argument of the forward that holds the text is `span.text`
    taps        tap of K and tap of V.  By default what `TEXT_PROJECTIONS` names
    span        tokens of the taps' output that are text
    keys        tokens that are text among the keys of the module's attention, as torch's
                scaled_dot_product_attention gets them.  None on textpatch's own models, which attend
                otherwise
    """

    index: int
    name: str
    kind: str
    heads: int
    head_dim: int
    parameters: int
    kv_heads: int | None = None
    text_input: str = "text"
    taps: tuple[Tap, ...] = field(default=(), repr=False)
    span: Span = Span()
    keys: Span | None = field(default=None, compare=False, repr=False)

    def __hash__(self) -> int:  # of all fields it takes long, and every step asks
        return hash((self.index, self.name))

    def __post_init__(self) -> None:
        require_known("kind", self.kind, TEXT_PROJECTIONS)
        if not self.taps:
            taps = tuple(Tap(f"{self.name}.{path}") for path in TEXT_PROJECTIONS[self.kind])
            object.__setattr__(self, "taps", taps)

    @property
    def text_heads(self) -> int:
        """Number of heads of the text K and V, which `heads` of a swap count."""
        return self.kv_heads or self.heads

    @property
    def group(self) -> str:
        """Part of the model by the first name of the path, "up" for `up_blocks.0.attentions.1`."""
        return re.sub(r"_blocks?$", "", self.name.partition(".")[0])

    @property
    def text_is_static(self) -> bool:
        """True if the text K and V depend on the text alone, and on no step and no picture."""
        return self.kind in ("cross", "added")


# what `select_sites` lists, one or several
Selector: TypeAlias = SupportsIndex | str | Site
Selectors: TypeAlias = Selector | Iterable[Selector]


class Sites(tuple[Site, ...]):
    """The sites of a model, which are shown as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Number of sites of each kind, and the first of them."""
        kinds = Counter(site.kind for site in self)
        head = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        lines = aligned([COLUMNS, *map(_cells, self[:SHOWN])])
        if len(self) > SHOWN:
            lines.append(f"... and {len(self) - SHOWN} more")
        return "\n".join([f"{len(self)} sites: {head}", *lines])

    def _repr_html_(self) -> str:
        return fragment(table(COLUMNS, [[safe(cell) for cell in _cells(site)] for site in self]))


def _cells(site: Site) -> tuple[str, ...]:
    """Line of a table, in the order of COLUMNS."""
    heads = f"{site.heads} x {site.head_dim}"
    return str(site.index), site.kind, heads, f"{site.parameters:,}", site.name


def make_site(
    index: int, name: str, kind: str, module: nn.Module, heads: int, head_dim: int
) -> Site:
    """Site whose parameters are counted in the module's own text projections."""
    projections = [module.get_submodule(path) for path in TEXT_PROJECTIONS[kind]]
    return Site(index, name, kind, heads, head_dim, sum(map(parameter_count, projections)))


def parameter_count(projection: nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(p.numel() for p in projection.parameters())


def select_sites(sites: Iterable[Site], wanted: Selectors) -> tuple[Site, ...]:
    """Select sites by one selector or several, in execution order.

    A selector is one of these.

        57, "57"      site of that index, the number of ICLR 2025, sec. 4
        "55-57"       sites of the indices 55 to 57
        "all"         every site
        "kind:cross"  sites of a kind, which is cross, added, joint or single
        "group:up"    sites in one part of the model, `Site.group`, such as down, mid, up, transformer
        "*.0.attn2"   sites whose names match, with `*`, `?` and `[...]` as in a shell
        a Site        site of the same name

    Raises PatchError for a selector that matches nothing, and for an empty selection.
    """
    sites = tuple(sites)
    chosen: set[int] = set()
    for selector in plain_selectors(wanted):
        chosen.update(site.index for site in _match(sites, selector))
    if not chosen:
        raise PatchError(
            f"no site selected by {wanted!r}; give indices 0..{len(sites) - 1}, names, globs or 'all'"
        )
    return tuple(site for site in sites if site.index in chosen)


def plain_selectors(wanted: object) -> tuple[int | str, ...]:
    """Selectors as a plan keeps them.

    Ranges are written out.  Indices stand first, then strings, sorted and each once.
    """
    selectors = [wanted]
    if isinstance(wanted, Iterable) and not isinstance(wanted, (str, Site)):
        selectors = list(wanted)
    found = {plain for selector in selectors for plain in _plain(selector)}
    return tuple(sorted(found, key=lambda plain: (isinstance(plain, str), plain)))


def _plain(selector: object) -> Iterable[int | str]:
    """Indices or the string of one selector.  Raises PatchError for what is none."""
    if isinstance(selector, Site):
        return [selector.name]
    if isinstance(selector, str):
        ends = re.fullmatch("([0-9]{1,4})(?:-([0-9]{1,4}))?", selector)
        if ends is None:
            return [selector]
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if first > last:
            raise PatchError(
                f"sites {selector!r} count down from {first} to {last}; write '{last}-{first}'"
            )
        return range(first, last + 1)
    if isinstance(selector, bool) or not isinstance(selector, SupportsIndex):
        raise PatchError(
            f"sites hold {selector!r}, which is no index, name or glob; select_sites lists the forms"
        )
    return [index(selector)]


def _match(sites: tuple[Site, ...], selector: int | str) -> list[Site]:
    """Sites that one plain selector means.  Raises PatchError if there is none."""
    field, colon, value = str(selector).partition(":")
    if isinstance(selector, int):
        asked = f"index {selector}"
        found = [site for site in sites if site.index == selector]
    elif colon and field in ("kind", "group"):
        asked = f"of {field} {value!r}"
        found = [site for site in sites if getattr(site, field) == value]
    else:
        asked = repr(selector)
        found = [site for site in sites if selector == "all" or fnmatchcase(site.name, selector)]
    if not found:
        raise PatchError(
            f"no site {asked} among the {len(sites)} of this model (indices 0..{len(sites) - 1})"
            f"{_near(selector, sites)}; `textpatch sites MODEL`, or find_sites, lists them"
        )
    return found


def _near(selector: int | str, sites: tuple[Site, ...]) -> str:
    """Advice for an error about what no site is or has; of an index its bounds have told all."""
    if isinstance(selector, int):
        return ""
    field, colon, _ = selector.partition(":")
    if colon and field in ("kind", "group"):
        known = dict.fromkeys(getattr(site, field) for site in sites)
        return f"; {field}s here: {', '.join(known)}"
    if "," in selector:
        return "; name several one by one, without commas"
    return closest(selector, [site.name for site in sites])

"""Where text enters a model: its sites, in execution order, and where their text keys and values can be had.

B rows, T text tokens, S tokens of a sequence, W = text heads x D

    k, v = output[:, span, channels]     (B, S, ...) -> (B, T, W), of one module each: the site's taps

A model says so itself (`model.sites`), or a table of `SiteSpec`s says it for a class of models: a port.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from operator import index

from torch import nn

from textpatch.anatomy import TEXT_PROJECTIONS
from textpatch.errors import PatchError, closest


def require_known(what: str, value, known: Iterable) -> None:
    if value not in known:
        raise PatchError(f"{what} is {value!r}; known here: {', '.join(map(repr, known))}")


@dataclass(frozen=True)
class Tap:
    """Where the text K or V of a site is made: some channels of a module's output, all when None."""

    module: str
    channels: tuple[int, int] | None = None


@dataclass(frozen=True)
class Span:
    """Which tokens of a tap's output are text: `all`, or the `first` or `last` T of text and image tokens.

    T is the length of what the model's forward gets as `text`, rounded up to a multiple of `pad_to`: of a
    tensor (B, T, ...), or of a list with one tensor (T, ...) per row.

    mask    the forward's argument that hides text tokens, None if it has none: (B, T), nonzero for those seen, or with
            more dimensions what is added to the attention scores
    packed  the model leaves hidden tokens out of its sequences, so T is how many the mask lets be seen
    Raises PatchError for another place, and for packed text without a mask.
    """

    place: str = "all"
    text: str = "encoder_hidden_states"
    pad_to: int = 1
    mask: str | None = None
    packed: bool = False

    def __post_init__(self):
        require_known("span", self.place, ("all", "first", "last"))
        if self.packed and (self.mask is None or self.place == "all"):
            raise PatchError(
                f"{self} is packed; name the mask that says how many tokens are seen, and a first or last"
            )

    def length(self, text, mask=None) -> int:
        """T of a text with its mask.  Raises PatchError if rows differ in it, or if there is no text."""
        rows = [] if text is None else text
        if self.packed and mask is not None:
            rows = [row[row != 0] for row in mask]
        lengths = {-(-len(row) // self.pad_to) * self.pad_to for row in rows}
        if len(lengths) != 1:
            raise PatchError(
                f"the rows of {self.text!r} hold {sorted(lengths) or 'no'} text tokens; sites that read the "
                f"{self.place} tokens need one number for the whole batch, so give texts of equal length"
            )
        return lengths.pop()

    def tokens(self, total: int, length: int | None) -> slice:
        """The text among `total` tokens.  Raises PatchError unless there are more than `length`."""
        if self.place == "all":
            return slice(0, total)
        if length is None or length >= total:
            raise PatchError(
                f"a sequence of {total} tokens, and {length or 'no known number of'} text tokens in {self.text!r}; "
                "call the model itself, with its text, and see that the table's span names that argument"
            )
        return slice(0, length) if self.place == "first" else slice(total - length, total)

    def cut(self, length: int | str, channels: tuple[int, int] | None) -> str:
        """The text among a tap's output, as one would index it in Python; nothing if that is all of it."""
        where = {"all": ":", "first": f":{length}", "last": f"-{length}:"}[self.place]
        parts = [":", where] + (["{}:{}".format(*channels)] if channels else [])
        return "" if parts == [":", ":"] else f"[{', '.join(parts)}]"


@dataclass(frozen=True)
class Site:
    """One attention module that reads text.

    index is its place in execution order (down, mid, up), the numbering of the paper (ICLR 2025, sec. 4);
    name the module path; kind is `cross | added | joint | single`; parameters counts the text K and V
    projections alone, with biases; kv_heads is the number of K and V heads where queries share them.
    taps are K's and V's, by default what `TEXT_PROJECTIONS` names; span says which of their tokens are text.
    """

    index: int
    name: str
    kind: str
    heads: int
    head_dim: int
    parameters: int
    kv_heads: int | None = None
    text_input: str = "text"
    taps: tuple[Tap, Tap] | None = field(default=None, repr=False)
    span: Span = Span()

    def __post_init__(self):
        require_known("kind", self.kind, TEXT_PROJECTIONS)
        if self.taps is None:
            taps = tuple(Tap(f"{self.name}.{path}") for path in TEXT_PROJECTIONS[self.kind])
            object.__setattr__(self, "taps", taps)

    @property
    def text_heads(self) -> int:
        """How many heads the text K and V have, which `heads` of a swap count."""
        return self.kv_heads or self.heads

    @property
    def group(self) -> str:
        """Which part of the model it is in, by its path's first name: `up` for `up_blocks`, `mid` for `mid_block`."""
        return re.sub(r"_blocks?$", "", self.name.partition(".")[0])

    @property
    def text_is_static(self) -> bool:
        """Whether its K and V depend on the text alone, and on no step and no picture."""
        return self.kind in ("cross", "added")


def make_site(
    index: int, name: str, kind: str, module: nn.Module, heads: int, head_dim: int
) -> Site:
    """A Site whose parameter count is read off the module's own text projections."""
    projections = [module.get_submodule(path) for path in TEXT_PROJECTIONS[kind]]
    return Site(index, name, kind, heads, head_dim, sum(map(parameter_count, projections)))


def parameter_count(projection: nn.Module) -> int:
    return sum(p.numel() for p in projection.parameters())


def select_sites(sites: Iterable[Site], wanted) -> tuple[Site, ...]:
    """The sites that one selector means, or several together, in execution order.  A selector is

        57, "57"      an index: `Site.index`, the paper's number (ICLR 2025, sec. 4)
        "55-57"       the indices 55 to 57
        "all"         every site
        "kind:cross"  those of a kind: cross, added, joint, single
        "group:up"    those in one part of the model, `Site.group`: down, mid, up, transformer, ...
        "*.0.attn2"   those whose names match, `*`, `?` and `[...]` as in a shell; a full name matches itself
        a Site        the one of the same name

    Raises PatchError for a selector that matches nothing, and for an empty selection.
    """
    sites = tuple(sites)
    chosen = {
        site.index for selector in plain_selectors(wanted) for site in _match(sites, selector)
    }
    if not chosen:
        raise PatchError(
            f"no site selected by {wanted!r}; give indices 0..{len(sites) - 1}, names, globs or 'all'"
        )
    return tuple(site for site in sites if site.index in chosen)


def plain_selectors(wanted) -> tuple[int | str, ...]:
    """Selectors as a plan keeps them: indices, ranges written out, then strings; each once, sorted."""
    one = isinstance(wanted, (str, Site)) or not isinstance(wanted, Iterable)
    found = {plain for selector in ([wanted] if one else wanted) for plain in _plain(selector)}
    return tuple(sorted(found, key=lambda plain: (isinstance(plain, str), plain)))


def _plain(selector) -> Iterable[int | str]:
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
    if isinstance(selector, bool) or not hasattr(selector, "__index__"):
        raise PatchError(
            f"sites hold {selector!r}, which is no index, name or glob; select_sites lists the forms"
        )
    return [index(selector)]


def _match(sites: tuple[Site, ...], selector: int | str) -> list[Site]:
    field, colon, value = str(selector).partition(":")
    if isinstance(selector, int):
        asked, hint = f"index {selector}", ""
        found = [site for site in sites if site.index == selector]
    elif colon and field in ("kind", "group"):
        known = dict.fromkeys(getattr(site, field) for site in sites)
        asked, hint = f"of {field} {value!r}", f"; {field}s here: {', '.join(known)}"
        found = [site for site in sites if getattr(site, field) == value]
    else:
        comma = "; name several one by one, without commas" if "," in selector else ""
        asked, hint = repr(selector), comma or closest(selector, [site.name for site in sites])
        found = [site for site in sites if selector == "all" or fnmatchcase(site.name, selector)]
    if not found:
        raise PatchError(
            f"no site {asked} among the {len(sites)} of this model (indices 0..{len(sites) - 1}){hint}; "
            "`textpatch sites MODEL`, or find_sites, lists them"
        )
    return found

"""Where text enters a model: its sites, in execution order, and where their text keys and values can be had.

B rows, T text tokens, S tokens of a sequence, W = text heads x D

    k, v = output[:, span, channels]     (B, S, ...) -> (B, T, W), of one module each: the site's taps

A model says so itself (`model.sites`), or a table of `SiteSpec`s says it for a class of models: a port.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from operator import index
from typing import Iterable, Sequence

from torch import nn

from textpatch.errors import PatchError, closest

# Names, below the attention module, of the projections whose outputs are the text keys and values.
TEXT_PROJECTIONS = {
    "cross": ("to_k", "to_v"),
    "added": ("add_k_proj", "add_v_proj"),
    "joint": ("add_k_proj", "add_v_proj"),
    "single": ("to_k", "to_v"),
}


def _require_known(what: str, value, known: Iterable) -> None:
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
        _require_known("span", self.place, ("all", "first", "last"))
        if self.packed and (self.mask is None or self.place == "all"):
            raise PatchError(f"{self} is packed; name the mask that says how many tokens are seen, and a first or last")

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
        _require_known("kind", self.kind, TEXT_PROJECTIONS)
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


@dataclass(frozen=True)
class SiteSpec:
    """One row of a port: attention modules of one make, and where in each the text K and V are made.

    modules      their paths; `*` stands for one name between dots.  Of several patterns some may match nothing.
                 Rows, in a row its patterns, for a pattern the model's own order must give execution order
    kind         `cross | added | joint | single`
    projections  the modules that put out K and V, below the attention module; `TEXT_PROJECTIONS` when None
    fused        (i, j, n): K and V are the i-th and j-th, from 0, of n equal parts of the projections' output
    span         which tokens of that output are text
    order        of the concatenated keys, `text first` or `image first`; None if the text stands alone, or if
                 the span says it
    heads, kv_heads  attribute of the attention module, or the number itself
    norm, rotary     what is between these K and attention: a norm below the attention module, turned by position
    Raises PatchError for values that contradict each other.
    """

    modules: str | tuple[str, ...]
    kind: str
    projections: tuple[str, str] | None = None
    fused: tuple[int, int, int] | None = None
    span: Span = Span()
    order: str | None = None
    heads: str | int = "heads"
    kv_heads: str | int | None = None
    norm: str | None = None
    rotary: bool = False
    text_input: str = "text"

    def __post_init__(self):
        _require_known("kind", self.kind, TEXT_PROJECTIONS)
        alone = self.kind == "cross" or self.span.place != "all"
        _require_known("order", self.order, (None,) if alone else ("text first", "image first"))
        if self.kind == "single" and self.span.place == "all":
            raise PatchError(f"{self.modules!r} is of kind 'single' and spans 'all'; image tokens pass there too")
        if self.fused and not all(0 <= part < self.fused[2] for part in self.fused[:2]):
            last = self.fused[2] - 1
            raise PatchError(f"fused is {self.fused}; parts are numbered 0..{last}; give K's, V's and how many")

    @property
    def text_place(self) -> str:
        """`all`, `first` or `last`: where the text is among the keys that attention gets."""
        return {None: self.span.place, "text first": "first", "image first": "last"}[self.order]


def make_site(index: int, name: str, kind: str, module: nn.Module, heads: int, head_dim: int) -> Site:
    """A Site whose parameter count is read off the module's own text projections."""
    projections = [module.get_submodule(path) for path in TEXT_PROJECTIONS[kind]]
    return Site(index, name, kind, heads, head_dim, sum(map(_count, projections)))


def _count(projection: nn.Module) -> int:
    return sum(p.numel() for p in projection.parameters())


def find_sites(model: nn.Module, spec: Sequence[SiteSpec] | None = None) -> tuple[Site, ...]:
    """All sites of a model, in execution order: by `spec`, else its own `sites`, else the shipped tables.

    Raises PatchError if none of these is there, or if the table does not fit the model.
    """
    if spec is None and getattr(model, "sites", None):
        return tuple(model.sites)
    return tuple(site for site, _ in match_sites(model, shipped_table(model) if spec is None else spec))


def match_sites(model: nn.Module, table: Sequence[SiteSpec]) -> list[tuple[Site, SiteSpec]]:
    """The sites a table finds in a model, each with its row.  Raises PatchError if a row does not fit."""
    modules, found = dict(model.named_modules()), []
    for spec in table:
        patterns = (spec.modules,) if isinstance(spec.modules, str) else spec.modules
        paths = [re.compile(re.escape(pattern).replace(r"\*", "[^.]+")) for pattern in patterns]
        names = [name for path in paths for name in modules if path.fullmatch(name)]
        if not names:
            near = closest(spec.modules, modules)
            raise PatchError(f"no module {spec.modules!r} in {type(model).__name__}{near}")
        found += [(name, spec) for name in names]
    return [(_read_site(i, name, spec, modules), spec) for i, (name, spec) in enumerate(found)]


def shipped_table(model: nn.Module) -> tuple[SiteSpec, ...]:
    """The first of the tables in `textpatch.ports` for a model's class, or one it inherits, that fits it.

    Raises PatchError if there is none.
    """
    ports, reasons = import_module("textpatch.ports").TABLES, []
    for table in (table for kind in type(model).__mro__ for table in ports.get(kind.__name__, ())):
        try:
            match_sites(model, table)
        except PatchError as reason:
            reasons.append(str(reason))
        else:
            return table
    raise PatchError(
        f"no sites known for {type(model).__name__}: it has no `sites`, and "
        + (f"no shipped table fits ({'; '.join(reasons)})" if reasons else "no table is shipped for its class")
        + "; give find_sites a table of SiteSpecs"
    )


def _read_site(index: int, name: str, spec: SiteSpec, modules: dict[str, nn.Module]) -> Site:
    """A site as its row says, with its sizes read off the modules."""
    taps = [f"{name}.{path}" for path in spec.projections or TEXT_PROJECTIONS[spec.kind]]
    for path in [*taps, *([f"{name}.{spec.norm}"] if spec.norm else [])]:
        if path not in modules:
            raise PatchError(f"site {name!r} has no module {path!r}{closest(path, modules)}")
    heads, kv_heads = (_number(modules[name], name, x) for x in (spec.heads, spec.kv_heads))
    first, second, parts = spec.fused or (0, 0, 1)
    out = _number(modules[taps[0]], taps[0], "out_features")
    width, rest = divmod(out, parts)
    if rest or width % (kv_heads or heads):
        raise PatchError(
            f"{out} channels of {taps[0]!r} do not divide into {parts} parts of {kv_heads or heads} heads; "
            "see `heads`, `kv_heads` and `fused` of the table"
        )
    count = sum(_count(modules[tap]) for tap in taps) // parts
    channels = [(part * width, (part + 1) * width) if spec.fused else None for part in (first, second)]
    return Site(index, name, spec.kind, heads, width // (kv_heads or heads), count, kv_heads, spec.text_input,
                tuple(map(Tap, taps, channels)), spec.span)  # fmt: skip


def _number(module: nn.Module, name: str, asked: str | int | None) -> int | None:
    """The number itself, or the module's attribute of that name."""
    if asked is None or isinstance(asked, int):
        return asked
    if not isinstance(getattr(module, asked, None), int):
        raise PatchError(f"{name!r} has no number {asked!r}{closest(asked, vars(module))}")
    return getattr(module, asked)


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
    chosen = {site.index for selector in plain_selectors(wanted) for site in _match(sites, selector)}
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
            raise PatchError(f"sites {selector!r} count down from {first} to {last}; write '{last}-{first}'")
        return range(first, last + 1)
    if isinstance(selector, bool) or not hasattr(selector, "__index__"):
        raise PatchError(f"sites hold {selector!r}, which is no index, name or glob; select_sites lists the forms")
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

"""Matching of a port to a foreign model, which finds the model's sites.

A port is a table of SiteSpecs, one row for all attention modules of one make.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from textpatch.anatomy import TEXT_PROJECTIONS
from textpatch.errors import PatchError, closest
from textpatch.sites import Site, Span, Tap, is_count, parameter_count, require_known


@dataclass(frozen=True)
class SiteSpec:
    """One row of a port, for attention modules of one make.

    modules      paths of the modules, as one pattern or several, where `*` stands for one name between
                 dots.  If several patterns are given, some may match nothing.  Execution order is
                 that of the table's rows, then of the patterns within a row, then of the model's
                 own modules
    kind         "cross", "added", "joint" or "single"
    projections  modules that make K and V, below the attention module.  `TEXT_PROJECTIONS` when None
    fused        (i, j, n) if K and V are the i-th and j-th, from 0, of n equal parts of the
                 projections' output.  None if K and V are all of it
    span         tokens of that output that are text
    order        order of the concatenated keys, "text first" or "image first".  None if the text
                 stands alone, or if the span says it
    heads        number of query heads, or the attribute of the attention module that holds it
    kv_heads     number of K and V heads, likewise.  As `heads` when None
    norm         norm below the attention module between these K and attention
    rotary       True if these K are turned by their position
    text_input   `text_input` of the sites
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

    def __post_init__(self) -> None:
        require_known("kind", self.kind, TEXT_PROJECTIONS)
        if not isinstance(self.span, Span):
            raise PatchError(f"span of {self.modules!r} is {self.span!r}; give a Span")
        alone = self.kind == "cross" or self.span.place != "all"
        require_known("order", self.order, (None,) if alone else ("text first", "image first"))
        if self.kind == "single" and self.span.place == "all":
            raise PatchError(
                f"{self.modules!r} is of kind 'single' and spans 'all'; image tokens pass there too"
            )
        if not self.patterns or not all(_is_name(pattern) for pattern in self.patterns):
            raise PatchError(f"modules is {self.modules!r}; give a pattern of paths, or several")
        for name in ("heads", "kv_heads"):
            value = getattr(self, name)
            if not (_is_name(value) or is_count(value) or (name == "kv_heads" and value is None)):
                raise PatchError(
                    f"{name} of {self.modules!r} is {value!r}; give a whole number from 1 on, or the name "
                    "of an attribute that holds it"
                )
        self._require_projections()

    def _require_projections(self) -> None:
        """Raise PatchError unless K and V have a projection each, and a part of it where parts are fused."""
        if self.projections is not None and not (
            _is_several(self.projections, 2) and all(map(_is_name, self.projections))
        ):
            raise PatchError(
                f"projections is {self.projections!r}; give the path of K's and the path of V's"
            )
        if self.fused is None:
            return
        if not _is_several(self.fused, 3) or not all(type(part) is int for part in self.fused):
            raise PatchError(
                f"fused is {self.fused!r}; give three whole numbers: K's part, V's part and how many"
            )
        if not all(0 <= part < self.fused[2] for part in self.fused[:2]):
            raise PatchError(
                f"fused is {self.fused}; parts are numbered 0..{self.fused[2] - 1}; "
                "give K's, V's and how many"
            )

    @property
    def text_place(self) -> str:
        """Place of the text among the keys that attention gets, "all", "first" or "last"."""
        return {None: self.span.place, "text first": "first", "image first": "last"}[self.order]

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the modules' paths."""
        if isinstance(self.modules, str) or not isinstance(self.modules, Sequence):
            return (self.modules,)
        return tuple(self.modules)


def _is_name(value: object) -> bool:
    """True for a text that is not empty."""
    return isinstance(value, str) and value != ""


def _is_several(value: object, count: int) -> bool:
    """True for a tuple or list of so many."""
    return isinstance(value, (tuple, list)) and len(value) == count


def match_sites(model: nn.Module, table: Sequence[SiteSpec]) -> list[tuple[Site, SiteSpec]]:
    """Match a table to a model, and give the sites found, each with its row of the table.

    Raises PatchError for a table that is empty or holds anything but SiteSpecs, if a row does not fit,
    and if two patterns find one module.
    """
    require_module(model)
    _require_table(table)
    modules = dict(model.named_modules())
    found: list[tuple[str, SiteSpec]] = []
    for spec in table:
        paths = [_path(pattern) for pattern in spec.patterns]
        names = [name for path in paths for name in modules if path.fullmatch(name)]
        if not names:
            near = closest(" ".join(spec.patterns), modules)
            raise PatchError(f"no module {spec.modules!r} in {type(model).__name__}{near}")
        found += [(name, spec) for name in names]
    for name, times in Counter(name for name, _ in found).items():
        if times > 1:
            raise PatchError(
                f"the table finds module {name!r} {times} times; let one pattern alone match it"
            )
    return [(_read_site(i, name, spec, modules), spec) for i, (name, spec) in enumerate(found)]


def require_module(model: object) -> None:
    """Raise PatchError unless a model is a module, which alone has sites to be found."""
    if not isinstance(model, nn.Module):
        raise PatchError(
            f"sites were asked of a {type(model).__name__}, which is no torch.nn.Module; "
            "give the denoiser itself"
        )


def _require_table(table: Sequence[SiteSpec]) -> None:
    """Raise PatchError unless a table is a list of SiteSpecs, one at least."""
    if not isinstance(table, Sequence) or not all(isinstance(spec, SiteSpec) for spec in table):
        raise PatchError(f"the table of sites is {table!r}; give a list, [SiteSpec(...), ...]")
    if not table:
        raise PatchError("the table of sites is empty, so no site would be found; give SiteSpecs")


def _path(pattern: str) -> re.Pattern[str]:
    """Regular expression of a module's path."""
    return re.compile(re.escape(pattern).replace(r"\*", "[^.]+"))


def _read_site(index: int, name: str, spec: SiteSpec, modules: dict[str, nn.Module]) -> Site:
    """Site of a row of the table, with its sizes read off the modules."""
    paths = spec.projections or TEXT_PROJECTIONS[spec.kind]
    taps = [f"{name}.{path}" for path in paths]
    _require_present(name, taps, modules)
    if spec.norm:
        _require_present(name, [f"{name}.{spec.norm}"], modules)
    heads = _number(modules[name], name, spec.heads)
    kv_heads = None
    if spec.kv_heads is not None:
        kv_heads = _number(modules[name], name, spec.kv_heads)
    first, second, parts = spec.fused or (0, 0, 1)
    out = _number(modules[taps[0]], taps[0], "out_features")
    width = _width(taps[0], out, parts, kv_heads or heads)
    channels: list[tuple[int, int] | None] = [None, None]
    if spec.fused:
        channels = [(part * width, (part + 1) * width) for part in (first, second)]
    return Site(
        index=index,
        name=name,
        kind=spec.kind,
        heads=heads,
        head_dim=width // (kv_heads or heads),
        parameters=sum(parameter_count(modules[tap]) for tap in taps) // parts,
        kv_heads=kv_heads,
        text_input=spec.text_input,
        taps=tuple(map(Tap, taps, channels)),
        span=spec.span,
        keys=replace(spec.span, place=spec.text_place),
    )


def _require_present(site: str, paths: Sequence[str], modules: dict[str, nn.Module]) -> None:
    """Raise PatchError unless a site has the modules that a row of the table names."""
    for path in paths:
        if path not in modules:
            raise PatchError(f"site {site!r} has no module {path!r}{closest(path, modules)}")


def _width(tap: str, out: int, parts: int, heads: int) -> int:
    """Number of channels of one of the equal parts of a projection's output.

    Raises PatchError unless they divide into the parts, and each part into the heads.
    """
    width, rest = divmod(out, parts)
    if rest or width % heads:
        raise PatchError(
            f"{out} channels of {tap!r} do not divide into {parts} parts of {heads} heads; "
            "see `heads`, `kv_heads` and `fused` of the table"
        )
    return width


def _number(module: nn.Module, name: str, asked: str | int) -> int:
    """Number itself, or the module's attribute of that name.

    Raises PatchError if the module has no such number, or one below 1.
    """
    if isinstance(asked, int):
        return asked
    found = getattr(module, asked, None)
    if not isinstance(found, int):
        raise PatchError(f"{name!r} has no number {asked!r}{closest(asked, vars(module))}")
    if not is_count(found):
        raise PatchError(
            f"{asked!r} of {name!r} is {found}, and heads and channels are counted from 1; name another "
            "attribute, or give the number"
        )
    return found

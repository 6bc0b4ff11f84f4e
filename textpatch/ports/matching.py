"""Matching of a port to a foreign model, which finds the model's sites.

A port is a table of SiteSpecs.  A new one is a file with a literal table of SiteSpecs and a line in `tables`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from textpatch.anatomy import TEXT_PROJECTIONS
from textpatch.errors import PatchError, closest
from textpatch.sites import Site, Span, Tap, parameter_count, require_known


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
                 projections' output
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
        alone = self.kind == "cross" or self.span.place != "all"
        require_known("order", self.order, (None,) if alone else ("text first", "image first"))
        if self.kind == "single" and self.span.place == "all":
            raise PatchError(
                f"{self.modules!r} is of kind 'single' and spans 'all'; image tokens pass there too"
            )
        if self.fused and not all(0 <= part < self.fused[2] for part in self.fused[:2]):
            last = self.fused[2] - 1
            raise PatchError(
                f"fused is {self.fused}; parts are numbered 0..{last}; give K's, V's and how many"
            )

    @property
    def text_place(self) -> str:
        """Place of the text among the keys that attention gets, "all", "first" or "last"."""
        return {None: self.span.place, "text first": "first", "image first": "last"}[self.order]

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the modules' paths."""
        if isinstance(self.modules, str):
            return (self.modules,)
        return self.modules


def match_sites(model: nn.Module, table: Sequence[SiteSpec]) -> list[tuple[Site, SiteSpec]]:
    """Match a table to a model, and give the sites found, each with its row of the table.

    Raises PatchError if a row does not fit.
    """
    modules = dict(model.named_modules())
    found = []
    for spec in table:
        paths = [_path(pattern) for pattern in spec.patterns]
        names = [name for path in paths for name in modules if path.fullmatch(name)]
        if not names:
            near = closest(" ".join(spec.patterns), modules)
            raise PatchError(f"no module {spec.modules!r} in {type(model).__name__}{near}")
        found += [(name, spec) for name in names]
    return [(_read_site(i, name, spec, modules), spec) for i, (name, spec) in enumerate(found)]


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

    Raises PatchError if the module has no such number.
    """
    if isinstance(asked, int):
        return asked
    found = getattr(module, asked, None)
    if not isinstance(found, int):
        raise PatchError(f"{name!r} has no number {asked!r}{closest(asked, vars(module))}")
    return found

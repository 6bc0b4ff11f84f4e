"""Matching of a port to a foreign model, which finds the model's sites.

A port is a table of SiteSpecs, one row for all attention modules of one make.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from textpatch.anatomy import TEXT_PROJECTIONS
from textpatch.errors import PatchError, closest
from textpatch.sites import Site, Span, Tap, is_count, parameter_count, require_known


@dataclass(frozen=True)
class SiteSpec:
    """One row of a port, for attention modules of one make.

    modules      paths of the modules, as one pattern or several, where `*` stands for one name between
                 dots and `{1,4}` for one of these.  If several patterns are given, some may match
                 nothing.  Execution order is that of the table's rows, then of the patterns within a
                 row, then of the model's own modules
    between      True if the modules of each pattern run in between those of the pattern at the same
                 place in the row before
    kind         "cross", "added", "joint" or "single"
    projections  modules that make K and V, below the attention module.  `TEXT_PROJECTIONS` when None
    fused        (i, j, n) if K and V are the i-th and j-th, from 0, of n equal parts of the
                 projections' output, or of parts as wide as the attribute n of the attention module
                 says.  None if K and V are all of it
    span         tokens of that output that are text
    order        order of the concatenated keys, "text first" or "image first".  None if the text
                 stands alone, or if the span says it
    heads        number of query heads, or the attribute of the attention module that holds it
    kv_heads     number of K and V heads, likewise.  As `heads` when None
    queries      module that makes queries, below the attention module, if K and V have as many heads
                 as their width holds of its heads, and no attribute counts them
    rotary       True if keys of a joint stream are turned by their position, which `audit` does not replay
    text_input   `text_input` of the sites
    Raises PatchError for values that contradict each other.
    """

    modules: str | tuple[str, ...]
    kind: str
    projections: tuple[str, str] | None = None
    fused: tuple[int, int, int | str] | None = None
    span: Span = Span()
    order: str | None = None
    heads: str | int = "heads"
    kv_heads: str | int | None = None
    queries: str | None = None
    rotary: bool = False
    text_input: str = "text"
    between: bool = False

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
        if self.fused is not None:
            self._require_parts(self.fused)

    @staticmethod
    def _require_parts(fused: object) -> None:
        """Raise PatchError unless K's part and V's are numbers below how many there are."""
        parts = tuple(fused) if isinstance(fused, (tuple, list)) else ()
        numbers = parts[:2] if len(parts) == 3 and _is_name(parts[2]) else parts
        if len(parts) != 3 or not all(type(part) is int for part in numbers):
            raise PatchError(
                f"fused is {fused!r}; give three whole numbers: K's part, V's part and how many, or the "
                "attribute that holds how wide they are"
            )
        last = numbers[2] - 1 if len(numbers) == 3 else max(numbers)
        if not all(0 <= part <= last for part in numbers[:2]):
            raise PatchError(
                f"fused is {fused!r}; parts are numbered 0..{last}; give K's, V's and how many"
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
    for rows in _runs(table):
        for spec in rows:
            if not any(
                _path(pattern).fullmatch(name) for pattern in spec.patterns for name in modules
            ):
                near = closest(" ".join(spec.patterns), modules)
                raise PatchError(f"no module {spec.modules!r} in {type(model).__name__}{near}")
        found += _in_order(rows, modules)
    for name, times in Counter(name for name, _ in found).items():
        if times > 1:
            raise PatchError(
                f"the table finds module {name!r} {times} times; let one pattern alone match it"
            )
    return [(_read_site(i, name, spec, modules), spec) for i, (name, spec) in enumerate(found)]


def _runs(table: Sequence[SiteSpec]) -> list[list[SiteSpec]]:
    """Rows of a table, those together that run in between each other.

    Raises PatchError for rows with other numbers of patterns that do so.
    """
    runs: list[list[SiteSpec]] = []
    for spec in table:
        if not spec.between or not runs:
            runs.append([])
        elif len(spec.patterns) != len(runs[-1][0].patterns):
            raise PatchError(
                f"{spec.modules!r} run in between {runs[-1][0].modules!r}, pattern by pattern; give both "
                "rows as many patterns"
            )
        runs[-1].append(spec)
    return runs


def _in_order(rows: Sequence[SiteSpec], names: Iterable[str]) -> list[tuple[str, SiteSpec]]:
    """Modules of some rows that run in between each other, each with its row, in execution order."""
    found = []
    for patterns in zip(*(spec.patterns for spec in rows), strict=True):
        paths = list(zip(map(_path, patterns), rows, strict=True))
        found += [(name, spec) for name in names for path, spec in paths if path.fullmatch(name)]
    return found


def require_module(model: object) -> None:
    """Raise PatchError unless a model is a module, which alone has sites to be found."""
    if not isinstance(model, nn.Module):
        parts = [name for name in ("transformer", "unet") if hasattr(model, name)]
        cure = (
            f"give its .{parts[0]}, or textpatch.wrap(pipe)"
            if parts
            else "give the denoiser itself"
        )
        raise PatchError(
            f"sites were asked of a {type(model).__name__}, which is no torch.nn.Module; {cure}"
        )
    if hasattr(model, "_orig_mod"):
        raise PatchError(
            f"sites were asked of a model that torch.compile made ({type(model).__name__}), and compiled "
            "code passes by what is put into it; give the model as it was before, its ._orig_mod"
        )


def _require_table(table: Sequence[SiteSpec]) -> None:
    """Raise PatchError unless a table is a list of SiteSpecs, one at least."""
    if not isinstance(table, Sequence) or not all(isinstance(spec, SiteSpec) for spec in table):
        raise PatchError(f"the table of sites is {table!r}; give a list, [SiteSpec(...), ...]")
    if not table:
        raise PatchError("the table of sites is empty, so no site would be found; give SiteSpecs")


def _path(pattern: str) -> re.Pattern[str]:
    """Regular expression of a module's path."""
    plain = re.escape(pattern).replace(r"\*", "[^.]+")
    return re.compile(
        re.sub(r"\\{(.*?)\\}", lambda some: f"(?:{some[1].replace(',', '|')})", plain)
    )


def _read_site(index: int, name: str, spec: SiteSpec, modules: dict[str, nn.Module]) -> Site:
    """Site of a row of the table, with its sizes read off the modules."""
    paths = spec.projections or TEXT_PROJECTIONS[spec.kind]
    taps = [f"{name}.{path}" for path in paths]
    _require_present(name, taps, modules)
    heads = _number(modules[name], name, spec.heads)
    first, second, parts = spec.fused or (0, 0, 1)
    out = _number(modules[taps[0]], taps[0], "out_features")
    width = _part_width(spec, name, taps[0], modules)
    kv_heads = _kv_heads(spec, name, width, modules)
    if width % (kv_heads or heads):
        raise PatchError(
            f"{out} channels of {taps[0]!r} do not divide into {parts} parts of {kv_heads or heads} heads; "
            "see `heads`, `kv_heads` and `fused` of the table"
        )
    channels: list[tuple[int, int] | None] = [None, None]
    if spec.fused:
        channels = [(part * width, (part + 1) * width) for part in (first, second)]
    return Site(
        index=index,
        name=name,
        kind=spec.kind,
        heads=heads,
        head_dim=width // (kv_heads or heads),
        parameters=sum(parameter_count(modules[tap]) for tap in taps) * width // out,
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


def _part_width(spec: SiteSpec, name: str, tap: str, modules: dict[str, nn.Module]) -> int:
    """Number of channels of K or V in a projection's output.

    Raises PatchError unless the output divides into the parts that the table says, or holds those it names.
    """
    out = _number(modules[tap], tap, "out_features")
    if spec.fused is None:
        return out
    first, second, parts = spec.fused
    if isinstance(parts, str):
        width = _number(modules[name], name, parts)
        wanted = width * (max(first, second) + 1)
        if out < wanted:
            raise PatchError(
                f"{out} channels of {tap!r} do not hold part {max(first, second)} of parts of {width}, "
                f"which is {parts!r}; see `fused` of the table"
            )
        return width
    width, rest = divmod(out, parts)
    if rest:
        raise PatchError(
            f"{out} channels of {tap!r} do not divide into {parts} parts; see `fused` of the table"
        )
    return width


def _kv_heads(spec: SiteSpec, name: str, width: int, modules: dict[str, nn.Module]) -> int | None:
    """Number of K and V heads by the table.  None where it says nothing of them."""
    if spec.queries is not None:
        heads = _number(modules[name], name, spec.heads)
        tap = f"{name}.{spec.queries}"
        _require_present(name, [tap], modules)
        return width * heads // _number(modules[tap], tap, "out_features")
    if spec.kv_heads is not None:
        return _number(modules[name], name, spec.kv_heads)
    return None


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

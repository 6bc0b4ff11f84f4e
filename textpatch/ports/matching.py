"""A port: a table that says where a foreign model has its sites, and how it is matched to the model.

A new port is a file with a literal table of SiteSpecs and a line in `tables`.
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
        """`all`, `first` or `last`: where the text is among the keys that attention gets."""
        return {None: self.span.place, "text first": "first", "image first": "last"}[self.order]


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
    count = sum(parameter_count(modules[tap]) for tap in taps) // parts
    channels = [
        (part * width, (part + 1) * width) if spec.fused else None for part in (first, second)
    ]
    return Site(
        index,
        name,
        spec.kind,
        heads,
        width // (kv_heads or heads),
        count,
        kv_heads,
        spec.text_input,
        tuple(map(Tap, taps, channels)),
        spec.span,
    )


def _number(module: nn.Module, name: str, asked: str | int | None) -> int | None:
    """The number itself, or the module's attribute of that name."""
    if asked is None or isinstance(asked, int):
        return asked
    if not isinstance(getattr(module, asked, None), int):
        raise PatchError(f"{name!r} has no number {asked!r}{closest(asked, vars(module))}")
    return getattr(module, asked)

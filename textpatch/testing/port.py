"""A port under test: what a model's taps put out, and what its attention gets, heard through plain torch hooks.

Every call of `torch.nn.functional.scaled_dot_product_attention` is noted with what it gets: that is the truth
which a table of sites, and capture and patch by that table, can be compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from textpatch.errors import PatchError
from textpatch.patching import KVCache, capture, patch
from textpatch.ports.matching import SiteSpec
from textpatch.sites import Site

CLOSE = 1e-4  # relative: another place in the batch moves the last bits of float32, a wrong table far more
Findings = Iterator[
    "str | Site"
]  # what speaks against a check; a Site alone means that it does not hold there
CHECKS: list[Callable[[Port], Findings]] = []


def check(function: Callable[[Port], Findings]) -> Callable[[Port], Findings]:
    """Make a function a check of every port."""
    CHECKS.append(function)
    return function


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= CLOSE * b.abs().max())


@dataclass
class Heard:
    """One call of a model: its output (B, ...), and in order what was tapped (name, output) and attended to.

    An attention is (None, (q, k, v)).
    """

    output: Tensor
    events: list[tuple[str | None, Any]]

    @property
    def names(self) -> list[str | None]:
        return [name for name, _ in self.events]

    def made(self, module: str) -> Tensor:
        return dict(self.events)[module]

    def attention(self, site: Site) -> int | None:
        """The place among the events of the attention that follows the site's taps at once; None without one."""
        taps, names = {tap.module for tap in site.taps}, [*self.names, "end"]
        after = 1 + max((i for i, name in enumerate(names) if name in taps), default=-1)
        return after if names[after] is None else None

    def attended(self, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v, each (B, H, tokens, D), as attention gets them at a site."""
        at = self.attention(site)
        if at is None:
            raise PatchError(
                f"no scaled_dot_product_attention follows the K and V of site {site.name!r}"
            )
        return self.events[at][1]


class _Attention(TorchFunctionMode):
    """Notes what scaled_dot_product_attention gets; `alter`(place in events, its output) gives its output."""

    def __init__(self, events: list, alter: Callable[[int, Tensor], Tensor] | None):
        super().__init__()
        self.events, self.alter = events, alter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is not F.scaled_dot_product_attention:
            return out
        named = [kwargs[name] for name in ("query", "key", "value")[len(args) :]]
        self.events.append((None, (*args, *named)[:3]))
        return out if self.alter is None else self.alter(len(self.events) - 1, out)


@contextmanager
def _plain_hooks(modules: dict[str, nn.Module], events: list) -> Iterator[None]:
    with ExitStack() as stack:
        for name, module in modules.items():
            note = partial(lambda name, module, args, output: events.append((name, output)), name)
            stack.callback(module.register_forward_hook(note).remove)
        yield


def take(value, rows: list[int]):
    """Some rows, in the order given, of an argument; what does not hold one entry per row stays."""
    if isinstance(value, dict):
        return {name: take(item, rows) for name, item in value.items()}
    if isinstance(value, Tensor):
        return value[rows] if value.dim() and len(value) == len(rows) else value
    whole = isinstance(value, (list, tuple)) and len(value) == len(rows)
    return [value[row] for row in rows] if whole else value


def apply(fn, value):
    """fn of every floating-point tensor in an argument."""
    if isinstance(value, dict):
        return {name: apply(fn, item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [apply(fn, item) for item in value]
    return fn(value) if isinstance(value, Tensor) and value.is_floating_point() else value


class Port:
    """A model, the sites a table finds there, and inputs to try them on; row 0 is read and written first."""

    def __init__(
        self, model: nn.Module, matched: list[tuple[Site, SiteSpec]], inputs: dict, picture: str
    ):
        self.model, self.matched, self.inputs, self.picture = model, matched, inputs, picture
        self.sites = tuple(site for site, _ in matched)
        self.text = self.sites[0].span.text
        for name in (self.text, picture):
            if name not in inputs:
                raise PatchError(
                    f"no {name!r} among the example inputs {sorted(inputs)}; give forward's by name"
                )
        self.rows = list(range(len(inputs[self.text])))
        self.next_rows = [*self.rows[1:], 0]
        self.reads = [1, *[None] * (len(self.rows) - 1)]  # row 0 reads row 1
        self.tapped = {
            tap.module: model.get_submodule(tap.module) for site in self.sites for tap in site.taps
        }
        self.plain = self.listen()

    @property
    def samples(self) -> list[tuple[Site, SiteSpec]]:
        """The last site of each row of the table."""
        return list({spec: (site, spec) for site, spec in self.matched}.values())

    def with_rows(self, *names: str, rows: list[int] | None = None) -> dict:
        """The inputs, with other rows, by default the next, of some arguments."""
        return self.inputs | {
            name: take(self.inputs[name], rows or self.next_rows) for name in names
        }

    @property
    def masks(self) -> list[str]:
        """The arguments of forward that hide text tokens, by the table or by their names."""
        said = [site.span.mask for site in self.sites if site.span.mask]
        return list(
            dict.fromkeys(
                said + [name for name in signature(self.model.forward).parameters if "mask" in name]
            )
        )

    def masked(self, name: str, rows: list[int], inputs: dict | None = None) -> dict:
        """The inputs with a mask (B, T) that hides the last text token of some rows, and no other."""
        text = self.inputs[self.text]
        seen = torch.ones(
            len(text), len(text[0]), dtype=getattr(self.inputs.get(name), "dtype", torch.bool)
        )
        seen[rows, -1] = 0
        return (inputs or self.inputs) | {name: seen.to(text[0].device)}

    def listen(self, inputs: dict | None = None, alter=None) -> Heard:
        """Call the model and hear it."""
        events = []
        with torch.no_grad(), _Attention(events, alter), _plain_hooks(self.tapped, events):
            output = self.model(**(inputs or self.inputs))
        output = output if isinstance(output, Tensor) else output[0]
        return Heard(torch.stack(list(output)), events)

    def captured(self, inputs: dict | None = None) -> KVCache:
        with capture(self.model, self.sites, rows=self.rows) as cache:
            self.listen(inputs)
        return cache

    @cached_property
    def cache(self) -> KVCache:
        return self.captured()

    def reading(self, site: Site | None = None, inputs: dict | None = None, **options) -> Heard:
        """A call in which row 0 reads, at a site or at all, the K and V that row 1 has in the plain run."""
        with patch(self.model, self.cache, site or self.sites, rows=self.reads, **options):
            return self.listen(inputs)

    def length(self, site: Site) -> int:
        """T, counted anew."""
        value, pad = self.inputs[site.span.text], site.span.pad_to
        tokens = value.shape[1] if isinstance(value, Tensor) else max(map(len, value))
        return tokens + (-tokens) % pad

    def place(self, site: Site, place: str) -> slice:
        """The text among tokens, at the `first`, the `last`, or `all`."""
        length = self.length(site)
        return {"all": slice(None), "first": slice(length), "last": slice(-length, None)}[place]

    def is_text(self, site: Site, spec: SiteSpec, x: Tensor) -> Tensor:
        """Bool (tokens,): which tokens of x (B, H, tokens, D), as attention gets or gives it, are text."""
        text = torch.zeros(x.shape[2], dtype=torch.bool, device=x.device)
        text[self.place(site, spec.text_place)] = True
        return text

    def text_kv(self, heard: Heard, site: Site, spec: SiteSpec) -> list[Tensor]:
        """K and V (B, T, W) by the table alone, cut anew from the taps' outputs."""
        first, second, parts = spec.fused or (0, 0, 1)
        made = [heard.made(tap.module)[:, self.place(site, spec.span.place)] for tap in site.taps]
        return [x.chunk(parts, dim=-1)[part] for x, part in zip(made, (first, second))]

    def same_text(self, heard: Heard, site: Site, spec: SiteSpec) -> bool:
        """Whether a site's text K and V are those of the plain run."""
        pairs = zip(self.text_kv(heard, site, spec), self.text_kv(self.plain, site, spec))
        return all(torch.equal(new, own) for new, own in pairs)

    def as_attended(self, x: Tensor, site: Site, heads: int) -> Tensor:
        """(B, T, W) -> (B, heads, T, D): each K and V head for the queries that share it."""
        x = x.unflatten(-1, (site.text_heads, -1)).transpose(1, 2)
        return x.repeat_interleave(heads // site.text_heads, dim=1)

    def normed(self, k: Tensor, site: Site, spec: SiteSpec) -> Tensor:
        """K (B, T, W) after the norm that the table names, of each head or of all."""
        if spec.norm is None:
            return k
        norm = self.model.get_submodule(f"{site.name}.{spec.norm}")
        wide = getattr(norm, "weight", None) is not None and len(norm.weight) == k.shape[-1]
        with torch.no_grad():
            return norm(k) if wide else norm(k.unflatten(-1, (site.text_heads, -1))).flatten(2)

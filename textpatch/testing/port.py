"""A port under test, its taps and its attention heard through plain torch hooks.

Every call of `torch.nn.functional.scaled_dot_product_attention` is noted with its queries, keys and values.
A table of sites, and capture and patch by that table, are compared with these.

B rows, H heads, T text tokens, D head width, W = K and V heads x D
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import signature
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.masks import argument_and_entry
from textpatch.patching import KVCache, capture, patch
from textpatch.ports.matching import SiteSpec
from textpatch.sites import Site
from textpatch.testing.inputs import Text, take, text_of

# relative: another place in the batch moves the last bits of float32, a wrong table far more
CLOSE = 1e-4
EXACT = 1e-12  # relative, of float64
# findings against a check; a Site alone means that it does not hold there
Findings = Iterator["str | Site"]
CHECKS: list[Callable[[Port], Findings]] = []
# alter(place among the events, output of an attention) -> the output in its place
Alter = Callable[[int, Tensor], Tensor]
# queries, keys and values, each (B, H, tokens, D)
Attended: TypeAlias = tuple[Tensor, Tensor, Tensor]
Events: TypeAlias = list[tuple[str | None, Tensor | Attended]]


def check(function: Callable[[Port], Findings]) -> Callable[[Port], Findings]:
    """Make a function a check of every port."""
    CHECKS.append(function)
    return function


def close(a: Tensor, b: Tensor) -> bool:
    """True if a and b differ by at most CLOSE of b's largest number."""
    return bool((a - b).abs().max() <= CLOSE * b.abs().max())


def alike(a: Tensor, b: Tensor) -> bool:
    """True if a and b, of two rows of one batch, differ by at most 1e-12 in float64, and are close else."""
    if a.dtype == torch.float64:
        return bool((a - b).abs().max() <= EXACT * b.abs().max())
    return close(a, b)


@dataclass
class Heard:
    """One call of a model.

    output  (B, ...)
    events  in order, (name, output) for each tapped module and (None, (q, k, v)) for each attention
    """

    output: Tensor
    events: Events

    @property
    def names(self) -> list[str | None]:
        """Module names of the events, None for an attention."""
        return [name for name, _ in self.events]

    def made(self, module: str) -> Tensor:
        """Output of a tapped module."""
        return cast(Tensor, dict(self.events)[module])

    def attention(self, site: Site) -> int | None:
        """Place among the events of the attention that follows the site's taps at once.  None without one."""
        taps = {tap.module for tap in site.taps}
        after = 1 + max((i for i, name in enumerate(self.names) if name in taps), default=-1)
        if after < len(self.events) and self.names[after] is None:
            return after
        return None

    def attended(self, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, tokens, D), as attention gets them at a site."""
        at = self.attention(site)
        if at is None:
            raise PatchError(
                f"no scaled_dot_product_attention follows the K and V of site {site.name!r}"
            )
        return cast(Attended, self.events[at][1])


class _Attention(TorchFunctionMode):
    """Notes of the q, k, v that scaled_dot_product_attention gets.

    alter  alter(place in events, output) gives the output in its place
    """

    def __init__(self, events: Events, alter: Alter | None) -> None:
        super().__init__()
        self.events = events
        self.alter = alter

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is not F.scaled_dot_product_attention:
            return out
        named = [kwargs[name] for name in ("query", "key", "value")[len(args) :]]
        q, k, v = cast(Attended, (*args, *named)[:3])
        # copies, for a swap writes into the keys and values only while they are attended to
        self.events.append((None, (q.clone(), k.clone(), v.clone())))
        if self.alter is None:
            return out
        return self.alter(len(self.events) - 1, cast(Tensor, out))


@contextmanager
def _plain_hooks(modules: dict[str, nn.Module], events: Events) -> Iterator[None]:
    def note(name: str, module: nn.Module, args: object, output: Tensor) -> None:
        events.append((name, output))

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(partial(note, name)).remove)
        yield


def _whole(output: Tensor) -> Tensor:
    """Output of a model that puts out nothing but the picture."""
    return output


class Port:
    """A model, the sites that a table finds there, and inputs to try them on.

    matched    each site with the row of the table that finds it
    inputs     the arguments of the model's forward, by name
    texts      names of the arguments that hold text, those that the inputs have
    layered    names of those that hold one text per layer
    picture    name of the argument that holds the noisy picture
    shown      shown(output) is the part of the output that is picture
    pooled     names of modules that make something of the text beside the sites
    next_rows  the rows of the batch, turned by one
    reads      rows for `patch`, by which row 0 reads row 1
    plain      a call of the model as it is
    """

    def __init__(
        self,
        model: nn.Module,
        matched: list[tuple[Site, SiteSpec]],
        inputs: dict[str, object],
        picture: str,
        output: Callable[[Tensor], Tensor] | None = None,
        pooled: Sequence[str] = (),
    ) -> None:
        self.shown = output or _whole
        self.pooled = tuple(pooled)
        self.model = model
        self.matched = matched
        self.inputs = inputs
        self.picture = picture
        self.sites = tuple(site for site, _ in matched)
        spelled = [argument_and_entry(name) for site in self.sites for name in site.span.texts]
        self.layered = {name for name, entry in spelled if entry is not None}
        known = dict.fromkeys(name for name, _ in spelled)
        self.texts = tuple(name for name in known if inputs.get(name) is not None)
        for name in (*(self.texts or known), picture):
            if name not in inputs:
                raise PatchError(
                    f"no {name!r} among the example inputs {sorted(inputs)}; give forward's by name"
                )
        self.rows = list(range(len(self.texts_of(self.sites[0])[0])))
        self.next_rows = [*self.rows[1:], 0]
        self.reads: list[int | None] = [1, *[None] * (len(self.rows) - 1)]
        self.tapped = {
            tap.module: model.get_submodule(tap.module) for site in self.sites for tap in site.taps
        }
        self.plain = self.listen()

    @property
    def samples(self) -> list[tuple[Site, SiteSpec]]:
        """Last site of each row of the table."""
        return list({spec: (site, spec) for site, spec in self.matched}.values())

    def with_rows(self, *names: str, rows: list[int] | None = None) -> dict[str, object]:
        """Inputs in which some arguments have other rows, by default the next."""
        order = rows or self.next_rows
        changed = dict(self.inputs)
        for name in names:
            value = self.inputs[name]
            if name in self.layered:
                layers = [cast(Tensor, take(layer, order)) for layer in cast(list[Tensor], value)]
                changed[name] = torch.stack(layers) if isinstance(value, Tensor) else layers
            else:
                changed[name] = take(value, order)
        return changed

    def texts_of(self, site: Site) -> list[Text]:
        """Texts that a site reads and that the inputs have."""
        texts = []
        for name, entry in map(argument_and_entry, site.span.texts):
            if name in self.texts:
                text = text_of(self.inputs, name)
                texts.append(text if entry is None else text[entry])
        return texts

    @property
    def masks(self) -> list[str]:
        """Arguments of forward that hide text tokens, by the table or by their names."""
        said = [name for site in self.sites for name in site.span.masks]
        named = [name for name in signature(self.model.forward).parameters if "mask" in name]
        return list(dict.fromkeys(said + named))

    def masked(
        self, name: str, rows: list[int], inputs: dict[str, object] | None = None
    ) -> dict[str, object]:
        """Inputs with a mask (B, T) that hides the last text token of some rows, and no other."""
        text = self.text_behind(name)
        dtype = getattr(self.inputs.get(name), "dtype", torch.bool)
        seen = torch.ones(len(text), len(text[0]), dtype=dtype)
        seen[rows, -1] = 0
        return (inputs or self.inputs) | {name: seen.to(text[0].device)}

    def text_behind(self, mask: str) -> Text:
        """Text whose tokens a mask hides, by the table, or the first."""
        for site in self.sites:
            for name, text in zip(site.span.masks, self.texts_of(site), strict=False):
                if name == mask:
                    return text
        return self.texts_of(self.sites[0])[0]

    def listen(self, inputs: dict[str, object] | None = None, alter: Alter | None = None) -> Heard:
        """Call the model and hear it."""
        events: Events = []
        with torch.no_grad(), _Attention(events, alter), _plain_hooks(self.tapped, events):
            output = self.model(**(inputs or self.inputs))
        if not isinstance(output, Tensor):
            output = output[0]
        return Heard(torch.stack(list(output)), events)

    def captured(self, inputs: dict[str, object] | None = None) -> KVCache:
        """The cache of a call, its rows labelled by their numbers."""
        with capture(self.model, self.sites, rows=self.rows) as cache:
            self.listen(inputs)
        return cache

    @cached_property
    def cache(self) -> KVCache:
        """The cache of the plain inputs."""
        return self.captured()

    def reading(
        self,
        site: Site | None = None,
        inputs: dict[str, object] | None = None,
        *,
        heads: Iterable[int] | None = None,
        tokens: Iterable[int] | None = None,
        part: str = "kv",
    ) -> Heard:
        """A call in which row 0 reads, at a site or at all, the K and V that row 1 has in the plain run.

        heads, tokens, part  as `patch` takes them
        """
        which = site or self.sites
        asked = patch(
            self.model, self.cache, which, rows=self.reads, heads=heads, tokens=tokens, part=part
        )
        with asked:
            return self.listen(inputs)

    def length(self, site: Site) -> int:
        """Text tokens T at a site, counted anew."""
        if site.span.where:
            place = self.place(site, "where")
            return place.stop - place.start
        total = site.span.extra
        for value in self.texts_of(site):
            tokens = value.shape[1] if isinstance(value, Tensor) else max(map(len, value))
            total += tokens + (-tokens) % site.span.pad_to
        return total

    def place(self, site: Site, place: str) -> slice:
        """Place of the text among tokens.

        place  "first" or "last" of them, "all", or "where" the table says
        """
        if place == "where":
            name, number = site.span.where or ("", 0)
            told = text_of(self.inputs, name)[0].tolist()
            places = [i for i, says in enumerate(told) if says == number]
            return slice(places[0], places[-1] + 1)
        length = self.length(site)
        return {"all": slice(None), "first": slice(length), "last": slice(-length, None)}[place]

    def is_text(self, site: Site, spec: SiteSpec, x: Tensor) -> Tensor:
        """Bool (tokens,), True for text in x (B, H, tokens, D) as attention gets or gives it."""
        text = torch.zeros(x.shape[2], dtype=torch.bool, device=x.device)
        text[self.place(site, spec.text_place)] = True
        return text

    def text_kv(self, heard: Heard, site: Site, spec: SiteSpec) -> list[Tensor]:
        """Text K and V (B, T, W) by the table alone, cut anew from the taps' outputs."""
        first, second, _ = spec.fused or (0, 0, 1)
        width = site.text_heads * site.head_dim
        made = [heard.made(tap.module)[:, self.place(site, spec.span.place)] for tap in site.taps]
        chosen = zip(made, (first, second), strict=True)
        return [x.split(width, dim=-1)[part] for x, part in chosen]

    def same_text(self, heard: Heard, site: Site, spec: SiteSpec) -> bool:
        """True if a site's text K and V are those of the plain run."""
        before = self.text_kv(self.plain, site, spec)
        pairs = zip(self.text_kv(heard, site, spec), before, strict=True)
        return all(torch.equal(new, own) for new, own in pairs)

    def as_attended(self, x: Tensor, site: Site, heads: int) -> Tensor:
        """Text K or V (B, T, W) as (B, heads, T, D), each head repeated for the queries that share it."""
        x = x.unflatten(-1, (site.text_heads, -1)).transpose(1, 2)
        return x.repeat_interleave(heads // site.text_heads, dim=1)

    @property
    def twins(self) -> dict[str, object]:
        """Inputs whose first two rows differ in their text alone."""
        texts = (*self.texts, *self.masks)
        others = [name for name in self.inputs if name not in texts]
        return self.with_rows(*others, rows=[1, 1, *self.rows[2:]])

    def runs(self, inputs: dict[str, object]) -> bool:
        """True if the model takes such inputs."""
        try:
            self.listen(inputs)
        except Exception:  # of any kind: the model is somebody else's
            return False
        return True

    def pooled_alike(self) -> AbstractContextManager[object]:
        """Block in which what is made of row 0's text beside the sites is that of row 1."""

        def first_as_second(name: str, output: Tensor) -> Tensor:
            return torch.cat([output[1:2], output[1:]])

        if not self.pooled:
            return nullcontext()
        return HookRegistry(self.model, self.pooled).replace(first_as_second)

    def exchanged(self, site: Site, spec: SiteSpec) -> Heard:
        """A call in which the K that row 0's text makes at a site is row 1's, by its tap alone."""
        tap = site.taps[0]
        text = self.place(site, spec.span.place)
        channels = slice(*tap.channels or (None,))

        def exchange(name: str, output: Tensor) -> Tensor:
            new = output.clone()
            new[0, text, channels] = output[1, text, channels]
            return new

        with HookRegistry(self.model, [tap.module]).replace(exchange):
            return self.listen()

    @staticmethod
    def row_of(label: Hashable) -> int:
        """Number of the row that a label of `captured` names."""
        (row,) = cast(tuple[int, ...], label)
        return row

"""Time what watching and swapping add to one call of a denoiser.

    python benchmarks/overhead.py [MODEL ...]

  bare                      the model as it is
  hooks, gate closed        K and V of every site hooked by a block that another task opened
  hooks, gate open          the same in the task that opened it, with a function that does nothing
  slots, one site, all      row 0 reads the text keys and values of row 1, by the `slots` argument
  patch, one site           the same by hooks, from a captured cache
  nnsight, pyvene           wrapped and idle, and the same swap at one site, where they are installed
  diffusers                 its model with the same weights, and the same swap by an attention processor

The swaps are shown to give one output before anything is timed.  `ratio` is against the way named in
`against`.  `us_per_site` is what a call takes longer, in microseconds, over the sites watched or swapped.
The model "empty" is 100 modules that do nothing, two to a site.  There a hook's own cost is not lost in
the noise of a forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import copy_context

import numpy as np
import torch
from torch import Tensor, nn

import textpatch
from measure import TIMES, Table, arguments, environment, in_turns, parsed, require_alike, timed
from random_models import MODELS, apart, call_twin, denoiser, inputs, slots_of, twin
from textpatch.hooks import HookRegistry
from textpatch.patching import KVCache
from textpatch.plan import Row, Swap
from textpatch.ports.shipped import find_sites
from textpatch.sites import Site

ROWS = (Row("reader", "a"), Row("donor", "b"))
CALLS = 4000  # a cache holds this many steps, all the same tensors, so that its block can stay open
TOLERANCE = 2e-5  # of the largest output: float32 through a whole model, summed in another order
BARE = "bare"


class Ways:
    """The ways of calling one model, each on modules of its own.

    blocks  what the ways need open while they are called
    """

    def __init__(self, model: nn.Module, given: tuple, taps: list[str]):
        self.model = model
        self.given = given
        self.taps = taps
        self.blocks = ExitStack()
        self.made = {BARE: lambda: model(*given)}

    def inside(self, block, model: nn.Module) -> Callable[[], Tensor]:
        """A call of the model in a task that has opened the block."""
        task = copy_context()
        task.run(self.blocks.enter_context, block)

        def call() -> Tensor:
            return task.run(model, *self.given)

        call()  # on leaving, a block asks that its hooks have run
        return call

    def hooks(self) -> None:
        def nothing(name: str, output) -> None:
            """Observe and do nothing."""

        closed = apart(self.model)
        opened = apart(self.model)
        self.inside(HookRegistry(closed, self.taps).observe(nothing), closed)
        self.made["hooks, gate closed"] = lambda: closed(*self.given)
        self.made["hooks, gate open"] = self.inside(
            HookRegistry(opened, self.taps).observe(nothing), opened
        )


def swaps(ways: Ways, site: Site) -> dict[str, Tensor]:
    """Add our swaps, by slots and by hooks from a cache.

    Returns the keys and values that row 0 reads, by tap.
    """
    model = ways.model
    for name, which in (("slots, one site", site.index), ("slots, all sites", "all")):
        slots = slots_of([Swap(which, "reader", "donor")], ROWS, model, ways.given[2])
        ways.made[name] = lambda slots=slots: model(*ways.given, slots=slots)
    with textpatch.capture(model, site.index, rows=ROWS) as cache:
        model(*ways.given)
    every = KVCache(
        {(name, step, *rest): kv for (name, _, *rest), kv in cache.items() for step in range(CALLS)}
    )
    patched = apart(model)
    block = textpatch.patch(patched, every, site.index, rows=[ROWS[1], None])
    ways.made["patch, one site"] = ways.inside(block, patched)
    donor = ROWS[1].label
    return {
        tap.module: torch.stack([cache[site.name, 0, donor, part]] * 2)
        for part, tap in zip("kv", site.taps, strict=True)
    }


def nnsight_ways(ways: Ways, replaced: dict[str, Tensor]) -> None:
    import nnsight

    wrapped = nnsight.NNsight(apart(ways.model))
    (k, new_k), (v, new_v) = ((wrapped.get(name), new) for name, new in replaced.items())

    def idle() -> Tensor:
        with wrapped.trace(*ways.given):
            out = wrapped.output.save()
        return out  # noqa: RET504  saved inside, and a tensor only after the block

    def swapped() -> Tensor:
        with wrapped.trace(*ways.given):
            k.output = new_k
            v.output = new_v
            out = wrapped.output.save()
        return out  # noqa: RET504  as above

    ways.made |= {"nnsight, idle": idle, "nnsight, one site": swapped}


def pyvene_ways(ways: Ways, replaced: dict[str, Tensor]) -> None:
    import pyvene

    given = dict(zip(("x", "t", "text"), ways.given, strict=True))

    def intervenable(changes: dict[str, Tensor]):
        config = [
            {"component": f"{name}.output", "intervention": lambda base, source=None, new=new: new}
            for name, new in changes.items()
        ]
        return pyvene.IntervenableModel(config, model=apart(ways.model))

    for name, changes in (("pyvene, idle", {}), ("pyvene, one site", replaced)):
        model = intervenable(changes)
        # It gives (output of the model as it is, output with interventions), one of them None.
        ways.made[name] = lambda model=model: next(out for out in model(given) if out is not None)


def diffusers_ways(ways: Ways, name: str, site: Site) -> None:
    import diffusers

    theirs, swapped = (twin(diffusers, name, ways.model) for _ in range(2))
    attention = swapped.get_submodule(site.name)
    attention.set_processor((JointSwap if site.kind == "joint" else TextSwap)(attention.processor))
    ways.made["diffusers"] = lambda: call_twin(theirs, *ways.given)
    ways.made["diffusers, one site"] = lambda: call_twin(swapped, *ways.given)


class TextSwap:
    """An attention processor by which row 0 reads the text of row 1, if only keys and values read text."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **others):
        return self.inner(
            attn, hidden_states, encoder_hidden_states=encoder_hidden_states[[1, 1]], **others
        )


class JointSwap(TextSwap):
    """The same swap in a joint attention, written anew as a whole, since the text has queries there."""

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **others
    ):
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, H, tokens, D)

        text = encoder_hidden_states
        image = hidden_states
        q = torch.cat([split(attn.to_q(image)), split(attn.add_q_proj(text))], dim=2)
        k = torch.cat([split(attn.to_k(image)), split(attn.add_k_proj(text))[[1, 1]]], dim=2)
        v = torch.cat([split(attn.to_v(image)), split(attn.add_v_proj(text))[[1, 1]]], dim=2)
        out = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        image, text = out[:, : image.shape[1]], out[:, image.shape[1] :]
        return attn.to_out[0](image), None if attn.context_pre_only else attn.to_add_out(text)


def ways_of(name: str, options) -> tuple[Ways, int]:
    """All ways of one model, checked, and how many sites it has."""
    if name == "empty":
        empty = nn.Sequential(*(nn.Identity() for _ in range(100)))
        ways = Ways(empty, (torch.zeros(1),), [str(i) for i in range(100)])
        ways.hooks()
        return ways, 50
    if name in MODELS:
        model = denoiser(name, options.device, options.dtype)
        given = inputs(name, model, len(ROWS))
    else:
        pipeline = textpatch.load(name, device=options.device, dtype=options.dtype)
        prompts = [f'a red sign that says "{word}" on a blue wall' for word in ("HOUSE", "TIGER")]
        model = pipeline.denoiser
        given = (
            pipeline.noise([0, 1]),
            torch.tensor(500.0, device=options.device),
            pipeline.encode(prompts),
        )
    sites = find_sites(model)
    site = sites[len(sites) // 2]
    ways = Ways(model, given, [tap.module for each in sites for tap in each.taps])
    ways.hooks()
    replaced = swaps(ways, site)
    others = {
        "nnsight": lambda: nnsight_ways(ways, replaced),
        "pyvene": lambda: pyvene_ways(ways, replaced),
    }
    if name in MODELS:
        others["diffusers"] = lambda: diffusers_ways(ways, name, site)
    for library, add in others.items():
        try:
            add()
        except ImportError as reason:
            print(f"{library} is left out: {reason}")
    require_one_output(ways)
    return ways, len(sites)


def require_one_output(ways: Ways) -> None:
    """Raise Unequal unless idle ways give the bare model's output and swaps give one another's.

    Where the same code runs, the outputs are equal bit for bit.
    """
    made = {name: way() for name, way in ways.made.items()}
    for name, out in made.items():
        if name.endswith("one site"):
            require_alike(name, out, made["slots, one site"], TOLERANCE)
        elif name.startswith("hooks"):
            require_alike(name, out, made[BARE], 0)
        elif name != "slots, all sites":
            require_alike(name, out, made[BARE], TOLERANCE)


def against(name: str) -> str:
    return "diffusers" if name.startswith("diffusers") else BARE


COLUMNS = ["model", "sites", "way", "against", *TIMES, "us_per_site"]


def lines(taken: dict[str, list[float]], sites: int) -> Iterator[dict]:
    """The table's rows.

    Microseconds per site are medians of rounds, over the sites that a way hooks or swaps.
    """
    touched = {"hooks, gate closed": sites, "hooks, gate open": sites, "slots, all sites": sites}
    for name, seconds in taken.items():
        base = against(name)
        line = dict(way=name, against=base, **timed(taken, name, base))
        if name in touched or name.endswith("one site"):
            longer = np.median(np.subtract(seconds, taken[base]))
            line["us_per_site"] = float(longer * 1e6 / touched.get(name, 1))
        yield line


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=40)
    known = ["empty", "tiny-mmdit", "planted-mmdit", *MODELS]
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"of {', '.join(known)} (the first two)"
    )
    options = parsed(parser, argv)
    if unknown := sorted(set(options.models) - set(known)):
        parser.error(f"no model {unknown[0]!r}; known: {', '.join(known)}")
    table = Table(
        COLUMNS,
        environment(options.device, "diffusers", "nnsight", "pyvene"),
        options.csv,
        options.append,
    )
    with torch.no_grad():
        for name in options.models or known[:2]:
            ways, sites = ways_of(name, options)
            with ways.blocks:
                taken = in_turns(
                    ways.made, rounds=options.rounds, device=options.device, least=0.001
                )
            for line in lines(taken, sites):
                table.add(model=name, sites=sites, **line)


if __name__ == "__main__":
    main()

"""Time what a wrapped pipeline's swap adds to the pipeline's own call.

    python benchmarks/foreign.py [MODEL ...]

  bare          the pipeline's call with the same rows, nothing swapped
  plain hooks   the same call under forward hooks written for this model and this swap alone
  swap          the same call inside `textpatch.swap`
  wrapped       `textpatch.sample` on the wrapped pipeline
  nnsight, pyvene  the same swap by a stand-in for the transformer, where they are installed

Rows are a source, a target, and for every site, or for one, the source with the target's text at that site.
The largest batch has these rows for two seeds, so that a step takes 100 ms on machines of 2026, too.
All ways are shown to draw the same latents, bit for bit, before anything is timed.  On a CPU the time is
that of the processor.  Pages of memory that come and go change it by a tenth; glibc keeps them under
MALLOC_TRIM_THRESHOLD_=4000000000 MALLOC_MMAP_MAX_=0.

  step_ms  what a step of the bare call takes
  held     bytes of tensors alive when the last step begins, beyond those of the bare call: what a way keeps
           from step to step

The pipeline is diffusers' StableDiffusion3Pipeline with the weights of a shipped MMDiT.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace

import torch
from torch import Tensor, nn

import textpatch
from measure import TIMES, Table, arguments, environment, in_turns, parsed, require_close, timed
from textpatch import Plan, Row, Swap
from textpatch.foreign.wrapping import wrap
from textpatch.weights.loading import find

SOURCE = 'a red sign that says "HOUSE" on a blue wall'
TARGET = 'a green badge that says "TIGER" on a striped yellow wall'
STEPS = 8
GUIDANCE = 3.0
PIXELS = dict(height=32, width=96)
BARE = "bare"


class Pixels(nn.Module):
    """A VAE that decodes nothing, since the shipped models draw pixels."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(
            scaling_factor=1.0, shift_factor=0.0, block_out_channels=(1,), latent_channels=3
        )
        self.dtype = torch.float32
        self.device = torch.device("cpu")

    def decode(self, x: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        return (x,)


def pipe_of(name: str):
    """A StableDiffusion3Pipeline, with the shipped encoders."""
    import diffusers

    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(
        str(find(name)), vae=Pixels(), torch_dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Case:
    """One pipeline, its rows, and the swap at all sites, each in a row of its own, or at one.

    count  number of sites that are swapped
    seeds  number of seeds, each with all rows
    """

    def __init__(self, name: str, count: int | None, seeds: int = 1):
        self.pipe = pipe_of(name)
        longest = self.pipe.tokenizer_3.model_max_length
        self.call = dict(
            **PIXELS,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            max_sequence_length=longest,
            output_type="latent",
        )
        self.model = self.pipe.transformer
        self.copy = copy.deepcopy(self.model)  # for tools that leave something on a model
        self.before = None  # hook of the module that stands in for the model
        options = dict(**PIXELS, max_sequence_length=longest, output_type="latent")
        self.wrapped = wrap(self.pipe, steps=STEPS, guidance=GUIDANCE, **options)
        sites = self.wrapped.sites[:count]
        self.rows = []
        swaps = []
        for seed in range(seeds):
            source, target = f"source-{seed}", f"target-{seed}"
            self.rows += [Row(source, SOURCE, seed), Row(target, TARGET, seed)]
            for site in sites:
                self.rows.append(Row(f"site-{site.index}-{seed}", SOURCE, seed))
                swaps.append(Swap(site.index, self.rows[-1].name, target))
        self.plan = Plan(swaps)
        self.seeds = seeds
        self.taps = [tap.module for site in sites for tap in site.taps]

    def draw(self) -> Tensor:
        """Latents of all rows, by the pipeline's own call."""
        prompts = [row.prompt for row in self.rows]
        seeds = [torch.Generator().manual_seed(row.seed) for row in self.rows]
        return self.pipe(prompts, generator=seeds, **self.call).images

    def read(self, i: int) -> tuple[list[int], list[int]]:
        """Rows of the batch that read others at a tap, of which each site has two, and whom they read."""
        B = len(self.rows)
        each = B // self.seeds
        targets = [branch + seed * each + 1 for branch in (0, B) for seed in range(self.seeds)]
        return [target + 1 + i // 2 for target in targets], targets

    def bare(self) -> Tensor:
        return self.draw()

    def plain_hooks(self) -> Tensor:
        with ExitStack() as hooks:
            for i, tap in enumerate(self.taps):
                readers, donors = self.read(i)

                def swapped(module, args, output, readers=readers, donors=donors):
                    output = output.clone()
                    output[readers] = output[donors]
                    return output

                handle = self.model.get_submodule(tap).register_forward_hook(swapped)
                hooks.callback(handle.remove)
            return self.draw()

    def swap(self) -> Tensor:
        with textpatch.swap(self.model, self.plan, self.rows, calls=[["uncond", "cond"]]):
            return self.draw()

    def wrap(self) -> Tensor:
        made = textpatch.sample(self.wrapped, self.rows, self.plan).images
        return torch.stack([torch.as_tensor(made[row.name]) for row in self.rows])

    def nnsight(self) -> Tensor:
        import nnsight

        traced = nnsight.NNsight(self.copy)

        def call(*args, **kwargs):
            with traced.trace(*args, **kwargs):
                for i, tap in enumerate(self.taps):
                    readers, donors = self.read(i)
                    module = traced.get(tap)
                    new = module.output.clone()
                    new[readers] = new[donors]
                    module.output = new
                out = traced.output.save()
            return out  # noqa: RET504  saved inside, and an output only after the block

        return self.in_place(call)

    def pyvene(self) -> Tensor:
        import pyvene

        def swapped(readers, donors):
            def act(base, source=None):
                new = base.clone()
                new[readers] = base[donors]
                return new

            return act

        changes = [
            {"component": f"{tap}.output", "intervention": swapped(*self.read(i))}
            for i, tap in enumerate(self.taps)
        ]
        intervened = pyvene.IntervenableModel(changes, model=self.copy)

        def call(**kwargs):
            return next(out for out in intervened(kwargs) if out is not None)

        return self.in_place(call)

    def in_place(self, call: Callable) -> Tensor:
        """Latents with a call in the place of the transformer's."""
        stand_in = StandIn(self.model, call)
        if self.before is not None:
            stand_in.register_forward_pre_hook(self.before, with_kwargs=True)
        self.pipe.transformer = stand_in
        try:
            return self.draw()
        finally:
            self.pipe.transformer = self.model

    def held(self, way: Callable[[], Tensor]) -> int:
        """Bytes of the tensors that are alive when the last step begins."""
        counted = []

        def count(module, args, kwargs):
            gc.collect()
            storages = {}
            for one in gc.get_objects():
                if issubclass(type(one), Tensor):
                    storage = one.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
            counted.append(sum(storages.values()))

        self.before = count
        hook = self.model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            way()
        finally:
            hook.remove()
            self.before = None
        return counted[-1]


class StandIn(nn.Module):
    """A module called in the place of another, whose settings it shows."""

    def __init__(self, model: nn.Module, call: Callable):
        super().__init__()
        self.config = model.config
        self.dtype = model.dtype
        self.device = model.device
        self._call = call

    def forward(self, *args, **kwargs):
        return self._call(*args, **kwargs)


def ways_of(case: Case) -> dict[str, Callable[[], Tensor]]:
    """The ways that can be gone here, which draw the same latents.   Raises Unequal where they do not."""
    ways = {
        BARE: case.bare,
        "plain hooks": case.plain_hooks,
        "swap": case.swap,
        "wrapped": case.wrap,
        "nnsight": case.nnsight,
        "pyvene": case.pyvene,
    }
    expected = case.plain_hooks()
    for name in list(ways):
        try:
            made = ways[name]()
        except ImportError as reason:
            print(f"{name} is left out: {reason}; pip install {name}, in an environment of its own")
            del ways[name]
            continue
        if name == BARE:
            made, expected_here = made[:2], expected[:2]  # the rows that nothing is swapped in
        else:
            expected_here = expected
        require_close(name, made, expected_here, 0)
    return ways


COLUMNS = ["model", "rows", "steps", "step_ms", "way", *TIMES, "held"]


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=11)
    known = ["tiny-mmdit", "planted-mmdit"]
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"of {', '.join(known)} (the first)"
    )
    options = parsed(parser, argv)
    if unknown := sorted(set(options.models) - set(known)):
        parser.error(f"no model {unknown[0]!r}; known: {', '.join(known)}")
    table = Table(
        COLUMNS,
        environment(options.device, "diffusers", "transformers", "nnsight", "pyvene"),
        options.csv,
        options.append,
    )
    clock = time.perf_counter if options.device.type == "cuda" else time.process_time
    with torch.no_grad():
        for name in options.models or known[:1]:
            for count, seeds in ((1, 1), (None, 1), (None, 2)):
                case = Case(name, count, seeds)
                ways = ways_of(case)
                kept = {way: case.held(act) for way, act in ways.items()}
                taken = in_turns(ways, rounds=options.rounds, device=options.device, clock=clock)
                step = timed(taken, BARE, BARE)["median_ms"] / STEPS
                for way in ways:
                    table.add(
                        model=name,
                        rows=len(case.rows),
                        steps=STEPS,
                        step_ms=step,
                        way=way,
                        held=kept[way] - kept[BARE],
                        **timed(taken, way, BARE),
                    )


if __name__ == "__main__":
    main()

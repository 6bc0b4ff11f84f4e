"""How the laws run a case and look at it: by a plan, by cache, from outside a block, cell by cell."""

import contextlib
from dataclasses import replace

import torch

from support.strategies import Case
from textpatch import hooks, patching, sampling
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.plan import Plan, Swap

CLOSE = 1e-12


def close(a, b) -> bool:
    """max |a - b| <= 1e-12 max |b|: two digits above what another batch does to float64."""
    return bool((a - b).abs().max() <= CLOSE * b.abs().max())


@contextlib.contextmanager
def refused(says: str = ""):
    """The block must raise a PatchError that says so; success and any other error break the law."""
    try:
        yield
    except PatchError as error:
        assert says in str(error), f"{says!r} not in {error}"
    except Exception as error:
        raise AssertionError("failed with something else than a PatchError") from error
    else:
        raise AssertionError("accepted what must be refused")


def run(case: Case, rows, plan=Plan(), **options):
    return sampling.sample(
        case.pipeline,
        rows,
        plan,
        steps=case.steps,
        guidance=case.guidance,
        keep_trajectory=True,
        **options,
    )


def paths(samples) -> dict:
    """Row name -> (steps + 1, C, H, W): latents entering each step, and the final ones."""
    return {name: torch.stack(latents) for name, latents in samples.trajectory.items()}


def loop(case: Case, rows) -> dict:
    """The paths of a run by the pipeline's own loop, tokens in every call: what capture, patch and inject
    go around.
    """
    batch, latents = case.branches(rows), []
    text, pooled = (
        case.pipeline.encode(list(prompts))
        for prompts in zip(*((r.prompt, r.pooled_prompt) for r in batch), strict=True)
    )
    noises = case.pipeline.noises([row.seed for row in rows])
    case.pipeline.denoise(
        next(noises),
        replace(text, pooled=pooled.pooled),
        steps=case.steps,
        guidance=case.guidance,
        noises=noises,
        on_step=lambda step, x: latents.append(x),
    )
    return {row.name: torch.stack([x[b] for x in latents]) for b, row in enumerate(rows)}


def anatomy(model):
    """All that a hook could leave behind on a model or in this thread."""
    tables = "_forward_hooks", "_forward_hooks_always_called", "_forward_pre_hooks", "_buffers"
    parts = [
        (sorted(vars(m)), [list(vars(m)[table].items()) for table in tables])
        for m in model.modules()
    ]
    return parts, hooks._open_blocks.get()


def observed(case: Case, names, run_model) -> dict:
    """Module name -> its last output; of image and text, the image's."""
    seen = {}

    def keep(name, output):
        seen[name] = (output[0] if isinstance(output, tuple) else output).clone()

    with HookRegistry(case.model, names).observe(keep):
        run_model()
    return seen


def taps(*sites) -> list[str]:
    """The modules that make text keys and values, K before V."""
    return [tap.module for site in sites for tap in site.taps]


def last_module(case: Case) -> str:
    """`proj_out` or `conv_out`, which gives the output its channels."""
    return [name for name, _ in case.model.named_children()][-1]


def every_step(plan: Plan) -> list[Swap]:
    """A plan's swaps, each at all steps and in both branches."""
    return [replace(swap, steps=None, branch="both") for swap in plan.swaps]


def by_cache(case: Case, cache, swap: Swap):
    """The block that does in one call on all rows what a swap at all steps says."""
    donor = next(row for row in case.rows if row.name == swap.donor)
    rows = [donor if row.name in swap.readers else None for row in case.rows]
    return patching.patch(
        case.model,
        cache,
        swap.sites,
        rows=rows,
        heads=swap.heads,
        tokens=swap.tokens,
        part=swap.part,
    )


def tables(case: Case, plan: Plan, step: int):
    """What each cell reads, written out in full: (sites, k and v, B, H, T).

    Heads that a site has not read themselves.
    """
    rows, sites, tokens = case.branches(case.rows), case.model.sites, case.tokens
    entries = plan.slots(step, rows, sites, tokens=tokens) or [None] * len(sites)
    own = torch.arange(len(rows) * tokens).view(len(rows), 1, tokens)
    full = own.expand(len(sites), 2, len(rows), max(site.heads for site in sites), tokens).clone()
    for site, entry in zip(sites, entries, strict=True):
        for part, table in enumerate(entry if isinstance(entry, tuple) else (entry, entry)):
            full[site.index, part, :, : site.heads] = own if table is None else table
    return full


def cells(case: Case, swap: Swap, step: int, rows=None):
    """Bool (sites, k and v, B, H, T): the cells a swap names, straight from its docstring."""
    rows, sites = rows or case.branches(case.rows), case.model.sites
    named = torch.zeros(
        len(sites), 2, len(rows), max(site.heads for site in sites), case.tokens, dtype=torch.bool
    )
    if swap.steps is not None and step not in swap.steps:
        return named
    branches = ("cond", "uncond") if swap.branch == "both" else ("cond",)
    for b in (
        b for b, row in enumerate(rows) if row.name in swap.readers and row.branch in branches
    ):
        for site in swap.sites:
            for part in swap.part:
                for h in swap.heads or range(sites[site].heads):
                    named[site, "kv".index(part), b, h, list(swap.tokens or range(case.tokens))] = (
                        True
                    )
    return named

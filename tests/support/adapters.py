"""Random adapters, and the laws of what an adapter does to a model, which planted faults must break."""

import torch

from support.patched_calls import anatomy, by_cache, close, loop, patching, paths, refused, run
from support.strategies import Case
from textpatch import HookRegistry, Plan, Swap
from textpatch.anatomy import TEXT_PROJECTIONS
from textpatch.changes import LowRank, acting_weight
from textpatch.tuning.low_rank import Adapter, base_sha256, layers_of


def random_change(layer, rank: int, generator) -> LowRank:
    """A change of a layer about half as large as its weight."""
    out, width = layer.weight.shape
    down = torch.randn(rank, width, generator=generator) / width**0.5
    up = torch.randn(out, rank, generator=generator) * float(layer.weight.detach().std())
    return LowRank(down, up, alpha=1.5 * rank)


def random_adapter(model, sites=(0, 1, 2), seed: int = 0, rank: int = 2) -> Adapter:
    """Adapter of q, text k, text v and the way out of some sites."""
    generator = torch.Generator().manual_seed(seed)
    parts = [(model.sites[i].name, TEXT_PROJECTIONS[model.sites[i].kind]) for i in sites]
    names = [f"{name}.{part}" for name, own in parts for part in ("to_q", *own, "to_out.0")]
    layers = {name: model.get_submodule(name) for name in names}
    changes = {name: random_change(layer, rank, generator) for name, layer in layers.items()}
    return Adapter(changes, base_sha256(layers))


def law_scale_zero_is_the_base(case: Case):
    """An adapter at scale 0, one taken off, and one taken out of a merge leave the base bit for bit."""
    adapter = random_adapter(case.model)
    plain = case.call()
    before = anatomy(case.model)
    weights = {name: weight.clone() for name, weight in case.model.state_dict().items()}
    for block in (adapter.applied, adapter.merged):
        with block(case.pipeline, scale=0):
            assert torch.equal(case.call(), plain)
        with block(case.pipeline):
            assert not close(case.call(), plain)
        assert torch.equal(case.call(), plain) and anatomy(case.model) == before
    for name, weight in case.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name


def law_applied_is_the_equation(case: Case):
    """Each projection gives W x + b + s B A x, and a hook put on before the adapter sees that."""
    adapter = random_adapter(case.model)
    layers = layers_of(case.model, adapter.changes)
    seen = []
    given = {}

    def check(name, output):
        layer, change = layers[name], adapter.changes[name]
        delta = change.up.double() @ change.down.double()
        matrix = layer.weight + 0.5 * change.alpha / change.rank * delta
        bias = 0 if layer.bias is None else layer.bias
        assert close(output, given[name] @ matrix.mT + bias), name
        assert close(acting_weight(layer), matrix), name
        seen.append(name)

    def keep(name, inputs):
        given[name] = inputs.arguments["input"]

    registry = HookRegistry(case.model, layers)
    with (
        registry.observe(check),
        adapter.applied(case.model, scale=0.5),
        registry.observe_inputs(keep),
    ):
        case.call()
    assert {*seen} == {*layers}


def law_merged_is_applied(case: Case):
    """One adapter, and two, act the same beside the weights and within them, in plain runs and in swaps."""
    first = random_adapter(case.model)
    second = random_adapter(case.model, sites=(1,), seed=1, rank=1)
    for plan in (Plan(), case.plan):
        with first.applied(case.pipeline, scale=0.7), second.applied(case.pipeline, scale=-0.5):
            beside = paths(run(case, case.rows, plan))
        with first.merged(case.pipeline, scale=0.7), second.merged(case.pipeline, scale=-0.5):
            within = paths(run(case, case.rows, plan))
        plain = paths(run(case, case.rows, plan))
        for name in plain:
            assert close_run(beside[name], within[name])
            assert not close_run(beside[name], plain[name])


def close_run(a, b) -> bool:
    """max |a - b| <= 1e-10 max |b|, asked of whole runs in float64 throughout."""
    return bool((a - b).abs().max() <= 1e-10 * b.abs().max())


def law_a_swap_of_an_adapted_model_is_a_patch(case: Case):
    """Under an adapter, slots do in one call what a cache captured under it does."""
    adapter = random_adapter(case.model)
    swap = Swap(1, "a", "b")
    with adapter.applied(case.pipeline):
        with patching.capture(case.model, "all", rows=case.rows) as cache:
            case.call()
        with by_cache(case, cache, swap):
            patched = case.call()
        assert torch.equal(patched, case.call(case.slots(swap)))
        assert not close(patched, case.call())


def law_a_stale_cache_is_an_error(case: Case):
    """A cache is read under the adapters and scale that it was captured under, also after a file."""
    adapter = random_adapter(case.model)
    swap = Swap(1, "a", "b")
    with patching.capture(case.model, "all", rows=case.rows) as of_base:
        case.call()
    with adapter.applied(case.pipeline):
        with patching.capture(case.model, "all", rows=case.rows) as captured:
            case.call()
        with refused("was captured under no adapter"), by_cache(case, of_base, swap):
            case.call()
    adapted = patching.KVCache.from_tensors(captured.tensors)
    assert adapted.to(torch.float64).adapters == captured.adapters != ()
    with refused("is now under no adapter"), by_cache(case, adapted, swap):
        case.call()
    with (
        adapter.applied(case.pipeline, scale=0.5),
        refused("at scale 0.5"),
        by_cache(case, adapted, swap),
    ):
        case.call()
    with adapter.merged(case.pipeline), by_cache(case, adapted, swap):
        case.call()


def law_a_capture_is_of_one_model(case: Case):
    """An adapter that comes in between two calls of a capture is refused."""
    adapter = random_adapter(case.model)
    with (
        refused("was captured under no adapter"),
        patching.capture(case.model, "all", rows=case.rows),
    ):
        case.call()
        with adapter.applied(case.pipeline):
            case.call()


def law_static_runs_read_the_adapted_bank(case: Case):
    """A run's bank is made under its adapters: the run equals the pipeline's own loop, which has no bank."""
    adapter = random_adapter(case.model)
    with adapter.applied(case.pipeline):
        ours = paths(run(case, case.rows))
        own = loop(case, case.rows)
    for name in own:
        assert close_run(ours[name], own[name])

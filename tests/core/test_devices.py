"""Denoisers run as their owner has placed them: weights brought in for each call, or sharded by FSDP."""

from types import SimpleNamespace

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from support.patched_calls import refused
from support.planting import plant
from support.strategies import fixed_case
from support.sweeps import fork, waited
from textpatch import capture, devices, patch, sample
from textpatch.devices import device_of

MODELS = ["mmdit", "sdxl", "if-i"]


def drawn(case) -> list[torch.Tensor]:
    """Latents of a run in lock-step, and outputs of a call under capture and patch."""
    pipeline = case.pipeline
    made = sample(pipeline, case.rows, case.plan, steps=case.steps, guidance=case.guidance)
    text = pipeline.encode(["a", "b"])
    inputs = pipeline.noise([0, 0]), torch.tensor(1000.0), text
    with torch.no_grad():
        with capture(case.model, "all", rows=["one", "other"]) as cache:
            plain = case.model(*inputs)
        with patch(case.model, cache, [1], rows=["other", None]):
            patched = case.model(*inputs)
    return [*made.latents.values(), plain, patched]


def offload(model: nn.Module) -> None:
    """Bring weights in for each call of their module, as accelerate's cpu_offload does.

    Between calls parameters are on the meta device, `forward` is replaced, and a hook tells the device.
    """
    model._hf_hook = SimpleNamespace(execution_device=None)
    for part in model.modules():
        kept = {
            name: weight.detach() for name, weight in part._parameters.items() if weight is not None
        }
        if kept:
            part.forward = brought_in(part, kept, part.forward)
            part._hf_hook = SimpleNamespace(execution_device="cpu")
            put(part, {name: weight.to("meta") for name, weight in kept.items()})


def brought_in(part: nn.Module, kept: dict, forward):
    def offloaded(*given, **named):
        put(part, kept)
        try:
            return forward(*given, **named)
        finally:
            put(part, {name: weight.to("meta") for name, weight in kept.items()})

    return offloaded


def put(part: nn.Module, weights: dict) -> None:
    part._parameters.update(
        {name: nn.Parameter(weight, requires_grad=False) for name, weight in weights.items()}
    )


def law_offloading_changes_no_bit(model: str) -> None:
    case = fixed_case(model)
    before = drawn(case)
    offload(case.model)
    assert all(weight.is_meta for weight in case.model.parameters())
    after = drawn(case)
    assert all(torch.equal(*two) for two in zip(before, after, strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_an_offloaded_denoiser_gives_the_same_bits(model):
    """In lock-step and under capture and patch, where no weight is in memory between the calls."""
    law_offloading_changes_no_bit(model)


def shard(model: nn.Module, processes: int) -> None:
    mesh = init_device_mesh("cpu", (processes,))
    for site in model.sites:
        fully_shard(model.get_submodule(site.name), mesh=mesh)
    fully_shard(model, mesh=mesh)


def law_sharding_changes_no_bit(model: str, rank: int = 0, store=None, processes: int = 1) -> None:
    store = store or distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    try:
        case = fixed_case(model)
        before = drawn(case)
        shard(case.model, processes)
        after = drawn(case)
    finally:
        distributed.destroy_process_group()
    assert all(torch.equal(*two) for two in zip(before, after, strict=True))


@pytest.mark.parametrize("model", ["sdxl", pytest.param("if-i", marks=pytest.mark.long)])
def test_a_sharded_denoiser_gives_the_same_bits(model):
    """FSDP's units (fully_shard) are the sites and the root; text keys are asked for outside of a forward."""
    law_sharding_changes_no_bit(model)


# the default form is the one above, of one process
@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_two_processes_with_halves_of_the_weights_give_the_same_bits(model, tmp_path):
    """Each process has a part of every weight, and ends with the whole result."""

    def work(rank):
        store = distributed.FileStore(str(tmp_path / "store"), 2)
        law_sharding_changes_no_bit(model, rank, store, 2)

    assert [waited(child) for child in [fork(lambda i=i: work(i)) for i in range(2)]] == [0, 0]


@pytest.mark.parametrize(
    "law, function, old, new",
    [
        (law_sharding_changes_no_bit, "gathered", "part.unshard()", "pass"),
        (law_offloading_changes_no_bit, "device_of", "if told is not None", "if not told"),
    ],
)
def test_the_laws_notice(law, function, old, new, monkeypatch):
    """Weights that nobody gathers, and a hook that is not asked."""
    plant(monkeypatch, devices, function, old, new)
    with pytest.raises((RuntimeError, AssertionError, AttributeError)):
        law("sdxl")


@pytest.mark.parametrize(
    "hook, device",
    [
        (SimpleNamespace(execution_device=torch.device("cuda:1")), "cuda:1"),
        (SimpleNamespace(execution_device=0), "cuda:0"),
        (SimpleNamespace(hooks=[SimpleNamespace(execution_device="mps")]), "mps"),
        (SimpleNamespace(execution_device=None), "cpu"),
    ],
)
def test_the_device_is_the_one_that_is_computed_on(hook, device):
    """A hook of offloading names it, else the weights are where they are."""
    model = nn.Sequential(nn.Linear(1, 1))
    assert device_of(model) == torch.device("cpu")
    model._hf_hook = hook
    assert device_of(model) == torch.device(device)


def test_weights_that_are_nowhere_are_refused():
    """The meta device holds nothing, and without a hook nobody brings it."""
    with refused("are on the meta device, and no hook tells where it computes; load"):
        device_of(nn.Linear(1, 1, device="meta"))

"""The registry under stress: interrupted at every step, from many threads and tasks, copied, compiled,
recomputed.
"""

import asyncio
import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MethodType

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from textpatch import Site, capture, patch
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry, _open_blocks
from textpatch.sites import Tap

SITES = 70  # as many as SDXL has
NAMES = [str(i) for i in range(SITES)]


def model(sites: int = SITES) -> nn.Sequential:
    return nn.Sequential(*(nn.Identity() for _ in range(sites)))


def residue(of: nn.Module) -> int:
    """Hooks left on any module, and blocks left open here."""
    return sum(len(module._forward_hooks) for module in of.modules()) + len(_open_blocks.get())


@pytest.mark.parametrize("before", [True, False], ids=["instead of it", "right after it"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_no_residue_at_any_partial_registration(monkeypatch, error, before):
    """Registration ends by an error at the k-th of 70 modules, before or after torch took the hook: 0
    hooks left.
    """
    register = nn.Module.register_forward_hook
    for k in range(SITES):
        watched, count = model(), iter(range(SITES))

        def failing(module, hook, count=count, k=k):
            last = next(count) == k
            if not (last and before):
                register(module, hook)
            if last:
                raise error

        with monkeypatch.context() as patched, pytest.raises(error):
            patched.setattr(nn.Module, "register_forward_hook", failing)
            with HookRegistry(watched, NAMES).observe(lambda name, output: None):
                raise AssertionError("entered although registration failed")
        assert residue(watched) == 0


def test_no_residue_when_closing_is_interrupted(monkeypatch):
    """An interrupt at the k-th line that runs while a block closes: 0 hooks left, for every k."""
    own = sys.gettrace()  # a debugger's, or that which counts covered lines
    for k in range(1, 200):
        watched, lines = model(3), iter(range(10**6))

        def trace(frame, event, _, lines=lines, k=k):
            if event == "line" and next(lines) == k:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        def tracing(frame, event, argument, trace=trace):
            return trace if frame.f_code.co_name == "_close" else None

        interrupted = False
        try:
            with HookRegistry(watched, ["0", "1", "2"]).observe(lambda name, output: None):
                watched(torch.ones(1))
                sys.settrace(tracing)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(own)
        assert residue(watched) == 0
        if not interrupted:
            break
    assert 10 < k < 199  # many lines were tried, and then all of them had been


INTERRUPTED = """
    import signal, sys, torch
    from torch import nn
    from textpatch.hooks import HookRegistry, _open_blocks

    # a shell's background jobs ignore it, and so would we
    signal.signal(signal.SIGINT, signal.default_int_handler)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    x, names = torch.ones(2, 4), [str(i) for i in range(6)]
    plain = model(x).clone()

    def forwards():
        while True:
            with HookRegistry(model, names).replace(lambda name, output: output + 1):
                model(x)

    for n in range(int(sys.argv[1])):
        try:
            print("ready", flush=True)
            forwards()
        except KeyboardInterrupt:
            pass
        left = sum(len(m._forward_hooks) for m in model.modules()) + len(_open_blocks.get())
        clean = left == 0 and torch.equal(model(x), plain)
        print("clean" if clean else f"{left} left", flush=True)
"""


def test_interrupts_by_signal(long):
    """SIGINT at 100 moments of patched forwards (2,000 in the long form): after each, no hook and the
    plain output.
    """
    times = 2_000 if long else 100
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(times)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    with child:
        said = []
        for n in range(times):
            assert child.stdout.readline() == "ready\n"
            signal_after(child, 0.0005 + 0.00001 * (n * 37 % 100))
            said.append(child.stdout.readline())
    assert said == ["clean\n"] * times


def signal_after(child: subprocess.Popen, seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)


def patched_pass(shared: nn.Module, shift: float) -> bool:
    """One pass under a block of one's own gives one's own result."""
    with HookRegistry(shared, ["0"]).replace(lambda name, output: output + shift):
        return bool((shared(torch.zeros(3)) == shift).all())


def test_threads_do_not_meet():
    """Eight reused threads, 500 passes each, of one model under different patches: 0 of 4,000 are
    contaminated.
    """
    shared = model(1)
    with ThreadPoolExecutor(8) as pool:
        right = list(pool.map(lambda n: patched_pass(shared, float(n)), range(4_000)))
    assert sum(right) == 4_000 and residue(shared) == 0


def test_tasks_do_not_meet():
    """Forty asyncio tasks that give way inside their blocks: each sees its own patch alone."""
    shared = model(1)

    async def task(shift):
        with HookRegistry(shared, ["0"]).replace(lambda name, output: output + shift):
            seen = []
            for _ in range(5):
                await asyncio.sleep(0)
                seen.append(shared(torch.zeros(1)).item())
        return seen == [shift] * 5

    async def all_tasks():
        return await asyncio.gather(*(task(float(n)) for n in range(40)))

    assert all(asyncio.run(all_tasks())) and residue(shared) == 0


@pytest.mark.parametrize("take", [copy.deepcopy, pickle.dumps], ids=["deepcopy", "pickle"])
def test_a_watched_model_is_not_copied(take):
    """deepcopy and pickle would carry the hooks along: refused inside the block, as ever outside."""
    watched = model(2)
    with HookRegistry(watched, ["1"]).observe(lambda name, output: None):
        with pytest.raises(PatchError, match="copied or pickled while module '1'"):
            take(watched)
        watched.state_dict(), watched.to(torch.float64), watched(torch.ones(1))
    take(watched)
    assert residue(watched) == 0


class Dead(nn.Module):
    """A module inside that somebody uses without calling it."""

    def __init__(self, use):
        super().__init__()
        self.inner, self.use = nn.Linear(2, 2), use

    def forward(self, x):
        return self.use(self.inner, x)


USES = {
    "never used": lambda inner, x: x,
    "through .forward": lambda inner, x: inner.forward(x),
    "its weight alone": lambda inner, x: nn.functional.linear(x, inner.weight, inner.bias),
    "fused with others": lambda inner, x: x @ torch.cat([inner.weight, inner.weight]).T,
    "in a thread of its own, as DataParallel": lambda inner, x: (
        ThreadPoolExecutor(1).submit(inner, x).result()
    ),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_dead_module_is_reported(use):
    """A module that is there and never fires is an error on leaving, not silence."""
    dead = Dead(use)
    with (
        pytest.raises(PatchError, match="1 of 1 modules never ran inside the block"),
        HookRegistry(dead, ["inner"]).observe(lambda name, output: None),
    ):
        dead(torch.ones(1, 2))
    assert residue(dead) == 0


@pytest.fixture
def fresh_compiler():
    """No graph of another test is left to be reused, nor one of this."""
    torch._dynamo.reset()
    yield partial(torch.compile, backend="eager")
    torch._dynamo.reset()


def test_compiled_before_is_reported(fresh_compiler):
    """A graph made before the block does not hold the hook, and torch does not say so: an error on
    leaving.
    """
    net, x = nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2)
    compiled = fresh_compiler(net)
    compiled(x)
    with (
        pytest.raises(PatchError, match="compile it only after entering"),
        HookRegistry(net, ["0"]).replace(lambda name, output: output * 0),
    ):
        compiled(x)


def test_compiled_inside_acts_inside(fresh_compiler):
    """A graph made inside the block runs the hook (and breaks there: contextvars are not traced).

    After it, not.
    """
    net, x = nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2)
    with HookRegistry(net, ["0"]).replace(lambda name, output: output * 0):
        compiled = fresh_compiler(net)
        assert not compiled(x).any()
    assert torch.equal(compiled(x), net(x)) and compiled(x).any() and residue(net) == 0


def test_no_graph_holds_a_hook(fresh_compiler):
    """fullgraph=True inside a block: torch refuses to trace the hook, rather than leave it out."""
    net = nn.Sequential(nn.Linear(2, 2))
    with (
        pytest.raises(torch._dynamo.exc.Unsupported, match="ContextVar"),
        HookRegistry(net, ["0"]).replace(lambda name, output: output * 0),
    ):
        fresh_compiler(net, fullgraph=True)(torch.ones(1, 2))
    assert residue(net) == 0


def test_new_tasks_take_open_blocks_along_and_new_threads_do_not():
    """A task made inside a block is patched, for it copies the context; a thread made there is not."""
    net, x = model(1), torch.ones(1)

    async def task():
        return net(x)

    async def both():
        with HookRegistry(net, ["0"]).replace(lambda name, output: output + 1):
            return await asyncio.create_task(task()), ThreadPoolExecutor(1).submit(net, x).result()

    assert asyncio.run(both()) == (2, 1)


def replicate(module: nn.Module) -> nn.Module:
    """A replica as DataParallel makes one, of the same weights: copies of the modules that share their
    hooks.
    """
    replica = module._replicate_for_data_parallel()
    replica._parameters = dict(module._parameters)
    replica._modules = {name: replicate(child) for name, child in module._modules.items()}
    return replica


def test_replicas_of_data_parallel_are_not_patched():
    """In threads of their own, as DataParallel runs them, replicas give plain outputs, and leaving is an
    error.
    """
    net, x = nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2)
    with (
        pytest.raises(PatchError, match="never ran inside the block"),
        HookRegistry(net, ["0"]).replace(lambda name, output: output * 0),
        ThreadPoolExecutor(2) as pool,
    ):
        made = list(pool.map(lambda replica: replica(x), [replicate(net), replicate(net)]))
    assert all(torch.equal(output, net(x)) for output in made) and residue(net) == 0


def test_data_parallel_of_one_device_is_patched():
    """Without two devices DataParallel calls the module itself."""
    net, x = nn.DataParallel(nn.Sequential(nn.Linear(2, 2))), torch.ones(1, 2)
    with HookRegistry(net, ["module.0"]).replace(lambda name, output: output * 0):
        assert not net(x).any()
    assert net(x).any() and residue(net) == 0


def test_an_offloaded_module_is_patched():
    """`forward` replaced on the module, as offloading does to bring weights in and out: hooks act, and it
    stays.
    """
    net, x = nn.Sequential(nn.Linear(3, 3)), torch.ones(1, 3)
    weight = net[0].weight.data

    def fetched(module, x):
        module.weight.data = weight
        output = nn.Linear.forward(module, x)
        module.weight.data = torch.empty(0)
        return output

    net[0].forward = offloaded = MethodType(fetched, net[0])
    with HookRegistry(net, ["0"]).replace(lambda name, output: output * 0):
        assert not net(x).any()
    assert net(x).any() and net[0].forward is offloaded and residue(net) == 0


def gradients(run, net, backward=lambda loss: loss.backward(), inside=True) -> list:
    """Gradients of net's parameters under a patch of its first module that takes half its rows from
    elsewhere.
    """
    donor = torch.linspace(-1, 1, 12).view(4, 3)
    net.zero_grad()
    with HookRegistry(net, ["0"]).replace(
        lambda name, output: torch.cat([output[:2], donor[2:]])
    ) as registry:
        loss = run(torch.linspace(1, -2, 12).view(4, 3)).square().sum()
        if inside:
            backward(loss)
    if not inside:
        backward(loss)
    return [registry.calls["0"], *(p.grad.clone() for p in net.parameters())]


class Read(nn.Module):
    """Two heads' keys and values of some words, and a number of them in which each has a part."""

    def __init__(self):
        super().__init__()
        self.k, self.v = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, words):
        return (self.k(words).sin() * self.v(words)).sum(dim=1)


READ = [Site(0, "", "cross", 2, 2, 0, taps=(Tap("k"), Tap("v")))]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_step_is_repeated_as_itself(reentrant):
    """A cache of two steps, one call and its backward pass in the block: gradients with and without
    checkpointing agree; of two calls nobody knows which is repeated, and it is refused."""
    net, words = Read(), torch.linspace(-1, 2, 24).view(2, 4, 3).requires_grad_()
    again = partial(checkpoint, net, use_reentrant=reentrant)
    with torch.no_grad(), capture(net, READ, rows=["a", "b"]) as cache:
        net(words), net(3 * words)

    def gradient(call, calls: int = 1) -> torch.Tensor:
        net.zero_grad()
        with patch(net, cache, READ, rows=["b", None]):
            sum(call(words).square().sum() for _ in range(calls)).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    expected = gradient(net)
    assert torch.allclose(
        gradient(again), expected, rtol=0, atol=1e-6 * float(expected.abs().max())
    )
    with pytest.raises(
        PatchError, match="runs again in a backward pass, as checkpointing does, after 2 calls"
    ):
        gradient(again, calls=2)


def test_checkpointed_blocks_recompute_under_the_patch():
    """Gradients with and without checkpointing agree (1e-6) if backward runs in the block, by its thread.

    Else not.
    """
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    again = partial(checkpoint, net, use_reentrant=False)
    once, *expected = gradients(net, net)
    twice, *found = gradients(again, net)
    assert (once, twice) == (1, 2)  # forward, and once more for the gradient
    assert (
        all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(expected, found, strict=True))
        and expected[2].any()
    )
    after = gradients(again, net, inside=False)
    elsewhere = gradients(
        again, net, backward=lambda loss: ThreadPoolExecutor(1).submit(loss.backward).result()
    )
    for calls, *wrong in (after, elsewhere):
        assert calls == 1 and not torch.allclose(wrong[2], expected[2], rtol=0, atol=1e-6)


# --- memory ---


def held() -> tuple[int, int]:
    """Bytes of Python's objects, and of the memory of all tensors that Python can reach."""
    gc.collect()
    # none of the compiler's
    tensors = [x for x in gc.get_objects() if type(x) in (torch.Tensor, nn.Parameter)]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return tracemalloc.get_traced_memory()[0], sum(storages.values())


def growth(times: int, keep: list | None = None) -> float:
    """Megabytes more after so many captured and patched runs; `keep` keeps their caches."""
    net = nn.ModuleDict({"k": nn.Linear(8, 64), "v": nn.Linear(8, 64)})
    net.forward = lambda x: net["k"](x) + net["v"](x)
    site, x = Site(0, "", "cross", 4, 16, 0, taps=(Tap("k"), Tap("v"))), torch.ones(2, 8, 8)

    def runs(times: int):
        for _ in range(times):
            with capture(net, site, rows=["a", "b"]) as cache:
                net(x)
            with patch(net, cache, site, rows=["b", None]):
                net(x)
            if keep is not None:
                keep.append(cache)

    tracemalloc.start()
    try:
        runs(10)
        before = held()
        runs(times)
        return max(after - at_first for after, at_first in zip(held(), before, strict=True)) / 2**20
    finally:
        tracemalloc.stop()


def test_memory_returns_to_the_baseline(long):
    """Captured and patched runs, 20 or with --long 10,000, hold no kilobyte each; kept caches would."""
    times = 10_000 if long else 20
    assert abs(growth(times)) < times / 1024
    assert growth(10, keep=[]) > 10 / 1024

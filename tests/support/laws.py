"""The laws of the core as plain functions, which raise AssertionError where their law is broken.

Property tests call them on random cases; test_faults.py plants a fault for each and asks that it is noticed.
Equality is exact wherever arithmetic, batch shape and place in the batch are the same; `close` is for another
batch, which moves the last bits of float64.  Laws of a single call are in laws_of_calls.py.
"""

import contextlib
import json
import threading
from dataclasses import replace
from functools import partial

import torch
from safetensors.torch import load, save

from support.patched_calls import (
    anatomy,
    by_cache,
    cells,
    close,
    last_module,
    loop,
    observed,
    patching,
    paths,
    refused,
    run,
    tables,
    taps,
)
from support.strategies import Attention, Case
from textpatch import attention, guidance, packing
from textpatch.hooks import HookRegistry
from textpatch.plan import Plan, Row, Swap

# --- registry ---


def law_observing_changes_nothing(case: Case):
    """Observers and captures leave f(x) as it is, bit for bit, whatever the observer returns."""
    with HookRegistry(case.model, taps(*case.model.sites)).observe(lambda name, output: output * 0):
        assert torch.equal(case.call(), plain := _outside(case))
    with patching.capture(case.model, "all", rows=case.rows):
        assert torch.equal(case.call(), plain)


def _outside(case: Case):
    """Output of the denoiser in a thread of its own, where no open block reaches."""
    return _in_thread(case.call)


def _in_thread(work):
    result = []
    thread = threading.Thread(target=lambda: result.append(work()))
    thread.start()
    thread.join()
    return result[0]


def law_none_leaves_the_output(case: Case):
    """A replacement by None is the identity, and one by 0 is not."""
    plain = case.call()
    names = taps(case.model.sites[0])[1:]
    with HookRegistry(case.model, names).replace(lambda name, output: None):
        assert torch.equal(case.call(), plain)
    with HookRegistry(case.model, names).replace(lambda name, output: output * 0):
        assert not torch.equal(case.call(), plain)


def law_an_unknown_name_installs_nothing(case: Case):
    """A bad name among several is refused with the closest one, and the model is as it was."""
    before = anatomy(case.model)
    last = last_module(case)
    names = [*taps(case.model.sites[0]), last[:-2] + "tu"]
    with refused(f"closest: {last}"), HookRegistry(case.model, names).observe(print):
        case.call()
    assert anatomy(case.model) == before


def law_silence_is_an_error(case: Case):
    """A named module that never ran raises PatchError on leaving."""
    ran, silent = taps(case.model.sites[0])
    module = case.model.get_submodule(ran)
    with (
        refused(f"1 of 2 modules never ran inside the block ({silent})"),
        HookRegistry(case.model, [ran, silent]).observe(lambda name, output: None),
    ):
        module(torch.zeros(1, module.in_features, dtype=torch.float64))


def law_no_residue(case: Case):
    """Any exit leaves hooks, attributes and context as they were.

    Exits are the end, an error and an interrupt, also of nested blocks.
    """
    before = anatomy(case.model)
    for error in (None, ValueError, KeyboardInterrupt):
        with (
            contextlib.suppress(ValueError, KeyboardInterrupt),
            patching.capture(case.model, "all", rows=case.rows) as cache,
        ):
            case.call()
            with patching.patch(case.model, cache, case.sites, rows=case.rows):
                case.call()
                if error:
                    raise error
        assert anatomy(case.model) == before


def law_blocks_close_in_any_order(case: Case):
    """Closing the outer of two blocks first stops the outer alone, and both leave nothing."""
    before = anatomy(case.model)
    counts = {"outer": 0, "inner": 0}
    last = last_module(case)

    def count(block):
        return lambda name, output: counts.update({block: counts[block] + 1})

    outer, inner = (HookRegistry(case.model, [last]).observe(count(block)) for block in counts)
    outer.__enter__(), inner.__enter__(), case.call()
    outer.__exit__(None, None, None), case.call()
    inner.__exit__(None, None, None), case.call()
    assert counts == {"outer": 1, "inner": 2} and anatomy(case.model) == before


def law_other_hooks_stay(case: Case):
    """Hooks of others, put on inside or outside the block, fire on and are never removed."""
    fired = []
    last = last_module(case)
    module = case.model.get_submodule(last)
    outside = module.register_forward_hook(lambda *_: fired.append("outside"))
    with HookRegistry(case.model, [last]).observe(lambda name, output: None):
        inside = module.register_forward_hook(lambda *_: fired.append("inside"))
        case.call()
    case.call()
    kept = [handle.id in module._forward_hooks for handle in (outside, inside)]
    outside.remove(), inside.remove()
    assert kept == [True, True] and fired == ["outside", "inside"] * 2


def law_other_threads_are_untouched(case: Case):
    """A block changes the model in its own thread alone."""
    plain = case.call()
    with HookRegistry(case.model, [last_module(case)]).replace(lambda name, output: output * 0):
        assert torch.equal(_in_thread(case.call), plain) and not case.call().any()


# --- plans as data ---


def law_plans_survive_json(case: Case):
    """Plans survive JSON, from_json(to_json(p)) = p, with one sha256.

    So do plans from what JSON makes of the text.
    """
    assert Plan.from_json(json.loads(case.plan.to_json())) == case.plan
    again = Plan.from_json(case.plan.to_json())
    assert (
        again == case.plan and again.sha256 == case.plan.sha256 and hash(again) == hash(case.plan)
    )


def law_spelling_does_not_matter(case: Case):
    """sha256(lists in any order, with repeats) = sha256."""

    def twice(values):
        return None if values is None else [*reversed(values), values[0]]

    other = [
        Swap(
            twice(s.sites),
            twice(s.readers),
            s.donor,
            twice(s.steps),
            twice(s.heads),
            twice(s.tokens),
            s.part,
            s.branch,
        )
        for s in case.plan.swaps
    ]
    assert Plan(other) == case.plan and Plan(other).sha256 == case.plan.sha256


def law_the_last_swap_wins(case: Case):
    """Cells that s names read by p + s the donor of s, and others what they read by p.

    So twice = once.
    """
    labels = [row.label for row in case.branches(case.rows)]
    for step in range(case.steps):
        expected = tables(case, Plan(), step)
        for swap in case.plan.swaps:
            donor = torch.tensor([labels.index((swap.donor, branch)) for _, branch in labels])[
                :, None, None
            ]
            read = donor * case.tokens + torch.arange(case.tokens)
            expected = torch.where(cells(case, swap, step), read, expected)
        assert torch.equal(tables(case, case.plan, step), expected)
        assert torch.equal(tables(case, case.plan + case.plan, step), expected)


def law_disjoint_swaps_commute(case: Case):
    """s1 s2 = s2 s1 if no cell is named by both, at every step."""
    first = case.plan.swaps[0]
    last = case.plan.swaps[-1]
    others = tuple(i for i in range(len(case.model.sites)) if i not in first.sites)
    disjoint = [(Swap(case.sites, "a", "b"), Swap(case.sites, "b", "a"))]
    disjoint += [(first, replace(last, sites=others))] if others else []
    for step in range(case.steps):
        for pair in disjoint:
            assert not (cells(case, pair[0], step) & cells(case, pair[1], step)).any()
            assert torch.equal(tables(case, Plan(pair), step), tables(case, Plan(pair[::-1]), step))


# --- runs ---


def law_identity(case: Case):
    """The empty plan, a row's own K/V by plan, and by cache, change nothing, bit for bit."""
    plain = paths(run(case, case.rows))
    selves = paths(
        run(case, case.rows, Plan(Swap(case.sites, row.name, row.name) for row in case.rows))
    )
    assert all(torch.equal(selves[name], plain[name]) for name in plain)
    with patching.capture(case.model, "all", rows=case.rows) as cache:
        once = case.call()
    with patching.patch(case.model, cache, case.sites, rows=case.rows):
        assert torch.equal(case.call(), once)


def law_all_sites_are_the_target(case: Case):
    """A swap of all sites, with the pooled vector of b, makes a = b.

    With a's own pooled vector it does not.  By cache this is so bit for bit, in one batch to
    1e-12, since there a and b lie at different places.
    """
    b = Row("b", "prompt b", seed=5)
    with patching.capture(case.model, "all", rows=case.branches([b])) as cache:
        target = loop(case, [b])["b"]
    for pooled, equal in _pooled(case):
        a = Row("a", "prompt a", seed=5, pooled=pooled)
        with patching.patch(case.model, cache, "all", rows=case.branches([b])):
            assert torch.equal(loop(case, [a])["a"], target) == equal
        together = paths(run(case, [a, b], Plan([Swap("all", "a", "b")])))
        assert close(together["a"], together["b"]) == equal


def _pooled(case: Case) -> list[tuple[str | None, bool]]:
    """Pooled prompts of a, and whether a is b with them.   Where nothing pools, a's own is none."""
    if case.inputs[2].pooled is None:
        return [(None, True)]
    return [("prompt b", True), (None, False)]


def law_the_start_step(case: Case):
    """Latents entering steps 0..s are the source's, bit for bit, if the start is s.

    Those leaving s are not.
    """
    rows = case.rows[:2]
    s = case.start
    by_plan = paths(run(case, rows)), paths(run(case, rows, Plan([case.swap])))
    for plain, patched in (by_plan, captured_then_patched(case, rows)):
        assert torch.equal(patched["a"][: s + 1], plain["a"][: s + 1])
        assert not close(patched["a"][s + 1], plain["a"][s + 1])


def captured_then_patched(case: Case, rows):
    """Latents of two runs of the same batch, one captured, then one patched in the first row alone."""
    batch, (reader, donor) = case.branches(rows), rows
    with patching.capture(case.model, case.sites, rows=batch) as cache:
        plain = loop(case, rows)
    patched = [row.name == reader.name and case.acts_in(row) for row in batch]
    reads = [
        (donor.name, row.branch) if is_patched else None
        for row, is_patched in zip(batch, patched, strict=True)
    ]
    with patching.patch(case.model, cache, case.sites, rows=reads, steps=case.swap.steps):
        return plain, loop(case, rows)


def law_unnamed_rows_are_untouched(case: Case):
    """Rows that no swap names are bit-equal to the run without a plan."""
    plain = paths(run(case, case.rows))
    patched = paths(run(case, case.rows, case.plan))
    for name in plain.keys() - {reader for swap in case.plan.swaps for reader in swap.readers}:
        assert torch.equal(plain[name], patched[name])


def law_earlier_sites_are_unchanged(case: Case):
    """Sites before the first swapped one give in row a what they give without the swap.

    They do so bit for bit, and no later site does.
    """
    names = [site.name for site in case.model.sites]
    swapped = case.slots(Swap(case.sites, "a", "b"))
    plain, changed = (observed(case, names, lambda: case.call(slots)) for slots in (None, swapped))
    same = [torch.equal(plain[name], changed[name]) for name in names]
    assert same == [site.index < min(case.sites) for site in case.model.sites]


def law_image_keys_and_queries_are_untouched(case: Case):
    """Queries, image keys and image values stay as they are at a swapped site.

    By cache the reader's text keys and values are the donor's.
    """
    site = case.model.sites[min(case.sites)]
    modules = dict(case.model.named_modules())
    text = taps(site)
    projections = ("to_q", "to_k", "to_v", "add_q_proj", "norm_q", "norm_k", "norm_added_q")
    image = [
        name
        for name in (f"{site.name}.{p}" for p in projections)
        if name in modules and name not in text
    ]
    plain = observed(case, image + text, case.call)
    by_plan = observed(
        case, image + text, lambda: case.call(case.slots(Swap(site.index, "a", "b")))
    )
    with patching.capture(case.model, site, rows=case.rows) as cache:
        case.call()
    with patching.patch(
        case.model, cache, site, rows=[case.rows[1], *[None] * (len(case.rows) - 1)]
    ):
        patched = observed(case, image + text, case.call)
    assert all(torch.equal(plain[name], by_plan[name]) for name in plain)
    assert all(torch.equal(plain[name], patched[name]) for name in image)
    assert all(torch.equal(patched[n], torch.cat([plain[n][1:2], plain[n][1:]])) for n in text)


def law_caches_survive_their_tensors(case: Case):
    """Caches survive a safetensors file, with keys, shapes, dtypes and bits.

    from_tensors(load(save(tensors(c)))) = c
    """
    with patching.capture(case.model, case.sites, rows=case.branches(case.rows)) as cache:
        loop(case, case.rows)
    again = patching.KVCache.from_tensors(load(save(cache.tensors)))
    assert again.keys() == cache.keys() and again.bytes == cache.bytes
    assert all(
        torch.equal(again[key], cache[key]) and again[key].dtype == cache[key].dtype
        for key in cache
    )


def law_caches_are_copies(case: Case):
    """A cache does not change with the model's tensors, and holds no graph."""
    site = case.model.sites[0]
    weights = case.model.get_submodule(site.name).requires_grad_(True)
    outputs = []
    watched = HookRegistry(case.model, taps(site)[:1])
    with (
        patching.capture(case.model, 0, rows=case.rows) as cache,
        watched.observe(lambda name, output: outputs.append(output)),
    ):
        case.model(*case.inputs)
    weights.requires_grad_(False)
    assert not any(tensor.requires_grad for tensor in cache.values())
    outputs[0].detach().zero_()
    assert all(cache[site.name, 0, row.label, "k"].any() for row in case.rows)


def law_estimates_are_exact(case: Case):
    """estimate(sites, steps, rows, T) = bytes captured."""
    with patching.capture(case.model, case.sites, rows=case.branches(case.rows)) as cache:
        loop(case, case.rows)
    sites = [case.model.sites[i] for i in case.sites]
    rows = len(case.branches(case.rows))
    assert cache.bytes == patching.KVCache.estimate(
        sites, case.steps, rows, case.tokens, torch.float64
    )


def law_lock_step_is_capture_then_patch(case: Case):
    """A batch of reader and donor gives what capture of the donor, then a patched run of the reader give.

    It does so to 1e-12.
    """
    reader, donor = case.rows[:2]
    together = paths(run(case, [reader, donor], Plan([case.swap])))
    donors = case.branches([donor])
    with patching.capture(case.model, case.sites, rows=donors) as cache:
        alone = loop(case, [donor])
    reads = [row if case.acts_in(row) else None for row in donors]
    with patching.patch(case.model, cache, case.sites, rows=reads, steps=case.swap.steps):
        alone |= loop(case, [reader])
    assert all(close(together[name], alone[name]) for name in alone)


def law_injection_is_a_swap(case: Case):
    """Injection of b is a <- b in one batch, and capture of b, then patch, to 1e-12.

    This is for static text, and the result is not a alone.
    """
    reader, donor = case.rows[:2]
    donors = case.branches([donor])
    together = paths(run(case, [reader, donor], Plan([Swap(case.sites, "a", "b")])))["a"]
    with patching.inject(
        case.model, case.pipeline.encode([row.prompt for row in donors]), case.sites
    ):
        injected = loop(case, [reader])["a"]
    with patching.capture(case.model, case.sites, rows=donors) as cache:
        loop(case, [donor])
    with patching.patch(case.model, cache, case.sites, rows=donors):
        patched = loop(case, [reader])["a"]
    assert close(injected, together) and close(patched, together)
    assert not close(loop(case, [reader])["a"], together)


def law_all_heads_are_the_site(case: Case):
    """A swap of head h reads the donor on h and the own row elsewhere.

    All heads one by one are the site, also in the call, bit for bit.  One head by plan is its
    channels by cache, to 1e-12.
    """
    with patching.capture(case.model, "all", rows=case.rows) as cache:
        case.call()
    for site in (case.model.sites[i] for i in case.sites):
        heads = range(site.heads)
        each = [Swap(site.index, "a", "b", heads=(h,)) for h in heads]
        swap = Swap(site.index, "a", "b")
        whole = tables(case, Plan([swap]), 0)
        own = tables(case, Plan(), 0)
        for h, one in zip(heads, each, strict=True):
            named = torch.arange(whole.shape[3])[:, None] == h
            assert torch.equal(tables(case, Plan([one]), 0), torch.where(named, whole, own))
            native = case.call(case.slots(one))
            with by_cache(case, cache, one):
                assert close(case.call(), native)
        assert torch.equal(tables(case, Plan(each), 0), whole)
        assert torch.equal(case.call(case.slots(*each)), case.call(case.slots(swap)))


def law_rows_mean_their_labels(case: Case):
    """A cache of one guidance branch is refused in a run of two, and of two in one.

    So are twin labels.
    """
    donor = case.rows[1]
    both = guidance.with_guidance([case.rows[1]])
    for captured, asked, labels in ((1, 4.5, [donor]), (1, 4.5, both), (4.5, 1, both)):
        with patching.capture(
            case.model, case.sites, rows=[donor] if captured == 1 else both
        ) as cache:
            loop(replace(case, guidance=captured), [donor])
        with refused(), patching.patch(case.model, cache, case.sites, rows=labels):
            loop(replace(case, guidance=asked), case.rows[:1])
    with refused("more than once"), patching.capture(case.model, case.sites, rows=[donor, donor]):
        case.call()


def law_micro_batches_change_nothing(case: Case):
    """Micro-batches of any size give the same latents (1e-12).

    No reader is ever without its donors.
    """
    whole = paths(run(case, case.rows, case.plan))
    count = len(case.rows)
    for size in range(1, 2 * count + 1):
        groups = packing.pack(case.rows, case.plan, size)
        assert sorted(row.name for _, fresh in groups for row in fresh) == [
            row.name for row in case.rows
        ]
        for names in ({row.name for row in group} for group, _ in groups):
            assert all(s.donor in names for s in case.plan.swaps if names & set(s.readers))
        parts = paths(run(case, case.rows, case.plan, micro_batch=size))
        assert parts.keys() == whole.keys() and all(
            close(parts[name], whole[name]) for name in whole
        )


def law_evolving_text_refuses_injection(case: Case):
    """Injection is refused for MMDiT before anything is installed.

    Its K and V are no function of one text.
    """
    before = anatomy(case.model)
    with (
        refused("text stream"),
        patching.inject(case.model, case.pipeline.encode(["b"]).tokens, case.sites),
    ):
        pass
    assert anatomy(case.model) == before


# --- attention ---


def attend(case: Attention, slots, k_bank=None, v_bank=None, image=True, slots_v=None):
    """Image and text outputs in one tensor."""
    k = case.k[0] if image else None, case.k[1] if k_bank is None else k_bank
    v = case.v[0] if image else None, case.v[1] if v_bank is None else v_bank
    out = attention.segment_attention(
        case.q, k, v, slots_k=slots, slots_v=slots_v, backend=case.backend
    )
    return torch.cat(out, dim=2)


def law_slots_are_an_index(case: Attention):
    """Slots are an index, gather(bank, s)[b, h, t] = bank[s // S, h, s % S], bit for bit.

    k and v have tables of their own.
    """
    heads = case.k[1].shape[1]
    S = case.bank_tokens
    table = case.slots.expand(-1, heads, -1).tolist()

    def pick(bank):
        rows = [[[bank[s // S, h, s % S] for s in row[h]] for h in range(heads)] for row in table]
        return torch.stack([torch.stack([torch.stack(head) for head in row]) for row in rows])

    assert torch.equal(attention.gather_text(case.k[1], case.slots), pick(case.k[1]))
    other = case.slots.flip(-1)
    expected = attend(case, None, pick(case.k[1]), attention.gather_text(case.v[1], other))
    assert torch.equal(attend(case, case.slots, slots_v=other), expected)


def law_own_slots_are_the_identity(case: Attention):
    """Slots (b, t) -> (b, t) and no slots give the same, bit for bit."""
    rows = case.q[0].shape[0]
    k, v = (x[1][torch.arange(rows) % case.bank_rows] for x in (case.k, case.v))
    own = attention.row_slots(torch.arange(rows), case.bank_tokens)
    assert torch.equal(attend(case, own, k, v), attend(case, None, k, v))


def law_the_order_of_the_bank_is_nothing(case: Attention):
    """A bank with rows and tokens permuted, and slots with them, gives the same, bit for bit."""
    generator = torch.Generator().manual_seed(1)
    rows, tokens = (
        torch.randperm(n, generator=generator) for n in (case.bank_rows, case.bank_tokens)
    )
    k, v = (x[1][rows][:, :, tokens] for x in (case.k, case.v))
    row = case.slots // case.bank_tokens
    token = case.slots % case.bank_tokens
    moved = (rows.argsort()[row.long()] * case.bank_tokens + tokens.argsort()[token.long()]).int()
    assert torch.equal(attend(case, moved, k, v), attend(case, case.slots))


def law_hidden_tokens_are_absent(case: Attention):
    """A slot of -1 in either table acts as that key deleted (1e-12).

    Nothing visible gives zeros, and a visible NaN stays.
    """
    hidden = case.slots.clone()
    hidden[..., 0] = -1
    assert close(attend(case, hidden), deleted := attend(case, case.slots[..., 1:]))
    assert close(attend(case, case.slots, slots_v=hidden), deleted)
    assert not attend(case, torch.full_like(hidden, -1), image=False).any()
    assert attend(case, hidden, case.k[1] * float("nan")).isnan().all() or case.slots.shape[-1] == 1


def law_gradients_reach_the_donors(case: Attention):
    """Gradients of the bank pass gradcheck.

    Tokens that nobody reads get exactly 0, and read ones do not.
    """
    k, v = (x[1].clone().requires_grad_() for x in (case.k, case.v))
    out = partial(attend, case, case.slots)
    assert torch.autograd.gradcheck(out, (k, v), raise_exception=False)
    (out(k, v) ** 2).sum().backward()
    read = torch.zeros(case.bank_rows * case.bank_tokens, k.shape[1], dtype=torch.bool)
    slots = case.slots.expand(-1, k.shape[1], -1)
    for h in range(k.shape[1]):
        read[slots[:, h].flatten().long(), h] = True
    nonzero = (v.grad != 0).any(-1).transpose(1, 2).flatten(0, 1)
    assert torch.equal(nonzero, read) and not k.grad.transpose(1, 2).flatten(0, 1)[~read].any()

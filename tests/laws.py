"""The laws of the core as plain functions, which raise AssertionError where their law is broken.

Property tests call them on random cases; test_faults.py plants a fault for each and asks that it is noticed.
Equality is exact wherever arithmetic, batch shape and place in the batch are the same; `close` is for another
batch, which moves the last bits of float64.
"""

import contextlib
import threading
from importlib import import_module

import torch
from strategies import Attention, Case

from textpatch import attention, hooks, sampling
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.plan import Plan, Row, Swap

patching = import_module("textpatch.patch")  # `textpatch.patch` itself is the function of that name
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
    return sampling.sample(case.pipeline, rows, plan, steps=case.steps, guidance=case.guidance,
                           keep_trajectory=True, **options)  # fmt: skip


def paths(samples) -> dict:
    """Row name -> (steps + 1, C, H, W): latents entering each step, and the final ones."""
    return {name: torch.stack(latents) for name, latents in samples.trajectory.items()}


def anatomy(model):
    """All that a hook could leave behind on a model or in this thread."""
    tables = "_forward_hooks", "_forward_pre_hooks", "_buffers"
    parts = [(sorted(vars(m)), [list(vars(m)[table].items()) for table in tables]) for m in model.modules()]
    return parts, hooks._open_blocks.get()


def observed(case: Case, names, run_model) -> dict:
    seen = {}
    with HookRegistry(case.model, names).observe(lambda name, output: seen.update({name: output.clone()})):
        run_model()
    return seen


# --- registry ---


def law_observing_changes_nothing(case: Case):
    """f(x | observe, capture) = f(x), bit for bit, whatever the observer returns."""
    names = [site.name + ".add_k_proj" for site in case.model.sites]
    with HookRegistry(case.model, names).observe(lambda name, output: output * 0):
        assert torch.equal(case.call(), plain := _outside(case))
    with patching.capture(case.model, "all", rows=case.rows):
        assert torch.equal(case.call(), plain)


def _outside(case: Case):
    """The denoiser's output where no open block reaches: in a thread of its own."""
    return _in_thread(case.call)


def _in_thread(work):
    result = []
    thread = threading.Thread(target=lambda: result.append(work()))
    thread.start()
    thread.join()
    return result[0]


def law_none_leaves_the_output(case: Case):
    """replace(None) = identity; replace(0) is not."""
    plain, names = case.call(), [case.model.sites[0].name + ".add_v_proj"]
    with HookRegistry(case.model, names).replace(lambda name, output: None):
        assert torch.equal(case.call(), plain)
    with HookRegistry(case.model, names).replace(lambda name, output: output * 0):
        assert not torch.equal(case.call(), plain)


def law_an_unknown_name_installs_nothing(case: Case):
    """One bad name of several: refused with the closest one, and the model is as it was."""
    before = anatomy(case.model)
    with refused("closest: proj_out"):
        with HookRegistry(case.model, ["context_embedder", "proj_uot"]).observe(print):
            case.call()
    assert anatomy(case.model) == before


def law_silence_is_an_error(case: Case):
    """A named module that never ran: PatchError on leaving."""
    with refused("never ran"):
        with HookRegistry(case.model, ["proj_out", "norm_out"]).observe(lambda name, output: None):
            case.model.proj_out(torch.zeros(1, case.model.config.width, dtype=torch.float64))


def law_no_residue(case: Case):
    """Any exit (end, error, interrupt; nested) leaves hooks, attributes and context as they were."""
    before = anatomy(case.model)
    for error in (None, ValueError, KeyboardInterrupt):
        with contextlib.suppress(ValueError, KeyboardInterrupt):
            with patching.capture(case.model, "all", rows=case.rows) as cache:
                case.call()
                with patching.patch(case.model, cache, case.sites, rows=case.rows):
                    case.call()
                    if error:
                        raise error
        assert anatomy(case.model) == before


def law_blocks_close_in_any_order(case: Case):
    """Closing the outer of two blocks first stops the outer alone, and both leave nothing."""
    before, counts = anatomy(case.model), {"outer": 0, "inner": 0}

    def count(block):
        return lambda name, output: counts.update({block: counts[block] + 1})

    outer, inner = (HookRegistry(case.model, ["proj_out"]).observe(count(block)) for block in counts)
    outer.__enter__(), inner.__enter__(), case.call()
    outer.__exit__(None, None, None), case.call()
    inner.__exit__(None, None, None), case.call()
    assert counts == {"outer": 1, "inner": 2} and anatomy(case.model) == before


def law_other_hooks_stay(case: Case):
    """Somebody else's hook, put on inside or outside the block, fires on and is never removed."""
    fired, module = [], case.model.proj_out
    outside = module.register_forward_hook(lambda *_: fired.append("outside"))
    with HookRegistry(case.model, ["proj_out"]).observe(lambda name, output: None):
        inside = module.register_forward_hook(lambda *_: fired.append("inside"))
        case.call()
    case.call()
    kept = [handle.id in module._forward_hooks for handle in (outside, inside)]
    outside.remove(), inside.remove()
    assert kept == [True, True] and fired == ["outside", "inside"] * 2


def law_other_threads_are_untouched(case: Case):
    """A block changes the model in its own thread alone."""
    plain = case.call()
    with HookRegistry(case.model, ["proj_out"]).replace(lambda name, output: output * 0):
        assert torch.equal(_in_thread(case.call), plain) and not case.call().any()


# --- plans as data ---


def law_plans_survive_json(case: Case):
    """from_json(to_json(p)) = p, with one sha256."""
    again = Plan.from_json(case.plan.to_json())
    assert again == case.plan and again.sha256 == case.plan.sha256 and hash(again) == hash(case.plan)


def law_spelling_does_not_matter(case: Case):
    """sha256(lists in any order, with repeats) = sha256."""
    twice = lambda values: None if values is None else [*reversed(values), values[0]]  # noqa: E731
    other = [Swap(twice(s.sites), twice(s.readers), s.donor, twice(s.steps), twice(s.heads), twice(s.tokens),
                  s.part, s.branch) for s in case.plan.swaps]  # fmt: skip
    assert Plan(other) == case.plan and Plan(other).sha256 == case.plan.sha256


def tables(case: Case, plan: Plan, step: int):
    """What each cell reads, written out in full: (sites, k and v, B, H, T)."""
    rows, sites, tokens = case.branches(case.rows), case.model.sites, case.tokens
    entries = plan.slots(step, rows, sites, tokens=tokens) or [None] * len(sites)
    own = torch.arange(len(rows) * tokens).view(len(rows), 1, tokens)
    shape = len(rows), sites[0].heads, tokens
    pairs = [entry if isinstance(entry, tuple) else (entry, entry) for entry in entries]
    full = [(own if table is None else table).expand(shape) for pair in pairs for table in pair]
    return torch.stack(full).unflatten(0, (len(sites), 2))


def cells(case: Case, swap: Swap, step: int):
    """Bool (sites, k and v, B, H, T): the cells a swap names, straight from its docstring."""
    rows, sites, tokens = case.branches(case.rows), case.model.sites, case.tokens
    named = torch.zeros(len(sites), 2, len(rows), sites[0].heads, tokens, dtype=torch.bool)
    if swap.steps is not None and step not in swap.steps:
        return named
    branches = ("cond", "uncond") if swap.branch == "both" else ("cond",)
    for b in (b for b, row in enumerate(rows) if row.name in swap.readers and row.branch in branches):
        for site in swap.sites:
            for part in swap.part:
                for h in swap.heads or range(sites[0].heads):
                    named[site, "kv".index(part), b, h, list(swap.tokens or range(tokens))] = True
    return named


def law_the_last_swap_wins(case: Case):
    """read(p + s) = donor of s where s names the cell, read(p) elsewhere; so twice = once."""
    labels = [row.label for row in case.branches(case.rows)]
    for step in range(case.steps):
        expected = tables(case, Plan(), step)
        for swap in case.plan.swaps:
            donor = torch.tensor([labels.index((swap.donor, branch)) for _, branch in labels])[:, None, None]
            read = donor * case.tokens + torch.arange(case.tokens)
            expected = torch.where(cells(case, swap, step), read, expected)
        assert torch.equal(tables(case, case.plan, step), expected)
        assert torch.equal(tables(case, case.plan + case.plan, step), expected)


def law_disjoint_swaps_commute(case: Case):
    """s1 s2 = s2 s1 if no cell is named by both, at every step."""
    first, second = Swap(case.sites, "a", "b"), Swap(case.sites, "b", "a")
    for step in range(case.steps):
        assert not (cells(case, first, step) & cells(case, second, step)).any()
        both = [tables(case, Plan(pair), step) for pair in ((first, second), (second, first))]
        assert torch.equal(*both)


# --- runs ---


def law_identity(case: Case):
    """The empty plan, a row's own K/V by plan, and by cache, change nothing, bit for bit."""
    plain = paths(run(case, case.rows))
    selves = paths(run(case, case.rows, Plan(Swap(case.sites, row.name, row.name) for row in case.rows)))
    assert all(torch.equal(selves[name], plain[name]) for name in plain)
    with patching.capture(case.model, "all", rows=case.rows) as cache:
        once = case.call()
    with patching.patch(case.model, cache, case.sites, rows=case.rows):
        assert torch.equal(case.call(), once)


def law_all_sites_are_the_target(case: Case):
    """All sites and the pooled vector of b: a = b.  With a's own pooled vector: not.

    By cache bit for bit; in one batch to 1e-12, since there a and b lie at different places.
    """
    b = Row("b", "prompt b", seed=5)
    with patching.capture(case.model, "all", rows=case.branches([b])) as cache:
        target = paths(run(case, [b]))["b"]
    for pooled, equal in (("prompt b", True), (None, False)):
        a = Row("a", "prompt a", seed=5, pooled=pooled)
        with patching.patch(case.model, cache, "all", rows=case.branches([b])):
            assert torch.equal(paths(run(case, [a]))["a"], target) == equal
        together = paths(run(case, [a, b], Plan([Swap("all", "a", "b")])))
        assert close(together["a"], together["b"]) == equal


def law_the_start_step(case: Case):
    """Start s: latents entering steps 0..s are the source's, bit for bit; those leaving s are not."""
    rows, source = case.rows[:2], case.rows[0].name
    plain = paths(run(case, rows))[source]
    for patched in (paths(run(case, rows, Plan([case.swap])))[source], by_cache(case, rows)):
        assert torch.equal(patched[: case.start + 1], plain[: case.start + 1])
        assert not close(patched[case.start + 1], plain[case.start + 1])


def by_cache(case: Case, rows):
    """The first row's path through two runs of the same batch: capture, then patch the first row alone."""
    batch, (reader, donor) = case.branches(rows), rows
    with patching.capture(case.model, case.sites, rows=batch) as cache:
        run(case, rows)
    patched = [row.name == reader.name and case.acts_in(row) for row in batch]
    reads = [(donor.name, row.branch) if is_patched else None for row, is_patched in zip(batch, patched)]
    with patching.patch(case.model, cache, case.sites, rows=reads, steps=case.swap.steps):
        return paths(run(case, rows))[reader.name]


def law_unnamed_rows_are_untouched(case: Case):
    """Rows that no swap names: bit-equal to the run without a plan."""
    plain, patched = paths(run(case, case.rows)), paths(run(case, case.rows, case.plan))
    for name in plain.keys() - {reader for swap in case.plan.swaps for reader in swap.readers}:
        assert torch.equal(plain[name], patched[name])


def law_earlier_sites_are_unchanged(case: Case):
    """k_j, v_j as without the swap for j <= first swapped site, in that step; not for the site after it."""
    captures, first = [], min(case.sites)
    for plan in (Plan(), Plan([Swap(case.sites, "a", "b")])):
        with patching.capture(case.model, "all", rows=case.rows) as cache:
            case.call(plan.slots(0, case.rows, case.model.sites, tokens=case.tokens))
        captures.append(cache)
    plain, swapped = captures
    for site in case.model.sites[: first + 2]:
        keys = [key for key in plain if key[0] == site.name]
        assert all(torch.equal(plain[key], swapped[key]) for key in keys) == (site.index <= first)


def law_image_keys_and_queries_are_untouched(case: Case):
    """At a swapped site q, k_image, v_image stay; by cache k_text, v_text of the reader are the donor's."""
    site = case.model.sites[min(case.sites)]
    image = [f"{site.name}.{name}" for name in ("to_q", "to_k", "to_v", "add_q_proj")]
    text = [f"{site.name}.{name}" for name in ("add_k_proj", "add_v_proj")]
    plain = observed(case, image + text, case.call)
    plan = Plan([Swap(site.index, "a", "b")]).slots(0, case.rows, case.model.sites, tokens=case.tokens)
    by_plan = observed(case, image + text, lambda: case.call(plan))
    with patching.capture(case.model, site, rows=case.rows) as cache:
        case.call()
    with patching.patch(case.model, cache, site, rows=[case.rows[1], *[None] * (len(case.rows) - 1)]):
        patched = observed(case, image + text, case.call)
    assert all(torch.equal(plain[name], by_plan[name]) for name in plain)
    assert all(torch.equal(plain[name], patched[name]) for name in image)
    assert all(torch.equal(patched[n], torch.cat([plain[n][1:2], plain[n][1:]])) for n in text)


def law_caches_survive_their_tensors(case: Case):
    """from_tensors(tensors(c)) = c: keys, shapes, dtypes and bits."""
    with patching.capture(case.model, case.sites, rows=case.branches(case.rows)) as cache:
        run(case, case.rows)
    again = patching.KVCache.from_tensors(cache.tensors)
    assert again.keys() == cache.keys() and again.bytes == cache.bytes
    assert all(torch.equal(again[key], cache[key]) and again[key].dtype == cache[key].dtype for key in cache)


def law_caches_are_copies(case: Case):
    """What a capture holds does not change with the model's tensors, and holds no graph."""
    site = case.model.sites[0]
    weights, outputs = case.model.get_submodule(site.name).requires_grad_(True), []
    watched = HookRegistry(case.model, [site.name + ".add_k_proj"])
    with patching.capture(case.model, 0, rows=case.rows) as cache:
        with watched.observe(lambda name, output: outputs.append(output)):
            case.model(*case.inputs)
    weights.requires_grad_(False)
    assert not any(tensor.requires_grad for tensor in cache.values())
    outputs[0].detach().zero_()
    assert all(cache[site.name, 0, row.label, "k"].any() for row in case.rows)


def law_estimates_are_exact(case: Case):
    """estimate(sites, steps, rows, T) = bytes captured."""
    with patching.capture(case.model, case.sites, rows=case.branches(case.rows)) as cache:
        run(case, case.rows)
    sites = [case.model.sites[i] for i in case.sites]
    rows = len(case.branches(case.rows))
    assert cache.bytes == patching.KVCache.estimate(sites, case.steps, rows, case.tokens, torch.float64)


def law_lock_step_is_capture_then_patch(case: Case):
    """One batch of reader and donor = the donor's run captured, then the reader's run patched: 1e-12."""
    reader, donor = case.rows[:2]
    together = paths(run(case, [reader, donor], Plan([case.swap])))
    donors = case.branches([donor])
    with patching.capture(case.model, case.sites, rows=donors) as cache:
        alone = paths(run(case, [donor]))
    reads = [row if case.acts_in(row) else None for row in donors]
    with patching.patch(case.model, cache, case.sites, rows=reads, steps=case.swap.steps):
        alone |= paths(run(case, [reader]))
    assert all(close(together[name], alone[name]) for name in alone)


def law_all_heads_are_the_site(case: Case):
    """Head h: donor's on h, own elsewhere; all heads one by one = the site, also in the run, bit for bit."""
    heads = range(case.model.sites[0].heads)
    each = [Swap(case.sites, "a", "b", heads=(h,)) for h in heads]
    whole, own = tables(case, Plan([Swap(case.sites, "a", "b")]), 0), tables(case, Plan(), 0)
    for h, swap in zip(heads, each):
        alone = tables(case, Plan([swap]), 0)
        assert torch.equal(alone[:, :, :, h], whole[:, :, :, h])
        others = [other for other in heads if other != h]
        assert torch.equal(alone[:, :, :, others], own[:, :, :, others])
    union, site = (paths(run(case, case.rows, Plan(s))) for s in (each, [Swap(case.sites, "a", "b")]))
    assert all(torch.equal(union[name], site[name]) for name in site)


def law_rows_mean_their_labels(case: Case):
    """A cache of one guidance branch in a run of two, and of two in one, is refused; so are twin labels."""
    donor, both = case.rows[1], sampling.with_guidance([case.rows[1]])
    for captured, asked, labels in ((1, 4.5, [donor]), (1, 4.5, both), (4.5, 1, both)):
        with patching.capture(case.model, case.sites, rows=[donor] if captured == 1 else both) as cache:
            sampling.sample(case.pipeline, [donor], steps=1, guidance=captured)
        with refused(), patching.patch(case.model, cache, case.sites, rows=labels):
            sampling.sample(case.pipeline, case.rows[:1], steps=1, guidance=asked)
    with refused("more than once"), patching.capture(case.model, case.sites, rows=[donor, donor]):
        case.call()


def law_micro_batches_change_nothing(case: Case):
    """Any micro-batch size: the same latents (1e-12), and no reader is ever without its donors."""
    whole, count = paths(run(case, case.rows, case.plan)), len(case.rows)
    for size in range(1, 2 * count + 1):
        groups = sampling.pack(case.rows, case.plan, size)
        assert sorted(row.name for _, fresh in groups for row in fresh) == [row.name for row in case.rows]
        for names in ({row.name for row in group} for group, _ in groups):
            assert all(s.donor in names for s in case.plan.swaps if names & set(s.readers))
        parts = paths(run(case, case.rows, case.plan, micro_batch=size))
        assert parts.keys() == whole.keys() and all(close(parts[name], whole[name]) for name in whole)


def law_evolving_text_refuses_injection(case: Case):
    """K, V of MMDiT are no function of one text: inject is refused before anything is installed."""
    before = anatomy(case.model)
    with refused("text stream"), patching.inject(case.model, case.pipeline.encode(["b"]).tokens, case.sites):
        pass
    assert anatomy(case.model) == before


# --- attention ---


def attend(case: Attention, slots, k_bank=None, v_bank=None, image=True, slots_v=None):
    """Image and text outputs in one tensor."""
    k = case.k[0] if image else None, case.k[1] if k_bank is None else k_bank
    v = case.v[0] if image else None, case.v[1] if v_bank is None else v_bank
    out = attention.segment_attention(case.q, k, v, slots_k=slots, slots_v=slots_v, backend=case.backend)
    return torch.cat(out, dim=2)


def law_slots_are_an_index(case: Attention):
    """gather(bank, s)[b, h, t] = bank[s // S, h, s % S], bit for bit; k and v by tables of their own."""
    heads, S = case.k[1].shape[1], case.bank_tokens
    table = case.slots.expand(-1, heads, -1).tolist()

    def pick(bank):
        rows = [[[bank[s // S, h, s % S] for s in row[h]] for h in range(heads)] for row in table]
        return torch.stack([torch.stack([torch.stack(head) for head in row]) for row in rows])

    assert torch.equal(attention.gather_text(case.k[1], case.slots), pick(case.k[1]))
    other = case.slots.flip(-1)
    expected = attend(case, None, pick(case.k[1]), attention.gather_text(case.v[1], other))
    assert torch.equal(attend(case, case.slots, slots_v=other), expected)


def law_own_slots_are_the_identity(case: Attention):
    """slots(b, t) = (b, t) and no slots: bit-equal."""
    rows = case.q[0].shape[0]
    k, v = (x[1][torch.arange(rows) % case.bank_rows] for x in (case.k, case.v))
    own = attention.row_slots(torch.arange(rows), case.bank_tokens)
    assert torch.equal(attend(case, own, k, v), attend(case, None, k, v))


def law_the_order_of_the_bank_is_nothing(case: Attention):
    """Bank rows and tokens permuted, slots with them: bit-equal."""
    generator = torch.Generator().manual_seed(1)
    rows, tokens = (torch.randperm(n, generator=generator) for n in (case.bank_rows, case.bank_tokens))
    k, v = (x[1][rows][:, :, tokens] for x in (case.k, case.v))
    row, token = case.slots // case.bank_tokens, case.slots % case.bank_tokens
    moved = (rows.argsort()[row.long()] * case.bank_tokens + tokens.argsort()[token.long()]).int()
    assert torch.equal(attend(case, moved, k, v), attend(case, case.slots))


def law_hidden_tokens_are_absent(case: Attention):
    """slot -1 in either table = that key deleted (1e-12); nothing visible = zeros; a visible NaN stays."""
    hidden = case.slots.clone()
    hidden[..., 0] = -1
    assert close(attend(case, hidden), deleted := attend(case, case.slots[..., 1:]))
    assert close(attend(case, case.slots, slots_v=hidden), deleted)
    assert not attend(case, torch.full_like(hidden, -1), image=False).any()
    assert attend(case, hidden, case.k[1] * float("nan")).isnan().all() or case.slots.shape[-1] == 1


def law_gradients_reach_the_donors(case: Attention):
    """d out / d bank passes gradcheck; tokens that nobody reads get exactly 0, read ones do not."""
    k, v = (x[1].clone().requires_grad_() for x in (case.k, case.v))
    out = lambda k, v: attend(case, case.slots, k, v)  # noqa: E731
    assert torch.autograd.gradcheck(out, (k, v), raise_exception=False)
    (out(k, v) ** 2).sum().backward()
    read = torch.zeros(case.bank_rows * case.bank_tokens, k.shape[1], dtype=torch.bool)
    slots = case.slots.expand(-1, k.shape[1], -1)
    for h in range(k.shape[1]):
        read[slots[:, h].flatten().long(), h] = True
    nonzero = (v.grad != 0).any(-1).transpose(1, 2).flatten(0, 1)
    assert torch.equal(nonzero, read) and not k.grad.transpose(1, 2).flatten(0, 1)[~read].any()

"""Laws of one call of the denoiser under slots or patches, of what its sites read, algebra, and gradients."""

from dataclasses import replace

import torch

from support.patched_calls import (
    by_cache,
    cells,
    close,
    every_step,
    observed,
    patching,
    tables,
    taps,
)
from support.strategies import Case
from textpatch import attention
from textpatch.hooks import HookRegistry
from textpatch.plan import Plan, Swap


def law_patch_writes_the_named_cells_alone(case: Case):
    """Text k, v of a call patched by cache are the donor's where a swap names the cell, else the own.

    They are so bit for bit, in all elements of every site where the text is static, elsewhere
    of the first swapped site and those before.
    """
    with patching.capture(case.model, "all", rows=case.rows) as cache:
        case.call()
    for swap in every_step(case.plan):
        reached = [
            s for s in case.model.sites if case.model.text_is_static or s.index <= min(swap.sites)
        ]
        with by_cache(case, cache, swap):
            seen = observed(case, taps(*reached), case.call)
        named = cells(case, swap, 0, case.rows)
        for site in reached:
            for part, tap in enumerate(site.taps):
                # (B, T, H D)
                own = torch.stack([cache[site.name, 0, row.label, "kv"[part]] for row in case.rows])
                cell = (
                    named[site.index, part, :, : site.heads]
                    .transpose(1, 2)
                    .repeat_interleave(site.head_dim, -1)
                )
                donor = cache[site.name, 0, (swap.donor, "cond"), "kv"[part]]
                made = of_text(case, site, seen[tap.module])
                assert torch.equal(made, torch.where(cell, donor, own))


def of_text(case: Case, site, output):
    """The text's part of what a projection puts out; a single stream has it first."""
    return output[:, : case.tokens] if site.kind == "single" else output


def law_every_swap_is_a_patch(case: Case):
    """A call with slots is the call captured, then patched, to 1e-12.

    So for any heads, tokens and part, and it changes something.
    """
    with patching.capture(case.model, "all", rows=case.rows) as cache:
        plain = case.call()
    for swap in every_step(case.plan):
        with by_cache(case, cache, swap):
            patched = case.call()
        assert close(case.call(case.slots(swap)), patched)
        assert torch.equal(plain, patched) == (swap.readers == (swap.donor,))


def law_captures_are_what_a_naive_hook_sees(case: Case):
    """Captures hold the row of the projection's output, by the names of the published layouts."""
    names = {
        "cross": ("to_k", "to_v"),
        "added": ("add_k_proj", "add_v_proj"),
        "joint": ("add_k_proj", "add_v_proj"),
        "single": ("to_k", "to_v"),
    }
    seen = {}
    handles = []
    for site in case.model.sites:
        for part, name in zip("kv", names[site.kind], strict=True):
            module = case.model.get_submodule(f"{site.name}.{name}")

            def keep(module, args, output, key=(site.name, part), site=site):
                seen[key] = of_text(case, site, output).clone()

            handles.append(module.register_forward_hook(keep))
    with patching.capture(case.model, "all", rows=case.rows) as cache:
        case.call()
    for handle in handles:
        handle.remove()
    kept = {
        (name, 0, row.label, part): x[b]
        for (name, part), x in seen.items()
        for b, row in enumerate(case.rows)
    }
    assert kept.keys() == cache.keys() and all(torch.equal(kept[key], cache[key]) for key in cache)


def law_the_empty_plan_is_the_identity(case: Case):
    """An empty plan, own slots at every site, and swaps of rows with themselves give f(x), bit for bit."""
    plain = case.call()
    own = Plan(
        replace(swap, readers=name, donor=name)
        for swap in every_step(case.plan)
        for name in swap.readers
    )
    table = attention.row_slots(torch.arange(len(case.rows)), case.tokens)
    for slots in (case.slots(), case.slots(*own.swaps), [table] * len(case.model.sites)):
        assert torch.equal(case.call(slots), plain)


def law_restoring_undoes_a_swap(case: Case):
    """A swap a <- b, then a <- a in the same cells, gives f(x), bit for bit.

    The tables are those of no plan.
    """
    plain = case.call()
    for swap in every_step(case.plan):
        restored = [swap, *(replace(swap, readers=name, donor=name) for name in swap.readers)]
        assert torch.equal(tables(case, Plan(restored), 0), tables(case, Plan(), 0))
        assert torch.equal(case.call(case.slots(*restored)), plain)


def law_rows_are_equivariant(case: Case):
    """Batch rows in another order under the same plan have their outputs in that order (1e-12)."""
    turned = replace(case, rows=case.rows[::-1])
    swaps = every_step(case.plan)
    assert close(turned.call(turned.slots(*swaps)).flip(0), case.call(case.slots(*swaps)))


def law_the_order_of_a_sites_bank_is_nothing(case: Case):
    """Text keys and values permuted, with the slots, give the same at every site, bit for bit.

    Rows and tokens are permuted.
    """
    generator = torch.Generator().manual_seed(1)
    rows, tokens = (torch.randperm(n, generator=generator) for n in (len(case.rows), case.tokens))
    for site in case.model.sites:
        full = tables(case, Plan(replace(s, sites=site.index) for s in every_step(case.plan)), 0)
        B = len(case.rows)
        slots = [None] * len(case.model.sites)
        # the conditional rows
        pair = full[site.index, :, -B:, : site.heads] - (full.shape[2] - B) * case.tokens
        moved = (
            rows.argsort()[pair // case.tokens] * case.tokens + tokens.argsort()[pair % case.tokens]
        )
        slots[site.index] = tuple(pair.int())
        plain, slots[site.index] = case.call(slots), tuple(moved.int())
        with HookRegistry(case.model, taps(site)).replace(
            lambda name, output: output[rows][:, tokens]
        ):
            assert torch.equal(case.call(slots), plain)


def law_gradients_pass_through_a_swap(case: Case):
    """Gradients of the tokens pass gradcheck.

    With a <- b everywhere, a's own tokens get exactly 0, and b's do not.
    """
    (x, t, text), slots = case.inputs, case.slots(Swap("all", "a", "b"))

    def out(tokens):
        made = case.model(x, t, replace(text, tokens=tokens), slots=slots)
        return made.flatten() @ torch.linspace(-1, 1, made.numel(), dtype=made.dtype)

    def out_of_one(token):
        return out(text.tokens.index_put((torch.tensor(1), torch.tensor(0)), token))

    tokens = text.tokens.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(out(tokens), tokens)
    assert not gradient[0].any() and gradient[1].any()
    assert torch.autograd.gradcheck(
        out_of_one, text.tokens[1, 0].clone().requires_grad_(), raise_exception=False
    )

"""Laws of the Triton kernels, each over a module of kernels (the library's, or a copy with a fault) and a
device.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from support.kernel_cases import (
    Case,
    Inputs,
    backward_of,
    cancellation,
    definition,
    eager_gradients,
    exact,
    far_apart,
    floor,
    full_tables,
    gradients,
    joined,
    joint,
    make,
    own_slots,
    random_case,
    read,
    rms,
    run,
    scatter,
    sdpa,
)

SMALL = Case(H=1, G=1, M=5, Mt=3, N=4, T=21)


def normal(like: torch.Tensor, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit-equal, and no NaN."""
    return torch.equal(a, b)


def both_ways(kernels, x: Inputs, grad: torch.Tensor | None = None):
    """Results and LSE as the backward reads them, and gradients by name.

    grad  of the results; a fixed random one if it is not given
    """
    made = kernels.forward.forward(*x.arguments, wide=True)
    out = joined(*made[:2])
    grad = normal(out).to(x.q_image.dtype) if grad is None else grad
    return [out, made[2]], backward_of(kernels, x, grad, made)


def wide(kernels, x: Inputs) -> list[torch.Tensor]:
    """Results and LSE alone, as the backward reads them."""
    image, text, lse = kernels.forward.forward(*x.arguments, wide=True)
    return [joined(image, text), lse]


def both(kernels, x: Inputs) -> list[torch.Tensor]:
    """Everything the kernels compute: result, LSE, and the gradients of a fixed random gradient."""
    results, found = both_ways(kernels, x)
    return [*results, *found.values()]


def alike(found, expected) -> bool:
    """Bit-equal results and LSEs, or whatever else stands in both, in their order."""
    return all(same(a, b) for a, b in zip(found, expected, strict=True))


def unchanged(kernels, x: Inputs, y: Inputs) -> bool:
    return alike(run(kernels, x), run(kernels, y))


def law_forward_errs_no_more_than_eager(kernels, cases: list[Case]):
    """rms |out - exact| over all cases <= f rms |eager - exact|, f = 1.1 in float32 and 1.0 in half
    precision, and <= 1.25 that of SDPA; and in each case the rule of FlashAttention's tests, max <= 2 max
    of eager + floor.
    """
    errors = {"kernel": [], "eager": [], "sdpa": []}
    for case in cases:
        x = make(case)
        factor = 1.1 if case.dtype == torch.float32 else 1.0
        (out, lse), (reference, sums) = run(kernels, x), definition(exact(x))
        found = {
            "kernel": out - reference,
            "eager": definition(x)[0] - reference,
            "sdpa": sdpa(x) - reference,
        }
        most = {name: float(error.abs().max()) for name, error in found.items()}
        least = floor(reference, case.dtype)
        assert most["kernel"] <= 2 * most["eager"] + least, case
        assert bool(((lse == sums) | ((lse - sums).abs() <= lse_bound(x))).all()), case
        errors = {name: [*errors[name], error.flatten()] for name, error in found.items()}
    kernel, eager, other = (rms(torch.cat(error)) for error in errors.values())
    assert kernel <= factor * eager and kernel <= 1.25 * other, (kernel / eager, kernel / other)


def lse_bound(x: Inputs) -> float:
    """A score is a float32 sum of D products, to 2^-24 of their sizes each; then two roundings of the LSE."""
    queries = [part.float().abs().amax() for part in (x.q_image, x.q_text) if part is not None]
    keys = [part.float().abs().sum(-1).amax() for part in (x.k_image, x.k_text) if part is not None]
    return 2.0**-24 * 4 * (1 + float(max(queries) * max(keys)) * x.scale)


def law_gradients_err_no_more_than_twice_eager(kernels, cases: list[Case]):
    """max|grad - exact| <= 2 max|eager - exact| + floors, each; rms over all cases, by tensor, at most 2."""
    total = {}
    for case in cases:
        x = make(case)
        grad = normal(definition(x)[0], case.seed)
        found, eager = gradients(kernels, x, grad), eager_gradients(x, grad)
        reference = eager_gradients(exact(x), grad.double())
        assert found.keys() == reference.keys()
        least = cancellation(exact(x), grad.double())
        for name, exactly in reference.items():
            kernel, ruler = found[name] - exactly, eager[name] - exactly
            allowed = (
                2 * float(ruler.abs().max()) + floor(exactly, case.dtype) + least.get(name, 0.0)
            )
            assert float(kernel.abs().max()) <= allowed, (name, case)
            total.setdefault(name, []).append((kernel.flatten(), ruler.flatten()))
    for name, errors in total.items():
        kernel, eager = (rms(torch.cat(error)) for error in zip(*errors, strict=True))
        assert kernel <= 2 * eager, (name, kernel / eager)


def law_what_cancels_is_not_rounded(kernels, case: Case):
    """|dQ - exact| <= scale (3 u |dS| + e P (|dO| |V|^T + rowsum|dO O|)) |K| + u |dQ|, e = 2^-20, number by
    number.

    u is the rounding of half precision: of dS and dQ, of which little is left where one weight is nearly
    all, and not of dP and delta, whose difference dS is.  Both roundings end at the smallest number above
    zero.
    """
    x = make(case)
    grad, inputs = normal(definition(x)[0]), exact(x)
    q, k, v, _ = joint(inputs)
    (out, _), of_out, least = (
        definition(inputs),
        grad.double(),
        torch.finfo(case.dtype).smallest_normal,
    )
    weights, unit = (q @ k.mT * x.scale).softmax(-1), torch.finfo(case.dtype).eps / 2
    slope = weights * (of_out @ v.mT - (of_out * out).sum(-1, keepdim=True))
    summed = weights * (of_out.abs() @ v.abs().mT + (of_out * out).abs().sum(-1, keepdim=True))
    exactly = slope @ k * x.scale
    fixed = (3 * unit * slope.abs() + 2.0**-20 * summed + unit * least) @ k.abs() * x.scale
    found = gradients(kernels, x, grad)
    error = torch.cat([found["q_image"], found["q_text"]], 2) - exactly
    assert bool((error.abs() <= fixed + unit * (exactly.abs() + least)).all()), float(
        (error.abs() / fixed).max()
    )


def law_a_swap_is_a_copy(kernels, case: Case):
    """A(q, bank, slots) = A(q, bank[slots]) by own slots, and by no table, bit for bit.

    Gradients of q too.
    """
    x = make(case)
    tables = full_tables(x)
    k, v = (
        read(bank, table, case.H // case.G)
        for bank, table in ((x.k_text, tables[0]), (x.v_text, tables[1]))
    )
    copy = x.with_(k_text=k, v_text=v, slots_k=None, slots_v=None)
    results, ours = both_ways(kernels, x)
    for other in (copy, copy.with_(slots_k=own_slots(copy))):
        copied, theirs = both_ways(kernels, other)
        assert alike(copied, results)
        assert all(
            same(ours[name], theirs[name]) for name in ("q_image", "q_text", "k_image", "v_image")
        )


def law_a_row_is_alone(kernels, case: Case):
    """Row b > 0 has the same bits in a batch of one, and beside rows of NaN; so have its gradients."""
    x = make(case)
    whole, of_all = both_ways(kernels, x)
    grad = normal(whole[0]).to(case.dtype)
    of_row = lambda name: name in ("q_image", "q_text", "k_image", "v_image")  # noqa: E731
    for b in range(1, case.B):
        tables = {
            part: t[b : b + 1]
            for part in ("slots_k", "slots_v")
            if (t := getattr(x, part)) is not None
        }
        row = {name: t[b : b + 1] for name, t in x.tensors.items() if of_row(name)}
        alone = x.with_(**row, **tables)
        results, found = both_ways(kernels, alone, grad[b : b + 1])
        assert alike(results, [expected[b : b + 1] for expected in whole])
        assert all(same(found[name], of_all[name][b : b + 1]) for name in row)
        others = torch.arange(case.B, device=case.device) != b
        spoilt = {
            name: t.masked_fill(others[:, None, None, None], float("nan"))
            for name, t in x.tensors.items()
            if of_row(name)
        }
        assert same(wide(kernels, x.with_(**spoilt))[0][b], whole[0][b])


def law_rows_not_named_stay(kernels, case: Case):
    """Changing one row's slots changes that row's result and no bit of another's."""
    x = make(case)
    moved = x.slots_k.clone()
    moved[0] = (moved[0] + 1) % (case.R * case.S)
    before, after = run(kernels, x)[0], run(kernels, x.with_(slots_k=moved))[0]
    assert not same(before[0], after[0]) and same(before[1:], after[1:])


def law_unread_tokens_are_nothing(kernels, case: Case):
    """NaN in every token nobody reads: not a bit changes; their gradients are exactly zero."""
    x = make(case)
    tables = full_tables(x)
    seen = (tables[0] >= 0) & (tables[1] >= 0)
    clean, found = both_ways(kernels, x)
    spoilt = {}
    for name, table in (("k_text", tables[0]), ("v_text", tables[1])):
        unread = torch.ones(case.R * case.S, dtype=torch.bool, device=case.device)
        unread[table[seen.expand_as(table)].long()] = False
        unread = unread.view(case.R, 1, case.S, 1)
        assert unread.any() and not found[name].masked_select(unread).any()
        spoilt[name] = getattr(x, name).masked_fill(unread, float("nan"))
    assert alike(wide(kernels, x.with_(**spoilt)), clean)


def law_the_order_of_the_bank_is_nothing(kernels, case: Case):
    """A(P bank, P slots) = A(bank, slots), bit for bit, and the gradients are the permuted ones."""
    x = make(case)
    order = torch.randperm(case.R * case.S, generator=torch.Generator().manual_seed(1)).to(
        case.device
    )
    place = order.argsort().int()
    moved = {
        name: getattr(x, name)
        .transpose(1, 2)
        .flatten(0, 1)[order]
        .unflatten(0, (case.R, case.S))
        .transpose(1, 2)
        for name in ("k_text", "v_text")
    }
    tables = {
        part: torch.where(t < 0, t, place[t.clamp(min=0).long()])
        for part in ("slots_k", "slots_v")
        if (t := getattr(x, part)) is not None
    }
    y = x.with_(**moved, **tables)
    (results, before), (permuted_results, after) = both_ways(kernels, x), both_ways(kernels, y)
    assert alike(permuted_results, results)
    for name in ("k_text", "v_text"):
        permuted = (
            before[name]
            .transpose(1, 2)
            .flatten(0, 1)[order]
            .unflatten(0, (case.R, case.S))
            .transpose(1, 2)
        )
        assert same(after[name], permuted)


def law_hidden_in_either_is_hidden(kernels, case: Case):
    """s = -1 in the table of keys, of values, or of both: one and the same result."""
    x = make(case)
    hide = torch.arange(case.T, device=case.device) % 3 == 1
    k, v = full_tables(x)
    hidden_k, hidden_v = (table.masked_fill(hide, -1) for table in (k, v))
    hidden = run(kernels, x.with_(slots_k=hidden_k, slots_v=hidden_v))
    for x_k, x_v in ((hidden_k, v), (k, hidden_v)):
        assert alike(run(kernels, x.with_(slots_k=x_k, slots_v=x_v)), hidden)
    assert not alike(run(kernels, x), hidden)


def law_nothing_seen_is_zero(kernels, case: Case):
    """Every key hidden: result 0, LSE -inf, every gradient 0; in a row alone, and beside a row that sees."""
    x = make(case).with_(k_image=None, v_image=None)
    blind = x.slots_k.clone()
    blind[0] = -1
    x = x.with_(slots_k=blind)
    (out, lse), found = both_ways(kernels, x)
    assert not out[0].any() and bool((lse[0] == float("-inf")).all())
    assert not found["q_image"][0].any() and found["q_image"][1:].any()
    assert all(bool(value.isfinite().all()) for value in [out, *found.values()])


def law_wild_slots_are_loud(kernels, case: Case):
    """A slot outside the bank, in either table: its row is NaN, nothing is read, and no other row changes."""
    x = make(case)
    clean = run(kernels, x)[0]
    for part, slot in (
        ("k", case.R * case.S),
        ("k", -2),
        ("v", case.R * case.S + 5),
        ("v", -7),
        ("k", 2**31 - 1),
    ):
        tables = {"slots_k": full_tables(x)[0].clone(), "slots_v": full_tables(x)[1].clone()}
        tables[f"slots_{part}"][0, :, 2] = slot
        out, lse = run(kernels, x.with_(**tables))
        assert (
            bool(out[0].isnan().all()) and bool(lse[0].isnan().all()) and same(out[1:], clean[1:])
        )


def law_strides_are_nothing(kernels, case: Case):
    """Any strides, an expanded table: the same bits; results and gradients lie in memory as [B, N, H, D]."""
    x = make(case)
    apart = x.map(scatter).with_(slots_k=x.slots_k.mT.contiguous().mT.expand(-1, case.H, -1))
    made = kernels.forward.forward(*apart.arguments, wide=True)
    grads = backward_of(kernels, apart, normal(joined(*made[:2])), made)
    assert alike([joined(*made[:2]), made[2], *grads.values()], both(kernels, x))
    assert all(t.transpose(1, 2).is_contiguous() for t in [*made[:2], *grads.values()])


def law_far_is_no_further_than_near(kernels, case: Case):
    """Along every dimension of three or more, the third more than 2^31 numbers from the first: the same
    bits.
    """
    x = make(case)
    near, large = (
        both(kernels, x),
        [dim for dim in range(3) if min(t.shape[dim] for t in x.tensors.values()) > 2],
    )
    assert large and all(
        same(a, b)
        for dim in large
        for a, b in zip(near, both(kernels, far_apart(x, dim)), strict=True)
    )


def law_one_table_serves_all_heads(kernels, case: Case):
    """A table of one head = the same table for each head; one table = the same one for keys and values."""
    x = make(case)
    each = x.slots_k.repeat(1, case.H, 1)
    results = run(kernels, x)
    assert alike(run(kernels, x.with_(slots_k=each)), results)
    assert alike(run(kernels, x.with_(slots_v=x.slots_k.clone())), results)
    other = torch.cat([each[:, :1], each[:, 1:].flip(-1)], 1)
    assert not alike(run(kernels, x.with_(slots_k=other)), results)


def law_padding_is_nothing(kernels, case: Case):
    """A head dim of 40 is one of 64 whose last 24 numbers are zero, bit for bit."""
    x = make(case)
    padded = x.map(lambda t: torch.nn.functional.pad(t, (0, 64 - case.D)))
    assert same(run(kernels, x)[0], run(kernels, padded)[0][..., : case.D])


def law_key_heads_serve_their_group(kernels, case: Case):
    """Key head g serves the query heads of its group: the same bits as key heads written out."""
    x = make(case)
    written_out = x.map(lambda t: t.repeat_interleave(case.H // t.shape[1], 1))
    assert case.G < case.H and unchanged(kernels, x, written_out)


def law_the_lse_is_optional(kernels, case: Case):
    """Without the LSE: the same results."""
    x = make(case)
    plain = kernels.forward.forward(*x.arguments, with_lse=False)
    assert plain[2] is None and all(
        same(a, b) for a, b in zip(plain[:2], kernels.forward.forward(*x.arguments), strict=False)
    )


def numeric(seeds: Iterable[int], dtype: torch.dtype, device: str, peak: float) -> list[Case]:
    """Random cases of one dtype and one height of peaks."""
    return [replace(random_case(seed, dtype, device), peak=peak) for seed in seeds]

"""The mathematics of a patch, in numbers: identity in every dtype, a manual reference, algebra, what NaNs
reach.
"""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support import laws, laws_of_calls
from support.laws import patching
from support.manual import by_hand
from support.patched_calls import every_step
from support.small_models import relative
from support.strategies import ARCHITECTURES, STATIC, Case, cases, fixed_case
from textpatch import KVCache, capture, inject, patch
from textpatch.attention import row_slots, use_backend
from textpatch.errors import PatchError
from textpatch.plan import Swap

DTYPES = torch.float64, torch.float32, torch.bfloat16, torch.float16
on_every_model = pytest.mark.parametrize("architecture", ARCHITECTURES)
# by default MMDiT is held in every dtype, and the other models in float64
on_every_model_in_every_dtype = pytest.mark.parametrize(
    "architecture, dtype",
    [
        pytest.param(
            *case,
            id=f"{case[0]}-{case[1]}",
            marks=[pytest.mark.long] * (case[0] != "mmdit" and case[1] != torch.float64),
        )
        for case in product(ARCHITECTURES, DTYPES)
    ],
)


def case_in(architecture: str, dtype: torch.dtype, **sizes) -> Case:
    case = fixed_case(architecture, **sizes)
    return replace(case, pipeline=case.pipeline.to(dtype))


def captured(case: Case, prompts=None) -> KVCache:
    """The text keys and values of one call on all rows."""
    with capture(case.model, "all", rows=case.rows) as cache:
        case.call(prompts=prompts)
    return cache


# --- one dtype is like another


@on_every_model_in_every_dtype
def test_identity(architecture, dtype):
    """Plan() = own slots = own cache = f(x), bit for bit, in one call and in a run."""
    case = case_in(architecture, dtype)
    laws_of_calls.law_the_empty_plan_is_the_identity(case)
    laws.law_identity(case)


@on_every_model_in_every_dtype
def test_all_sites_are_the_other_text(architecture, dtype):
    """f(x, a's text | K and V of b's at all sites) = f(x, b's text), bit for bit.

    At all sites but one, not.
    """
    case, prompts = case_in(architecture, dtype), [f"other {row.name}" for row in fixed_case().rows]
    cache, target = captured(case, prompts), case.call(prompts=prompts)
    with patch(case.model, cache, "all", rows=case.rows):
        assert torch.equal(case.call(), target)
    with patch(case.model, cache, range(1, len(case.model.sites)), rows=case.rows):
        assert not torch.equal(case.call(), target)


# --- independent code


@on_every_model
@pytest.mark.parametrize(
    "dtype, bound", [(torch.float64, 1e-12), (torch.float32, 5e-6)], ids=["float64", "float32"]
)
@settings(max_examples=2)
@given(data=st.data())
def test_a_swap_is_what_replacing_tensors_gives(architecture, dtype, bound, data):
    """f(x | slots) = f(x | sites by einsum, K and V cells replaced): 1e-12 in float64, 5e-6 in float32."""
    case = data.draw(cases(architecture))
    case = replace(case, pipeline=case.pipeline.to(dtype))
    for swap in every_step(case.plan):
        assert relative(case.call(case.slots(swap)), by_hand(case, swap)) <= bound


@on_every_model
def test_the_manual_reference_can_fail(architecture):
    """Another cell replaced by hand than by slots: apart by more than a thousand times the bound of
    float32.
    """
    case, swap = fixed_case(architecture), Swap(1, "a", "b", heads=(1,), tokens=(0, 3))
    for other in (
        replace(swap, heads=(0,)),
        replace(swap, tokens=(0, 2)),
        replace(swap, part="k"),
        replace(swap, sites=2),
    ):
        assert relative(case.call(case.slots(swap)), by_hand(case, other)) > 5e-6


# --- algebra

ALGEBRA = [
    laws.law_the_last_swap_wins,
    laws.law_disjoint_swaps_commute,
    laws_of_calls.law_the_empty_plan_is_the_identity,
    laws_of_calls.law_restoring_undoes_a_swap,
    laws_of_calls.law_rows_are_equivariant,
    laws_of_calls.law_the_order_of_a_sites_bank_is_nothing,
]


@pytest.mark.parametrize("law", ALGEBRA, ids=lambda law: law.__name__)
def test_algebra(law, long):
    """The law on 4 random cases of any architecture; on 5,000 in the long form.

    Each law's faults break it on one case of each architecture (test_faults.py), so that few cases notice
    much.
    """
    settings(max_examples=5000 if long else 4)(
        given(st.sampled_from(ARCHITECTURES).flatmap(cases))(law)
    )()


# --- what must not matter


def by_definition(model):
    def call(x, t, text, slots):
        with use_backend("reference"):
            return model(x, t, text, slots=slots)

    return call


def on_two_threads(model):
    def call(x, t, text, slots):
        before = torch.get_num_threads()
        torch.set_num_threads(3 - min(before, 2))
        try:
            return model(x, t, text, slots=slots)
        finally:
            torch.set_num_threads(before)

    return call


def in_a_larger_batch(model):
    """Two rows more, which read themselves."""

    def call(x, t, text, slots):
        rows, tokens = [*range(len(x)), 0, 1], text.tokens.shape[1]
        own = row_slots(torch.arange(len(x), len(rows)), tokens)
        grown = [
            None if one is None else torch.cat([one, own.expand(-1, one.shape[1], -1)])
            for one in slots
        ]
        return model(x[rows], t, text[rows], slots=grown)[: len(x)]

    return call


def compiled(model):
    graph = torch.compile(model, backend="aot_eager", fullgraph=True)
    return lambda x, t, text, slots: graph(x, t, text, slots=slots)


SINGLE, HALF = torch.float32, torch.bfloat16
WAYS = by_definition, on_two_threads, in_a_larger_batch, compiled


def is_long(way, dtype, architecture: str) -> bool:
    """True where --long alone asks: compiling and waiting for threads cost most, and know no dtype.

    That models compile, to what they were, test_bank.py shows.
    """
    if way is compiled or (way is on_two_threads and dtype is HALF):
        return True
    if architecture == "mmdit":
        return False
    return dtype is HALF or (way, architecture) not in (
        (by_definition, "sdxl"),
        (in_a_larger_batch, "if-i"),
    )


@pytest.mark.parametrize(
    "way, dtype, architecture",
    [
        pytest.param(
            *case,
            id=f"{case[0].__name__}-{case[1]}-{case[2]}",
            marks=[pytest.mark.long] * is_long(*case),
        )
        for case in product(WAYS, (SINGLE, HALF), ("sdxl", "if-i", "mmdit"))
    ],
)
def test_only_the_error_moves(way, dtype, architecture):
    """f(x | swap) another way is as near to float64: rms errors over 16 inputs apart by at most 1.1.

    Together, for the error of one input is one draw.  In half precision the definition may be further off
    than SDPA, which adds up in float32, and SDPA is what is bounded then.  By default each U-Net is held to
    it in one way and in float32, and no model is compiled.
    """
    case, exact = case_in(architecture, dtype), fixed_case(architecture)
    exact.model.load_state_dict(case.model.state_dict())
    (x, t, text), slots = case.inputs, case.slots(Swap("all", "a", "b", heads=(1,), tokens=(0, 3)))
    errors, another_way = [], way(case.model)
    for seed in range(16):
        x = torch.randn(
            x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        ).to(dtype)
        true = exact.model(x.double(), t, text.to(torch.float64), slots=slots)
        made = case.model(x, t, text, slots=slots), another_way(x, t, text, slots)
        errors.append(
            [((one.double() - true).square().mean() / true.square().mean()).item() for one in made]
        )
    plain, other = torch.tensor(errors).mean(0).sqrt()
    assert 0 < plain <= 1.1 * other
    assert other <= 1.1 * plain or (way is by_definition and dtype != torch.float32)


# --- NaN

UNREAD = {  # swap -> where the donor's k may hold what it will
    "heads": (dict(heads=[1]), lambda k, site: k.unflatten(-1, (site.heads, -1))[:, 0]),
    "tokens": (dict(tokens=[0, 3]), lambda k, site: k[1:3]),
    "part": (dict(part="v"), lambda k, site: k),
}


@on_every_model
@pytest.mark.parametrize("field", UNREAD)
def test_no_nan_comes_from_what_is_not_named(architecture, field):
    """NaN in the donor's k at a head, token or part that is not put in: bit-equal.

    In what is: NaN in the reader alone.
    """
    case, (named, cells) = fixed_case(architecture), UNREAD[field]
    site, rows = case.model.sites[1], [case.rows[1], None, None, None]

    def patched(cache):
        with patch(case.model, cache, site, rows=rows, **named):
            return case.call()

    clean = captured(case)
    dirty = KVCache({key: tensor.clone() for key, tensor in clean.items()})
    cells(dirty[site.name, 0, case.rows[1].label, "k"], site).fill_(float("nan"))
    expected = patched(clean)
    assert torch.equal(patched(dirty), expected)
    dirty[site.name, 0, case.rows[1].label, "v"].fill_(float("nan"))
    spoiled = patched(dirty)
    assert spoiled[0].isnan().any() and torch.equal(spoiled[1:], expected[1:])


@on_every_model
@pytest.mark.parametrize("by", ["plan", "cache"])
def test_no_nan_comes_from_a_row_that_is_not_read(architecture, by):
    """Row c's text all NaN: c is NaN, and every other row of a run in which a reads b bit-equal to that
    without.
    """
    case, clean = fixed_case(architecture), fixed_case(architecture)
    encode = case.pipeline.encoders

    def with_nan(prompts):
        text = encode(prompts)
        text.tokens[[p == "prompt c" for p in prompts]] = float("nan")
        return text

    case.pipeline.encoders = with_nan
    made = []
    for one in (clean, case):
        if by == "plan":
            made.append(one.call(one.slots(Swap("all", "a", "b"))))
        else:
            cache = captured(one)
            with patching.patch(one.model, cache, "all", rows=[one.rows[1], None, None, None]):
                made.append(one.call())
    others = [0, 1, 3]
    assert torch.equal(made[0][others], made[1][others]) and made[1][2].isnan().all()


# --- lengths


@on_every_model
@pytest.mark.parametrize("kept, read", [(4, 6), (6, 4)])
def test_a_cache_of_another_length_is_refused(architecture, kept, read):
    """K and V of 4 tokens where 6 are read, and the reverse: PatchError with the site and both shapes."""
    cache, case = (
        captured(fixed_case(architecture, tokens=kept)),
        fixed_case(architecture, tokens=read),
    )
    with pytest.raises(PatchError) as error, patch(case.model, cache, 1, rows=case.rows):
        case.call()
    assert all(
        part in str(error.value) for part in (case.model.sites[1].name, f"({kept}, ", f"({read}, ")
    )


@pytest.mark.parametrize("architecture", STATIC)
def test_a_text_of_another_length_is_refused(architecture):
    """Injected text of 3 tokens where 4 are read: PatchError with the site and both shapes."""
    case = fixed_case(architecture)
    text = case.inputs[2]
    short = replace(text, tokens=text.tokens[:, :3])
    with (
        pytest.raises(
            PatchError,
            match=r"makes k of shape \(4, 4, \d+\) for this batch; the injected text makes \(4, 3",
        ),
        inject(case.model, short, 0),
    ):
        case.call()

"""Carrying a plan out: labels, caches, what is refused and what is mixed; its laws are in test_laws.py."""

import laws
import pytest
import torch
from hypothesis import given
from strategies import cases, fixed_case

from textpatch import HookRegistry, KVCache, PatchError, Plan, Row, Swap, capture, patch, sample
from textpatch.plan import with_guidance


@given(cases())
def test_generate_is_sample_without_a_plan(case):
    """generate(prompts) = sample(rows, Plan()), bit for bit."""
    prompts, seeds = [row.prompt for row in case.rows], [row.seed for row in case.rows]
    plain = case.pipeline.generate(prompts, seeds=seeds, steps=case.steps, guidance=case.guidance)
    images = laws.run(case, case.rows).images
    assert all(torch.equal(images[row.name], picture) for row, picture in zip(case.rows, plain, strict=True))


def test_labels_may_be_nested():
    """A label is any JSON-able tuple, also after a round trip."""
    case = fixed_case()
    labels = ("a", 1), (("b", 2), "cond"), "c", "d"
    with capture(case.model, 0, rows=labels) as cache:
        case.call()
    again = KVCache.from_tensors(cache.tensors)
    assert again.keys() == cache.keys()
    with patch(case.model, again, 0, rows=labels):
        case.call()


def cached(case, sites="all"):
    with capture(case.model, sites, rows=case.rows) as cache:
        case.call()
    return cache


def test_patch_refuses_what_was_not_captured():
    """A row, site or step outside the cache: PatchError that says what the cache holds."""
    case = fixed_case()
    cache, rows = cached(case, sites=0), case.rows
    wrong = (1, rows, 1, "no k of site"), (0, [("x",)] * 4, 1, "rows"), (0, rows, 2, "step 1")
    for sites, labels, calls, says in wrong:
        with pytest.raises(PatchError, match=says), patch(case.model, cache, sites, rows=labels):
            for _ in range(calls):
                case.call()


@pytest.mark.parametrize("steps", [(), (0, 3), (-1,)])
def test_patch_refuses_steps_that_never_come(steps):
    """steps - {calls} != {}, and steps = {}: PatchError."""
    case = fixed_case()
    cache = cached(case)
    with pytest.raises(PatchError, match="steps"), patch(case.model, cache, 0, rows=case.rows, steps=steps):
        case.call()


def test_patch_refuses_other_dtypes_and_shapes():
    """A cache of another dtype or prompt length: PatchError, never a cast."""
    case = fixed_case()
    cache = cached(case)
    for change in (torch.Tensor.float, lambda tensor: tensor[1:]):
        other = KVCache({key: change(tensor) for key, tensor in cache.items()})
        with pytest.raises(PatchError, match="same model"), patch(case.model, other, 0, rows=case.rows):
            case.call()


def test_patch_of_no_row_is_refused():
    """rows = (None, ...): no effect, so an error."""
    case = fixed_case()
    with pytest.raises(PatchError, match="no row"), patch(case.model, cached(case), 0, rows=[None] * 4):
        pass


def test_tensors_that_are_no_cache():
    """from_tensors(any other dict): PatchError."""
    for name in ("weight", "[]", "[1, 2, 3, 4]", '["site", 0, "a", "k"]', "3"):
        with pytest.raises(PatchError, match="no saved cache"):
            KVCache.from_tensors({name: torch.zeros(1)})


def test_sample_refuses_before_it_runs():
    """Repeated or no rows, or a plan that does not fit: PatchError, and the denoiser was never called."""
    case, a = fixed_case(), Row("a", "p")
    case.pipeline.denoise = None
    for rows, swaps in (([a, a], []), ([], []), ([a], [Swap(0, "a", "b")]), ([a], [Swap(9, "a", "a")])):
        with pytest.raises(PatchError):
            sample(case.pipeline, rows, Plan(swaps))


def test_guidance_twins_come_first():
    """rows -> (uncond twins reading the negative prompt, rows): diffusers' order."""
    a = Row("a", "p", 3, pooled="q")
    assert with_guidance([a], "n") == [Row("a", "n", 3, "uncond"), a]


@pytest.mark.parametrize("part", ["k", "v"])
def test_patch_mixes_heads_tokens_and_parts(part):
    """k'[t, h] = k_donor[t, h] at the named heads and tokens of one part; own entries elsewhere."""
    case = fixed_case()
    site, kept = case.model.sites[0], cached(case)
    projection, other = (f"{site.name}.add_{p}_proj" for p in (part, "kv".replace(part, "")))
    label, t = case.rows[-1].label, 1
    seen = {}
    with patch(case.model, kept, 0, rows=[label] * len(case.rows), heads=[1], tokens=[t], part=part):
        with HookRegistry(case.model, [projection, other]).observe(lambda n, out: seen.update({n: out.clone()})):
            case.call()
    split = (site.heads, -1)
    for b, row in enumerate(case.rows):
        own, donor = (kept[site.name, 0, x, part].unflatten(-1, split) for x in (row.label, label))
        expected = own.clone()
        expected[t, 1] = donor[t, 1]
        assert torch.equal(seen[projection][b].unflatten(-1, split), expected)
    assert torch.equal(seen[other][0], kept[site.name, 0, case.rows[0].label, other[-6]])


@pytest.mark.parametrize("wrong", [dict(heads=[9]), dict(tokens=[-1]), dict(heads=[]), dict(part="q")])
def test_patch_refuses_what_is_not_there(wrong):
    """A head, token or part the site has not, or none at all: PatchError."""
    case = fixed_case()
    with pytest.raises(PatchError), patch(case.model, cached(case), 0, rows=case.rows, **wrong):
        case.call()

"""Contribution is held to what is lost without the values of the word's tokens, on every architecture."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.by_default import taking
from support.localizing import PAIR
from support.planting import raw, require_noticed
from support.small_models import small_pipeline
from support.strategies import ARCHITECTURES, fixed_case
from textpatch import PatchError, Plan, Row, load
from textpatch.attention import attention_reference
from textpatch.auditing.replay import Definition
from textpatch.hooks import HookRegistry
from textpatch.localization import contribution as contributing
from textpatch.localization.contribution import contributions, norms
from textpatch.prompts import alignment
from textpatch.prompts.alignment import word_tokens
from textpatch.recording import Record
from textpatch.sites import Site


def given_to_the_picture(case, site, tokens, silent: bool) -> torch.Tensor:
    """What a site's attention gives the picture in the first step, (M, C).

    silent  whether the values of some tokens are zero
    """
    pipeline, seen = case.pipeline, {}

    def silence(name, v):  # a single stream begins with the text
        return v.index_fill(1, torch.tensor(tokens), 0) if silent else None

    def see(name, out):
        module = pipeline.denoiser.get_submodule(name)
        if site.kind == "single":
            block = pipeline.denoiser.get_submodule(site.name.removesuffix(".attn"))
            seen[name] = out[0] @ block.proj_out.weight[:, : out.shape[-1]].T
        else:
            seen[name] = out[0] - module.bias

    exit_ = f"{site.name}.{'image_out' if site.kind == 'single' else 'to_out.0'}"
    taps = HookRegistry(pipeline.denoiser, [site.taps[1].module])
    exits = HookRegistry(pipeline.denoiser, [exit_])
    with taps.replace(silence), exits.observe(see):
        text, noises = pipeline.encode(["a"]), pipeline.noises([3])
        pipeline.denoise(next(noises), text, steps=1, guidance=1, noises=noises)
    return seen[exit_]


@pytest.mark.parametrize(
    "architecture", taking(lambda name: name != "if-ii", [*ARCHITECTURES, "flux"])
)
@settings(max_examples=max(settings().max_examples // 2, 1))
@given(
    seed=st.integers(0, 99), tokens=st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)
)
def test_it_is_what_is_lost_without_the_tokens_values(architecture, seed, tokens):
    """norm = mean_i || out_i - out_i with v_j = 0 ||, and share = norm / mean_i || out_i ||, to 1e-10."""
    case = fixed_case(architecture, seed=seed)
    found, _ = contributions(case.pipeline, "a", seed=3, steps=1, guidance=1, tokens=tokens)
    assert sorted(found) == list(range(len(case.model.sites)))
    for site in case.model.sites:
        whole, rest = (given_to_the_picture(case, site, tokens, silent) for silent in (False, True))
        norm, all_ = (float(x.norm(dim=-1).mean()) for x in (whole - rest, whole))
        assert found[site.index]["norm"] == pytest.approx(norm, rel=1e-10)
        assert found[site.index]["share"] == pytest.approx(norm / all_, rel=1e-10)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_guidance_is_looked_through(architecture):
    """The conditional branch gives in the first step what it gives without guidance.

    Over all steps it does not.
    """
    case = fixed_case(architecture)
    for steps, same in ((1, True), (3, False)):
        plain, guided = (
            contributions(case.pipeline, "a", steps=steps, guidance=guidance, tokens=[1, 2])[0]
            for guidance in (1, 4.5)
        )
        apart = max(abs(plain[site]["norm"] / guided[site]["norm"] - 1) for site in plain)
        assert (apart < 1e-10) is same


def test_the_word_is_found_among_the_tokens():
    """word_tokens gives the tokens of the letters, wherever the word stands.

    T5's tokens stand after CLIP's.
    """
    pipeline, prompt = small_pipeline(), PAIR[1]
    clip, _, t5 = pipeline.encoders.tokenizers
    ids = [
        *clip(prompt, padding="max_length").input_ids,
        *t5(prompt, padding="max_length").input_ids,
    ]
    assert pipeline.encode([prompt]).tokens.shape[1] == len(ids)
    assert [clip.decode([ids[i]]) for i in word_tokens(pipeline, prompt)] == list("TIGER") * 2


def test_the_word_is_found_where_tokenizers_have_no_length():
    """Tokens are counted as the encoders cut them.  model_max_length = 10^30 moves no place."""
    pipeline, prompt = small_pipeline(), PAIR[1]
    expected, lengths = (
        word_tokens(pipeline, prompt),
        [t.model_max_length for t in pipeline.encoders.tokenizers],
    )
    pipeline.encoders.limits = tuple(lengths)
    for tokenizer in pipeline.encoders.tokenizers:
        tokenizer.model_max_length = 10**30
    assert pipeline.encode([prompt]).tokens.shape[1] == lengths[0] + lengths[2]
    assert word_tokens(pipeline, prompt) == expected


@pytest.mark.parametrize("tokens", [[], [99], [1, -1]])
def test_tokens_that_are_not_there_are_refused(tokens):
    """PatchError for no tokens, and for tokens beyond or below the text."""
    with pytest.raises(PatchError, match=r"tokens \[.*\] asked for; 'a' has 0\.\.3, so give"):
        contributions(fixed_case().pipeline, "a", steps=1, tokens=tokens)


def test_a_site_that_gives_nothing_has_no_share():
    """norm = share = 0 at a site whose output projection is zero, and the other site keeps its share."""
    pipeline = small_pipeline()
    pipeline.denoiser.transformer_blocks[0].attn.to_out[0].weight.data.zero_()
    found, _ = contributions(pipeline, PAIR[0])
    assert found[0] == {"norm": 0, "share": 0} and 0 < found[1]["share"] <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_all_tokens_together_give_all(dtype):
    """All tokens with W_o = 1 have share |sum_j p_j v_j| / |out| = 1.

    That is up to the rounding u of out, though |s| comes to 30.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        3 * torch.randn(1, 2, n, 64, generator=generator, dtype=torch.float64).to(dtype)
        for n in (32, 77, 77)
    )
    out = attention_reference(*(x.double() for x in (q, k, v))).to(dtype)
    definition = Definition(Plan(), [Row("a", "a")], [site := Site(0, "a", "cross", 2, 64, 0)])
    word, whole = norms(
        Record(site, 0, [q], [k], [v], [out]), definition, torch.eye(128, dtype=dtype), range(77)
    )
    assert abs(word / whole - 1) < torch.finfo(dtype).eps / 2 + 5e-6


def test_encoders_without_tokenizers_need_the_tokens():
    """PatchError where nobody can know the word's tokens.  With tokens given it works."""
    pipeline = fixed_case().pipeline
    with pytest.raises(PatchError, match="give `tokens`"):
        contributions(pipeline, PAIR[0])
    assert len(contributions(pipeline, PAIR[0], steps=1, tokens=[0])[0]) == 3


def test_the_planted_site_stands_out():
    """On planted-mmdit the share of site 1 is more than three times any other's, in every picture."""
    pipeline = load("planted-mmdit")
    for prompt in PAIR:
        found, _ = contributions(pipeline, prompt, steps=4)
        shares = {site: values["share"] for site, values in found.items()}
        assert shares.pop(1) > 3 * max(shares.values())


# --- faults: a check, an owner, a function, a text, and the text put in its place


lost = raw(test_it_is_what_is_lost_without_the_tokens_values, "mmdit", seed=1, tokens=[0, 2])

FAULTS = {
    "scores not scaled": (lost, contributing, "norms", "key.mT * scale", "key.mT"),
    "the values of all tokens": (
        lost,
        contributing,
        "norms",
        "keys[-1][:, :, tokens]",
        "keys[-1][:, :, [0, 1]]",
    ),
    "keys of the image": (lost, contributing, "norms", "torch.cat(keys, dim=2)", "keys[-1]"),
    "the other guidance branch": (
        partial(test_guidance_is_looked_through, "mmdit"),
        contributing,
        "norms",
        "record.q[0][-1:]",
        "(record.q[0][:1] * 1.5)",
    ),
    "T5's tokens among CLIP's": (
        test_the_word_is_found_among_the_tokens,
        alignment,
        "token_blocks",
        "lengths[0]]",
        "0]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, monkeypatch):
    """The check holds, and with the fault in place it does not."""
    require_noticed(monkeypatch, FAULTS[fault])

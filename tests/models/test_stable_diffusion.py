"""Stable Diffusion 1 and 2 are the published U-Nets: sites, diffusers' numbers, refusals."""

from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.copies import TOLERANCE, full_width
from support.planting import plant
from support.small_models import outputs, relative
from support.strategies import build_sd, randomize
from textpatch import Plan, Row, Swap
from textpatch.errors import PatchError
from textpatch.reference_models import sdxl
from textpatch.reference_models.layers import TextCondition
from textpatch.reference_models.sdxl import (
    CROSS_DOWN,
    CROSS_UP,
    DOWN,
    UP,
    SDConfig,
    StableDiffusion,
)
from textpatch.sampling import sample
from textpatch.weights.published import DENOISERS

SMALL = SDConfig(
    in_channels=3,
    block_out_channels=(12, 24),
    layers_per_block=1,
    down_block_types=(CROSS_DOWN, DOWN),
    up_block_types=(UP, CROSS_UP),
    transformer_layers_per_block=(1, 1),
    attention_head_dim=(2, 3),
    cross_attention_dim=10,
    norm_num_groups=3,
)


@pytest.fixture(scope="module", params=["sd-1.5", "sd-2.1"])
def published(request):
    """Each version at full size, without memory."""
    model, config = DENOISERS[request.param]
    with torch.device("meta"):
        return model(config)


def build(config: SDConfig, dtype=torch.float64, seed: int = 0) -> StableDiffusion:
    return randomize(StableDiffusion(config).to(dtype), seed).requires_grad_(False)


def inputs(config: SDConfig, dtype=torch.float64, rows=2, size=(5, 4), tokens=5):
    """x (rows, C, *size), t, and text of as many rows."""
    x = torch.randn(rows, config.in_channels, *size, dtype=dtype)
    words = torch.randn(rows, tokens, config.cross_attention_dim, dtype=dtype)
    return x, 1000 * torch.rand(rows), TextCondition(words)


SITES = [  # in execution order: where, transformers, width
    ("down_blocks.0", 2, 320),
    ("down_blocks.1", 2, 640),
    ("down_blocks.2", 2, 1280),
    ("mid_block", 1, 1280),
    ("up_blocks.1", 3, 1280),
    ("up_blocks.2", 3, 640),
    ("up_blocks.3", 3, 320),
]


def test_sites(published):
    """16 sites: 6 down, 1 in the middle, 9 up.  Version 1 has 8 heads everywhere, version 2 heads of 64."""
    wide = published.config.cross_attention_dim
    expected = [
        (
            f"{where}.attentions.{i}.transformer_blocks.0.attn2",
            "cross",
            8 if wide == 768 else width // 64,
            2 * wide * width,
        )
        for where, transformers, width in SITES
        for i in range(transformers)
    ]
    assert [(s.name, s.kind, s.heads, s.parameters) for s in published.sites] == expected
    assert all(site.heads * site.head_dim in (320, 640, 1280) for site in published.sites)
    assert [site.index for site in published.sites] == list(range(16))


@st.composite
def configs(draw):
    """Any number of depths, widths, heads and layers; both projections; sites at any depth."""
    depths = draw(st.integers(1, 3))

    def each(*values):
        return st.tuples(*[st.sampled_from(values)] * depths)

    return SDConfig(
        in_channels=draw(st.integers(1, 5)),
        out_channels=draw(st.integers(1, 5)),
        block_out_channels=draw(each(12, 24, 36)),
        layers_per_block=draw(st.integers(1, 3)),
        down_block_types=draw(each(DOWN, CROSS_DOWN)),
        up_block_types=draw(each(UP, CROSS_UP)),
        transformer_layers_per_block=draw(each(1, 2)),
        attention_head_dim=draw(each(1, 2, 3, 4)),
        cross_attention_dim=draw(st.integers(1, 20)),
        norm_num_groups=draw(st.sampled_from([1, 2, 3])),
        use_linear_projection=draw(st.booleans()),
    )


def equals_diffusers(diffusers, config: SDConfig, seed: int) -> None:
    """StableDiffusion = UNet2DConditionModel: output, and text K and V of every site, in their order."""
    for dtype, tolerance in TOLERANCE.items():
        torch.manual_seed(seed)
        ours = build(config, dtype, seed)
        theirs = diffusers.UNet2DConditionModel(**asdict(config)).to(dtype).requires_grad_(False)
        theirs.load_state_dict(ours.state_dict())
        x, t, text = inputs(config, dtype, size=(3 + seed % 5, 7))
        with outputs(ours, "attn2.to_k", "attn2.to_v") as our_text:
            a = ours(x, t, text)
        with outputs(theirs, "attn2.to_k", "attn2.to_v") as their_text:
            (b,) = theirs(x, t, text.tokens, return_dict=False)
        names = [f"{site.name}.{part}" for site in ours.sites for part in ("to_k", "to_v")]
        assert [name for name, _ in our_text] == [name for name, _ in their_text] == names != []
        assert a.dtype == b.dtype == dtype and relative(a, b) <= tolerance
        assert all(
            relative(a, b) <= tolerance for (_, a), (_, b) in zip(our_text, their_text, strict=True)
        )


@settings(max_examples=3)
@given(config=configs(), seed=st.integers(0, 99))
def test_it_equals_diffusers(diffusers, config, seed):
    """On random configurations, 1e-10 in float64 and 5e-6 in float32."""
    equals_diffusers(diffusers, config, seed)


@pytest.mark.long
@settings(max_examples=40)
@given(config=configs(), seed=st.integers(0, 99))
def test_it_equals_diffusers_on_forty(diffusers, config, seed):
    """The same on forty; by default `test_it_equals_diffusers` draws three."""
    equals_diffusers(diffusers, config, seed)


def test_faults_in_what_version_1_has_of_its_own_are_noticed(diffusers, monkeypatch):
    """Faults: pixels in another order through the convolutions, and a time that nothing reads."""
    faults = [
        (sdxl, "projected", "pixels.mT[..., None])", "pixels.roll(1, 1).mT[..., None])"),
        (
            StableDiffusion,
            "_embed_time",
            "self.time_embedding(time)",
            "0 * self.time_embedding(time)",
        ),
    ]
    equals_diffusers(diffusers, SMALL, 0)
    for fault in faults:
        with monkeypatch.context() as patch:
            plant(patch, *fault)
            with pytest.raises(AssertionError):
                equals_diffusers(diffusers, SMALL, 0)


def test_a_transformer_at_full_width(diffusers, published):
    """The first transformer, 320 wide, is diffusers' Transformer2DModel, at 77 tokens."""
    with torch.device("meta"):
        reference = diffusers.UNet2DConditionModel(**asdict(published.config))
    ours, theirs = full_width(published, reference, "down_blocks.0.attentions.0")
    x = torch.randn(1, 320, 3, 2, dtype=torch.float64)
    tokens = torch.randn(1, 77, published.config.cross_attention_dim, dtype=torch.float64)
    made = ours(x, {ours.transformer_blocks[0].attn2.site: (tokens, (None, None))})
    assert relative(made, theirs(x, encoder_hidden_states=tokens, return_dict=False)[0]) <= 1e-10


def test_parts_of_a_text_that_nothing_reads_are_refused():
    """A pooled vector and sizes, which SDXL reads; another width; a configuration of one depth too many."""
    model, (x, t, text) = build(SMALL), inputs(SMALL)
    for name in ("pooled", "micro"):
        with pytest.raises(PatchError, match=f"text.{name} was given; .* read tokens alone"):
            model(x, t, replace(text, **{name: torch.zeros(2, 6)}))
    with pytest.raises(PatchError, match="text.tokens are 9 wide; this model reads 10"):
        model(x, t, replace(text, tokens=text.tokens[..., :9]))
    with pytest.raises(PatchError, match="up_block_types is .*; 2 block_out_channels need a tuple"):
        replace(SMALL, up_block_types=(UP,))


def test_a_pooled_prompt_is_refused_where_no_pooled_vector_is_read():
    """A row's `pooled` would have no effect, so that it is an error; without it the swap is carried out."""
    pipeline = build_sd()
    plan = Plan([Swap("all", "a", "b")])
    rows = [Row("a", "one", 3), Row("b", "two", 3)]
    made = sample(pipeline, rows, plan, steps=2, guidance=4.5).latents
    assert relative(made["a"], made["b"]) <= 1e-12
    with pytest.raises(PatchError, match="row 'a' has the pooled prompt 'two', and this model"):
        sample(pipeline, [replace(rows[0], pooled="two"), rows[1]], plan, steps=2, guidance=4.5)

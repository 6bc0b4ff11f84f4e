"""MMDiT is the published transformer, SD3 and SD3.5: counts, sites, diffusers' numbers, and what it
refuses."""

from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from support.copies import TOLERANCE
from support.small_models import relative
from support.strategies import randomize
from textpatch.attention import row_slots
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.reference_models.layers import TextCondition
from textpatch.reference_models.mmdit import Block, MMDiT, MMDiTConfig

PUBLISHED = {
    "SD3-medium": MMDiTConfig(),
    "SD3.5-medium": MMDiTConfig(
        pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=tuple(range(13))
    ),
    "SD3.5-large": MMDiTConfig(
        num_layers=38, num_attention_heads=38, caption_projection_dim=2432, qk_norm="rms_norm"
    ),
}
SMALL = MMDiTConfig(
    in_channels=3,
    out_channels=2,
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=4,
    joint_attention_dim=6,
    pooled_projection_dim=5,
    caption_projection_dim=8,
    pos_embed_max_size=4,
    qk_norm="rms_norm",
    dual_attention_layers=(0, 2),
)


def on_meta(config: MMDiTConfig) -> MMDiT:
    """A model at full size, without memory."""
    with torch.device("meta"):
        return MMDiT(config)


def build(config: MMDiTConfig, dtype=torch.float64, seed: int = 0) -> MMDiT:
    return randomize(MMDiT(config).to(dtype), seed).requires_grad_(False)


def inputs(config: MMDiTConfig, dtype=torch.float64, rows=2, size=(2, 3), tokens=5):
    """x of `size` patches, a t for each row, and text."""
    x = torch.randn(
        rows, config.in_channels, *(side * config.patch_size for side in size), dtype=dtype
    )
    words = torch.randn(rows, tokens, config.joint_attention_dim, dtype=dtype)
    pooled = torch.randn(rows, config.pooled_projection_dim, dtype=dtype)
    return x, 1000 * torch.rand(rows, dtype=dtype), TextCondition(words, pooled)


@pytest.mark.parametrize(
    "name, tensors, parameters",
    [
        ("SD3-medium", 683, 2_028_328_000),
        ("SD3.5-medium", 909, 2_243_171_520),
        ("SD3.5-large", 1227, 8_056_627_520),
    ],
)
def test_mmdit_is_the_published_size(name, tensors, parameters):
    """As many tensors and parameters as the published files; their names are in test_manifests.py."""
    model = on_meta(PUBLISHED[name])
    assert len(model.state_dict()) == tensors
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    "name, heads, parameters",
    [
        ("SD3-medium", 24, 4_721_664),
        ("SD3.5-medium", 24, 4_721_664),
        ("SD3.5-large", 38, 11_834_112),
    ],
)
def test_sites_are_the_joint_attentions(name, heads, parameters):
    """One site a block, in execution order, of 2 (W + 1) W parameters; no image-only attention is a site."""
    config = PUBLISHED[name]
    sites = on_meta(config).sites
    assert [(site.index, site.name) for site in sites] == [
        (i, f"transformer_blocks.{i}.attn") for i in range(config.num_layers)
    ]
    assert {(site.kind, site.heads, site.head_dim, site.parameters) for site in sites} == {
        ("joint", heads, 64, parameters)
    }


def test_the_site_of_the_paper():
    """Site 10 of SD3-medium holds the paper's 0.23 % of the parameters."""
    assert round(100 * on_meta(MMDiTConfig()).sites[10].parameters / 2_028_328_000, 4) == 0.2328


@st.composite
def configs(draw):
    """Any sizes, with and without norms of queries and keys, any blocks dual."""
    heads, head_dim, layers = (
        draw(st.integers(1, 3)),
        4 * draw(st.integers(1, 4)),
        draw(st.integers(1, 3)),
    )
    return MMDiTConfig(
        sample_size=8,
        patch_size=draw(st.sampled_from([1, 2, 4])),
        in_channels=draw(st.integers(1, 4)),
        out_channels=draw(st.integers(1, 4)),
        num_layers=layers,
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        joint_attention_dim=draw(st.integers(1, 9)),
        pooled_projection_dim=draw(st.integers(1, 9)),
        caption_projection_dim=heads * head_dim,
        pos_embed_max_size=draw(st.integers(8, 9)),
        qk_norm=draw(st.sampled_from([None, "rms_norm"])),
        dual_attention_layers=draw(st.sets(st.integers(0, layers - 1)).map(sorted).map(tuple)),
    )


def in_float64(theirs):
    """diffusers takes the mean square of its RMSNorm in float32 also in float64 runs; here it does not."""
    for name, norm in [*theirs.named_modules()]:
        if type(norm).__name__ == "RMSNorm":
            exact = torch.nn.RMSNorm(norm.dim, eps=norm.eps, dtype=torch.float64)
            exact.weight = norm.weight
            theirs.set_submodule(name, exact)
    return theirs


def reference(diffusers, model: MMDiT, dtype):
    """diffusers' transformer with the same weights: untouched in float32, see `in_float64`."""
    theirs = diffusers.SD3Transformer2DModel(**asdict(model.config)).to(dtype).requires_grad_(False)
    theirs.load_state_dict(model.state_dict())
    return in_float64(theirs) if dtype == torch.float64 else theirs


@settings(max_examples=10)
@given(
    config=configs(),
    rows=st.integers(1, 3),
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    tokens=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_mmdit_equals_diffusers(diffusers, config, rows, size, tokens, seed):
    """MMDiT = SD3Transformer2DModel: output, and text K and V of every site; latents need not be square."""
    for dtype, tolerance in TOLERANCE.items():
        torch.manual_seed(seed)
        ours, (x, t, text) = build(config, dtype, seed), inputs(config, dtype, rows, size, tokens)
        theirs, our_text, their_text = reference(diffusers, ours, dtype), {}, {}
        names = [
            f"{site.name}.{part}" for site in ours.sites for part in ("add_k_proj", "add_v_proj")
        ]
        with HookRegistry(ours, names).observe(our_text.__setitem__):
            a = ours(x, t, text)
        with HookRegistry(theirs, names).observe(their_text.__setitem__):
            (b,) = theirs(x, text.tokens, text.pooled, t, return_dict=False)
        assert a.dtype == b.dtype == dtype and relative(a, b) <= tolerance
        assert max(relative(our_text[name], their_text[name]) for name in names) <= tolerance


@pytest.mark.long
@pytest.mark.parametrize("name, last", [("SD3.5-medium", False), ("SD3.5-large", True)])
def test_blocks_at_full_width(diffusers, name, last):
    """A dual block of width 1536, and a last one of 2432, = diffusers' JointTransformerBlock in float64.

    By default whole models are compared at small widths, and names and shapes at full width.
    """
    from diffusers.models.attention import JointTransformerBlock

    config = PUBLISHED[name]
    dual = bool(config.dual_attention_layers)
    with torch.device("meta"):
        ours = Block(config, context_pre_only=last, dual=dual).double()
        theirs = JointTransformerBlock(
            config.width,
            config.num_attention_heads,
            64,
            last,
            qk_norm="rms_norm",
            use_dual_attention=dual,
        )
    ours = ours.to_empty(device="cpu").requires_grad_(False)
    for parameter in ours.parameters():
        bound = parameter[0].numel() ** -0.5
        parameter.uniform_(-bound, bound)
    theirs.requires_grad_(False).load_state_dict(ours.state_dict(), assign=True)
    image, text = (torch.randn(1, n, config.width, dtype=torch.float64) for n in (7, 5))
    c = torch.randn(1, config.width, dtype=torch.float64)
    *expected_text, expected_image = in_float64(theirs)(image, text, c)
    image, text = ours(image, text, c, (None, None))
    assert relative(image, expected_image) <= 1e-10
    assert (
        (text is None and expected_text == [None])
        if last
        else relative(text, expected_text[0]) <= 1e-10
    )


def test_one_time_for_all_rows():
    """f(x, t) = f(x, (t, ..., t)), bit for bit; another t in one row changes that row alone."""
    model, (x, _, text) = build(SMALL), inputs(SMALL)
    a, b, c = (model(x, torch.tensor(t), text) for t in (500.0, [500.0, 500.0], [500.0, 20.0]))
    assert torch.equal(a, b) and torch.equal(a[0], c[0]) and relative(a[1], c[1]) > 1e-3


def test_attention_among_image_tokens_is_no_site():
    """Slots of a dual block change the output of its joint attention, and of its own attn2 no bit."""
    model, args = build(SMALL), inputs(SMALL)
    joint, alone = "transformer_blocks.0.attn", "transformer_blocks.0.attn2"
    swap, plain, swapped = row_slots(torch.tensor([1, 0]), tokens=5), {}, {}
    with HookRegistry(model, [joint, alone]).observe(plain.__setitem__):
        model(*args)
    with HookRegistry(model, [joint, alone]).observe(swapped.__setitem__):
        model(*args, slots=[swap, None, None])
    assert torch.equal(plain[alone], swapped[alone])
    assert relative(plain[joint][0], swapped[joint][0]) > 1e-3


@pytest.mark.long
def test_it_compiles_in_one_piece():
    """torch.compile(fullgraph=True) makes one graph for all timesteps, with the same bits.

    By default core/test_bank.py asks the same of whole runs with plans.
    """
    model = build(SMALL, torch.float32)
    x, _, text = inputs(SMALL, torch.float32)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for t in torch.tensor([3.0, 700.0]):
        assert torch.equal(compiled(x, t, text), model(x, t, text))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "sizes, says",
    [
        (
            dict(caption_projection_dim=100),
            "caption_projection_dim is 100, but 24 heads x 64 make a width of 1536",
        ),
        (dict(qk_norm="layer_norm"), "qk_norm is 'layer_norm'; this MMDiT knows None"),
        (
            dict(dual_attention_layers=(3, 24)),
            r"dual_attention_layers has 24; the blocks of this MMDiT are 0\.\.23",
        ),
        (dict(dual_attention_layers=(-1,)), "dual_attention_layers has -1"),
        (dict(num_layers=0), "num_layers is 0; give a whole number from 1 on"),
        (dict(num_layers="24"), "num_layers is '24'; give"),
    ],
)
def test_a_config_that_fits_nothing_is_refused(sizes, says):
    """A configuration the model cannot build is a PatchError with both values."""
    with pytest.raises(PatchError, match=says):
        MMDiTConfig(**sizes)


@pytest.mark.parametrize(
    "says, changed",
    {
        "latents of 3x4 do not divide into patches of 2x2": dict(x=(2, 3, 3, 4)),
        "5x2 patches; the position table holds 4x4": dict(x=(2, 3, 10, 4)),
        "channels of x: 4, but must be 3 here": dict(x=(2, 4, 4, 4)),
        "width of text.tokens: 7, but must be 6 here": dict(tokens=(2, 5, 7)),
        "width of text.pooled: 4, but must be 5 here": dict(pooled=(2, 4)),
        "rows of text.tokens: 1, but must be 2 here": dict(tokens=(1, 5, 6)),
        "rows of text.pooled: 1, but must be 2 here": dict(pooled=(1, 5)),
        "text.pooled is None; an MMDiT reads a pooled vector for each row of x": dict(pooled=None),
        "1 slots entries for 3 sites": dict(slots=[None]),
    }.items(),
)
def test_what_does_not_fit_is_refused(says, changed):
    """Sizes, channels, widths, rows and slots that the model cannot read are PatchErrors with both values."""
    shapes = dict(x=(2, 3, 4, 4), tokens=(2, 5, 6), pooled=(2, 5), slots=None) | changed
    text = TextCondition(
        torch.zeros(shapes["tokens"]), shapes["pooled"] and torch.zeros(shapes["pooled"])
    )
    with pytest.raises(PatchError, match=says):
        build(SMALL, torch.float32)(torch.zeros(shapes["x"]), 1.0, text, slots=shapes["slots"])

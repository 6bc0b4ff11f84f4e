"""DeepFloyd IF is the published U-Net, stage I and stage II: sites, counts, diffusers' outputs; and its
bank."""

from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from support.copies import TOLERANCE, full_width
from support.small_models import outputs, relative
from support.strategies import randomize
from textpatch.attention import row_slots
from textpatch.errors import PatchError
from textpatch.reference_models.deepfloyd_if import DeepFloydIF, IFConfig
from textpatch.reference_models.layers import TextCondition

RESNET_DOWN, SITES_DOWN = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
RESNET_UP, SITES_UP = "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"

# what every published configuration has and IFConfig therefore does not say
FIXED = dict(
    act_fn="gelu",
    addition_embed_type="text",
    cross_attention_norm="group_norm",
    encoder_hid_dim_type="text_proj",
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    resnet_time_scale_shift="scale_shift",
)
STAGE_II = dict(
    in_channels=6,
    class_embed_type="timestep",
    only_cross_attention=True,
    resnet_skip_time_act=True,
    resnet_out_scale_factor=1.4142271248762552,
    mid_block_scale_factor=1.4142271248762552,
    time_embedding_act_fn="gelu",
)
SMALL = IFConfig(
    block_out_channels=(16, 24),
    layers_per_block=1,
    down_block_types=(RESNET_DOWN, SITES_DOWN),
    up_block_types=(SITES_UP, RESNET_UP),
    attention_head_dim=8,
    cross_attention_dim=32,
    encoder_hid_dim=12,
    addition_embed_type_num_heads=4,
    norm_num_groups=4,
)
SMALL_II = replace(SMALL, **STAGE_II, time_embedding_dim=24)


@pytest.fixture(scope="module")
def xl():
    """IF-I-XL at full size, without memory."""
    with torch.device("meta"):
        return DeepFloydIF()


def build(config: IFConfig, dtype=torch.float64, seed: int = 0) -> DeepFloydIF:
    return randomize(DeepFloydIF(config).to(dtype), seed).requires_grad_(False)


def inputs(config: IFConfig, dtype=torch.float64, rows=2, size=(1, 2), tokens=5, per_row=True):
    """x (rows, C, size x the multiple that halves), t, tokens, and in stage II `low` and `level`."""
    multiple = 2 ** (len(config.block_out_channels) - 1)
    x, low = torch.randn(
        2, rows, config.latent_channels, *(side * multiple for side in size), dtype=dtype
    )
    t, level = 1000 * torch.rand(2, *([rows] if per_row else []))
    text = TextCondition(torch.randn(rows, tokens, config.encoder_hid_dim, dtype=dtype))
    return (x, t, text), dict(low=low, level=level) if config.class_embed_type else {}


# XL, L, M: first width, parameters
PUBLISHED = {704: 4_304_695_110, 320: 935_365_830, 192: 371_605_830}


@pytest.mark.parametrize("first", PUBLISHED)
def test_if_is_the_published_size(first):
    """IF-I-XL, L and M: 775 tensors, and as many parameters as the published files."""
    widths = tuple(first * i for i in (1, 2, 3, 4))
    with torch.device("meta"):
        model = DeepFloydIF(IFConfig(block_out_channels=widths, cross_attention_dim=widths[-1]))
    assert len(model.state_dict()) == 775
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[first]


SITES = [  # in execution order: block, sites, width
    ("down_blocks.1", 3, 1408),
    ("down_blocks.2", 3, 2112),
    ("down_blocks.3", 3, 2816),
    ("mid_block", 1, 2816),
    ("up_blocks.0", 4, 2816),
    ("up_blocks.1", 4, 2112),
    ("up_blocks.2", 4, 1408),
]


def test_sites_of_if_xl(xl):
    """22 sites: 9 down, 1 in the middle, 12 up; K and V of width W hold 2 (2816 + 1) W parameters each
    site."""
    expected = [
        (f"{block}.attentions.{j}", width) for block, sites, width in SITES for j in range(sites)
    ]
    assert [(site.name, site.heads * site.head_dim) for site in xl.sites] == expected
    assert [site.index for site in xl.sites] == list(range(22))
    assert {(site.kind, site.head_dim) for site in xl.sites} == {("added", 64)}
    assert [site.parameters for site in xl.sites] == [2 * 2817 * width for _, width in expected]


def test_the_site_of_the_paper(xl):
    """Site 17 is up_blocks.1.attentions.3, of 33 heads; its text K and V are 0.2764 % of IF-I-XL."""
    site = xl.sites[17]
    assert (site.name, site.heads, site.parameters) == ("up_blocks.1.attentions.3", 33, 11_899_008)
    assert round(100 * site.parameters / PUBLISHED[704], 4) == 0.2764


def test_sites_run_in_their_order():
    """Calls of the text projections come in the order of `sites`, K before V."""
    types = dict(down_block_types=(SITES_DOWN, SITES_DOWN), up_block_types=(SITES_UP, SITES_UP))
    model = build(replace(SMALL, layers_per_block=(2, 1), **types))
    args, _ = inputs(model.config)
    with outputs(model, "add_k_proj", "add_v_proj") as made:
        model(*args)
    names = [f"{site.name}.{part}" for site in model.sites for part in ("add_k_proj", "add_v_proj")]
    assert len(names) == 2 * (3 + 1 + 5) and [name for name, _ in made] == names


@st.composite
def configs(draw, **flags):
    """Any number of depths, widths and layers; blocks with and without sites in any order."""
    depths, heads = draw(st.integers(1, 3)), draw(st.integers(1, 4))

    def each(values):
        return st.lists(values, min_size=depths, max_size=depths).map(tuple)

    return IFConfig(
        block_out_channels=draw(each(st.sampled_from([8, 16, 24, 32]))),
        layers_per_block=draw(st.integers(1, 2) | each(st.integers(1, 2))),
        down_block_types=draw(each(st.sampled_from([RESNET_DOWN, SITES_DOWN]))),
        up_block_types=draw(each(st.sampled_from([RESNET_UP, SITES_UP]))),
        attention_head_dim=draw(st.sampled_from([2, 4, 8])),
        cross_attention_dim=draw(st.sampled_from([32, 64])),
        encoder_hid_dim=heads * draw(st.integers(3, 5)),
        addition_embed_type_num_heads=heads,
        norm_num_groups=draw(st.sampled_from([1, 2])),
        time_embedding_dim=draw(st.none() | st.integers(8, 24)),
        **draw(st.fixed_dictionaries(flags)),
    )


def batches():
    size = st.tuples(st.integers(1, 3), st.integers(2, 4))
    return st.fixed_dictionaries(
        dict(rows=st.integers(1, 3), size=size, tokens=st.integers(4, 7), per_row=st.booleans())
    )


def reference(diffusers, config: IFConfig, model: DeepFloydIF):
    """diffusers' U-Net of the same configuration with the same weights."""
    theirs = diffusers.UNet2DConditionModel(**asdict(config), **FIXED).to(
        next(model.parameters()).dtype
    )
    theirs.load_state_dict(model.state_dict())
    return theirs.requires_grad_(False)


def equals_diffusers(diffusers, config, batch, seed):
    for dtype, tolerance in TOLERANCE.items():
        torch.manual_seed(seed)
        ours = build(config, dtype, seed)
        theirs = reference(diffusers, config, ours)
        (x, t, text), stage_ii = inputs(config, dtype, **batch)
        with outputs(ours, "add_k_proj", "add_v_proj") as our_text:
            a = ours(x, t, text, **stage_ii)
        if stage_ii:
            x, t = torch.cat([x, stage_ii["low"]], dim=1), t.expand(len(x))
        labels = stage_ii["level"].expand(len(x)) if stage_ii else None
        with outputs(theirs, "add_k_proj", "add_v_proj") as their_text:
            (b,) = theirs(x, t, text.tokens, class_labels=labels, return_dict=False)
        assert a.dtype == b.dtype == dtype and relative(a, b) <= tolerance
        assert [name for name, _ in our_text] == [name for name, _ in their_text]
        assert len(our_text) == 2 * len(ours.sites) > 0
        assert all(
            relative(kv, ref) <= tolerance
            for (_, kv), (_, ref) in zip(our_text, their_text, strict=True)
        )


STAGE_I = dict(in_channels=st.integers(1, 4), out_channels=st.integers(1, 6))


@settings(max_examples=4)
@given(config=configs(**STAGE_I), batch=batches(), seed=st.integers(0, 99))
def test_stage_i_equals_diffusers(diffusers, config, batch, seed):
    """Stage I = UNet2DConditionModel: output, and text K and V of every site; pictures need not be square."""
    equals_diffusers(diffusers, config, batch, seed)


@settings(max_examples=3)
@given(
    config=configs(**{name: st.just(value) for name, value in STAGE_II.items()}),
    batch=batches(),
    seed=st.integers(0, 99),
)
def test_stage_ii_equals_diffusers(diffusers, config, batch, seed):
    """Stage II = UNet2DConditionModel on x and low side by side, with level as class label."""
    equals_diffusers(diffusers, config, batch, seed)


MIXED = dict(
    class_embed_type=st.sampled_from([None, "timestep"]),
    in_channels=st.sampled_from([2, 4]),
    only_cross_attention=st.booleans(),
    resnet_skip_time_act=st.booleans(),
    resnet_out_scale_factor=st.sampled_from([0.75, 1.5]),
    mid_block_scale_factor=st.sampled_from([0.5, 1.25]),
    time_embedding_act_fn=st.sampled_from([None, "gelu"]),
)


@settings(max_examples=6)
@given(config=configs(**MIXED), batch=batches(), seed=st.integers(0, 99))
def test_each_setting_alone_equals_diffusers(diffusers, config, batch, seed):
    """Every setting in which the stages differ means the same on its own, in models between the two."""
    equals_diffusers(diffusers, config, batch, seed)


@pytest.fixture(scope="module")
def reference_xl(diffusers):
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(**asdict(IFConfig()), **FIXED)


@pytest.mark.long
def test_attention_at_full_width(xl, reference_xl):
    """A site of width 2816 = diffusers' Attention with AttnAddedKVProcessor2_0, at 77 tokens.

    By default whole models are compared at small widths, and names and shapes at full width.
    """
    ours, theirs = full_width(xl, reference_xl, "mid_block.attentions.0")
    x = torch.randn(1, 2816, 3, 2, dtype=torch.float64)
    tokens = torch.randn(1, 77, 2816, dtype=torch.float64)
    assert relative(ours(x, tokens, (None, None)), theirs(x, encoder_hidden_states=tokens)) <= 1e-10


@pytest.mark.long
def test_resnet_at_full_width(xl, reference_xl):
    """A ResNet of width 1408 -> 2112 = diffusers' ResnetBlock2D, which takes the activation of c itself.

    By default whole models are compared at small widths, and names and shapes at full width.
    """
    ours, theirs = full_width(xl, reference_xl, "down_blocks.2.resnets.0")
    x, c = (
        torch.randn(1, 1408, 3, 2, dtype=torch.float64),
        torch.randn(1, 2816, dtype=torch.float64),
    )
    assert relative(ours(x, torch.nn.functional.gelu(c)), theirs(x, c)) <= 1e-10


both_stages = pytest.mark.parametrize("config", [SMALL, SMALL_II], ids=["stage I", "stage II"])


@both_stages
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_bank_stands_for_its_tokens(config, dtype):
    """f(x, bank, pool(tokens)) = f(x, tokens), bit for bit, and calls no text projection."""
    model = build(config, dtype)
    (x, t, text), stage_ii = inputs(config, dtype)
    pooled = model.pool(text.tokens)
    projections = "encoder_hid_proj", "norm_cross", "add_k_proj", "add_v_proj"
    with outputs(model, *projections) as made:
        plain = model(x, t, text, **stage_ii)
        assert [name for name, _ in made].count("encoder_hid_proj") == 1
    bank = model.text_kv(text)
    with outputs(model, *projections) as made:
        assert torch.equal(model(x, t, TextCondition(bank, pooled), **stage_ii), plain)
        assert not made
    assert torch.equal(model(x, t, replace(text, pooled=pooled), **stage_ii), plain)
    assert not torch.equal(model(x, t, replace(text, pooled=pooled.flip(0)), **stage_ii), plain)


@both_stages
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_slots_at_all_sites_are_the_donors_text(config, dtype):
    """Slots to the donors' rows of a bank twice as long = their tokens with the readers' pooled, bit for bit.

    Also from tokens of as many rows, up to the last bits: there the donors lie at other places.
    """
    model = build(config, dtype)
    (x, t, readers), stage_ii = inputs(config, dtype)
    donors, pooled = torch.randn_like(readers.tokens), model.pool(readers.tokens)
    target = model(x, t, TextCondition(donors, pooled), **stage_ii)
    own, theirs = model.text_kv(readers), model.text_kv(TextCondition(donors))
    # R = 4, B = 2
    bank = tuple(
        tuple(torch.cat(pair) for pair in zip(a, b, strict=True))
        for a, b in zip(own, theirs, strict=True)
    )
    slots = [row_slots(torch.tensor([2, 3]), tokens=5)] * len(model.sites)
    assert torch.equal(model(x, t, TextCondition(bank, pooled), slots=slots, **stage_ii), target)
    tokens = torch.cat([readers.tokens, donors])
    again = model(x, t, TextCondition(tokens, pooled), slots=slots, **stage_ii)
    assert relative(again, target) <= TOLERANCE[dtype]
    assert relative(model(x, t, readers, **stage_ii), target) > 1e-3


@both_stages
def test_a_pair_of_slots_is_for_keys_and_values(config):
    """(slots, own slots) at one site = the donor's keys with the reader's values, there alone, bit for
    bit."""
    model = build(config)
    (x, t, text), stage_ii = inputs(config)
    text = TextCondition(model.text_kv(text), model.pool(text.tokens))
    (k, v), site = text.tokens[1], 1
    swap, own = row_slots(torch.tensor([1, 0]), 5), row_slots(torch.tensor([0, 1]), 5)
    other_k, other_v = k.flip(0), v.flip(0)
    for pair, read in [
        ((swap, own), (other_k, v)),
        ((own, swap), (k, other_v)),
        (swap, (other_k, other_v)),
    ]:
        slots = [pair if i == site else None for i in range(len(model.sites))]
        bank = tuple(read if i == site else kv for i, kv in enumerate(text.tokens))
        swapped = model(x, t, text, slots=slots, **stage_ii)
        assert torch.equal(swapped, model(x, t, replace(text, tokens=bank), **stage_ii))
        assert not torch.equal(swapped, model(x, t, text, **stage_ii))


@pytest.mark.long
@both_stages
def test_it_compiles_in_one_piece(config):
    """torch.compile(fullgraph=True) makes one graph for all timesteps, from tokens and from a bank.

    By default tests/core/test_bank.py compiles this model, for every plan.
    """
    model = build(config, torch.float32)
    (x, _, text), stage_ii = inputs(config, torch.float32)
    bank = TextCondition(model.text_kv(text), model.pool(text.tokens))
    for condition in (text, bank):
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        for t in torch.tensor([3.0, 700.0]):
            made = model(x, t, condition, **stage_ii)
            assert torch.equal(compiled(x, t, condition, **stage_ii), made)
        assert counter.frame_count == 1


@pytest.mark.parametrize(
    "sizes, says",
    [
        (
            dict(down_block_types=("DownBlock2D", SITES_DOWN)),
            "down_block_types has 'DownBlock2D'; DeepFloyd IF",
        ),
        (
            dict(up_block_types=(SITES_DOWN, RESNET_UP)),
            "up_block_types has 'SimpleCrossAttnDownBlock2D'",
        ),
        (
            dict(class_embed_type="projection"),
            "class_embed_type has 'projection'; DeepFloyd IF has None and 'tim",
        ),
        (
            dict(time_embedding_act_fn="silu"),
            "time_embedding_act_fn has 'silu'; DeepFloyd IF has None and 'gelu'",
        ),
        (dict(block_out_channels=(16, 24, 32)), "2 down_block_types for 3 block_out_channels"),
        (dict(up_block_types=(RESNET_UP,)), "1 up_block_types for 2 block_out_channels"),
        (dict(layers_per_block=(1, 1, 1)), "3 layers for 2 block_out_channels"),
        (
            dict(layers_per_block=(0, 1)),
            r"layers_per_block is \(0, 1\); each depth needs at least one",
        ),
        (
            dict(norm_num_groups=5),
            r"block_out_channels has 16, which is no multiple of 5 \(norm_num_groups",
        ),
        (
            dict(
                down_block_types=(RESNET_DOWN,) * 2,
                up_block_types=(RESNET_UP,) * 2,
                block_out_channels=(12, 20),
            ),
            r"block_out_channels has 20, which is no multiple of 8 \(attention_head",
        ),
        (
            dict(attention_head_dim=16),
            r"block_out_channels has 24, which is no multiple of 16 \(attention_head",
        ),
        (
            dict(block_out_channels=(15, 24), norm_num_groups=3),
            "block_out_channels has 15, .* no multiple of 2",
        ),
        (
            dict(cross_attention_dim=48),
            r"cross_attention_dim has 48, which is no multiple of 32 \(groups of",
        ),
        (dict(encoder_hid_dim=10), "encoder_hid_dim has 10, which is no multiple of 4"),
        (
            STAGE_II | dict(in_channels=3),
            r"in_channels has 3, which is no multiple of 2 \(pictures, x and low\)",
        ),
    ],
)
def test_a_config_that_fits_nothing_is_refused(sizes, says):
    """A configuration the model cannot build is a PatchError with both values."""
    with pytest.raises(PatchError, match=says):
        replace(SMALL, **sizes)


def test_only_depths_with_sites_need_whole_heads():
    """A width that heads do not divide is built where nothing attends."""
    assert build(replace(SMALL, block_out_channels=(12, 24))).sites[0].heads == 3


REFUSED = {  # changes to x, text (pooled as a number of rows), slots, low and level
    "x has 4 channels; this model takes 3": dict(x=(2, 4, 2, 4)),
    "x has 6 channels; this model takes 3": dict(config=SMALL_II, x=(2, 6, 2, 4)),
    "text.tokens are 13 wide; this model reads 12": dict(width=13),
    "picture of 3x4; both sides must be multiples of 2": dict(x=(2, 3, 3, 4)),
    "3 pooled vectors for 2 rows of x": dict(pooled=3),
    "text.tokens is a bank, which cannot be pooled; pass pooled": dict(bank=True),
    "3 rows of text for 2 rows of queries; say by slots": dict(tokens=3, pooled=2),
    "1 slots entries for 4 sites": dict(slots=[None]),
    "stage II reads low and level, stage I neither; this stage I got low": dict(low=(2, 3, 2, 4)),
    "this stage I got level": dict(level=1.0),
    "this stage II got neither": dict(config=SMALL_II),
    "this stage II got level": dict(config=SMALL_II, level=1.0),
    r"low is \(2, 3, 1, 2\) and x \(2, 3, 2, 4\)": dict(
        config=SMALL_II, low=(2, 3, 1, 2), level=1.0
    ),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_does_not_fit_is_refused(says):
    """Sizes, rows, slots, and low or level that do not belong are PatchErrors with both values."""
    case = (
        dict(config=SMALL, x=(2, 3, 2, 4), tokens=2, width=12, pooled=None, bank=False)
        | REFUSED[says]
    )
    model = build(case["config"], torch.float32)
    text = TextCondition(torch.randn(case["tokens"], 5, case["width"]))
    if case["bank"]:
        text = TextCondition(model.text_kv(text))
    if case["pooled"]:
        text = replace(text, pooled=torch.zeros(case["pooled"], case["config"].embedding_width))
    low = torch.zeros(case["low"]) if "low" in case else None
    with pytest.raises(PatchError, match=says):
        model(
            torch.zeros(case["x"]),
            1.0,
            text,
            slots=case.get("slots"),
            low=low,
            level=case.get("level"),
        )


def test_a_bank_is_made_of_the_models_own_text():
    """Tokens of another width are a PatchError with both numbers before any site reads them."""
    with pytest.raises(PatchError, match="text.tokens are 13 wide; this model reads 12"):
        build(SMALL).text_kv(TextCondition(torch.zeros(2, 5, 13)))


def test_a_bank_of_another_model_is_refused():
    """A bank of as many sites as another model has is a PatchError with both numbers."""
    model, (args, _) = build(SMALL), inputs(SMALL)
    text = TextCondition(model.text_kv(args[2])[1:], model.pool(args[2].tokens))
    with pytest.raises(PatchError, match="a bank of 3 sites for a model of 4"):
        model(*args[:2], text)

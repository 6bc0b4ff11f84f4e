"""SDXL is the published U-Net: sites, diffusers' numbers at small sizes and full width; and its bank."""

from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from support.by_default import taking
from support.copies import TOLERANCE, full_width
from support.small_models import outputs, relative
from support.strategies import randomize
from textpatch.attention import row_slots
from textpatch.errors import PatchError
from textpatch.reference_models.layers import TextCondition
from textpatch.reference_models.sdxl import SDXL, SDXLConfig

DOWN, SITES_DOWN, UP, SITES_UP = (
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UpBlock2D",
    "CrossAttnUpBlock2D",
)
# so published, and no size
FIXED = dict(addition_embed_type="text_time")
PARAMETERS = 2_567_463_684
SMALL = SDXLConfig(
    in_channels=3,
    block_out_channels=(12, 24),
    layers_per_block=1,
    down_block_types=(DOWN, SITES_DOWN),
    up_block_types=(SITES_UP, UP),
    transformer_layers_per_block=(1, 2),
    attention_head_dim=(2, 3),
    cross_attention_dim=10,
    addition_time_embed_dim=4,
    projection_class_embeddings_input_dim=24 + 7,
    norm_num_groups=3,
)


@pytest.fixture(scope="module")
def base():
    """SDXL base 1.0 at full size, without memory."""
    with torch.device("meta"):
        return SDXL()


def build(config: SDXLConfig, dtype=torch.float64, seed: int = 0) -> SDXL:
    return randomize(SDXL(config).to(dtype), seed).requires_grad_(False)


def inputs(config: SDXLConfig, dtype=torch.float64, rows=2, size=(5, 4), tokens=5, per_row=True):
    """x (rows, C, *size), t, and text of as many rows."""
    x = torch.randn(rows, config.in_channels, *size, dtype=dtype)
    t = 1000 * torch.rand([rows] if per_row else [])
    pooled = torch.randn(rows, config.pooled_width, dtype=dtype)
    words = torch.randn(rows, tokens, config.cross_attention_dim, dtype=dtype)
    return x, t, TextCondition(words, pooled, torch.randint(0, 2048, (rows, 6)).to(dtype))


SITES = [  # in execution order: where, transformers, blocks in each, width, heads
    ("down_blocks.1", 2, 2, 640, 10),
    ("down_blocks.2", 2, 10, 1280, 20),
    ("mid_block", 1, 10, 1280, 20),
    ("up_blocks.0", 3, 10, 1280, 20),
    ("up_blocks.1", 3, 2, 640, 10),
]


def test_sites_of_sdxl(base):
    """70 sites: 24 down, 10 in the middle, 36 up; K and V of width W hold 2 x 2048 W parameters each site."""
    expected = [
        (
            f"{where}.attentions.{i}.transformer_blocks.{j}.attn2",
            "cross",
            heads,
            64,
            2 * 2048 * width,
        )
        for where, transformers, blocks, width, heads in SITES
        for i in range(transformers)
        for j in range(blocks)
    ]
    assert [(s.name, s.kind, s.heads, s.head_dim, s.parameters) for s in base.sites] == expected
    assert [site.index for site in base.sites] == list(range(70))
    sides = [site.name.split("_")[0] for site in base.sites]
    assert [sides.count(side) for side in ("down", "mid", "up")] == [24, 10, 36]


def test_the_sites_of_the_paper(base):
    """55, 56 and 57 lie in the third transformer of up_blocks.0; their text K and V are 0.61 % of SDXL."""
    sites = base.sites[55:58]
    assert [s.name for s in sites] == [
        f"up_blocks.0.attentions.2.transformer_blocks.{j}.attn2" for j in (1, 2, 3)
    ]
    assert sum(p.numel() for p in base.parameters()) == PARAMETERS
    assert sum(site.parameters for site in sites) == 15_728_640
    assert round(100 * 15_728_640 / PARAMETERS, 4) == 0.6126


@st.composite
def configs(draw):
    """Any number of depths, widths, heads and layers; blocks with and without sites in any order."""
    depths, size = draw(st.integers(1, 3)), 2 * draw(st.integers(1, 4))

    def each(*values):
        return st.tuples(*[st.sampled_from(values)] * depths)

    return SDXLConfig(
        in_channels=draw(st.integers(1, 5)),
        out_channels=draw(st.integers(1, 5)),
        block_out_channels=draw(each(12, 24, 36)),
        layers_per_block=draw(st.integers(1, 3)),
        down_block_types=draw(each(DOWN, SITES_DOWN)),
        up_block_types=draw(each(UP, SITES_UP)),
        transformer_layers_per_block=draw(each(1, 2, 3)),
        attention_head_dim=draw(each(1, 2, 3, 4)),
        cross_attention_dim=draw(st.integers(1, 20)),
        addition_time_embed_dim=size,
        projection_class_embeddings_input_dim=6 * size + draw(st.integers(1, 9)),
        norm_num_groups=draw(st.sampled_from([1, 2, 3])),
    )


def batches():
    size = st.tuples(st.integers(3, 9), st.integers(3, 9))
    return st.fixed_dictionaries(
        dict(rows=st.integers(1, 3), size=size, tokens=st.integers(1, 7), per_row=st.booleans())
    )


@settings(max_examples=3)
@given(config=configs(), batch=batches(), seed=st.integers(0, 99))
def test_sdxl_equals_diffusers(diffusers, config, batch, seed):
    """SDXL = UNet2DConditionModel: output, and text K and V of every site, in the order of `sites`.

    Pictures need not be square, and their sides not be multiples of anything.
    """
    for dtype, tolerance in TOLERANCE.items():
        torch.manual_seed(seed)
        ours = build(config, dtype, seed)
        theirs = (
            diffusers.UNet2DConditionModel(**asdict(config), **FIXED)
            .to(dtype)
            .requires_grad_(False)
        )
        theirs.load_state_dict(ours.state_dict())
        x, t, text = inputs(config, dtype, **batch)
        with outputs(ours, "attn2.to_k", "attn2.to_v") as our_text:
            a = ours(x, t, text)
        added = {"text_embeds": text.pooled, "time_ids": text.micro}
        with outputs(theirs, "attn2.to_k", "attn2.to_v") as their_text:
            (b,) = theirs(x, t, text.tokens, added_cond_kwargs=added, return_dict=False)
        names = [f"{site.name}.{part}" for site in ours.sites for part in ("to_k", "to_v")]
        assert [name for name, _ in our_text] == [name for name, _ in their_text] == names != []
        assert a.dtype == b.dtype == dtype and relative(a, b) <= tolerance
        assert all(
            relative(a, b) <= tolerance for (_, a), (_, b) in zip(our_text, their_text, strict=True)
        )


@pytest.fixture(scope="module")
def reference_base(diffusers):
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(**asdict(SDXLConfig()), **FIXED)


@pytest.mark.parametrize(
    "where, width", taking((("mid_block", 1280),), [("down_blocks.1", 640), ("mid_block", 1280)])
)
def test_block_at_full_width(base, reference_base, where, width):
    """A block of 640 = 10 heads or 1280 = 20 heads of 64 is diffusers' BasicTransformerBlock, at 77
    tokens.

    By default the wider.
    """
    ours, theirs = full_width(base, reference_base, f"{where}.attentions.0.transformer_blocks.0")
    x = torch.randn(1, 6, width, dtype=torch.float64)
    tokens = torch.randn(1, 77, 2048, dtype=torch.float64)
    made = ours(x, tokens, (None, None))
    assert relative(made, theirs(x, encoder_hidden_states=tokens)) <= 1e-10


def test_resnet_at_full_width(base, reference_base):
    """A ResNet of width 640 -> 1280 is diffusers' ResnetBlock2D."""
    ours, theirs = full_width(base, reference_base, "down_blocks.2.resnets.0")
    x, c = torch.randn(1, 640, 3, 2, dtype=torch.float64), torch.randn(1, 1280, dtype=torch.float64)
    assert relative(ours(x, c), theirs(x, c)) <= 1e-10


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_bank_stands_for_its_tokens(dtype):
    """f(x, text_kv(tokens)) = f(x, tokens), bit for bit, with no text projection called."""
    model = build(SMALL, dtype)
    x, t, text = inputs(SMALL, dtype)
    plain, bank = model(x, t, text), model.text_kv(text)
    assert [k.shape for k, v in bank] == [(2, site.heads, 5, site.head_dim) for site in model.sites]
    with outputs(model, "attn2.to_k", "attn2.to_v") as made:
        assert torch.equal(model(x, t, replace(text, tokens=bank)), plain)
    assert not made


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_slots_at_all_sites_are_the_donors_text(dtype):
    """Slots to the donors' rows of a bank twice as long = their tokens with the readers' pooled, bit for bit.

    Also from tokens of as many rows, up to the last bits: there the donors lie at other places.
    """
    model = build(SMALL, dtype)
    x, t, readers = inputs(SMALL, dtype)
    donors = replace(readers, tokens=torch.randn_like(readers.tokens))
    target = model(x, t, donors)
    bank = tuple(
        tuple(map(torch.cat, zip(*kvs, strict=True)))
        for kvs in zip(model.text_kv(readers), model.text_kv(donors), strict=True)
    )
    slots = [row_slots(torch.tensor([2, 3]), tokens=5)] * len(model.sites)  # R = 4, B = 2
    assert torch.equal(model(x, t, replace(readers, tokens=bank), slots=slots), target)
    tokens = torch.cat([readers.tokens, donors.tokens])
    made = model(x, t, replace(readers, tokens=tokens), slots=slots)
    assert relative(made, target) <= TOLERANCE[dtype]
    assert relative(model(x, t, readers), target) > 1e-3


def test_a_pair_of_slots_is_for_keys_and_values():
    """(slots, own slots) at one site = the donor's keys with the reader's values, there alone, bit for
    bit."""
    model = build(SMALL)
    x, t, text = inputs(SMALL)
    text, site = replace(text, tokens=model.text_kv(text)), 1
    k, v = text.tokens[site]
    swap, own = row_slots(torch.tensor([1, 0]), 5), row_slots(torch.tensor([0, 1]), 5)
    donor_k, donor_v = k.flip(0), v.flip(0)
    for pair, read in [
        ((swap, own), (donor_k, v)),
        ((own, swap), (k, donor_v)),
        (swap, (donor_k, donor_v)),
    ]:
        slots = [pair if i == site else None for i in range(len(model.sites))]
        bank = tuple(read if i == site else kv for i, kv in enumerate(text.tokens))
        swapped = model(x, t, text, slots=slots)
        assert torch.equal(swapped, model(x, t, replace(text, tokens=bank)))
        assert not torch.equal(swapped, model(x, t, text))


@pytest.mark.long
def test_it_compiles_in_one_piece():
    """torch.compile(fullgraph=True) makes one graph for all timesteps, from tokens and from a bank.

    By default tests/core/test_bank.py compiles this model, for every plan.
    """
    model = build(replace(SMALL, transformer_layers_per_block=(1, 1)), torch.float32)
    x, _, text = inputs(SMALL, torch.float32)
    for condition in (text, replace(text, tokens=model.text_kv(text))):
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        for t in torch.tensor([3.0, 700.0]):
            assert torch.equal(compiled(x, t, condition), model(x, t, condition))
        assert counter.frame_count == 1


@pytest.mark.parametrize(
    "sizes, says",
    [
        (
            dict(down_block_types=("DownBlock2D", "ResnetDownsampleBlock2D")),
            "down_block_types has 'ResnetDownsampleBlock2D'; "
            "this U-Net has 'DownBlock2D' and 'CrossAttnDownBlock2D'",
        ),
        (
            dict(up_block_types=(SITES_DOWN, UP)),
            "up_block_types has 'CrossAttnDownBlock2D'; this U-Net has 'UpBlock2D'",
        ),
        (
            dict(up_block_types=(UP,)),
            r"up_block_types is \('UpBlock2D',\); 2 block_out_channels need a tuple of 2",
        ),
        (
            dict(block_out_channels=(12, 24, 36)),
            "down_block_types is .*; 3 block_out_channels need a tuple of 3",
        ),
        (
            dict(transformer_layers_per_block=2),
            "transformer_layers_per_block is 2; 2 block_out_channels need a tuple",
        ),
        (
            dict(transformer_layers_per_block=(1, (2, 1))),
            r"transformer_layers_per_block has \(2, 1\); give whole",
        ),
        (
            dict(layers_per_block=(1, 2)),
            r"layers_per_block has \(1, 2\); give whole numbers from 1 on",
        ),
        (dict(layers_per_block=0), "layers_per_block has 0; give whole numbers from 1 on"),
        (
            dict(attention_head_dim=(2, 0)),
            "attention_head_dim has 0; give whole numbers from 1 on",
        ),
        (
            dict(attention_head_dim=(2, 5)),
            r"block_out_channels has 24, which is no multiple of 5 \(attention_head_dim",
        ),
        (
            # the middle has sites
            dict(attention_head_dim=(2, 5), down_block_types=(DOWN, DOWN), up_block_types=(UP, UP)),
            r"block_out_channels has 24, which is no multiple of 5 \(attention_head_dim",
        ),
        (
            dict(norm_num_groups=5),
            r"block_out_channels has 12, which is no multiple of 5 \(norm_num_groups\)",
        ),
        (
            dict(block_out_channels=(9, 24)),
            r"block_out_channels has 9, which is no multiple of 2 \(cosines and sines of",
        ),
        (
            dict(addition_time_embed_dim=3),
            "addition_time_embed_dim has 3, which is no multiple of 2",
        ),
        (
            dict(addition_time_embed_dim=6),
            "_input_dim is 31, and six times addition_time_embed_dim 36",
        ),
    ],
)
def test_a_config_that_fits_nothing_is_refused(sizes, says):
    """A configuration the model cannot build is a PatchError with both values."""
    with pytest.raises(PatchError, match=says):
        replace(SMALL, **sizes)


def test_only_depths_with_sites_need_whole_heads():
    """A width that heads do not divide is built where nothing attends."""
    assert [site.heads for site in build(replace(SMALL, attention_head_dim=(5, 3))).sites] == [
        3
    ] * 8


REFUSED = {  # changes to x, text and slots
    "x has 4 channels; this model takes 3": dict(x=(2, 4, 4, 4)),
    "text.tokens are 9 wide; this model reads 10": dict(tokens=(2, 5, 9)),
    r"text.pooled is None; 2 rows of x need \(2, 7\)": dict(pooled=None),
    r"text.pooled is \(2, 8\); 2 rows of x need \(2, 7\)": dict(pooled=(2, 8)),
    r"text.pooled is \(4, 7\); 2 rows of x need \(2, 7\)": dict(pooled=(4, 7)),
    r"text.micro is None; 2 rows of x need \(2, 6\)": dict(micro=None),
    r"text.micro is \(2, 5\); 2 rows of x need \(2, 6\)": dict(micro=(2, 5)),
    "4 rows of text for 2 rows of queries; say by slots who reads what": dict(tokens=(4, 5, 10)),
    "1 slots entries for 8 sites": dict(slots=[None]),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_does_not_fit_is_refused(says):
    """Channels, widths, rows and slots that do not fit, and text without all its parts: both values are
    said."""
    shapes = (
        dict(x=(2, 3, 4, 4), tokens=(2, 5, 10), pooled=(2, 7), micro=(2, 6), slots=None)
        | REFUSED[says]
    )
    slots = shapes.pop("slots")
    x, *text = (None if shape is None else torch.zeros(shape) for shape in shapes.values())
    with pytest.raises(PatchError, match=says):
        build(SMALL, torch.float32)(x, 1.0, TextCondition(*text), slots=slots)


def test_a_bank_of_other_tokens_or_of_another_model_is_refused():
    """No bank is made of tokens of another width, and none of other than the model's sites is read."""
    model, (x, t, text) = build(SMALL), inputs(SMALL)
    with pytest.raises(PatchError, match="text.tokens are 9 wide; this model reads 10"):
        model.text_kv(replace(text, tokens=text.tokens[..., :9]))
    with pytest.raises(PatchError, match="a bank of 7 sites for a model of 8"):
        model(x, t, replace(text, tokens=model.text_kv(text)[1:]))

"""FLUX.1 is the published transformer: sites of both kinds, diffusers' numbers, turns, refusals."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.copies import TOLERANCE, full_width
from support.planting import plant
from support.small_models import outputs, relative
from support.strategies import build_flux, build_pipeline, randomize
from textpatch import audit, capture, patch, sample
from textpatch.errors import PatchError
from textpatch.guidance import ClassifierFree, Embedded, described
from textpatch.plan import Plan, Row, Swap
from textpatch.reference_models import flux
from textpatch.reference_models.flux import Flux, FluxConfig, turns
from textpatch.reference_models.layers import TextCondition
from textpatch.reference_models.pipeline import Pipeline

SMALL = FluxConfig(
    in_channels=12,
    num_layers=1,
    num_single_layers=2,
    num_attention_heads=2,
    attention_head_dim=8,
    joint_attention_dim=10,
    pooled_projection_dim=7,
    axes_dims_rope=(2, 4, 2),
)
PARAMETERS = 11_901_408_320


@pytest.fixture(scope="module")
def dev():
    """FLUX.1-dev at full size, without memory."""
    with torch.device("meta"):
        return Flux()


@pytest.fixture(scope="module")
def reference(diffusers):
    """diffusers' class, whose turns are taken in float64 where the run is."""
    from diffusers.models.transformers import transformer_flux

    def turned(x, turn, sequence_dim):
        cos, sin = (part[None, :, None, :].to(x.dtype) for part in turn)
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        return x * cos + torch.stack([-b, a], dim=-1).flatten(-2) * sin

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer_flux, "apply_rotary_emb", turned)
        yield diffusers


def build(config: FluxConfig, dtype=torch.float64, seed: int = 0) -> Flux:
    return randomize(Flux(config).to(dtype), seed).requires_grad_(False)


def inputs(config: FluxConfig, dtype=torch.float64, rows=2, size=(6, 4), tokens=5):
    """x (rows, C, *size), t, and text of as many rows."""
    x = torch.randn(rows, config.latent_channels, *size, dtype=dtype)
    words = torch.randn(rows, tokens, config.joint_attention_dim, dtype=dtype)
    pooled = torch.randn(rows, config.pooled_projection_dim, dtype=dtype)
    return x, 1000 * torch.rand(rows), TextCondition(words, pooled)


def test_sites(dev):
    """19 sites in two streams, then 38 in one, in execution order; 24 heads of 128."""
    names = [f"transformer_blocks.{i}.attn" for i in range(19)]
    names += [f"single_transformer_blocks.{i}.attn" for i in range(38)]
    assert [site.name for site in dev.sites] == names
    assert [site.kind for site in dev.sites] == ["joint"] * 19 + ["single"] * 38
    assert {(s.heads, s.head_dim, s.parameters) for s in dev.sites} == {(24, 128, 18_880_512)}
    assert [site.index for site in dev.sites] == list(range(57))
    assert sum(p.numel() for p in dev.parameters()) == PARAMETERS


@st.composite
def configs(draw):
    """Any number of blocks of either kind, heads and axes; with guidance and without."""
    axes = draw(st.sampled_from([(2, 2, 4), (4, 6, 6), (2, 4, 2)]))
    return FluxConfig(
        in_channels=4 * draw(st.integers(1, 3)),
        num_layers=draw(st.integers(1, 3)),
        num_single_layers=draw(st.integers(1, 3)),
        num_attention_heads=draw(st.integers(1, 3)),
        attention_head_dim=sum(axes),
        joint_attention_dim=draw(st.integers(1, 9)),
        pooled_projection_dim=draw(st.integers(1, 9)),
        guidance_embeds=draw(st.booleans()),
        axes_dims_rope=axes,
    )


def asked(diffusers, x: torch.Tensor, t, text: TextCondition, guidance) -> dict:
    """The arguments of diffusers' class, as its pipeline makes them."""
    pipeline = diffusers.FluxPipeline
    rows, channels, height, width = x.shape
    return dict(
        hidden_states=pipeline._pack_latents(x, rows, channels, height, width),
        encoder_hidden_states=text.tokens,
        pooled_projections=text.pooled,
        timestep=t.to(x.dtype) / 1000,
        guidance=None if guidance is None else torch.full((rows,), guidance, dtype=x.dtype),
        img_ids=pipeline._prepare_latent_image_ids(rows, height // 2, width // 2, "cpu", x.dtype),
        txt_ids=torch.zeros(text.tokens.shape[1], 3),
        return_dict=False,
    )


PROJECTIONS = "attn.add_k_proj", "attn.add_v_proj", "attn.to_k", "attn.to_v"


def equals_diffusers(reference, config: FluxConfig, seed: int, height: int) -> None:
    """Flux = FluxTransformer2DModel: output, and K and V of every site, in the order of `sites`."""
    for dtype, tolerance in TOLERANCE.items():
        torch.manual_seed(seed)
        ours = build(config, dtype, seed)
        theirs = reference.FluxTransformer2DModel(**asdict(config)).to(dtype).requires_grad_(False)
        theirs.load_state_dict(ours.state_dict())
        x, t, text = inputs(config, dtype, size=(height, 6))
        guidance = 2.5 if config.guidance_embeds else None
        with outputs(ours, *PROJECTIONS) as our_text:
            a = ours(x, t, text, guidance=guidance)
        with outputs(theirs, *PROJECTIONS) as their_text:
            (b,) = theirs(**asked(reference, x, t, text, guidance))
        b = reference.FluxPipeline._unpack_latents(b, 8 * height, 48, 8)
        mine, others = dict(our_text), dict(their_text)
        taps = [tap.module for site in ours.sites for tap in site.taps]
        assert [name for name, _ in our_text if name in taps] == taps
        assert mine.keys() == others.keys() and taps
        assert a.dtype == b.dtype == dtype and relative(a, b) <= tolerance
        assert all(relative(mine[name], others[name]) <= tolerance for name in taps)


@settings(max_examples=3)
@given(config=configs(), seed=st.integers(0, 99), height=st.sampled_from([2, 4, 10]))
def test_it_equals_diffusers(reference, config, seed, height):
    """On random configurations and sizes, 1e-10 in float64 and 5e-6 in float32."""
    equals_diffusers(reference, config, seed, height)


@pytest.mark.long
@settings(max_examples=40)
@given(config=configs(), seed=st.integers(0, 99), height=st.sampled_from([2, 4, 10]))
def test_it_equals_diffusers_on_forty(reference, config, seed, height):
    """The same on forty; by default `test_it_equals_diffusers` draws three."""
    equals_diffusers(reference, config, seed, height)


FAULTS = {
    "turned the other way": (flux.Turned, "forward", "a * cos - b * sin", "a * cos + b * sin"),
    "rows for columns": (
        flux,
        "turns",
        "zeros_like(rows), rows, columns",
        "zeros_like(rows), columns, rows",
    ),
    "text after image": (
        flux.SingleAttention,
        "forward",
        "torch.cat([text, image], dim=1)",
        "torch.cat([image, text], dim=1)",
    ),
    "guidance unread": (flux.TimeTextEmbed, "forward", "guidance is not None", "False"),
    "latents packed otherwise": (
        Flux,
        "forward",
        '"b c (h p) (w q) -> b (h w) (c p q)"',
        '"b c (h p) (w q) -> b (h w) (p q c)"',
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_model_is_noticed(reference, fault, monkeypatch):
    """Each text of the model that nothing but FLUX has, put wrong, breaks the equality."""
    equals_diffusers(reference, SMALL, 0, 4)
    plant(monkeypatch, *FAULTS[fault])
    with pytest.raises(AssertionError):
        equals_diffusers(reference, SMALL, 0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_are_diffusers_to_the_last_bit(diffusers, dtype):
    """Cosines and sines of the published axes, 64 by 33 tokens."""
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    ids = diffusers.FluxPipeline._prepare_latent_image_ids(1, 64, 33, "cpu", dtype)
    expected = FluxPosEmbed(10000, (16, 56, 56))(ids)
    for ours, theirs in zip(turns(FluxConfig(), 64, 33, "cpu"), expected, strict=True):
        assert torch.equal(ours.repeat_interleave(2, dim=1), theirs)


@pytest.mark.long
@pytest.mark.parametrize("name", ["transformer_blocks.0", "single_transformer_blocks.0"])
def test_a_block_at_full_width(reference, dev, name):
    """A block of 24 heads of 128 is diffusers'; by default random widths are."""
    with torch.device("meta"):
        theirs = reference.FluxTransformer2DModel(**asdict(FluxConfig()))
    ours, other = full_width(dev, theirs, name)
    image, text, c = (torch.randn(1, n, 3072, dtype=torch.float64) for n in (6, 4, 1))
    turn = turns(FluxConfig(), 2, 3, "cpu")
    whole = [
        torch.cat([torch.full((4, 64), i), part]) for i, part in ((1.0, turn[0]), (0.0, turn[1]))
    ]
    rotary = tuple(part.repeat_interleave(2, dim=1) for part in whole)
    read = dict(hidden_states=image, encoder_hidden_states=text, temb=c[:, 0])
    their_text, their_image = other(**read, image_rotary_emb=rotary)
    if name.startswith("single"):
        made = ours(torch.cat([text, image], dim=1), 4, c[:, 0], turn, (None, None))
        our_text, our_image = made.split([4, 6], dim=1)
    else:
        our_image, our_text = ours(image, text, c[:, 0], turn, (None, None))
    assert relative(our_image, their_image) <= 1e-10 and relative(our_text, their_text) <= 1e-10


@pytest.mark.parametrize("part, tokens", [("kv", None), ("v", (0, 3))])
def test_native_slots_are_hooks_on_diffusers_class(reference, part, tokens):
    """Law 13 over both kinds of sites: slots of a swap = capture, then patch on diffusers' class."""
    ours = build(SMALL)
    theirs = reference.FluxTransformer2DModel(**asdict(SMALL)).double().requires_grad_(False)
    theirs.load_state_dict(ours.state_dict())
    x, t, text = inputs(SMALL)
    rows = [Row("a", "a"), Row("b", "b")]
    swap = Swap((0, 2), "a", "b", tokens=tokens, part=part)
    native = ours(x, t, text, slots=Plan([swap]).slots(0, rows, ours.sites, tokens=5))
    given = asked(reference, x, t, text, 3.5)
    with capture(theirs, "all", rows=rows) as cache:
        (plain,) = theirs(**given)
    with patch(theirs, cache, (0, 2), rows=[rows[1], None], tokens=tokens, part=part):
        (patched,) = theirs(**given)
    assert torch.equal(patched[1], plain[1]) and not torch.equal(patched[0], plain[0])
    patched = reference.FluxPipeline._unpack_latents(patched, 48, 32, 8)
    assert relative(patched, native) <= 1e-10


def test_the_audit_sees_both_kinds_of_sites():
    """Every site of a patched run equals its replay: what attention read is seen after norm and turn."""
    pipeline = build_flux(guidance_embeds=True)
    rows = [Row("a", "prompt a", 0), Row("b", "prompt b", 1)]
    plan = Plan([Swap("all", "a", "b")])
    report = audit(pipeline, rows, plan, sample=sample, steps=2, guidance=2.0)
    report.require()
    assert {check.site for check in report.checks} == {0, 1, 2, 3}


REFUSED = {  # changes to x, text and guidance
    "latents of 5x4 do not divide into tokens of 2x2": dict(x=(2, 3, 5, 4)),
    "channels of x: 4, but must be 3 here": dict(x=(2, 4, 4, 4)),
    "width of text.tokens: 9, but must be 10 here": dict(tokens=(2, 5, 9)),
    "text.pooled is None; FLUX.1 reads a pooled vector": dict(pooled=None),
    "width of text.pooled: 8, but must be 7 here": dict(pooled=(2, 8)),
    "rows of text.tokens: 4, but must be 2 here": dict(tokens=(4, 5, 10)),
    "2 slots entries for 3 sites": dict(slots=[None, None]),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_does_not_fit_is_refused(says):
    """Sizes, channels, widths, rows and slots that do not fit: both values are said."""
    shapes = dict(x=(2, 3, 4, 4), tokens=(2, 5, 10), pooled=(2, 7), slots=None) | REFUSED[says]
    slots = shapes.pop("slots")
    x, *text = (None if shape is None else torch.zeros(shape) for shape in shapes.values())
    with pytest.raises(PatchError, match=says):
        build(SMALL, torch.float32)(x, 1.0, TextCondition(*text), slots=slots)


def test_a_guidance_that_nothing_reads_is_refused():
    """schnell is told nothing; dev is told 3.5 where nothing is said, and another number has an effect."""
    x, t, text = inputs(SMALL)
    dev, schnell = build(SMALL), build(replace(SMALL, guidance_embeds=False))
    with pytest.raises(
        PatchError, match="guidance 3.5 was told to a FLUX.1 without guidance_embeds"
    ):
        schnell(x, t, text, guidance=3.5)
    assert torch.equal(dev(x, t, text), dev(x, t, text, guidance=torch.full((2,), 3.5)))
    assert not torch.equal(dev(x, t, text), dev(x, t, text, guidance=1.0))


@pytest.mark.parametrize(
    "sizes, says",
    [
        (dict(in_channels=10), "in_channels is 10, which is no multiple of the 4 latents"),
        (dict(num_single_layers=0), "num_single_layers is 0; give a whole number from 1 on"),
        (dict(axes_dims_rope=(3, 3, 2)), r"axes_dims_rope is \(3, 3, 2\); give three even widths"),
        (dict(axes_dims_rope=(4, 4)), r"axes_dims_rope is \(4, 4\); give three even widths"),
        (dict(attention_head_dim=16), r"\(2, 4, 2\), 8 together, and attention_head_dim 16"),
    ],
)
def test_a_config_that_fits_nothing_is_refused(sizes, says):
    """A configuration the model cannot build is a PatchError with both values."""
    with pytest.raises(PatchError, match=says):
        replace(SMALL, **sizes)


def test_a_number_is_told_to_a_distilled_model():
    """On dev every number is embedded guidance, one row a prompt; ClassifierFree is around it, two rows."""
    pipeline, rows = build_flux(guidance_embeds=True), [Row("a", "prompt a", 0)]
    seen = []
    pipeline.denoiser.register_forward_pre_hook(
        lambda model, args, given: seen.append((len(args[0]), given.get("guidance"))),
        with_kwargs=True,
    )
    outputs = [
        sample(pipeline, rows, steps=1, guidance=guidance)
        for guidance in (None, 2.0, Embedded(2.0), ClassifierFree(2.0))
    ]
    assert seen == [(1, 4.5), (1, 2.0), (1, 2.0), (2, None)]
    first, number, embedded, free = (made.latents["a"] for made in outputs)
    assert torch.equal(number, embedded)
    assert not torch.equal(first, number) and not torch.equal(number, free)
    assert json.dumps([outputs[1].guidance]) == "[2.0]" and described(outputs[1].guidance) == 2.0


def test_embedded_guidance_is_refused_where_nothing_reads_it():
    """On SD3, and beside a negative prompt.   On schnell a number is classifier-free guidance."""
    with pytest.raises(PatchError, match=r"Embedded\(2.0\) was asked of random, which reads no"):
        sample(build_pipeline(), [Row("a", "prompt a")], steps=1, guidance=Embedded(2.0))
    with pytest.raises(PatchError, match=r"negative prompt 'x' was given beside Embedded\(2.0\)"):
        sample(
            build_flux(guidance_embeds=True), [Row("a", "a")], steps=1, guidance=2.0, negative="x"
        )
    with pytest.raises(PatchError, match="guidance is nan; give a finite number"):
        Embedded(float("nan"))
    schnell = build_flux()
    assert schnell.defaults.run(None, 2.0)[1] == 2.0
    assert not isinstance(schnell.defaults.run(None, 2.0)[1], Embedded)


def test_a_told_number_that_is_dropped_is_noticed(monkeypatch):
    """Fault: the pipeline tells the denoiser nothing."""
    pipeline, rows = build_flux(guidance_embeds=True), [Row("a", "prompt a", 0)]

    def drawn(guidance):
        return sample(pipeline, rows, steps=1, guidance=guidance).latents["a"]

    assert not torch.equal(drawn(2.0), drawn(3.0))
    plant(monkeypatch, Pipeline, "_predict", ", **told(guidance)", "")
    assert torch.equal(drawn(2.0), drawn(3.0))

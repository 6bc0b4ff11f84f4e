"""The models are the published ones: names, shapes and counts, noise levels, and diffusers' outputs."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import PROMPTS, relative, small_denoiser, small_encoders, small_pipeline
from strategies import randomize

from textpatch.errors import PatchError, PromptError
from textpatch.reference_models.layers import TextCondition
from textpatch.reference_models.mmdit import MMDiT, MMDiTConfig
from textpatch.reference_models.pipeline import Defaults
from textpatch.reference_models.schedules import FlowMatchEuler

GOLDEN = Path(__file__).parent / "golden"
SD3_FLOW = json.loads((GOLDEN / "schedules.json").read_text())["sd3_flow"]


@pytest.fixture(scope="module")
def sd3():
    """SD3-medium at full size, without memory."""
    with torch.device("meta"):
        return MMDiT()


@pytest.fixture(scope="module")
def diffusers():
    """The reference; it comes with the extra `reference`, which `make test` installs."""
    return pytest.importorskip("diffusers")


def expand(blocks: dict) -> dict[str, tuple]:
    """Manifest: {"first-last": {name with {i}: shape}} -> {name: shape} for every block."""
    out = {}
    for span, tensors in blocks.items():
        first, last = map(int, span.split("-")) if span else (0, 0)
        out |= {
            name.format(i=i): tuple(shape) for i in range(first, last + 1) for name, shape in tensors.items()
        }
    return out


def test_mmdit_is_sd3_medium(sd3):
    """Names and shapes of all 683 tensors, and the 2,028,328,000 parameters, are the published file's."""
    manifest = json.loads((GOLDEN / "sd3-medium.json").read_text())
    expected = expand(manifest["blocks"])
    assert {name: tuple(tensor.shape) for name, tensor in sd3.state_dict().items()} == expected
    assert len(expected) == manifest["tensors"]
    assert sum(p.numel() for p in sd3.parameters()) == manifest["parameters"]


def test_sites_of_sd3(sd3):
    """24 sites in execution order; site 10 holds 4,721,664 parameters, the paper's 0.23 %."""
    sites = sd3.sites
    assert [site.index for site in sites] == list(range(24))
    assert [site.name for site in sites] == [f"transformer_blocks.{i}.attn" for i in range(24)]
    assert {(site.kind, site.heads, site.head_dim, site.parameters) for site in sites} == {
        ("joint", 24, 64, 4_721_664)
    }
    assert round(100 * sites[10].parameters / 2_028_328_000, 4) == 0.2328


@pytest.mark.parametrize("sizes, says", [
    (dict(caption_projection_dim=100), "caption_projection_dim is 100, but 24 heads x 64 make a width of"),
    (dict(qk_norm="layer_norm"), "qk_norm is 'layer_norm'; this MMDiT knows None"),
])  # fmt: skip
def test_a_config_that_fits_nothing_is_refused(sizes, says):
    """A configuration the model cannot build is a PatchError with both values."""
    with pytest.raises(PatchError, match=says):
        MMDiTConfig(**sizes)


def test_latents_and_slots_that_do_not_fit_are_refused():
    """Sizes that patches do not divide or positions do not reach, and too few slots, are PatchErrors."""
    model, text = small_denoiser(), TextCondition(torch.randn(1, 3, 128), torch.randn(1, 128))
    for shape, slots, says in [
        ((1, 3, 6, 8), None, "6x8 do not divide into patches of 4x4"),
        ((1, 3, 100, 8), None, "25x2 patches; the position table holds 24x24"),
        ((1, 3, 8, 8), [None], "1 slots entries for 2 sites"),
    ]:
        with pytest.raises(PatchError, match=says):
            model(torch.zeros(shape), torch.tensor(1.0), text, slots=slots)


@st.composite
def configs(draw):
    heads, head_dim, patch = (
        draw(st.integers(1, 3)),
        4 * draw(st.integers(1, 4)),
        draw(st.sampled_from([1, 2, 4])),
    )
    return MMDiTConfig(
        sample_size=8, patch_size=patch,
        in_channels=draw(st.integers(1, 4)), out_channels=draw(st.integers(1, 4)),
        num_layers=draw(st.integers(1, 3)), num_attention_heads=heads, attention_head_dim=head_dim,
        joint_attention_dim=draw(st.integers(1, 9)), pooled_projection_dim=draw(st.integers(1, 9)),
        caption_projection_dim=heads * head_dim, pos_embed_max_size=draw(st.integers(8, 9)),
        qk_norm=draw(st.sampled_from([None, "rms_norm"])),
    )  # fmt: skip


def in_float64(theirs):
    """diffusers takes the mean square of its RMSNorm in float32 also in float64 runs; here it does not."""
    for block in theirs.transformer_blocks:
        for name, norm in [*block.attn.named_children()]:
            if type(norm).__name__ == "RMSNorm":
                ours = torch.nn.RMSNorm(norm.dim, eps=norm.eps, dtype=torch.float64)
                ours.weight = norm.weight
                setattr(block.attn, name, ours)
    return theirs


@settings(max_examples=20)
@given(config=configs(), size=st.tuples(st.integers(1, 8), st.integers(1, 8)), seed=st.integers(0, 99))
def test_mmdit_equals_diffusers(diffusers, config, size, seed):
    """MMDiT = SD3Transformer2DModel in float64, for any sizes and non-square latents; see `in_float64`."""
    ours = randomize(MMDiT(config).double(), seed)
    theirs = diffusers.SD3Transformer2DModel(**asdict(config)).double()
    theirs.load_state_dict(ours.state_dict())
    torch.manual_seed(seed)
    x = torch.randn(2, config.in_channels, *(side * config.patch_size for side in size), dtype=torch.float64)
    tokens = torch.randn(2, 5, config.joint_attention_dim, dtype=torch.float64)
    pooled = torch.randn(2, config.pooled_projection_dim, dtype=torch.float64)
    t = torch.tensor([12.5, 987.25], dtype=torch.float64)
    with torch.no_grad():
        a = ours(x, t, TextCondition(tokens, pooled))
        (b,) = in_float64(theirs)(x, tokens, pooled, t, return_dict=False)
    assert a.dtype == b.dtype == torch.float64
    assert relative(a, b) <= 1e-10


@pytest.mark.parametrize("steps", SD3_FLOW)
def test_noise_levels_are_the_published_pipelines(steps):
    """sigmas(n) and the timesteps the denoiser sees are diffusers' for SD3, to the last float32 bit."""
    schedule = FlowMatchEuler()
    sigmas = schedule.sigmas(int(steps))
    assert torch.equal(sigmas, torch.tensor(SD3_FLOW[steps]["sigmas"]))
    assert torch.equal(schedule.timestep(sigmas[:-1]), torch.tensor(SD3_FLOW[steps]["timesteps"]))


def test_sample_prediction_is_velocity_rewritten():
    """A step from x0 = x - s v is the step from v."""
    x, v = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for steps in (1, 4, 28):
        for now, after in FlowMatchEuler().sigmas(steps).double().unfold(0, 2, 1):
            from_velocity = FlowMatchEuler().step(x, v, now, after)
            assert (
                relative(FlowMatchEuler(prediction="sample").step(x, x - now * v, now, after), from_velocity)
                < 1e-13
            )


def test_a_schedule_that_cannot_be_is_refused():
    """No steps and an unknown prediction type are PatchErrors."""
    with pytest.raises(PatchError, match="asked for 0 steps"):
        FlowMatchEuler().sigmas(0)
    with pytest.raises(PatchError, match="prediction is 'noise'"):
        FlowMatchEuler(prediction="noise")


def reference_pipeline(diffusers, pipeline):
    """diffusers' pipeline around the very modules of ours; the denoiser is its own class with our weights."""
    transformer = diffusers.SD3Transformer2DModel(**asdict(pipeline.denoiser.config))
    transformer.load_state_dict(pipeline.denoiser.state_dict())
    encoders = pipeline.encoders
    first, second, third = encoders.tokenizers
    reference = diffusers.StableDiffusion3Pipeline(
        transformer.eval(), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), None,
        encoders.text_encoder, first, encoders.text_encoder_2, second, encoders.text_encoder_3, third,
    )  # fmt: skip
    reference.set_progress_bar_config(disable=True)
    return reference


@pytest.mark.parametrize("seed", range(3))
def test_text_is_encoded_as_diffusers_does(diffusers, seed):
    """SD3TextEncoders = StableDiffusion3Pipeline.encode_prompt, tokens and pooled, of "" too."""
    pipeline = small_pipeline(seed)
    text = pipeline.encode(["", *PROMPTS])
    tokens, _, pooled, _ = reference_pipeline(diffusers, pipeline).encode_prompt(
        ["", *PROMPTS], None, None, device="cpu", do_classifier_free_guidance=False, max_sequence_length=22
    )
    assert text.tokens.shape == tokens.shape
    assert relative(text.tokens, tokens) <= 1e-6 and relative(text.pooled, pooled) <= 1e-6


@pytest.mark.parametrize(
    "steps, guidance, size", [(3, 1.0, (32, 96)), (4, 5.0, (32, 96)), (2, 2.5, (16, 32))]
)
def test_a_whole_run_equals_diffusers(diffusers, steps, guidance, size):
    """Encode, denoise with guidance towards "" and land on diffusers' latents, from the same noise."""
    pipeline = small_pipeline(1, Defaults(*size, steps=steps, guidance=guidance))
    noise, prompts = pipeline.noise([7, 8]), PROMPTS
    text = pipeline.encode(prompts if guidance == 1 else ["", ""] + prompts)
    ours = pipeline.denoise(noise, text, steps=steps, guidance=guidance)
    theirs = reference_pipeline(diffusers, pipeline)(
        prompts, negative_prompt=[""] * 2, latents=noise, height=8 * size[0], width=8 * size[1],
        num_inference_steps=steps, guidance_scale=guidance, max_sequence_length=22, output_type="latent",
    ).images  # fmt: skip
    assert relative(ours, theirs) <= 1e-5


def test_an_unknown_word_is_named():
    """A word outside the vocabulary is a PromptError naming it, not an <unk> token without effect."""
    with pytest.raises(PromptError, match="does not know 'giraffe' in 'a red giraffe'"):
        small_encoders()(["a red sign", "a red giraffe"])


def test_generation_asks_for_matching_numbers():
    """Prompts and seeds must be as many, and at least one."""
    for prompts, seeds in [(PROMPTS, [0]), ([], [])]:
        with pytest.raises(PatchError, match=f"{len(prompts)} prompts and {len(seeds)} seeds"):
            small_pipeline().generate(prompts, seeds=seeds)


def test_a_picture_is_its_prompt_and_seed():
    """generate is a function of (prompt, seed): the same twice, another for another seed or prompt."""
    pipeline = small_pipeline()
    a, b, c, d = pipeline.generate([PROMPTS[0]] * 3 + [PROMPTS[1]], seeds=[0, 0, 1, 0])
    assert a.size == (96, 32) and a.mode == "RGB"
    assert a.tobytes() == b.tobytes() != c.tobytes() and d.tobytes() != a.tobytes()

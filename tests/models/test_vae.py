"""The VAE is the published one of SDXL, SD3 and FLUX: sizes, diffusers' numbers, and what it refuses."""

import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.copies import TOLERANCE
from support.small_models import relative
from support.strategies import randomize
from textpatch.errors import PatchError
from textpatch.reference_models.vae import VAE, MidBlock, VAEConfig

BARE = dict(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
PUBLISHED = {
    "SDXL": VAEConfig(),
    "SD3": VAEConfig(scaling_factor=1.5305, shift_factor=0.0609, **BARE),
    "FLUX": VAEConfig(scaling_factor=0.3611, shift_factor=0.1159, **BARE),
}
SMALL = VAEConfig(
    latent_channels=2, block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2
)


def build(config: VAEConfig, dtype=torch.float64, seed: int = 0) -> VAE:
    return randomize(VAE(config).to(dtype), seed).requires_grad_(False)


def reference(diffusers, config: VAEConfig):
    """diffusers' autoencoder of the same sizes."""
    depths = len(config.block_out_channels)
    return diffusers.AutoencoderKL(
        **asdict(config),
        down_block_types=("DownEncoderBlock2D",) * depths,
        up_block_types=("UpDecoderBlock2D",) * depths,
    )


@pytest.mark.parametrize(
    "name, tensors, parameters",
    [
        ("SDXL", 248, 83_653_863),
        ("SD3", 244, 83_819_683),
        ("FLUX", 244, 83_819_683),
    ],
)
def test_vae_is_the_published_size(diffusers, name, tensors, parameters):
    """As many tensors and parameters as the published files, with diffusers' names and shapes."""
    with torch.device("meta"):
        ours, theirs = VAE(PUBLISHED[name]), reference(diffusers, PUBLISHED[name])
    shapes, expected = (
        {k: v.shape for k, v in model.state_dict().items()} for model in (ours, theirs)
    )
    assert shapes == expected and len(shapes) == tensors
    assert sum(p.numel() for p in ours.parameters()) == parameters


@st.composite
def configs(draw):
    """Any number of depths, widths and layers, with and without what the three published ones differ in."""
    groups = draw(st.integers(1, 3))
    widths = st.lists(st.integers(2, 4).map(lambda n: n * groups), min_size=1, max_size=4)
    return VAEConfig(
        in_channels=draw(st.integers(1, 4)),
        out_channels=draw(st.integers(1, 4)),
        latent_channels=draw(st.integers(1, 4)),
        block_out_channels=tuple(draw(widths)),
        layers_per_block=draw(st.integers(1, 3)),
        norm_num_groups=groups,
        scaling_factor=draw(st.sampled_from([0.13025, 1.5305, 0.3611])),
        shift_factor=draw(st.sampled_from([None, 0.0, 0.0609, 0.1159])),
        use_quant_conv=draw(st.booleans()),
        use_post_quant_conv=draw(st.booleans()),
        mid_block_add_attention=draw(st.booleans()),
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=8)
@given(
    config=configs(),
    rows=st.integers(1, 3),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 99),
)
def test_vae_equals_diffusers(diffusers, dtype, config, rows, size, seed):
    """VAE = AutoencoderKL, then scale and shift as the pipelines write them: mean, sample of a noise,
    decode."""
    torch.manual_seed(seed)
    ours, theirs = (
        build(config, dtype, seed),
        reference(diffusers, config).to(dtype).requires_grad_(False),
    )
    theirs.load_state_dict(ours.state_dict())
    scale, shift = (
        config.scaling_factor,
        0.0 if config.shift_factor is None else config.shift_factor,
    )
    sides = [side * config.downsampling for side in size]
    pictures = 2 * torch.rand(rows, config.in_channels, *sides, dtype=dtype) - 1
    posterior = theirs.encode(pictures).latent_dist
    noise = torch.randn(posterior.mean.shape, dtype=dtype)
    latents = ours.encode(pictures)
    for made, expected in [
        (latents, (posterior.mode() - shift) * scale),
        (
            ours.encode(pictures, noise=noise),
            (posterior.mean + posterior.std * noise - shift) * scale,
        ),
        (ours.decode(latents), theirs.decode(latents / scale + shift).sample),
    ]:
        assert made.dtype == expected.dtype == dtype and made.shape == expected.shape
        assert relative(made, expected) <= TOLERANCE[dtype]


def test_middle_at_full_width(diffusers):
    """The published mid block, of width 512, = diffusers' UNetMidBlock2D in float64."""
    ours = randomize(MidBlock(VAEConfig()).double(), 0).requires_grad_(False)
    with torch.device("meta"):
        theirs = reference(diffusers, VAEConfig()).encoder.mid_block.requires_grad_(False)
    theirs.load_state_dict(ours.state_dict(), assign=True)
    x = torch.randn(2, 512, 5, 3, dtype=torch.float64)
    assert relative(ours(x), theirs(x)) <= 1e-10


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_eighths(name):
    """Pictures of 1024 x 768 make latents of 128 x 96 and come back at their size."""
    with torch.device("meta"):
        vae = VAE(PUBLISHED[name])
        latents = vae.encode(torch.zeros(2, 3, 1024, 768))
        assert latents.shape == (2, vae.config.latent_channels, 128, 96)
        assert vae.decode(latents).shape == (2, 3, 1024, 768)


@pytest.mark.parametrize("log_variance, held", [(-1e3, -30), (-3, -3), (2, 2), (1e3, 20)])
def test_the_log_variance_is_held(log_variance, held):
    """sample - mean = scale exp(v / 2) noise, with the log variance v held in -30..20."""
    vae = build(SMALL)
    vae.quant_conv.weight[2:] = 0
    vae.quant_conv.bias[2:] = log_variance
    pictures, noise = (
        torch.zeros(1, 3, 4, 6, dtype=torch.float64),
        torch.randn(1, 2, 2, 3, dtype=torch.float64),
    )
    away = vae.encode(pictures, noise=noise) - vae.encode(pictures)
    # the least std is 3e-7, and float64 knows the mean, below 1, to 1e-16
    assert relative(away, SMALL.scaling_factor * math.exp(held / 2) * noise) <= 1e-8


@pytest.mark.parametrize(
    "sizes, says",
    [
        (dict(layers_per_block=0), "layers_per_block is 0; each depth needs at least one"),
        (
            dict(norm_num_groups=48),
            "block_out_channels has 128, no multiple of norm_num_groups, 48",
        ),
    ],
)
def test_a_config_that_fits_nothing_is_refused(sizes, says):
    """A configuration the model cannot build is a PatchError with both values."""
    with pytest.raises(PatchError, match=says):
        VAEConfig(**sizes)


@pytest.mark.parametrize(
    "says, call",
    {
        "pictures of 4x5; both sides must be multiples of 2": lambda vae: vae.encode(
            torch.zeros(1, 3, 4, 5)
        ),
        "pictures of 3x4; both sides": lambda vae: vae.encode(torch.zeros(1, 3, 3, 4)),
        r"pictures are \(1, 4, 4, 4\); this VAE takes \(B, 3, ": lambda vae: vae.encode(
            torch.zeros(1, 4, 4, 4)
        ),
        r"pictures are \(4, 3, 4\)": lambda vae: vae.encode(torch.zeros(4, 3, 4)),
        r"latents are \(1, 3, 4, 4\); this VAE takes \(B, 2, ": lambda vae: vae.decode(
            torch.zeros(1, 3, 4, 4)
        ),
        r"noise is \(1, 2, 2, 1\); the latents are \(1, 2, 2, 2\)": lambda vae: vae.encode(
            torch.zeros(1, 3, 4, 4), noise=torch.zeros(1, 2, 2, 1)
        ),
    }.items(),
)
def test_what_does_not_fit_is_refused(says, call):
    """Sizes, channels and noise that do not belong are PatchErrors with both values."""
    with pytest.raises(PatchError, match=says):
        call(build(SMALL, torch.float32))

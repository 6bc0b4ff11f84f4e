"""Pictures that no model drew are inverted, edited at the localised site, and refused where they are lost."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from support.by_default import taking
from support.planting import plant
from support.small_models import DEFAULTS, small_denoiser, small_encoders
from support.strategies import randomize
from textpatch import PatchError, edit_picture, invert, load
from textpatch.editing import inversion, real_pictures
from textpatch.editing.inverting import INVERSIONS, FlowEdit, NegativePrompt, RFInversion
from textpatch.errors import PromptError, StoreError
from textpatch.guidance import SafeLatentDiffusion
from textpatch.metrics import Tesseract, mse
from textpatch.pictures import png
from textpatch.reference_models.decoders import LatentPixels
from textpatch.reference_models.defaults import Defaults
from textpatch.reference_models.pipeline import Pipeline
from textpatch.reference_models.schedules import FlowMatchEuler
from textpatch.reference_models.vae import VAE, VAEConfig
from textpatch.weights.signs.drawing import SignFormat, with_word
from textpatch.weights.signs.evaluation import clean_pictures, held_out_signs

SIGN = held_out_signs(2, SignFormat())[1]  # ACTOR, which training has not seen
WORD = "TIGER"
SIZE = (32, 96, 3)
SMOOTH = 2.0  # steepness of a photograph's spectrum


@pytest.fixture(scope="module")
def planted():
    return load("planted-mmdit")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    (drawn,) = clean_pictures([SIGN], SignFormat())
    return drawn


@pytest.fixture(scope="module")
def latent_pipeline() -> Pipeline:
    """A random pipeline with a VAE, whose latents are half as large as its pictures."""
    config = VAEConfig(block_out_channels=(32, 64), layers_per_block=1)
    vae = randomize(VAE(config), 0).eval().requires_grad_(False)
    model = small_denoiser(in_channels=4, out_channels=4, patch_size=2)
    defaults = Defaults(16, 48, DEFAULTS.steps, DEFAULTS.guidance)
    made = Pipeline(
        small_encoders(), model, FlowMatchEuler(), LatentPixels(vae), defaults, "latent"
    )
    return made.eval()


def photograph() -> Image.Image:
    """Noise with a photograph's spectrum, whose power falls with the square of the frequency."""
    rng = np.random.default_rng(0)
    rows, columns = np.meshgrid(np.fft.fftfreq(SIZE[0]), np.fft.fftfreq(SIZE[1]), indexing="ij")
    weight = (rows**2 + columns**2 + 1 / SIZE[1] ** 2) ** (-SMOOTH / 4)
    spectrum = np.fft.fft2(rng.standard_normal(SIZE), axes=(0, 1)) * weight[..., None]
    values = np.fft.ifft2(spectrum, axes=(0, 1)).real
    grey = 128 + 55 * (values - values.mean()) / values.std()
    return Image.fromarray(grey.clip(0, 255).astype(np.uint8))


def target() -> str:
    return with_word(SIGN, WORD).prompt()


@pytest.mark.parametrize("method", taking(("flowedit",), ["renoise", "flowedit"]))
def test_the_word_of_a_real_picture_changes(planted, picture, method):
    """It is read as the target's, and outside the letters the picture stays nearer than the target's is.

    By default by the method that needs no inversion.  test_inversion.py replays ReNoise.
    """
    made = edit_picture(planted, picture, SIGN.prompt(), target(), method=method)
    box = planted.defaults.text_box
    shown = [made.picture, made.image, made.target]
    assert [one.text for one in Tesseract().read(shown, [box] * 3)] == [SIGN.word, WORD, WORD]
    assert mse(made.picture, picture) == 0
    assert made.plan.swaps[0].sites == planted.defaults.localized and made.ledger.entries
    assert list(made.pictures) == [
        name
        for name in ("source", "inversion", "edited", "target")
        if name != "inversion" or method != "flowedit"
    ]
    assert made._repr_html_().count("<figure>") == len(made.pictures)


def test_an_inversion_tells_what_comes_back(planted, picture):
    """Errors are shares of the contrast, a model of pixels has no autoencoder, and the path ends there."""
    found = invert(planted, picture, SIGN.prompt(), method="renoise", steps=4)
    assert found.errors.autoencoder is None
    assert found.errors.inverted == inversion.error(picture, found.rebuilt)
    assert found.errors.inverted < found.errors.guided < inversion.LIMIT
    assert found.trajectory.shape == (5, 3, 32, 96)
    assert torch.equal(found.trajectory[-1:], inversion.latents_of(planted, picture))
    assert found._repr_html_().count("<figure>") == 3


def test_what_the_autoencoder_costs_stands_beside(latent_pipeline):
    """The pair is of the same picture, and the first is that of encoding and decoding alone."""
    given = Image.fromarray(np.random.default_rng(0).integers(0, 256, SIZE, np.uint8))
    found = invert(latent_pipeline, given, SIGN.prompt(), method="euler", limit=math.inf)
    (back,) = latent_pipeline.decode(found.trajectory[-1:])
    assert found.errors.autoencoder == inversion.error(given, back) > 0
    assert found.errors.guided == found.errors.inverted


def require_photographs_refused(planted) -> None:
    """A picture of which less than half comes back is refused, unless the caller allows it."""
    with pytest.raises(PatchError, match="off by [0-9.]* of its contrast .* 0.71 is allowed"):
        edit_picture(planted, photograph(), SIGN.prompt(), target(), method="euler")


def test_photographs_are_refused(planted, monkeypatch):
    """Fault: the drawing without guidance is asked, which returns anything."""
    require_photographs_refused(planted)
    found = invert(planted, photograph(), SIGN.prompt(), method="euler", limit=9)
    assert found.errors.inverted < inversion.LIMIT < found.errors.guided
    plant(
        monkeypatch,
        inversion,
        "_require_represented",
        "if errors.guided <= limit",
        "if errors.inverted <= limit",
    )
    with pytest.raises(pytest.fail.Exception):
        require_photographs_refused(planted)


@pytest.mark.parametrize(
    "method, times, says",
    [
        ("fixed_point", 3.0, "fixed_point diverges at step 0 of 2, timestep 1000.0: 30 iterations"),
        ("euler", math.inf, "euler diverges at step 1 of 2, .* latents are not finite"),
    ],
)
def test_an_inversion_that_diverges_is_stopped(latent_pipeline, method, times, says):
    """The step is named, where iterations do not come to rest and where latents are not finite."""

    def stretched(model, given, output):
        return times * given[0]

    handle = latent_pipeline.denoiser.register_forward_hook(stretched)
    try:
        with pytest.raises(PatchError, match=says):
            invert(latent_pipeline, Image.new("RGB", SIZE[1::-1], "red"), "a", method=method)
    finally:
        handle.remove()


@pytest.mark.parametrize(
    "given, says",
    [
        (Image.new("RGB", (32, 32)), "has 32 x 32 pixels, and planted-mmdit draws 96 x 32"),
        (Image.new("I;16", (96, 32)), "the picture cannot be read: mode I;16; give"),
        (np.zeros(SIZE, np.uint8), "the picture cannot be read: ndarray; give a PIL image"),
        ("nowhere.png", "cannot read picture nowhere.png"),
    ],
)
def test_pictures_that_the_model_cannot_take_are_refused(planted, given, says):
    """Another size, another mode, no picture at all."""
    with pytest.raises((PatchError, StoreError), match=says):
        edit_picture(planted, given, SIGN.prompt(), target())


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(method="dim"), "no inversion is called 'dim'; closest: ddim"),
        (
            dict(method="ddim"),
            "ddim is a method of a noise model, and planted-mmdit is a rectified",
        ),
        (dict(method=3), "method is 3; give a name"),
        (dict(method=FlowEdit(last=2)), "the last 2 of 8 steps"),
        (dict(method=FlowEdit(), guidance=1), "FlowEdit's source has guidance 1.5"),
        (dict(guidance=SafeLatentDiffusion(3.0, "x")), "remembers the steps before"),
        (dict(start=8), "start is 8 of 8 steps"),
        (dict(sites=[]), "run localize first"),
    ],
)
def test_edits_that_cannot_be_are_refused(planted, picture, options, says):
    """PatchError for a method of other models, settings without effect, and steps outside the run."""
    with pytest.raises(PatchError, match=says):
        edit_picture(planted, picture, SIGN.prompt(), target(), **options)


def test_other_refusals(planted, picture):
    """FlowEdit inverts nothing, equal prompts edit nothing, and a prompt needs its word."""
    with pytest.raises(PatchError, match="flowedit inverts nothing"):
        invert(planted, picture, SIGN.prompt(), method="flowedit")
    with pytest.raises(PromptError, match="source and target are both"):
        edit_picture(planted, picture, SIGN.prompt(), SIGN.prompt())
    with pytest.raises(PromptError, match="no quoted word"):
        edit_picture(planted, picture, "a sign", target())


def test_a_picture_file_is_read(planted, picture, tmp_path):
    """A PNG file gives what its picture gives."""
    (tmp_path / "sign.png").write_bytes(png(picture))
    ways = [
        invert(planted, given, SIGN.prompt(), method="euler", steps=2, limit=9).errors
        for given in (picture, tmp_path / "sign.png")
    ]
    assert ways[0] == ways[1]


def test_the_other_branch_reads_the_source_prompt(picture, monkeypatch):
    """Under negative-prompt inversion a row of the source's prompt is guided by nothing.

    Fault: the other branch reads no prompt.
    """
    sdxl = load("planted-sdxl")
    options = dict(method="negative_prompt", steps=2, limit=9, seed=0)
    made = edit_picture(sdxl, picture, SIGN.prompt(), target(), guidance=3.0, **options)
    assert made.guidance.negative == SIGN.prompt() and isinstance(made.method, NegativePrompt)
    with pytest.raises(PatchError, match="give a scale other than 1"):
        edit_picture(sdxl, picture, SIGN.prompt(), target(), guidance=1, **options)
    plant(monkeypatch, real_pictures, "with_negative", "prompt)", "None)")
    assert real_pictures.with_negative(3.0, SIGN.prompt()).negative != SIGN.prompt()


def test_the_names_of_methods():
    """Each is found by its name, and the settings of RF-Inversion say when eta acts."""
    assert all(made.name == name for name, made in INVERSIONS.items())
    fading = RFInversion(eta=0.8, start=0.25, stop=0.75, decay=2.0)
    assert [fading.pull(step, 4) for step in range(4)] == [0, 0.8 * 0.75**2, 0.8 * 0.5**2, 0]

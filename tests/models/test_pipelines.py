"""Whole pipelines: saved by diffusers, loaded here, and equal to diffusers from the prompt to the picture."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from support.by_default import taking
from support.planting import plant
from support.small_models import PROMPTS as SIGNS
from support.small_models import relative, small_pipeline
from textpatch import Row, load, sample
from textpatch import seeds as seeds_of_requests
from textpatch.errors import PatchError
from textpatch.guidance import ClassifierFree
from textpatch.reference_models.flux import GUIDANCE
from textpatch.reference_models.schedules.published import named
from textpatch.sampling import sample_latents

# lower case: IF lowers its prompts
PROMPTS = [
    "a red sign on a blue wall",
    "a green badge on a striped yellow wall",
]
SEEDS = [5, 11]


def tolerance(steps: int, guidance: float) -> float:
    """float32 on both sides: a forward may differ by 5e-6, guidance multiplies that, and every step adds
    its own.

    (The models alone are compared in float64 elsewhere; a wrong number anywhere is 1e-2 away.)
    """
    return 5e-6 * steps * guidance


@pytest.fixture(scope="module")
def published():
    """The builders of the reference, which need diffusers; it comes with the extra `reference`."""
    pytest.importorskip("diffusers")
    from support import diffusers_pipelines

    return diffusers_pipelines


@pytest.fixture(scope="module")
def saved(published, tmp_path_factory):
    """name, options -> (diffusers' pipeline, ours loaded from what it saved)."""
    made = {}

    def both(name, **options):
        key = name, *options.items()
        if key not in made:
            theirs = getattr(published, name)(**options)
            theirs.set_progress_bar_config(disable=True)
            folder = tmp_path_factory.mktemp(name) / "pipeline"
            theirs.save_pretrained(folder)
            made[key] = theirs, load(folder)
            made[key][1].folder = folder
        return made[key]

    return both


def diffusers_classes():
    return pytest.importorskip("diffusers")


def generators():
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


LATENT = [
    ("sdxl", {}),
    ("sd3", {}),
    ("sd3", {"t5": False}),
    ("sd3", {"dual": True}),
    ("stable_diffusion", {}),
]


# by default without guidance, and with a negative prompt, which goes the whole way
@pytest.mark.parametrize(
    "guidance, negative",
    taking(
        ((3.0, "a yellow wall"),),
        [(1.0, None), (5.0, None), (5.0, ""), (3.0, "a yellow wall")],
    ),
)
@pytest.mark.parametrize(
    "name, options", LATENT, ids=["sdxl", "sd3", "sd3-without-t5", "sd3.5-medium", "sd1"]
)
def test_latent_pipelines_equal_diffusers(saved, name, options, guidance, negative):
    """Latents within 1e-5 and pictures within one level of 255, with and without guidance and negative
    prompt.

    By default with both, where each branch of the guidance is a run without.
    """
    theirs, ours = saved(name, **options)
    negatives = None if negative is None else [negative] * 2
    call = dict(
        negative_prompt=negatives,
        num_inference_steps=3,
        guidance_scale=guidance,
        height=64,
        width=64,
    )
    if name == "sd3":
        call["max_sequence_length"] = 22 if options.get("t5", True) else 256
    noise = ours.noise(SEEDS)
    expected = theirs(PROMPTS, latents=noise, output_type="latent", **call).images
    text = ours.encode(PROMPTS if guidance == 1 else [negative] * 2 + PROMPTS)
    assert relative(ours.denoise(noise, text, steps=3, guidance=guidance), expected) <= tolerance(
        3, guidance
    )
    drawn = theirs(PROMPTS, latents=noise, output_type="pil", **call).images
    for a, b in zip(
        ours.generate(PROMPTS, seeds=SEEDS, steps=3, guidance=guidance, negative=negative),
        drawn,
        strict=True,
    ):
        assert np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max() <= 1


@pytest.mark.parametrize("dev", [True, False], ids=["dev", "schnell"])
@pytest.mark.parametrize(
    "told, true, negative",
    taking(lambda case: case[2] is not None, [(3.5, 1.0, None), (2.0, 4.0, "a yellow wall")]),
)
def test_flux_equals_diffusers(saved, dev, told, true, negative):
    """Latents and pictures of both, on a picture that is not square, told a guidance and guided twice.

    By default both at once.
    """
    theirs, ours = saved("flux", dev=dev)
    ours = ours.at(8, 12)
    noise = ours.noise(SEEDS)
    call = dict(
        negative_prompt=None if negative is None else [negative] * 2,
        true_cfg_scale=true,
        guidance_scale=GUIDANCE if negative else told,
        num_inference_steps=3,
        height=64,
        width=96,
        max_sequence_length=22,
        latents=theirs._pack_latents(noise, 2, 16, 8, 12),
    )
    expected = theirs(PROMPTS, output_type="latent", **call).images
    guidance = told if dev else 1
    if negative:
        guidance = ClassifierFree(true, negative)
    text = ours.encode(PROMPTS if negative is None else [negative] * 2 + PROMPTS)
    made = ours.denoise(noise, text, steps=3, guidance=guidance)
    unpacked = theirs._unpack_latents(expected, 64, 96, 8)
    assert relative(made, unpacked) <= tolerance(3, true)
    drawn = theirs(PROMPTS, output_type="pil", **call).images
    for a, b in zip(
        ours.generate(PROMPTS, seeds=SEEDS, steps=3, guidance=guidance), drawn, strict=True
    ):
        assert np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max() <= 1


def test_flux_without_a_folder_takes_its_parts_from_one(saved, tmp_path):
    """A transformer's own file, encoders and VAE of a folder: the pictures of the whole folder."""
    _, ours = saved("flux", dev=False)
    path = tmp_path / "schnell.safetensors"
    save_file(ours.denoiser.state_dict(), path)
    config = dict(_class_name="FluxTransformer2DModel", **asdict(ours.denoiser.config))
    (tmp_path / "config.json").write_text(json.dumps(config))
    folder = ours.folder
    made = load(path, text_encoders=folder, vae=folder)
    assert made.schedule == ours.schedule and made.defaults == ours.defaults
    assert (made.defaults.steps, made.defaults.guidance, made.defaults.embeds_guidance) == (
        4,
        1.0,
        False,
    )
    noise = ours.at(4, 4).noise(SEEDS[:1])
    text = made.encode(PROMPTS[:1])
    assert torch.equal(text.tokens, ours.encode(PROMPTS[:1]).tokens)
    a, b = (which.at(4, 4).denoise(noise, text, steps=2, guidance=1) for which in (made, ours))
    assert torch.equal(a, b)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_stable_diffusion_by_its_published_schedule(saved, prediction):
    """PNDM, of noise as in version 1 and of v as in version 2, whose 4 steps are 5 calls, with guidance."""
    theirs, ours = saved("stable_diffusion", version=2, prediction=prediction)
    noise = ours.noise(SEEDS)
    call = dict(num_inference_steps=4, guidance_scale=3.0, height=64, width=64)
    expected = theirs(PROMPTS, latents=noise, output_type="latent", **call).images
    text = ours.encode([None, None, *PROMPTS])
    assert relative(ours.denoise(noise, text, steps=5, guidance=3.0), expected) <= tolerance(5, 3)


@pytest.mark.parametrize(
    "name, options, skip",
    [("stable_diffusion", {}, 1), ("stable_diffusion", {"version": 2}, 0), ("sdxl", {}, 1)],
)
def test_clip_skip_is_that_of_diffusers(saved, name, options, skip):
    """Prompts read some layers before the end, as diffusers reads them; another version's CLIP, too."""
    theirs, ours = saved(name, **options)
    # where diffusers looks for the norm, and transformers 4 has it
    object.__setattr__(theirs.text_encoder, "text_model", theirs.text_encoder)
    call = dict(num_inference_steps=2, guidance_scale=1.0, height=64, width=64, clip_skip=skip)
    expected = theirs(PROMPTS, latents=ours.noise(SEEDS), output_type="latent", **call).images
    skipping = ours.with_clip_skip(skip)
    made = skipping.denoise(ours.noise(SEEDS), skipping.encode(PROMPTS), steps=2, guidance=1)
    assert relative(made, expected) <= tolerance(2, 1)
    told = f" with clip skip {skip}" if skip else ""
    assert skipping.name == ours.name + told and not ours.encoders.clip_skip
    same = torch.equal(skipping.encode(PROMPTS).tokens, ours.encode(PROMPTS).tokens)
    assert same == (skip == 0)


def test_a_clip_skip_that_leaves_no_layer_is_refused(saved):
    """Two layers are read of Stable Diffusion's small CLIP and one of SDXL's.   SD3's are read whole."""
    for name, most in (("stable_diffusion", 2), ("sdxl", 1)):
        _, ours = saved(name)
        with pytest.raises(PatchError, match=f"clip skip 3 was asked for; .* give 0 to {most}$"):
            ours.with_clip_skip(3)
    with pytest.raises(PatchError, match="clip skip 1 was asked of SD3TextEncoders, and only"):
        small_pipeline().with_clip_skip(1)


@pytest.mark.parametrize(
    "name, ours_named, options, steps, guidance",
    [
        ("EulerAncestralDiscreteScheduler", "euler_ancestral", {}, 3, 0.0),  # SDXL-Turbo
        ("EulerDiscreteScheduler", "euler", {"prediction_type": "sample"}, 1, 0.0),  # Lightning
        ("PNDMScheduler", "pndm", {"skip_prk_steps": True}, 4, 3.0),
        ("DPMSolverMultistepScheduler", "dpmpp_2m_sde", {}, 4, 3.0),
    ],
)
def test_schedules_by_name_equal_diffusers(saved, name, ours_named, options, steps, guidance):
    """A whole SDXL with another scheduler of its settings, in few steps and without guidance, too."""
    theirs, ours = saved("sdxl")
    settings = {**theirs.scheduler.config, "timestep_spacing": "trailing", **options}
    settings.pop("_use_default_values", None)  # which diffusers would take back
    if ours_named == "dpmpp_2m_sde":
        settings["algorithm_type"] = "sde-dpmsolver++"
    made = ours.with_schedule(named(ours_named, settings))
    shape = (ours.latent_channels, ours.defaults.height, ours.defaults.width)
    drawn = generators()
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in drawn])
    kept = theirs.scheduler
    theirs.scheduler = getattr(diffusers_classes(), name).from_config(settings)
    try:
        expected = theirs(
            PROMPTS,
            latents=noise,
            generator=drawn,
            num_inference_steps=steps - (name == "PNDMScheduler"),
            guidance_scale=guidance,
            height=64,
            width=64,
            output_type="latent",
        ).images
    finally:
        theirs.scheduler = kept
    rows = [
        Row(str(i), prompt, seed)
        for i, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True))
    ]
    latents = sample_latents(made, rows, steps=steps, guidance=guidance).latents
    assert relative(torch.stack([*latents.values()]), expected) <= tolerance(
        steps, max(guidance, 1)
    )


@pytest.mark.parametrize(
    "guidance, negative",
    taking(lambda case: case[1] is not None, [(1.0, None), (7.0, None), (4.0, "a yellow wall")]),
)
def test_deepfloyd_if_equals_diffusers(saved, guidance, negative):
    """Stage I from its own seeds: the starting noise and that of every step are drawn in the same order.

    By default with guidance and a negative prompt.
    """
    theirs, ours = saved("deepfloyd_if")
    negatives = None if negative is None else [negative] * 2
    expected = theirs(
        PROMPTS,
        negative_prompt=negatives,
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=generators(),
        output_type="pt",
        clean_caption=False,
    ).images
    text = ours.encode(PROMPTS if guidance == 1 else [negative] * 2 + PROMPTS)
    noises = ours.noises(SEEDS)
    made = ours.denoise(next(noises), text, steps=4, guidance=guidance, noises=noises)
    assert relative(made, expected) <= tolerance(4, guidance)
    drawn = ours.generate(PROMPTS, seeds=SEEDS, steps=4, guidance=guidance, negative=negative)
    assert [a.tobytes() for a in drawn] == [b.tobytes() for b in ours.decode(made)]


@pytest.mark.parametrize("guidance, level", [(1.0, 250), (4.0, 250), (4.0, 0)])
def test_stage_ii_equals_diffusers(saved, guidance, level):
    """Stage II over a low picture of half the size, noised to `level`, from the same seeds."""
    theirs, ours = saved("deepfloyd_if_ii")
    low = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = theirs(
        PROMPTS,
        image=low,
        num_inference_steps=3,
        guidance_scale=guidance,
        noise_level=level,
        generator=generators(),
        output_type="pt",
        clean_caption=False,
    ).images
    made = ours.enlarge(low, PROMPTS, seeds=SEEDS, steps=3, guidance=guidance, level=level)
    assert relative(made, expected) <= tolerance(3, guidance)


def test_a_stochastic_run_asks_for_its_noise(saved):
    """DDPM without noise to add is refused; two runs of one seed are one picture, of two seeds two."""
    _, ours = saved("deepfloyd_if")
    with pytest.raises(PatchError, match="noise"):
        ours.denoise(ours.noise([0]), ours.encode(PROMPTS[:1]), steps=2, guidance=1)
    a, b, c = ours.generate([PROMPTS[0]] * 3, seeds=[0, 0, 1], steps=2)
    assert a.tobytes() == b.tobytes() != c.tobytes()


def test_a_batch_is_its_rows(saved):
    """A row's noise belongs to its seed: alone or in a batch of two, the same picture."""
    for name in ("sdxl", "deepfloyd_if"):
        _, ours = saved(name)
        both, noises = ours.encode(PROMPTS), ours.noises(SEEDS)
        together = ours.denoise(next(noises), both, steps=3, guidance=1, noises=noises)
        for i, seed in enumerate(SEEDS):
            alone = ours.noises([seed])
            made = ours.denoise(next(alone), both[i : i + 1], steps=3, guidance=1, noises=alone)
            assert relative(made[0], together[i]) <= tolerance(3, 1)


def test_upscaling_asks_for_matching_numbers(saved):
    """As many pictures as prompts and seeds."""
    _, ours = saved("deepfloyd_if_ii")
    with pytest.raises(PatchError, match="2 pictures, 2 prompts, 1 seeds"):
        ours.enlarge(torch.zeros(2, 3, 8, 8), PROMPTS, seeds=[0])


def test_generation_asks_for_matching_numbers():
    """Prompts and seeds must be as many, and at least one."""
    for prompts, seeds in [(SIGNS, [0]), ([], [])]:
        with pytest.raises(PatchError, match=f"{len(prompts)} prompts and {len(seeds)} seeds"):
            small_pipeline().generate(prompts, seeds=seeds)


def test_a_picture_is_its_prompt_and_seed():
    """generate is a function of (prompt, seed): the same twice, another for another seed or prompt."""
    pipeline = small_pipeline()
    a, b, c, d = pipeline.generate([SIGNS[0]] * 3 + [SIGNS[1]], seeds=[0, 0, 1, 0])
    assert a.size == (96, 32) and a.mode == "RGB"
    rows = []
    pipeline.denoiser.register_forward_pre_hook(lambda model, inputs: rows.append(len(inputs[0])))
    again = pipeline.generate(
        [SIGNS[0]] * 3 + [SIGNS[1]], seeds=[0, np.int64(0), 1, 0], guidance=1, micro_batch=3
    )
    assert set(rows) == {3, 1}
    a, b, c, d = pipeline.generate([SIGNS[0]] * 3 + [SIGNS[1]], seeds=[0, 0, 1, 0], guidance=1)
    apart = [
        np.abs(np.asarray(x, int) - np.asarray(y, int)).max()
        for x, y in zip(again, (a, b, c, d), strict=True)
    ]
    assert max(apart) <= 1  # so many at once
    assert a.tobytes() == b.tobytes() != c.tobytes() and d.tobytes() != a.tobytes()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_seed_is_one_noise(dtype):
    """Whatever torch makes tensors of by default, dtype or device: the same float32 draws."""
    pipeline = small_pipeline()
    noise, before = pipeline.noise([0, 1]), torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device("meta"):
            assert torch.equal(pipeline.noise([0, 1]), noise)
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "seed, says",
    [
        *((seed, "does not fit the noise generator") for seed in (-1, 2**64, True, 1.5, "0")),
        (2**32, "seeds 0 and 4294967296 are the same noise"),
    ],
)
def test_a_seed_that_is_none_or_repeats_another_is_refused(seed, says):
    """Of all seeds of a request, before any noise is drawn."""
    pipeline = small_pipeline()
    for refused in (
        pipeline.noise,
        pipeline.noises,
        lambda seeds: pipeline.check(["a red sign"], seeds=seeds, steps=1),
        lambda seeds: pipeline.generate(["a red sign"] * 2, seeds=seeds, steps=1, micro_batch=1),
        lambda seeds: sample(
            pipeline,
            [Row(f"row {i}", SIGNS[0], s) for i, s in enumerate(seeds)],
            steps=1,
            micro_batch=1,
        ),
    ):
        with pytest.raises(PatchError, match=says):
            refused([0, seed])


def test_seeds_of_64_bits_and_as_tensors():
    """A seed is heard modulo 2^32, and more bits are told; tensors of seeds are seeds."""
    pipeline = small_pipeline()
    with pytest.warns(UserWarning, match="seed 1099511627781 is the noise of seed 5"):
        large = pipeline.noise([5 + 2**40])
    assert torch.equal(large, pipeline.noise([5]))
    drawn = [
        pipeline.generate(SIGNS[:2], seeds=seeds, steps=1)
        for seeds in ([3, 3], torch.tensor([3, 3]), torch.tensor(3), np.array([3, 3]))
    ]
    assert len({tuple(picture.tobytes() for picture in pictures) for pictures in drawn}) == 1
    row = Row("a", SIGNS[0], torch.tensor(3))
    assert row == Row("a", SIGNS[0], 3) and type(row.seed) is int


@pytest.mark.parametrize(
    "function, change",
    [
        ("whole_seeds", ("if other != seed:", "if False:")),
        ("_tell", ("if seed >= HEARD", "if seed >= SEEDS")),
    ],
)
def test_a_fault_in_seeds_is_noticed(function, change, monkeypatch):
    """Seeds that are one noise pass as two, or are cut without a word."""
    plant(monkeypatch, seeds_of_requests, function, *change)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test_a_seed_that_is_none_or_repeats_another_is_refused(2**32, "same noise")
        test_seeds_of_64_bits_and_as_tensors()


def test_every_bit_of_a_seed_counts():
    """Seeds that differ in one of their 32 bits are different noises."""
    noises = small_pipeline().noise([0, *(2**bit for bit in range(32)), 2**32 - 1]).flatten(1)
    assert len(noises.unique(dim=0)) == 34


def test_a_pipeline_of_another_size_is_another_pipeline():
    """`at` shares the weights; what is put in its parts' place leaves the first pipeline as it was."""
    pipeline = small_pipeline()
    other = pipeline.at(64, 64)
    assert other.denoiser is pipeline.denoiser
    other.encoders = None
    assert pipeline.encoders is not None

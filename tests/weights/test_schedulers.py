"""Schedules of folders and single files: taken as written, named in another's place, or heard in the file."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from support.planting import plant
from support.small_models import save_small
from textpatch import load
from textpatch.errors import PatchError, WeightsError
from textpatch.reference_models.schedules import (
    DDIM,
    DPMSolver,
    Euler,
    EulerAncestral,
    FlowMatchEuler,
)
from textpatch.weights import schedulers
from textpatch.weights.folders import Folder
from textpatch.weights.reading import header
from textpatch.weights.reading.files import open_tensors
from textpatch.weights.reading.terms import Terms
from textpatch.weights.schedulers import heard

HEUN = dict(_class_name="HeunDiscreteScheduler", beta_start=0.001, prediction_type="v_prediction")


def written(folder, **config):
    """A folder of a kind of pipeline, of which the schedule alone is read."""
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = folder / "model_index.json"
    if not index.exists():
        index.write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    return Folder(folder)


def test_a_scheduler_that_is_none_of_ours_is_refused_with_the_cure(tmp_path):
    """Its class, those that are known, and the names that load() takes in its place."""
    with pytest.raises(
        WeightsError, match=r"no schedule for HeunDisc.*; load\(..., schedule=NAME\) takes one of"
    ):
        written(tmp_path, **HEUN).schedule()


def test_a_name_takes_the_settings_of_the_folder(tmp_path):
    """Betas and prediction of a scheduler that is none of ours, and diffusers' defaults for the rest."""
    source = written(tmp_path, **HEUN)
    made = source.schedule_named("dpmpp_2m_karras")
    assert made == DPMSolver(
        beta_start=0.001,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="linspace",
        steps_offset=0,
        use_karras_sigmas=True,
    )
    assert source.terms.notes == [
        "scheduler: dpmpp_2m_karras in the place of 'HeunDiscreteScheduler'"
    ]


def test_settings_that_are_not_read_are_told(tmp_path):
    """By name, in the notes; SDXL-Turbo's configuration is one of these."""
    source = written(
        tmp_path,
        _class_name="EulerAncestralDiscreteScheduler",
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        steps_offset=1,
        use_karras_sigmas=False,
        clip_sample=False,
    )
    assert source.schedule() == EulerAncestral(timestep_spacing="trailing")
    assert source.terms.notes == [
        "scheduler: dropped 2: clip_sample, use_karras_sigmas, which EulerAncestralDiscreteScheduler does "
        "not read"
    ]


def test_the_schedule_of_a_load_is_the_one_asked_for(tmp_path):
    """By name and by object, in a folder whose own is there or is not."""
    folder = save_small(tmp_path / "model")
    asked = FlowMatchEuler(shift=1.0, shift_terminal=0.1)
    assert load(folder, schedule=asked).schedule == asked
    made = load(folder, schedule="flow_euler")
    assert made.schedule == load(folder).schedule and "flow_euler in the place" in made.notes[1]
    (folder / "scheduler" / "scheduler_config.json").unlink()
    assert load(folder, schedule=asked).schedule == asked
    for other, says in (
        (DDIM(), "with the schedule DDIM; its denoiser is sampled by FlowMatchEuler"),
        ("nothing", "no file 'scheduler_config.json'"),
        (3, "schedule is 3; give a name"),
    ):
        with pytest.raises(PatchError, match=says):
            load(folder, schedule=other)


def test_a_pipeline_of_flux_gives_the_levels(tmp_path):
    """FLUX.1's pipelines give 1, 1 - 1/n, ..., 1/n to a scheduler that shifts them."""
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    config = dict(_class_name="FlowMatchEulerDiscreteScheduler", shift=3.0)
    dev = written(tmp_path, **config, use_dynamic_shifting=True).schedule()
    assert dev == schedulers.FLUX_DEV
    sigmas = schedulers.FLUX_SCHNELL.sigmas(4)
    assert torch.equal(sigmas, torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))


def single(folder, *keys: str, **metadata: str):
    """Tensors of a single file with some keys and a header."""
    tensors = {key: torch.zeros(1) for key in ("weight", *keys)}
    save_file(tensors, folder / "one.safetensors", metadata=metadata or None)
    return open_tensors(folder / "one.safetensors")


def require_heard(folder) -> None:
    """A key or the header of a single file says what its model predicts."""
    says = {"modelspec.prediction_type": "v", "other": '"modelspec.prediction_type":"epsilon"'}
    velocity = Euler(prediction_type="v_prediction")
    for keys, metadata, expected in (
        ((), {}, Euler()),
        ((), {"modelspec.prediction_type": "epsilon"}, Euler()),
        (("v_pred",), {}, velocity),
        ((), says, velocity),
        (("v_pred", "ztsnr"), says, replace(velocity, rescale_betas_zero_snr=True)),
    ):
        assert heard(Euler(), single(folder, *keys, **metadata), None, Terms()) == expected


def test_what_a_single_file_says_is_heard(tmp_path):
    """Keys `v_pred` and `ztsnr`, and `modelspec.prediction_type` in the header."""
    require_heard(tmp_path)


def test_what_is_heard_is_noted(tmp_path):
    """With its source; an unknown word is told and not read, and a flow has no such choice."""
    terms = Terms()
    heard(Euler(), single(tmp_path, "v_pred", "ztsnr"), None, terms)
    header_of_a_kind = {"modelspec.prediction_type": "edm"}
    assert heard(Euler(), single(tmp_path, **header_of_a_kind), None, terms) == Euler()
    assert terms.notes == [
        "predicts velocities, as the key 'v_pred' says",
        "zero terminal SNR, as the key 'ztsnr' says",
        "the header's modelspec.prediction_type 'edm' is not known and not read",
    ]
    assert heard(FlowMatchEuler(), single(tmp_path, "v_pred"), None, terms) == FlowMatchEuler()


def test_a_key_and_a_header_that_contradict_each_other_are_refused(tmp_path):
    """Either would be another picture."""
    tensors = single(tmp_path, "v_pred", **{"modelspec.prediction_type": "epsilon"})
    with pytest.raises(
        WeightsError, match=r"has the key 'v_pred', and its header .* schedule=\.\.\."
    ):
        heard(Euler(), tensors, None, Terms())


def test_stable_diffusion_2_predicts_velocities_unless_it_says_so(tmp_path):
    """As diffusers takes its single files: noise at global_step 875000, or by the header."""
    terms = Terms()
    assert heard(DDIM(), single(tmp_path), "SD2", terms) == DDIM(prediction_type="v_prediction")
    assert "taken for a Stable Diffusion 2 that predicts v" in terms.notes[0]
    said = {"modelspec.prediction_type": "epsilon"}
    assert heard(DDIM(), single(tmp_path, **said), "SD2", terms) == DDIM()
    base = {"weight": torch.zeros(1), "global_step": torch.tensor(875_000)}
    save_file(base, tmp_path / "base.safetensors")
    assert heard(DDIM(), open_tensors(tmp_path / "base.safetensors"), "SD2", terms) == DDIM()


@pytest.mark.parametrize(
    "owner, function, text, other",
    [
        (header, "said_in_header", r'([^"\\]{0,64})"', r'([^"\\]{0,0})"'),
        (schedulers, "_prediction", "if VELOCITY in tensors:", "if False:"),
        (schedulers, "heard", "if NOTHING_LEFT in tensors:", "if False:"),
    ],
)
def test_a_fault_in_hearing_is_noticed(owner, function, text, other, tmp_path, monkeypatch):
    """A header that is skipped, and keys that are dropped without being heard."""
    plant(monkeypatch, owner, function, text, other)
    with pytest.raises(AssertionError):
        require_heard(tmp_path)

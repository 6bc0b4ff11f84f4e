"""Adapters in every spelling do what those of peft, diffusers and sd-scripts did, or are refused."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support.adapters import random_adapter
from support.copies import call as call_of
from support.copies import one_input, pair
from support.patched_calls import refused
from support.planting import plant
from support.recorded_runs import RECORDINGS, distance
from support.small_models import relative
from support.strategies import fixed_case
from textpatch import Adapter, load_adapter
from textpatch.changes import LowRank
from textpatch.reference_models.layers import TextCondition
from textpatch.tuning import fused, spellings, writing
from textpatch.weights import adapters as reading

FOLDER = Path(__file__).parents[1] / "golden" / "adapters"
LAYERS = 1  # of the recorded U-Net
FAMILIES = "sdxl", "if", "sd3"
OUTPUTS = {family: load_file(FOLDER / family / "outputs.safetensors") for family in FAMILIES}
FILES = [
    (family, path.name)
    for family in FAMILIES
    for path in sorted((FOLDER / family).iterdir())
    if f"{path.stem}.out" in OUTPUTS[family]
    and "dora" not in path.name
    and "rslora" not in path.name
]


def call(family: str):
    """Output of the recorded denoiser for the recorded prompt, in float64."""
    recording = RECORDINGS[family]
    model = recording.pipeline(torch.float64).denoiser
    inputs = recording.inputs
    row = [0]
    pooled = None if family == "if" else inputs["pooled.A"][row].double()
    micro = inputs["time_ids"][row].float() if family == "sdxl" else None
    text = TextCondition(inputs["prompt_embeds.A"][row].double(), pooled, micro)
    with torch.no_grad(), recording.recorded_sinusoids():
        return model(inputs["init_noise"][row].double(), inputs["timesteps"][1], text)


def denoiser(family: str):
    return RECORDINGS[family].pipeline(torch.float64).denoiser


def require_recorded(family: str, name: str) -> None:
    """Law of a file: it does what the program that wrote it meant."""
    adapter = load_adapter(FOLDER / family / name, layers_per_block=LAYERS)
    recorded = OUTPUTS[family][f"{Path(name).stem}.out"]
    with adapter.applied(denoiser(family)):
        assert distance(call(family), recorded) <= 1e-10


@pytest.mark.parametrize("family, name", FILES)
def test_a_file_does_what_its_writer_meant(family, name):
    """The output under the adapter is the recorded one: W + s B A of the writer's own s, A and B."""
    require_recorded(family, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_scales_and_two_adapters_are_those_of_peft(family):
    """Half the adapter, and one beside minus half of another, are what peft's forward gave."""
    model = denoiser(family)
    one = load_adapter(FOLDER / family / "diffusers.safetensors")
    other = load_adapter(FOLDER / family / "diffusers_patterns.safetensors")
    assert distance(call(family), OUTPUTS[family]["base.out"]) <= 1e-10
    with one.applied(model, scale=0.5):
        assert distance(call(family), OUTPUTS[family]["diffusers.scale_0.5.out"]) <= 1e-10
    both = OUTPUTS[family]["diffusers_and_patterns.weights_1_-0.5.out"]
    with one.applied(model), other.applied(model, scale=-0.5):
        assert distance(call(family), both) <= 1e-10
    with one.merged(model), other.merged(model, scale=-0.5):
        assert distance(call(family), both) <= 1e-10


FAULTS = {
    "alpha left out": (
        "sdxl",
        "kohya.safetensors",
        reading._Reading,
        "_alpha",
        'if "alpha" in parts:',
        "if False:",
    ),
    "header left out": (
        "sdxl",
        "diffusers.safetensors",
        reading,
        "load_adapter",
        "if METADATA in header:",
        "if False:",
    ),
    "patterns left out": (
        "sd3",
        "diffusers_patterns.safetensors",
        reading,
        "_for",
        "value = own",
        "pass",
    ),
    "up counted as down": (
        "sdxl",
        "kohya.safetensors",
        spellings,
        "_from_original",
        "- down",
        "- 0",
    ),
    "k and v turned round": (
        "sd3",
        "kohya_fused.safetensors",
        reading._Reading,
        "add",
        "names[place]",
        "names[2 - place]",
    ),
    "split not seen": (
        "sd3",
        "kohya_split_qkv.safetensors",
        reading._Reading,
        "_of_joined",
        "if self.split:",
        "if False:",
    ),
    "rank of the whole": (
        "sd3",
        "fused_block_diagonal.safetensors",
        fused,
        "parted",
        "whole.scale * rank",
        "whole.alpha",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_misread_file_is_noticed(fault, monkeypatch):
    """A reader with the fault does not give the recorded output, or refuses the file."""
    family, name, *place = FAULTS[fault]
    plant(monkeypatch, *place)
    try:
        require_recorded(family, name)
    except (AssertionError, RuntimeError):
        return
    raise AssertionError("the fault went unnoticed")


def test_a_file_with_half_of_its_keys_renamed_is_no_adapter_of_the_model(tmp_path):
    """11 of 12 projections, and 0 of 12, are errors that name one which is missing."""
    tensors = load_file(FOLDER / "sdxl" / "diffusers.safetensors")
    model = denoiser("sdxl")
    for old, says in [
        ("mid_block.attentions.0.transformer_blocks.1.attn2.to_v", "11 of 12"),
        ("attn2", "0 of 12"),
    ]:
        renamed = {key.replace(old, old + "x"): tensor for key, tensor in tensors.items()}
        save_file(renamed, tmp_path / "renamed.safetensors")
        adapter = load_adapter(tmp_path / "renamed.safetensors")
        with refused(says), adapter.applied(model):
            pass
    with refused("0 of 12"), load_adapter(FOLDER / "if" / "peft_folder").applied(model):
        pass


SPELLED = [
    (family, spelling)
    for family in FAMILIES
    for spelling in ("diffusers", "peft", "old-diffusers", "kohya", "comfyui")
    if family != "if" or spelling not in ("kohya", "comfyui")
]


@pytest.mark.parametrize("name", ["diffusers.safetensors", "diffusers_patterns.safetensors"])
@pytest.mark.parametrize("family, spelling", SPELLED)
def test_a_round_trip_changes_nothing(family, spelling, name, tmp_path):
    """Written and read again, each projection has the same s B A, and of equal scales the same bits."""
    adapter = load_adapter(FOLDER / family / name)
    path = tmp_path / ("folder" if spelling == "peft" else "file.safetensors")
    adapter.save(path, spelling, layers_per_block=LAYERS)
    again = load_adapter(path, layers_per_block=LAYERS)
    assert again.changes.keys() == adapter.changes.keys()
    for projection, change in adapter.changes.items():
        made = again.changes[projection].matrix()
        difference = (made - change.matrix()).abs().max() / change.matrix().abs().max()
        assert difference <= (0 if name == "diffusers.safetensors" else 1e-6), projection
    assert spelling == "old-diffusers" or again.notes == ()


@pytest.mark.parametrize(
    "name, component", [("SDXL", "unet"), ("IF", "unet"), ("SD3", "transformer")]
)
def test_a_saved_file_is_to_diffusers_model_what_it_is_here(name, component, tmp_path):
    """diffusers' own model with W + (alpha / r) B A of the file's tensors and header gives our output."""
    diffusers = pytest.importorskip("diffusers")
    ours, theirs = pair(diffusers, name)
    adapter = random_adapter(ours, sites=(0, 1))
    adapter.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        told = json.loads(file.metadata()["lora_adapter_metadata"])
    tensors = load_file(tmp_path / "a.safetensors")
    targets = told[f"{component}.target_modules"]
    assert len(tensors) == 2 * len(targets) and {*targets} == {*adapter.changes}
    for target in targets:
        down, up = (tensors[f"{component}.{target}.lora_{part}.weight"] for part in "AB")
        rank = told[f"{component}.rank_pattern"].get(target, told[f"{component}.r"])
        alpha = told[f"{component}.alpha_pattern"].get(target, told[f"{component}.lora_alpha"])
        assert rank == len(down)
        theirs.get_submodule(target).weight += alpha / rank * up.double() @ down.double()
    arguments, inputs = one_input(type(ours), 2)
    with torch.no_grad():
        base = ours(*arguments)
        with adapter.applied(ours):
            adapted = ours(*arguments)
    assert relative(call_of(theirs, inputs), adapted) <= 1e-10
    assert not torch.allclose(base, adapted, rtol=1e-3)


# diffusers' pipeline that writes adapters of a kind of model, and the arguments of its parts
PIPELINES = {
    "SDXL": ("StableDiffusionXLPipeline", "unet"),
    "IF": ("IFPipeline", "unet"),
    "SD3": ("StableDiffusion3Pipeline", "transformer"),
}


def law_diffusers_loads_what_is_saved_here_and_the_reverse(name: str, folder: Path) -> None:
    """Under our file diffusers' model gives our output, and under the file that it writes ours does."""
    diffusers = pytest.importorskip("diffusers")
    peft = pytest.importorskip("peft")
    pipeline, component = PIPELINES[name]
    ours, theirs = pair(diffusers, name)
    adapter = random_adapter(ours, sites=(0, 1))
    adapter.save(folder / "a.safetensors")
    arguments, inputs = one_input(type(ours), 2)
    theirs.load_lora_adapter(str(folder), weight_name="a.safetensors", prefix=component)
    with torch.no_grad():
        base = ours(*arguments)
        with adapter.applied(ours):
            adapted = ours(*arguments)
        assert relative(call_of(theirs, inputs), adapted) <= 1e-10
    assert relative(base, adapted) > 1e-3
    (active,) = theirs.active_adapters()
    written = {
        f"{component}_lora_layers": peft.get_peft_model_state_dict(theirs, adapter_name=active),
        f"{component}_lora_adapter_metadata": theirs.peft_config[active].to_dict(),
    }
    getattr(diffusers, pipeline).save_lora_weights(str(folder / "theirs"), **written)
    again = load_adapter(folder / "theirs" / "pytorch_lora_weights.safetensors")
    with torch.no_grad(), again.applied(ours):
        assert relative(ours(*arguments), adapted) <= 1e-10


@pytest.mark.parametrize("name", PIPELINES)
def test_diffusers_loads_what_is_saved_here_and_the_reverse(name, tmp_path):
    """By diffusers' own loader and writer, with peft."""
    law_diffusers_loads_what_is_saved_here_and_the_reverse(name, tmp_path)


def test_planted_alpha_left_out_is_noticed_by_diffusers(tmp_path, monkeypatch):
    """Fault: the header names the rank as alpha."""
    plant(monkeypatch, writing, "_lora_config", '"lora_alpha": alpha', '"lora_alpha": first.rank')
    with pytest.raises(AssertionError):
        law_diffusers_loads_what_is_saved_here_and_the_reverse("SD3", tmp_path)


@pytest.mark.parametrize("spelling", ["diffusers", "kohya"])
def test_text_keys_and_values_stay_alone(spelling, tmp_path):
    """Of SD3's joined matrix, q has no rows in the file of an adapter of k and v, and comes back as none."""
    full = load_adapter(FOLDER / "sd3" / "diffusers.safetensors")
    kv = {
        name: change
        for name, change in full.changes.items()
        if name.endswith(("add_k_proj", "add_v_proj"))
    }
    path = tmp_path / "kv.safetensors"
    Adapter(kv).save(path, spelling)
    again = load_adapter(path)
    assert again.changes.keys() == kv.keys()
    for name, change in kv.items():
        assert torch.equal(again.changes[name].matrix(), change.matrix())
        assert again.changes[name].alpha == change.alpha


def test_alpha_doubles_with_the_rank(tmp_path):
    """The joined change of k and v has twice the rank and twice the alpha, and zero rows for q."""
    generator = torch.Generator().manual_seed(0)
    parts = {
        p: LowRank(
            torch.randn(2, 6, generator=generator), torch.randn(6, 2, generator=generator), 4
        )
        for p in (1, 2)
    }
    whole = fused.joined(parts)
    assert whole.alpha == 8 and whole.rank == 4 and not whole.up[:6].any()
    stacked = torch.cat([torch.zeros(6, 6), *(parts[p].matrix() for p in (1, 2))])
    assert torch.equal(whole.matrix(), stacked) and fused.is_block_diagonal(whole)


def test_a_saved_adapter_knows_its_base_and_how_it_was_made(tmp_path):
    """The base's hash and the recipe come back, and the file names no path and no prompt by itself."""
    model = fixed_case("sdxl").model
    plain = random_adapter(model)
    adapter = Adapter(plain.changes, plain.base, {"method": "test", "ridge": 0.1})
    for spelling, name in [("diffusers", "a.safetensors"), ("peft", "folder")]:
        adapter.save(tmp_path / name, spelling)
        again = load_adapter(tmp_path / name)
        assert (again.base, again.made, again.sha256) == (plain.base, adapter.made, adapter.sha256)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
    assert header["unet.lora_alpha"] == 3 and header["unet.r"] == 2


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    """A full disk in the middle of a write leaves the file and the folder as they were."""
    adapter = load_adapter(FOLDER / "sd3" / "diffusers.safetensors")
    for spelling, name in [("diffusers", "a.safetensors"), ("peft", "folder")]:
        adapter.save(tmp_path / name, spelling)
        with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="No space"):
            patched.setattr(writing, "save_file", full_disk)
            adapter.save(tmp_path / name, spelling)
        assert load_adapter(tmp_path / name).sha256 == adapter.sha256
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "folder"]


def full_disk(tensors, path, metadata):
    Path(path).write_bytes(b"half")
    raise OSError(28, "No space left on device")


BAD_PLACES = {
    "spelling": ("a.safetensors", "kohia", "closest: kohya"),
    "suffix": ("a.bin", "diffusers", "give a file's name.safetensors"),
    "folder": ("full", "peft", "holds something and no adapter"),
    "IF in kohya": ("a.safetensors", "kohya", "DeepFloyd IF's"),
}


@pytest.mark.parametrize("bad", BAD_PLACES)
def test_what_cannot_be_written_is_refused(bad, tmp_path):
    """An unknown spelling, a place that holds something else, and names that a spelling does not have."""
    name, spelling, says = BAD_PLACES[bad]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    adapter = load_adapter(FOLDER / "if" / "diffusers.safetensors")
    with refused(says):
        adapter.save(tmp_path / name, spelling)


X = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
GOOD = {f"{X}.lora_A.weight": torch.ones(2, 4), f"{X}.lora_B.weight": torch.ones(4, 2)}
CONFIG = {"r": 2, "lora_alpha": 2}
BAD_FILES = {
    "text encoder": (
        {"text_encoder.layers.0.q_proj.lora_A.weight": torch.ones(2, 4)},
        {},
        "text encoder",
    ),
    "kohya's text encoder": ({"lora_te1_x.lora_down.weight": torch.ones(2, 4)}, {}, "text encoder"),
    "DoRA": ({f"{X}.lora_magnitude_vector": torch.ones(4)}, {}, "DoRA"),
    "kohya's DoRA": ({"lora_unet_x.dora_scale": torch.ones(4)}, {}, "DoRA"),
    "DoRA said": ({}, {"use_dora": True}, "DoRA"),
    "rsLoRA": ({}, {"use_rslora": True}, "rsLoRA"),
    "bias": ({f"{X}.lora_B.bias": torch.ones(4)}, {}, "changes a bias"),
    "biases trained": ({}, {"bias": "all"}, "biases are trained"),
    "LoHa": ({"lora_unet_x.hada_w1_a": torch.ones(4)}, {}, "LoHa"),
    "LoKr": ({"lora_unet_x.lokr_w1": torch.ones(4)}, {}, "LoKr"),
    "convolution": (
        {
            f"{X}2.lora_A.weight": torch.ones(2, 4, 3, 3),
            f"{X}2.lora_B.weight": torch.ones(4, 2, 1, 1),
        },
        {},
        "convolution",
    ),
    "unknown end": ({f"{X}.lora_C.weight": torch.ones(2)}, {}, "ends in none of"),
    "unknown word": (
        {
            "lora_unet_down_blocks_0_wings_0.lora_down.weight": torch.ones(2, 4),
            "lora_unet_down_blocks_0_wings_0.lora_up.weight": torch.ones(4, 2),
        },
        {},
        "from 'wings_0' on",
    ),
    "half": ({f"{X}2.lora_A.weight": torch.ones(2, 4)}, {}, "and no up"),
    "twice": ({f"{X}.lora.down.weight": torch.ones(2, 4)}, {}, "twice"),
    "two names": (
        {key.removeprefix("unet."): x.clone() for key, x in GOOD.items()},
        {},
        "by two names",
    ),
    "rank": ({}, {"r": 3}, "says rank 3"),
    "no alpha": ({}, {"lora_alpha": None}, "expected a number"),
    "alpha 0": ({}, {"lora_alpha": 0}, "alpha is 0"),
    "alpha of two": ({f"{X}.alpha": torch.ones(2)}, {}, "2 numbers"),
    "NaN": ({f"{X}.lora_B.weight": torch.full((4, 2), torch.nan)}, {}, "NaN"),
    "integers": ({f"{X}.lora_B.weight": torch.ones(4, 2, dtype=torch.int32)}, {}, "is torch.int32"),
    "expression": ({}, {"alpha_pattern": {"(a+)+": 1}}, "regular expression"),
    "patterns": ({}, {"alpha_pattern": [1]}, "expected names and numbers"),
}


@pytest.mark.parametrize("bad", BAD_FILES)
def test_a_file_that_cannot_be_used_is_refused_by_name(bad, tmp_path):
    """Every tensor that nobody would read, and every number that cannot be right, is one line."""
    tensors, config, says = BAD_FILES[bad]
    said = {f"unet.{field}": value for field, value in (CONFIG | config).items()}
    header = {"lora_adapter_metadata": json.dumps(said)}
    save_file(GOOD | tensors, tmp_path / "bad.safetensors", metadata=header)
    with refused(says):
        load_adapter(tmp_path / "bad.safetensors")


def test_files_of_strangers_are_not_trusted(tmp_path):
    """No pickle, no path out of the folder, no header that is no JSON, no truncated file, no file at all."""
    (tmp_path / "a.bin").write_bytes(b"\x80\x04")
    with refused("pickle"):
        load_adapter(tmp_path / "a.bin")
    with refused():
        load_adapter(tmp_path / "none.safetensors")
    save_file(GOOD, tmp_path / "h.safetensors", metadata={"lora_adapter_metadata": "[" * 10_000})
    with refused("is no JSON"):
        load_adapter(tmp_path / "h.safetensors")
    save_file(GOOD, tmp_path / "t.safetensors", metadata={"textpatch": '{"base": "../x"}'})
    with refused("not what this library writes"):
        load_adapter(tmp_path / "t.safetensors")
    whole = (FOLDER / "sd3" / "diffusers.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1])
    with refused("damaged"):
        load_adapter(tmp_path / "cut.safetensors")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "adapter_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "folder" / "adapter_model.safetensors").symlink_to(tmp_path / "h.safetensors")
    with refused("leads out of its folder"):
        load_adapter(tmp_path / "folder")

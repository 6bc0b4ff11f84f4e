"""What doctor says of folders: whole, lacking a part, with a part that leads out, with numbers that
are none.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.by_default import taking
from support.small_models import save_small
from textpatch import cli
from textpatch.errors import WeightsError
from textpatch.weights import load
from textpatch.weights.doctor import UNUSABLE, WHOLE, examine

T5 = "text_encoder_3/model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_small(tmp_path_factory.mktemp("doctor") / "small")


@pytest.fixture
def ours(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "small"))


@pytest.fixture
def theirs(ours) -> Path:
    """The same without what makes it one of ours: a folder as others publish them."""
    (ours / "textpatch.json").unlink()
    return ours


def said(folder: Path, **options) -> dict[str, list[str]]:
    """What is said of each part, by its name."""
    parts = {}
    for line in examine(folder, **options):
        if line.startswith(" "):
            parts[list(parts)[-1]].append(line.strip())
        else:
            parts[line] = []
    return parts


def linked_out(folder: Path, name: str) -> None:
    """The part moved elsewhere, and a link in its place."""
    (folder / name).symlink_to((folder / name).rename(folder.parent / "elsewhere"))


def test_every_part_of_a_whole_folder_is_read(theirs):
    """Of the eight parts that its index names each is said what it is, and of none that it cannot be used.

    As a pipeline it is refused, as by `load`.
    """
    index = json.loads((theirs / "model_index.json").read_text())
    found = said(theirs)
    (whole,) = found.pop(WHOLE)
    with pytest.raises(WeightsError) as refusal:
        load(theirs)
    assert whole == f"{UNUSABLE} {refusal.value}" and "without a VAE" in whole
    assert found.keys() == {name for name in index if not name.startswith("_")} and all(
        found.values()
    )
    assert not any(line.startswith(UNUSABLE) for lines in found.values() for line in lines)
    assert found["scheduler"] == [repr(load(save_small(theirs.parent / "again")).schedule)]


LACKING = {
    "transformer": (shutil.rmtree, "no folder 'transformer' in"),
    "transformer/config.json": (Path.unlink, "no file 'config.json' in"),
    "text_encoder_2": (shutil.rmtree, "take another's: text_encoders=..."),
    T5: (Path.unlink, "no file 'model.safetensors' in"),
    "tokenizer": (shutil.rmtree, "a few small files of the model's repository"),
    "tokenizer_2/tokenizer.json": (Path.unlink, "holds no tokenizer transformers can read"),
    "scheduler": (shutil.rmtree, "one small file, scheduler_config.json"),
}


@pytest.mark.parametrize("name", taking(lambda name: name in [*LACKING][::2], LACKING))
def test_what_is_missing_is_said(theirs, name, capsys):
    """Without a part that the index names, or its configuration or weights, that part and no other
    is unusable: exit 2.

    By default every other part.
    """
    remove, says = LACKING[name]
    remove(theirs / name)
    part, found = name.split("/")[0], said(theirs)
    assert {other for other, lines in found.items() if lines[-1].startswith(UNUSABLE)} == {part}
    assert says in found[part][-1]
    with pytest.raises(WeightsError):
        load(theirs)
    assert (
        cli.main(["doctor", str(theirs)]) == 2
        and "1 of the parts above cannot be used" in capsys.readouterr().err
    )


def lacking(folder: Path, part: str, name: str) -> None:
    """The part's file without one tensor."""
    tensors = load_file(folder / part)
    del tensors[name]
    save_file(tensors, folder / part)


@pytest.mark.parametrize(
    "part, name",
    [
        ("transformer/diffusion_pytorch_model.safetensors", "proj_out.bias"),
        ("text_encoder/model.safetensors", "text_model.final_layer_norm.bias"),
        (T5, "encoder.final_layer_norm.weight"),
    ],
)
def test_a_missing_tensor_is_said(theirs, part, name):
    """Of a tensor that `load` would miss doctor says the same."""
    lacking(theirs, part, name)
    last = said(theirs)[part.split("/")[0]][-1]
    with pytest.raises(WeightsError) as refusal:
        load(theirs)
    assert last == f"{UNUSABLE} {refusal.value}" and f"missing 1: {name}" in last


@pytest.mark.parametrize("name", ["transformer", "text_encoder", T5, "tokenizer_3", "scheduler"])
def test_what_leads_out_is_said(theirs, name):
    """Of a part, or its weights, that is a link out of the folder the reason is said for which
    `load` refuses it.
    """
    linked_out(theirs, name)
    assert (
        f"{UNUSABLE} {theirs / name} leads out of its folder"
        in said(theirs)[name.split("/")[0]][-1]
    )
    with pytest.raises(WeightsError, match="leads out of its folder"):
        load(theirs)


def test_a_whole_file_beside_shards_is_said(theirs):
    """An older file beside newer shards: unusable with the reason for which `load` refuses it, both named."""
    shutil.copy(theirs / T5, theirs / "text_encoder_3/model-00001-of-00001.safetensors")
    shards = dict.fromkeys(load_file(theirs / T5), "model-00001-of-00001.safetensors")
    (theirs / "text_encoder_3/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": shards})
    )
    says = (
        "holds 'model.safetensors' and the shards of 'model.safetensors.index.json', "
        "and nothing says which"
    )
    assert says in said(theirs)["text_encoder_3"][-1] and said(theirs)["text_encoder_3"][
        -1
    ].startswith(UNUSABLE)
    with pytest.raises(WeightsError, match=says):
        load(theirs)
    (theirs / T5).unlink()
    assert not said(theirs)["text_encoder_3"][-1].startswith(UNUSABLE)


def test_what_load_does_not_read_need_not_be_there(theirs):
    """IF's index names a safety checker, which no picture of ours goes through."""
    index = json.loads((theirs / "model_index.json").read_text())
    index |= {
        "safety_checker": ["deepfloyd_if", "IFSafetyChecker"],
        "watermarker": ["deepfloyd_if", "IFWatermarker"],
    }
    (theirs / "model_index.json").write_text(json.dumps(index))
    found = said(theirs)
    del found[WHOLE]
    assert not any(line.startswith(UNUSABLE) for lines in found.values() for line in lines)


def test_one_of_ours_is_scanned_when_asked(ours):
    """A letter's embedding that is no number: the model runs without that letter, and --scan names
    the tensor.
    """
    tensors = load_file(ours / T5)
    tensors["shared.weight"][-1] = torch.nan
    save_file(tensors, ours / T5)
    (told,) = said(ours)[str(ours)]
    assert told.startswith("loads and runs")
    scanned = said(ours, numbers=True)
    assert scanned[str(ours)] == [told] and "'shared.weight'" in scanned["text_encoder_3"][-2]
    assert scanned["text_encoder_3"][-1].endswith("1 with numbers that are none")
    assert scanned["transformer"][-1].endswith("0 with numbers that are none")


def test_a_damaged_model_of_ours_is_said_not_raised(ours, tmp_path):
    """Its index is no JSON, or a part is missing: one line each, and the next model is looked at."""
    (ours / "model_index.json").write_text("{")
    (line,) = said(ours)[str(ours)]
    assert line.startswith(f"{UNUSABLE} {ours / 'model_index.json'} cannot be read as JSON")
    assert said(ours, numbers=True)["small"] == [line]

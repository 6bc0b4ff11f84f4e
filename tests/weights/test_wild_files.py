"""Files as people have them: used, dropped by name with a note, or refused, beside diffusers' own loading."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.originals import originals
from support.small_denoisers import small
from support.wild import END, ONE, PAGE, ROWS, START, table
from textpatch import load, load_denoiser
from textpatch.errors import WeightsError
from textpatch.weights.saving import _denoiser_config

READERS = {"load": load, "load_denoiser": load_denoiser}
ROOMS = {
    "unet": "UNet2DConditionModel",
    "unet_ema": "UNet2DConditionModel",
    "transformer": "SD3Transformer2DModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory, diffusers) -> Path:
    """One small saved folder of each family, and an original file of SDXL's denoiser and VAE."""
    from support import diffusers_pipelines as made

    home = tmp_path_factory.mktemp("wild")
    for name, build in {"sdxl": made.sdxl, "sd3": made.sd3, "if": made.deepfloyd_if}.items():
        build().save_pretrained(home / name)
    narrow = made.t5_encoder(0).config
    narrow.d_model = 64
    type(made.t5_encoder(0))(narrow).save_pretrained(home / "narrow_t5")
    unet = small("SDXL")
    flat = home / "flat" / "unet"
    flat.mkdir(parents=True)
    (flat / "config.json").write_text(json.dumps(_denoiser_config(unet)))
    save_file(unet.state_dict(), flat / "diffusion_pytorch_model.safetensors")
    vae = load_file(home / "sdxl" / "vae" / "diffusion_pytorch_model.safetensors")
    tensors = originals("SDXL", "unet", unet.state_dict()) | originals("SDXL", "vae", vae)
    (home / "file").mkdir()
    save_file({key: value.contiguous() for key, value in tensors.items()}, home / "file" / ONE)
    return home


@pytest.fixture(scope="module")
def wanted(home):
    """Tensors of each base by component, as saved."""
    found = {}
    for base in ("sdxl", "sd3", "if", "flat"):
        for path in sorted((home / base).glob("*/*.safetensors")):
            found[base, path.parent.name] = load_file(path)
    found["file", "unet"] = small("SDXL").state_dict()
    return found


def component(made, name: str) -> torch.nn.Module:
    """A component of what was loaded, which may be a denoiser alone."""
    if not hasattr(made, "denoiser"):
        return made
    if name == "vae":
        return made.decoder.vae
    if name.startswith("text_encoder"):
        return getattr(made.encoders, name)
    return made.denoiser


def same(module: torch.nn.Module, tensors: dict) -> bool:
    """True if the module's tensors are these, whatever prefix transformers gives the names of its CLIP."""
    held = {name.removeprefix("text_model."): value for name, value in module.state_dict().items()}
    asked = {name.removeprefix("text_model."): value for name, value in tensors.items()}
    shared = held.keys() & asked.keys()
    return len(shared) >= len(asked) - 1 and all(
        torch.equal(held[name].double(), asked[name].double()) for name in shared
    )


def theirs(diffusers, row, where: Path, options: dict, home: Path):
    """What diffusers loads in the place of the row's component."""
    import transformers

    if row.base == "file":
        kind = diffusers.UNet2DConditionModel
        return kind.from_single_file(
            where, config=str(home / "flat"), subfolder="unet", local_files_only=True
        )
    name = ROOMS[row.component]
    if row.base == "if" and row.component == "text_encoder":
        name = "T5EncoderModel"
    kind = getattr(diffusers, name, None) or getattr(transformers, name)
    more = {"variant": options["variant"]} if "variant" in options else {}
    folder = where / row.component
    if row.reader == "load_denoiser":
        folder = where
    return kind.from_pretrained(folder, local_files_only=True, **more)


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_what_happens(row, home, wanted, tmp_path, diffusers):
    """The situation is refused in one line, or loads the tensors that were saved, with its note."""
    for name in ("sdxl", "sd3", "narrow_t5"):
        os.symlink(home / name, tmp_path / name)
    os.symlink(home / row.base, tmp_path / "base")
    folder = tmp_path / "model"
    shutil.copytree(home / row.base, folder, copy_function=os.link)
    place = row.change(folder)
    where = place if isinstance(place, Path) else folder
    if row.base == "file" and where == folder:
        where = folder / ONE
    if row.reader == "load_denoiser" and row.base == "flat":
        where = folder / "unet"
    options = row.options(folder)
    if row.refused:
        with pytest.raises(WeightsError) as refusal:
            READERS[row.reader](where, **options)
        said = str(refusal.value)
        assert re.search(row.says, said), said
        assert "\n" not in said and len(said) < 2000
    else:
        made = READERS[row.reader](where, **options)
        notes = getattr(made, "notes", ())
        if row.reader == "load":
            assert not row.says or any(re.search(row.says, note) for note in notes), notes
        if not row.differs:
            name = row.component.removesuffix("_ema")
            assert same(component(made, name), wanted[row.base, name])
    if row.diffusers == "refuses":
        with pytest.raises(Exception):  # noqa: B017 of any kind
            theirs(diffusers, row, where, options, home)
    if row.diffusers == "same":
        other = theirs(diffusers, row, where, options, home)
        name = row.component.removesuffix("_ema")
        assert same(other, wanted[row.base, name])


def test_the_page_has_the_rows():
    """The table of weights/README.md is this list, of sixty situations or more, and no cell is empty."""
    text = PAGE.read_text("utf-8")
    found = text.partition(START)[2].partition(END)[0].strip()
    assert found == table(), "write it anew: python tests/support/wild.py"
    assert len(ROWS) >= 60 and len({row.name for row in ROWS}) == len(ROWS)
    assert all(row.situation and row.happens for row in ROWS)

"""Files as people have them: used, dropped by name with a note, or refused, beside diffusers' own loading."""

import json
import os
import re
import shutil
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from support import costs
from support.costs import require_cheap
from support.originals import originals
from support.planting import plant
from support.small_denoisers import small
from support.wild import END, ONE, PAGE, ROWS, START, THEIRS, edited, table
from textpatch import load, load_denoiser
from textpatch.errors import PatchError, WeightsError
from textpatch.weights import fill, neighbours, strays
from textpatch.weights.doctor import UNUSABLE, examine
from textpatch.weights.reading import files
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
        # with accelerate, diffusers leaves what the files lack on the meta device
        not held[name].is_meta and torch.equal(held[name].double(), asked[name].double())
        for name in shared
    )


PIPELINES = {
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "if": "IFPipeline",
}
# the first note of whatever is loaded
SUMMARY = (
    r".+: \w+Pipeline of (diffusers layout|a single file); tensors .+, run in float32; schedule .+; "
    r"\d+ sites, \S+ to \S+?(; \d+ notes? on what was dropped or decided)?"
)
PATIENCE = 2  # seconds for what diffusers does not end


def theirs(diffusers, row, where: Path, options: dict, home: Path):
    """What diffusers loads in the place of the row's component."""
    import transformers

    if row.whole:
        kind = getattr(diffusers, PIPELINES[row.base])
        return getattr(kind.from_pretrained(where, local_files_only=True), row.component)
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
    # a row may be about the component's own folder
    folder = where / row.component if (where / row.component).is_dir() else where
    return kind.from_pretrained(folder, local_files_only=True, **more)


# what doctor says in other words than `load`
DOCTORS = {"no-vae": "no folder 'vae' .*vae=", "a-lora": "it changes a model and is none"}


def doctors_lines(where: Path, options: dict) -> str:
    """What `textpatch doctor` says of the same files, its error among it."""
    try:
        return "\n".join(examine(where, **options))
    except WeightsError as error:
        return f"{UNUSABLE} {error}"


def require_doctor_to_know(row, where: Path, options: dict) -> None:
    """Doctor says of the row's files what `load` does with them."""
    told = doctors_lines(where, options)
    found = any(phrase in told for phrase in (UNUSABLE, "for pictures:", "and is none"))
    if row.refused:
        assert found and re.search(DOCTORS.get(row.name, row.says), told), told
    elif row.reader == "load":
        assert not found, told


# by default a row is left out where another goes the same way, or a way of saving has it
BY_OTHERS = {
    "all-fp16": "one-variant",
    "bare-unet": "half-a-prefix",
    "bookkeeping": "tables",
    "compiled-blocks": "compiled",
    "ema-beside": "ema-chosen",
    "fp8": "fp8-scaled",
    "fp8-of-comfy": "fp8-scaled",
    "linked-folder-allowed": "linked-file-allowed",
    "metadata-of-another": "metadata-null",
    "metadata-text": "metadata-null",
    "moving-average": "moving-average-chosen",
    "no-class": "custom-class",
    "saved": "test_every_way_of_saving_loads_equal",
    "sft": "original",
    "sharded": "test_every_way_of_saving_loads_equal",
    "unknown-class": "custom-class",
    "unread-projection": "whole-clip",
    "vae-of-another": "encoders-of-another",
    "variant-asked": "variant-chosen",
    "variant-of-shards": "test_every_way_of_saving_loads_equal",
    "with-encoders-of-another": "without-a-vae",
    "wrapped": "compiled",
}


def require_theirs(diffusers, row, where: Path, options: dict, home: Path, tensors: dict) -> None:
    """Diffusers' own loading of the row's files gives what the row says.

    tensors  those of `load`, or where it refuses those that were saved
    """
    asked = diffusers, row, where, options, home
    if row.diffusers == "refuses":
        with pytest.raises(Exception):  # noqa: B017 of any kind
            theirs(*asked)
    elif row.diffusers == "endless":
        with pytest.raises(TimeoutError), interrupted_after(PATIENCE):
            theirs(*asked)
    else:
        assert same(theirs(*asked), tensors) == (row.diffusers == "same")


@contextmanager
def interrupted_after(seconds: int):
    """Raise TimeoutError in the block when it takes longer."""

    def stop(*_) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def require_refusal(row, where: Path, options: dict) -> None:
    """The row is refused in one line that says what it must."""
    with pytest.raises(WeightsError) as refusal:
        READERS[row.reader](where, **options)
    said = str(refusal.value)
    assert re.search(row.says, said), said
    assert "\n" not in said and len(said) < 2000


def loaded(row, where: Path, options: dict, saved: dict) -> dict:
    """Tensors of the row's component, which are those that were saved, after its note was found."""
    made = READERS[row.reader](where, **options)
    notes = getattr(made, "notes", ())
    if row.reader == "load":
        assert not row.says or any(re.search(row.says, note) for note in notes), notes
        assert re.fullmatch(SUMMARY, notes[0]) and ("on what was" in notes[0]) == (len(notes) > 1)
    module = component(made, row.component.removesuffix("_ema"))
    assert row.differs or same(module, saved)
    return module.state_dict()


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[pytest.mark.long] * (row.name in BY_OTHERS))
        for row in ROWS
    ],
)
def test_what_happens(row, home, wanted, tmp_path, diffusers, long):
    """The situation is refused in one line, or loads the tensors that were saved, with its note.

    Diffusers' own loading of the same files gives what the page says.  Doctor refuses what `load` does, and
    finds nothing unusable where `load` does not.  These two are tried by default in some rows, and with
    --long in all.
    """
    folder = prepared(row, home, tmp_path)
    where = place_of(row, folder)
    options = row.options(folder)
    tensors = wanted.get((row.base, row.component.removesuffix("_ema")), {})
    if row.refused:
        require_refusal(row, where, options)
    else:
        tensors = loaded(row, where, options, tensors)
    if long or ROWS.index(row) % 6 == 0:
        require_doctor_to_know(row, where, options)
    if long or ROWS.index(row) % 2 == 0:
        require_theirs(diffusers, row, where, options, home, tensors)


@pytest.mark.long
@pytest.mark.parametrize("row", [row for row in ROWS if row.refused], ids=lambda row: row.name)
def test_a_refusal_is_cheap(row, home, tmp_path):
    """Long, since it is timed; test_what_happens has the same refusals."""
    folder = prepared(row, home, tmp_path)
    require_cheap(READERS[row.reader], place_of(row, folder), **row.options(folder))


@pytest.mark.long
def test_a_costly_refusal_is_noticed():
    """Fault: 60 MB are filled, or a quarter of a second is computed, before a refusal.

    Long, as the tests of cheap refusals are.
    """

    def fills() -> None:
        bytearray(b"1" * (costs.MEGABYTES + 10) * 10**6)
        raise PatchError("late")

    def computes() -> None:
        end = time.process_time() + costs.SECONDS + 0.05
        while time.process_time() < end:
            pass
        raise PatchError("late")

    for late in (fills, computes):
        with pytest.raises(AssertionError):
            require_cheap(late)


def prepared(row, home: Path, tmp_path: Path) -> Path:
    """A copy of a row's base, beside all bases."""
    for name in ("sdxl", "sd3", "narrow_t5"):
        os.symlink(home / name, tmp_path / name)
    os.symlink(home / row.base, tmp_path / "base")
    return Path(shutil.copytree(home / row.base, tmp_path / "model", copy_function=os.link))


def place_of(row, folder: Path) -> Path:
    """File or folder to load after the row's change of a copy of its base."""
    place = row.change(folder)
    if isinstance(place, Path) and (row.base != "file" or place != folder):
        return place
    if row.base == "file":
        return folder / ONE
    if row.base == "flat":
        return folder / "unet"
    return folder


def test_the_page_has_the_rows():
    """The table of weights/README.md is this list, of sixty situations or more, and no cell is empty."""
    text = PAGE.read_text("utf-8")
    found = text.partition(START)[2].partition(END)[0].strip()
    assert found == table(), "write it anew: python tests/support/wild.py"
    assert len(ROWS) >= 60 and len({row.name for row in ROWS}) == len(ROWS)
    assert all(row.situation and row.happens and row.diffusers in THEIRS for row in ROWS)
    assert BY_OTHERS.keys() <= {row.name for row in ROWS}


def base(home, name: str, tmp_path) -> Path:
    return Path(shutil.copytree(home / name, tmp_path / name, copy_function=os.link))


FAULTS = {
    "a scale forgotten": (
        fill.Part,
        "read",
        "if key not in self.scales:",
        "if True:",
        "fp8-scaled",
    ),
    "the average not taken": (
        strays,
        "_averaged",
        "{**kept, **averages}",
        "kept",
        "moving-average-chosen",
    ),
    "a wrapper's prefix kept": (strays, "_unwrapped", 'WRAPPERS.sub("", key)', "key", "compiled"),
    "an index's size believed": (
        files,
        "_note_total",
        "if size != held:",
        "if False:",
        "metadata-null",
    ),
    "neighbours not compared": (
        neighbours,
        "require_neighbours",
        "if wanted != found:",
        "if False:",
        "text-of-another-width",
    ),
    "links followed unasked": (files, "inside", "if follow_links and", "if", "linked-file"),
}


def test_a_flag_of_no_kind_is_refused(home, tmp_path):
    """A word where SDXL's index says whether no prompt is zeros, which any word would switch on."""
    folder = base(home, "sdxl", tmp_path)
    edited("model_index.json", force_zeros_for_empty_prompt="no")(folder)
    with pytest.raises(WeightsError, match="says force_zeros_for_empty_prompt 'no'; give true or"):
        load(folder)


def numbers(module: torch.nn.Module) -> float:
    """Sum of all weights, which a scale or an average of others would change."""
    return float(sum(p.double().sum() for p in module.parameters()))


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_noticed(fault, home, tmp_path, monkeypatch):
    """With the fault the row's model has other numbers, loads where it must not, or is told nothing."""
    owner, function, old, new, name = FAULTS[fault]
    row = next(row for row in ROWS if row.name == name)
    folder = base(home, row.base, tmp_path)
    place = row.change(folder)
    where = folder / ONE if row.base == "file" else place or folder

    def outcome():
        try:
            made = READERS[row.reader](where, **row.options(folder))
        except WeightsError as error:
            return "refused", type(error)
        notes = getattr(made, "notes", ())
        return numbers(component(made, row.component)), len(notes)

    right = outcome()
    plant(monkeypatch, owner, function, old, new)
    assert outcome() != right


def test_scaled_weights_are_their_products(home, tmp_path):
    """fp8 times scale: the same as halved, rounded to 8 bits and doubled again, number by number."""
    row = next(row for row in ROWS if row.name == "fp8-scaled")
    folder = base(home, "file", tmp_path)
    row.change(folder)
    found = load_denoiser(folder / ONE).state_dict()
    wanted = small("SDXL").state_dict()
    for name, value in wanted.items():
        rounded = (value / 2).to(torch.float8_e4m3fn).float() * 2
        assert torch.equal(found[name], rounded) or torch.equal(found[name], value), name
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    assert not torch.equal(found[name], wanted[name])


def test_the_moving_average_is_the_one_in_the_file(home, tmp_path):
    """ema=True: the weights plus one, as the file's average was made, of every tensor of the denoiser."""
    row = next(row for row in ROWS if row.name == "moving-average-chosen")
    folder = base(home, "file", tmp_path)
    row.change(folder)
    found = load_denoiser(folder / ONE, ema=True).state_dict()
    assert all(torch.equal(found[name], v + 1) for name, v in small("SDXL").state_dict().items())


def louder(folder: Path, times: float) -> None:
    """Multiply the first weight of a VAE's decoder."""
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_in.weight"] *= times
    path.unlink()  # which is a link to the fixture's
    save_file(tensors, path, metadata={"format": "pt"})


def test_what_a_vae_says_of_its_numbers_is_honoured(home, tmp_path, diffusers):
    """latents_mean, latents_std and force_upcast: a VAE that overflows in float16 draws what diffusers draws.

    Within a level of 255.  Without the first two it draws another picture, and without the third none.
    """
    folder = base(home, "sdxl", tmp_path)
    louder(folder, 2e4)
    said = {"latents_mean": [0.4, -0.3, 0.2, 0.1], "latents_std": [1.5, 0.5, 2.0, 0.8]}
    edited("vae/config.json", force_upcast=True, **said)(folder)
    half = dict(dtype=torch.float16)
    theirs = diffusers.StableDiffusionXLPipeline.from_pretrained(
        folder, local_files_only=True, **half
    )
    theirs.set_progress_bar_config(disable=True)
    ours = load(folder, **half)
    prompt = "a red sign on a blue wall"
    noise = ours.noise([3])
    call = dict(num_inference_steps=1, guidance_scale=1.0, height=64, width=64)
    (wanted,) = theirs(prompt, latents=noise, **call).images
    (found,) = ours.generate(prompt, seeds=3, steps=1, guidance=1)
    apart = np.abs(np.asarray(found).astype(int) - np.asarray(wanted).astype(int)).max()
    assert apart <= 1 and np.asarray(found).std() > 10
    drawn = ours.decode(noise)[0]
    edited("vae/config.json", latents_mean=None, latents_std=None)(folder)
    assert load(folder, **half).decode(noise)[0] != drawn
    edited("vae/config.json", force_upcast=False)(folder)
    with pytest.raises(PatchError, match="not finite, in torch.float16"):
        load(folder, **half).decode(noise)


def test_a_vae_is_never_made_narrower(home):
    """force_upcast, which is the default, leaves float64 as it is."""
    vae = load(home / "sdxl", dtype=torch.float64).decoder.vae
    assert {value.dtype for value in vae.parameters()} == {torch.float64}


WAYS = {
    "whole": {},
    "shards": {"max_shard_size": "200KB"},
    "a variant": {"variant": "fp16"},
    "a variant in shards": {"variant": "bf16", "max_shard_size": "200KB"},
}


def require_equal(diffusers, pipeline, folder: Path, ways: dict) -> None:
    """A pipeline saved in each way loads with the tensors it has."""
    names = ["vae", "text_encoder", "text_encoder_2", "text_encoder_3", "unet", "transformer"]
    for way, options in ways.items():
        pipeline.save_pretrained(folder / way, **options)
        made = load(folder / way)
        assert re.fullmatch(SUMMARY, made.notes[0])
        for name in names:
            saved = getattr(pipeline, name, None)
            if saved is not None:
                tensors = saved.state_dict()
                tensors = {k: v for k, v in tensors.items() if "embed_tokens" not in k}
                assert same(component(made, name), tensors), (way, name)


def test_every_way_of_saving_loads_equal(diffusers, tmp_path):
    """One random SDXL, saved whole, in shards, as a variant and as a variant in shards."""
    from support import diffusers_pipelines as made

    require_equal(diffusers, made.sdxl(7), tmp_path, WAYS)


@pytest.mark.long
@pytest.mark.parametrize("family", ["stable_diffusion", "sdxl", "sd3", "flux", "deepfloyd_if"])
def test_twenty_pipelines_saved_in_every_way_load_equal(diffusers, tmp_path, family):
    """Long: twenty random pipelines of each family; test_every_way_of_saving_loads_equal covers one."""
    from support import diffusers_pipelines as made

    for seed in range(20):
        require_equal(diffusers, getattr(made, family)(seed), tmp_path / str(seed), WAYS)
        shutil.rmtree(tmp_path / str(seed))

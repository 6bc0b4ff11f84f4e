"""Loading with `mapped=True`: tensors stay in their files, are the same, and the files stay as they are."""

import hashlib
import os
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.disks import files
from support.originals import originals, write_shards
from support.planting import plant
from support.small_denoisers import small
from support.small_models import save_small
from textpatch import load, load_denoiser
from textpatch.errors import PatchError, WeightsError
from textpatch.weights import loading
from textpatch.weights.reading import mapping
from textpatch.weights.reading.files import open_tensors
from textpatch.weights.reading.mapping import Mappings, can_stay
from textpatch.weights.reading.tensors import Tensors

DENOISER = "transformer/diffusion_pytorch_model.safetensors"


def require_equal(a: torch.nn.Module, b: torch.nn.Module) -> None:
    mine, theirs = a.state_dict(), b.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def restored(path, dtype):
    """Store all tensors of a file in a dtype, and return their number."""
    state = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(state, path)
    return len(state)


@pytest.fixture
def folder(tmp_path):
    """A small pipeline stored in float32."""
    folder = save_small(tmp_path / "model")
    for path in folder.glob("*/*.safetensors"):
        restored(path, torch.float32)
    return folder


@pytest.fixture
def copied(monkeypatch):
    """Names of tensors that are read into memory of their own."""
    names, read = [], Tensors.read

    def counted(self, name, room=None):
        names.append(name)
        return read(self, name, room)

    monkeypatch.setattr(Tensors, "read", counted)
    return names


def whole(folder):
    return folder


def sharded(folder):
    """The denoiser in three shards under an index."""
    path = folder / DENOISER
    state = load_file(path)
    path.unlink()
    write_shards(path.parent, "diffusion_pytorch_model", state)
    return folder


@pytest.mark.parametrize("change", [whole, sharded])
def test_a_folder_is_the_same_and_nothing_is_copied(folder, copied, change):
    """Every tensor bit for bit, all of them left in their files, as a note says."""
    plain = load(change(folder))
    number = len(copied)
    copied.clear()
    made = load(folder, mapped=True)
    assert copied == []
    assert any(note.startswith(f"mapped: {number} tensors stay") for note in made.notes)
    require_equal(made, plain)


# fused rows and matrices of convolutions are views; SD3's swapped halves, two of its layers', are not
@pytest.mark.parametrize(
    "kind, component, anew", [("SDXL", "unet", 0), ("SD3", "transformer", 4), ("IF-I", "unet", 0)]
)
def test_an_original_file_is_the_same(tmp_path, copied, kind, component, anew):
    """A single file, of which only what is arranged otherwise is copied."""
    model = small(kind)
    save_file(originals(kind, component, model.state_dict()), tmp_path / "one.safetensors")
    require_equal(load_denoiser(tmp_path / "one.safetensors", mapped=True), model)
    assert len(copied) == anew


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tensors_that_are_stored_otherwise_are_copied_and_told(folder, copied, dtype):
    """A float16 denoiser beside float32 text encoders, loaded in either dtype."""
    halves = restored(folder / DENOISER, torch.float16)
    plain = load(folder, dtype=dtype)
    number = len(copied)
    copied.clear()
    made = load(folder, dtype=dtype, mapped=True)
    if dtype == torch.float32:
        stay = number - halves
    else:
        stay = halves + sum(name.endswith("wo.weight") for name in plain.state_dict())
    assert len(copied) == number - stay
    (note,) = (note for note in made.notes if note.startswith("mapped:"))
    assert f"{stay} tensors stay" in note and f"the other {number - stay} are copied" in note
    require_equal(made, plain)


def test_tensors_at_an_odd_place_are_copied(tmp_path, monkeypatch):
    """A byte in front of all others, behind which no float32 can be used.   Fault: every place will do."""
    state = {"a": torch.zeros(3), "b": torch.zeros(4)}
    save_file(state, tmp_path / "model.safetensors")
    data = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length] + b" "
    moved = len(header).to_bytes(8, "little") + header + data[8 + length :]
    (tmp_path / "moved.safetensors").write_bytes(moved)
    plain, odd = (open_tensors(tmp_path / f"{name}.safetensors") for name in ("model", "moved"))
    assert [can_stay(entry) for entry in plain.values()] == [True, True]
    assert [can_stay(entry) for entry in odd.values()] == [False, False]
    plant(monkeypatch, mapping, "can_stay", "% DTYPES[entry.dtype].itemsize == 0", ">= 0")
    assert can_stay(odd["a"]) and Mappings().tensor(odd["a"]).data_ptr() % 4 == 1


def digests(folder) -> dict[str, str]:
    """Few characters for each file, so that two folders that differ are told at once."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in files(folder).items()}


def require_untouched(folder):
    """Writing to all weights in memory leaves the files, and what is loaded from them later."""
    before = digests(folder)
    made = load(folder, mapped=True)
    for tensor in made.state_dict().values():
        tensor.add_(1)
    assert digests(folder) == before
    require_equal(load(folder, mapped=True), load(folder))


def test_a_weight_written_in_memory_leaves_the_file(folder, monkeypatch):
    """As merging an adapter and rewriting do.   Fault: the mapping is shared with the file."""
    require_untouched(folder)
    shared = "mmap.mmap(__import__('os').open(entry.path, 2), entry.identity[0])"
    private = "mmap.mmap(file.fileno(), entry.identity[0], access=mmap.ACCESS_COPY)"
    plant(monkeypatch, mapping, "_mapped", private, shared)
    with pytest.raises(AssertionError):
        require_untouched(folder)


def test_a_file_that_is_cut_short_is_refused_before_it_is_mapped(folder, monkeypatch):
    """One byte less than its header says."""
    os.truncate(folder / DENOISER, (folder / DENOISER).stat().st_size - 1)
    monkeypatch.setattr(mapping.mmap, "mmap", lambda *_, **__: pytest.fail("a file was mapped"))
    with pytest.raises(WeightsError, match="the tensors end at byte") as refusal:
        load(folder, mapped=True)
    assert refusal.value.code == "truncated"


def require_noticed(path):
    save_file({"a": torch.ones(8)}, path)
    entry = open_tensors(path)["a"]
    other = path.with_suffix(".other")
    save_file({"a": torch.zeros(8)}, other)
    os.replace(other, path)
    with pytest.raises(WeightsError, match="the file changed while it was read"):
        Mappings().tensor(entry)


def test_another_file_under_the_same_name_is_noticed(tmp_path, monkeypatch):
    """Between its header and its mapping.   Fault: identities are not compared."""
    require_noticed(tmp_path / "model.safetensors")
    plant(monkeypatch, mapping, "_mapped", "identity != entry.identity", "False")
    with pytest.raises(pytest.fail.Exception):
        require_noticed(tmp_path / "model.safetensors")


def test_a_file_that_is_cut_later_ends_the_process(tmp_path):
    """By SIGBUS, as the docstring of `load` says, in a process made for it."""
    save_file({"a": torch.ones(1 << 16)}, tmp_path / "model.safetensors")
    tensor = Mappings().tensor(open_tensors(tmp_path / "model.safetensors")["a"])
    os.truncate(tmp_path / "model.safetensors", 8)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)  # the handler of pytest prints
        os._exit(int(tensor[-1]))
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGBUS


def test_a_request_without_effect_is_refused(folder, monkeypatch):
    """No tensor stored as asked for, or a device of its own memory."""
    with pytest.raises(WeightsError, match=r"in torch.bfloat16, and \S+ has \d+ F32; give dtype"):
        load(folder, dtype=torch.bfloat16, mapped=True)
    monkeypatch.setattr(loading, "usable_device", lambda device: torch.device("cuda"))
    for reader in load, load_denoiser:
        with pytest.raises(PatchError, match="mapped=True .* cuda has memory of its own"):
            reader(folder, mapped=True)

"""Tensors of a file read into a module, each key of the file used and each parameter written exactly once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from textpatch.errors import WeightsError
from textpatch.weights.identify import identify_tensors
from textpatch.weights.layouts import Layout, convert, listed, origins
from textpatch.weights.layouts.tensors import same
from textpatch.weights.reading.entry import DTYPES, TensorEntry, empty
from textpatch.weights.reading.mapping import Mappings, can_stay
from textpatch.weights.reading.tensors import Tensors

READERS = 2  # threads that read
LARGE = 1 << 20  # bytes of a tensor from which on a thread is worth its while


@dataclass(frozen=True)
class Part:
    """Tensors of one component in a file.

    tensors  all tensors of the file
    keys     {key in the file: key in the layout}, for this component alone
    layout   how the keys become names in diffusers layout; None means that they are such names
    scales   {key in the file: key of what it is multiplied by}, of weights in 8 bits
    """

    tensors: Tensors
    keys: dict[str, str]
    layout: Layout | None = None
    scales: dict[str, str] = field(default_factory=dict)

    def read(self, key: str, room: Tensor | None = None) -> Tensor:
        """Read the tensor of a key in the file, times its scale if it has one.

        room  as in `read_tensor`
        """
        tensor = self.tensors.read(key, room)
        if key not in self.scales:
            return tensor
        scale = self.tensors.read(self.scales[key]).float()
        if scale.dim() == 1 and len(scale) > 1:
            scale = scale.reshape(-1, *[1] * (tensor.dim() - 1))  # one for each row
        try:
            return (tensor.float() * scale).reshape(tensor.shape)
        except RuntimeError:
            raise WeightsError(
                f"{self.tensors.files[0]}: {key!r} of shape {tuple(tensor.shape)} has scales of shape "
                f"{tuple(scale.shape)}; expected one number, or one for each row"
            ) from None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name in diffusers layout, from the header alone."""
        shapes = {name: self.tensors[key].shape for key, name in self.keys.items()}
        if self.layout is None:
            return shapes
        return convert(shapes, self.layout)

    def origins(self) -> dict[str, list[tuple[str, Callable[[Tensor], Tensor]]]]:
        """Lists of (name in diffusers layout, function of the tensor), by key in the file."""
        if self.layout is None:
            return {key: [(name, same)] for key, name in self.keys.items()}
        in_file = {name: key for key, name in self.keys.items()}
        targets = defaultdict(list)
        for target, (name, function) in origins(in_file, self.layout).items():
            targets[in_file[name]].append((target, function))
        return targets


def fill_module(
    module: nn.Module,
    part: Part,
    *,
    dtype: torch.dtype,
    device=None,
    names=None,
    exact=(),
    mappings: Mappings | None = None,
) -> nn.Module:
    """Give a module made on the meta device the tensors of a part.

    dtype     of all floating-point tensors but the exact ones
    names     {name in diffusers layout: name in the module}; None where they are the same
    exact     ends of the names of tensors kept in float32
    mappings  mappings in which the tensors of `staying` are left; None copies all

    One tensor of the file at a time is in memory beside the module's own.
    Raises WeightsError listing every missing, unexpected and mismatched tensor, before any is read.
    """
    require_module(part, module, names)
    in_module = names or {name: name for name in module.state_dict()}
    device = torch.device(device or "cpu")
    left = set() if mappings is None else {*staying(part, dtype, exact)}
    large = _large(part) if mappings is None and device.type == "cpu" else set()
    room = _room(part)
    state = {}
    with _read_ahead(part, staying(part, dtype, exact, large)) as reading:
        for key, targets in part.origins().items():
            kept = {name: _kept(name, dtype, exact) for name, _ in targets}
            if key in left:
                read = mappings.tensor(part.tensors[key])
            elif key in reading:
                read = reading.pop(key).result()
            elif _is_copied(part.tensors[key], {*kept.values()}, device):
                read = part.read(key, room)
            else:
                read = part.read(key)
            for name, function in targets:
                value = function(read)
                to = kept[name] if value.is_floating_point() else value.dtype
                state[in_module[name]] = value.to(device, to).contiguous()
            del read, value  # so that nothing of this tensor lives on while the next is read
    _assign(module, state)
    return module


@contextmanager
def _read_ahead(part: Part, keys: Iterable[str]) -> Iterator[dict[str, Future[Tensor]]]:
    """Tensors of some keys, read by threads while the block goes on.

    More than half of the time is the system's, which finds fresh memory.  Two threads share it: on two cores
    5.1 GB take 1.6 s in the place of 2.4 s.  When the block fails, what is not begun is not read.
    """
    pool = ThreadPoolExecutor(READERS, "weights")
    try:
        yield {key: pool.submit(part.read, key) for key in keys}
    finally:
        pool.shutdown(cancel_futures=True)


def _kept(name: str, dtype: torch.dtype, exact: Iterable[str]) -> torch.dtype:
    """Dtype in which a floating-point tensor is kept."""
    return torch.float32 if name.endswith(tuple(exact)) else dtype


def _large(part: Part) -> set[str]:
    """Keys of tensors that are worth a thread."""
    entries = {key: part.tensors[key] for key in part.keys}
    return {key for key, entry in entries.items() if entry.end - entry.start >= LARGE}


def staying(
    part: Part, dtype: torch.dtype, exact: Iterable[str] = (), keys: set[str] | None = None
) -> list[str]:
    """Keys of tensors that can be used where they lie in the file, by its header alone.

    They are stored in the dtype that they are kept in, and nothing made of them is another arrangement.

    keys  those that are looked at, None for all
    """
    return [
        key
        for key, targets in part.origins().items()
        if (keys is None or key in keys)
        and key not in part.scales
        and can_stay(part.tensors[key])
        and all(
            _is_view(part.tensors[key], function, _kept(name, dtype, exact))
            for name, function in targets
        )
    ]


def _is_view(entry: TensorEntry, function: Callable[[Tensor], Tensor], kept: torch.dtype) -> bool:
    """True if a function gives values of a tensor that lie beside each other, in the dtype kept."""
    stored = torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
    given = function(stored)
    if given.is_floating_point() and given.dtype != kept:
        return False
    return given.is_contiguous() and (given is stored or given._base is stored)


def _assign(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put tensors in the place of a module's parameters and buffers of the same names.

    `load_state_dict` does so with what else it can, in four times the time.
    """
    modules = dict(module.named_modules())
    for name, value in state.items():
        owner, _, last = name.rpartition(".")
        before = getattr(modules[owner], last)
        if isinstance(before, nn.Parameter):
            value = nn.Parameter(value, requires_grad=before.requires_grad)
        setattr(modules[owner], last, value)


def _room(part: Part) -> Tensor:
    """Bytes that hold any one tensor of the part, each read over the one before.

    Memory that is fresh for each would take longer than the reading.  Bytes that are never written take none.
    """
    entries = [part.tensors[key] for key in part.keys]
    most = max((entry.end - entry.start for entry in entries), default=0)
    return empty(most, f"the largest tensor of {part.tensors.files[0]}")


def _is_copied(entry: TensorEntry, kept: set[torch.dtype], device: torch.device) -> bool:
    """True if nothing of a tensor is kept as it is read, because all dtypes or the device differ."""
    read = DTYPES[entry.dtype]
    return device.type != "cpu" or (read.is_floating_point and read not in kept)


def require_module(part: Part, module: nn.Module, names: dict[str, str] | None = None) -> None:
    """Raise WeightsError unless the part holds exactly a module's tensors.   No tensor is read."""
    meta = module.state_dict()
    in_module = names or {name: name for name in meta}
    require_same(part, {name: tuple(meta[target].shape) for name, target in in_module.items()})


def require_same(part: Part, wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise WeightsError unless the part holds exactly the tensors wanted, by name and shape."""
    held = part.shapes()
    reshaped = [
        f"{name} {held[name]} for {wanted[name]}"
        for name in wanted.keys() & held.keys()
        if held[name] != wanted[name]
    ]
    differences = {
        "missing": wanted.keys() - held.keys(),
        "unexpected": held.keys() - wanted.keys(),
        "of another shape": reshaped,
    }
    lists = [f"{what} {listed(names)}" for what, names in differences.items() if names]
    if lists:
        raise WeightsError(
            f"{part.tensors.files[0]} does not fit its configuration; "
            f"{'; '.join(lists)}; {likely(part)}",
            "misfit",
        )


def likely(part: Part) -> str:
    """Guess at what the file is instead, the closest known model, a LoRA or a moving average."""
    finding = identify_tensors(
        {name: (entry.dtype, entry.shape) for name, entry in part.tensors.items()}
    )
    closest = [match.closest for match in finding.matches if match.closest]
    return "; ".join([f"the closest known model is {', '.join(closest) or 'none'}", *finding.notes])

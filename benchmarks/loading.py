"""Loading a folder of SDXL's shape from the page cache, beside safetensors' own reading of the same files.

    python benchmarks/loading.py --threads 1 --dtype float16 --csv results/loading.csv
    python benchmarks/loading.py --threads 1 --dtype float32 --blocks 1 --append --csv results/loading.csv

A pipeline of random weights is written as a folder in the dtype that it is loaded in (vectors in float16), of
the published sizes but for the blocks of its deepest transformers, of which --blocks are made (SDXL has 10).
It has no VAE. 6 blocks give 5.1 GB in float16, and 1 block gives 6.0 GB in float32. Every way ends with every
byte of the tensors looked at, and runs in a process of its own, in which everything is imported. Before
anything is timed, the tensors are compared bit for bit.

  textpatch         `textpatch.load`, which copies the tensors: the pipeline, tokenizers, checks of every
                    header and configuration included
  textpatch mapped  the same with `mapped=True`, which leaves the tensors in the page cache
  read              `safetensors.torch.load_file` with `backend="pread"`, which copies the tensors, too
  mapped            the same with `backend="mmap"`, which leaves the tensors in the page cache, too
  clock             wall, or processor, the time that the process itself computed beside other work
  gb                of the files
  beyond_mb         the median of the most memory of a process beyond the tensors themselves

Ratios are to `read`. A process of a mapped way counts the pages of the files that it has looked at.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import textpatch
from measure import TIMES, Table, Unequal, arguments, environment, parsed, timed
from textpatch.reference_models.decoders import pixels
from textpatch.reference_models.pipeline import Defaults, Pipeline
from textpatch.reference_models.schedules import Euler
from textpatch.reference_models.text_encoders import SDXLTextEncoders
from textpatch.weights.published import DENOISERS
from textpatch.weights.saving import save_pipeline

COLUMNS = ["way", "dtype", "clock", "gb", "largest_mb", "beyond_mb", *TIMES]
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
BACKENDS = {"read": "pread", "mapped": "mmap"}
MAPPED = {"textpatch": False, "textpatch mapped": True}
WAYS = [*MAPPED, *BACKENDS]
SELF = [sys.executable, __file__]
STATUS = Path("/proc/self/status")
# of a CLIP: width, layers, heads
CLIPS = {"text_encoder": (768, 12, 12), "text_encoder_2": (1280, 32, 20)}
VOCABULARY = 49408
PIECE = 1 << 24  # random numbers that fill tensors piece by piece


def drawn(module: nn.Module, numbers: Tensor) -> nn.Module:
    """A module without data whose tensors are filled with random numbers, each from another place on."""
    module = module.to_empty(device="cpu").eval().requires_grad_(False)
    for place, tensor in enumerate(module.state_dict().values()):
        for piece in tensor.view(-1).split(PIECE):
            piece.copy_(numbers[place : place + len(piece)])
    return module


def written(folder: Path, blocks: int, dtype: torch.dtype) -> None:
    """Write a random pipeline of SDXL's shape, drawn in pixels, as a folder in one dtype."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    generator = torch.Generator().manual_seed(0)
    numbers = (torch.randn(2 * PIECE, generator=generator) / 8).to(dtype)
    tokenizers = textpatch.load("tiny-sdxl").encoders.tokenizers
    for tokenizer in tokenizers:
        tokenizer.model_max_length = 77
    clips = []
    kinds = CLIPTextModel, CLIPTextModelWithProjection
    for kind, (width, layers, heads), tokenizer in zip(
        kinds, CLIPS.values(), tokenizers, strict=True
    ):
        config = CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=width,
            eos_token_id=tokenizer.eos_token_id,
        )
        with torch.device("meta"):
            clips.append(kind(config).to(dtype))
    model, config = DENOISERS["sdxl-base-1.0"]
    depths = (*config.transformer_layers_per_block[:-1], blocks)
    config = replace(config, in_channels=3, out_channels=3, transformer_layers_per_block=depths)
    with torch.device("meta"):
        denoiser = model(config).to(dtype)
    encoders = SDXLTextEncoders(*(drawn(clip, numbers) for clip in clips), tokenizers)
    defaults = Defaults(128, 128, 50, 5.0, micro=(1024, 1024, 0, 0, 1024, 1024))
    parts = encoders, drawn(denoiser, numbers), Euler(), pixels, defaults
    save_pipeline(folder, Pipeline(*parts, "sdxl-shaped"), {}, matrices=dtype)


def by_textpatch(folder: Path, dtype: torch.dtype, mapped: bool) -> dict[str, Tensor]:
    """Tensors of a loaded pipeline, by the names in the files."""
    pipeline = textpatch.load(folder, dtype=dtype, mapped=mapped)
    parts = {"unet": pipeline.denoiser, **dict(pipeline.encoders.named_children())}
    found = {}
    for part, module in parts.items():
        # transformers 5 has dropped the prefix that the files have
        prefix = "" if part == "unet" else "text_model."
        for name, tensor in module.state_dict().items():
            plain = name.removeprefix(prefix)
            found[f"{part}.{'' if plain.startswith('text_proj') else prefix}{plain}"] = tensor
    return found


def by_safetensors(folder: Path, dtype: torch.dtype, backend: str) -> dict[str, Tensor]:
    """Tensors of the same files in the same dtype, by the names in the files."""
    found = {}
    for path in sorted(folder.glob("*/*.safetensors")):
        for name, tensor in load_file(path, backend=backend).items():
            found[f"{path.parent.name}.{name}"] = tensor.to(dtype)
    return found


def loaded(way: str, folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a way loads, after every byte of it was read."""
    if way in MAPPED:
        found = by_textpatch(folder, dtype, MAPPED[way])
    else:
        found = by_safetensors(folder, dtype, BACKENDS[way])
    for tensor in found.values():
        tensor.view(torch.int16).max()
    return found


def require_same(made: dict[str, Tensor], folder: Path) -> None:
    """Raise Unequal unless these are the tensors of the files, each in its own dtype, bit for bit."""
    left = dict(made)
    for path in sorted(folder.glob("*/*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no mapping
                own = left.pop(f"{path.parent.name}.{name}")
                if not torch.equal(own, file.get_tensor(name).to(own.dtype)):
                    raise Unequal(f"{name} of {path.parent.name} is another tensor")
    if left:
        raise Unequal(f"{len(left)} tensors are of no file, {sorted(left)[:3]} among them")


def memory(name: str) -> int:
    """Bytes of this process: VmRSS those it has now, VmHWM the most since they were last counted anew."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def told(way: str, folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Seconds by both clocks, and megabytes beyond the tensors, of one call in this process."""
    textpatch.load("tiny-sdxl")  # imports what every load imports
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM is VmRSS from here on
    before = memory("VmRSS")
    starts = {name: clock() for name, clock in CLOCKS.items()}
    found = loaded(way, folder, dtype)
    seconds = {name: clock() - starts[name] for name, clock in CLOCKS.items()}
    held = sum(tensor.nbytes for tensor in found.values())
    return {**seconds, "beyond_mb": (memory("VmHWM") - before - held) / 1e6}


def spelled(dtype: torch.dtype) -> str:
    """Name of a dtype as the option --dtype takes it."""
    return str(dtype).removeprefix("torch.")


def measure(
    folder: Path, dtype: torch.dtype, rounds: int, threads: int | None, table: Table
) -> None:
    """Compare what is loaded with the files, and then time all ways in turns, each in a new process."""
    for way in MAPPED:
        require_same(loaded(way, folder, dtype), folder)
    command = [*SELF, "--folder", str(folder), "--dtype", spelled(dtype)]
    if threads:
        command += ["--threads", str(threads)]
    runs: dict[str, list[dict]] = {way: [] for way in WAYS}
    order = random.Random(0)
    for _ in range(rounds):
        for way in order.sample(WAYS, len(WAYS)):
            done = subprocess.run([*command, "--one", way], check=True, capture_output=True)
            runs[way].append(json.loads(done.stdout))
    files = sorted(folder.glob("*/*.safetensors"))
    facts = {"dtype": spelled(dtype), "gb": sum(path.stat().st_size for path in files) / 1e9}
    facts["largest_mb"] = VOCABULARY * CLIPS["text_encoder_2"][0] * dtype.itemsize / 1e6
    for clock in CLOCKS:
        taken = {way: [run[clock] for run in runs[way]] for way in WAYS}
        for way in WAYS:
            beyond = float(np.median([run["beyond_mb"] for run in runs[way]]))
            times = timed(taken, way, "read")
            table.add(way=way, clock=clock, beyond_mb=beyond, **facts, **times)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=5)
    parser.add_argument(
        "--blocks", type=int, default=6, help="blocks of the deepest transformers (6)"
    )
    parser.add_argument("--one", choices=WAYS, help="time this way once, in this process")
    parser.add_argument("--write", action="store_true", help="write --folder, and no more")
    parser.add_argument("--folder", type=Path, help="a folder that was written before")
    options = parsed(parser, argv)
    if options.one:
        print(json.dumps(told(options.one, options.folder, options.dtype)))
        return
    if options.write:
        written(options.folder, options.blocks, options.dtype)
        return
    table = Table(COLUMNS, environment(options.device, "safetensors"), options.csv, options.append)
    with tempfile.TemporaryDirectory() as home:
        folder = options.folder or Path(home) / "model"
        if not folder.is_dir():
            # in another process, whose memory ends with it
            writing = [*SELF, "--write", "--folder", str(folder), "--blocks", str(options.blocks)]
            subprocess.run([*writing, "--dtype", spelled(options.dtype)], check=True)
        measure(folder, options.dtype, options.rounds, options.threads, table)


if __name__ == "__main__":
    main()

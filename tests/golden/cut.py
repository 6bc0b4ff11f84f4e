"""Cut one family out of the full set of runs:  python cut.py <full set>/sdxl tests/golden/sdxl"""

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

# the one site of which captured keys and values are kept
SITES = {"sdxl": "13", "if": "7", "sd3": "2"}

source, target = map(Path, sys.argv[1:])
target.mkdir(parents=True, exist_ok=True)
for name in (
    "config.json",
    "scheduler_config.json",
    "runs.json",
    "inputs.safetensors",
    "diffusion_pytorch_model.safetensors",
):
    shutil.copyfile(source / name, target / name)
runs = load_file(source / "runs_float64.safetensors")
kept = {name: tensor for name, tensor in runs.items() if name.endswith(".latents")}
cache = load_file(source / "cache_float64.safetensors")
kept |= {
    f"cache.{name}": tensor
    for name, tensor in cache.items()
    if name.split(".")[-1] == SITES[source.name]
}
save_file(kept, target / "runs_float64.safetensors")

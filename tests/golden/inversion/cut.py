"""Cut the recorded inversions down to what the tests hold.

Of an inversion the latents after every step are kept, of all other runs the last.  `t_emb` are the sinusoids
of every time that SD3's denoiser is told, levels between two steps included, which are not recorded: they are
made of the frequencies that give the recorded ones to the last bit.

    python tests/golden/inversion/cut.py <the full set's inversion folder>
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDERS = "ddim_sdxl", "ddim_if", "official_sdxl", "flow_sd3"
WHOLE = ("invert", "ddim", "renoise_K1", "renoise_K3", "flowedit")
INPUTS = "source", "t_emb", "rf_inversion.sigmas", "rf_inversion.y1"


def main(source: Path, out: Path) -> None:
    """Write inputs.safetensors, runs.safetensors, and the runs' arguments beside them."""
    inputs, runs, said = {}, {}, {}
    for folder in FOLDERS:
        for name, tensor in load_file(source / folder / "runs_float64.safetensors").items():
            run, part = name.split(".")
            if part == "latents" and run != "rf_solver_regenerate_A":
                kept = tensor if run.endswith(WHOLE) else tensor[-1:]
                runs[f"{folder}/{name}"] = kept.contiguous()
        said[folder] = json.loads((source / folder / "runs.json").read_text())
        if folder != "official_sdxl":
            given = load_file(source / folder / "inputs.safetensors")
            wanted = [name for name in given if name in INPUTS or name.endswith(".noise")]
            inputs |= {f"{folder}/{name}": given[name] for name in wanted}
    inputs["flow_sd3/times"], inputs["flow_sd3/t_emb"] = sinusoids(given)
    save_file(inputs, out / "inputs.safetensors")
    save_file(runs, out / "runs.safetensors")
    (out / "runs.json").write_text(json.dumps(said, indent=1) + "\n")


def sinusoids(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Times (K,) and their sinusoids (K, 256), float32."""
    levels = given["sigmas"].double()
    middles = levels[:-1] + (levels[1:] - levels[:-1]) / 2
    clock = torch.arange(8, dtype=torch.float64) / 9
    grid = given["rf_inversion.sigmas"].double()
    times = (torch.cat([levels, middles, clock, grid]) * 1000).float().unique()
    angles = times[:, None] * frequencies(given["sigmas"][:-1] * 1000, given["t_emb"])
    return times, torch.cat([angles.cos(), angles.sin()], dim=1)


def frequencies(times: Tensor, recorded: Tensor) -> Tensor:
    """Frequencies (128,), each within three bits of its power of ten, that give recorded sinusoids best."""
    middle = torch.exp(-torch.arange(128) / 128 * torch.tensor(10000.0).log())
    tried = [middle]
    for end in (torch.zeros(128), torch.ones(128) * 2):
        moved = middle
        for _ in range(3):
            moved = torch.nextafter(moved, end)
            tried.append(moved)
    tried = torch.stack(tried)
    angles = (times[:, None, None] * tried).double()
    off = angles.cos() - recorded[:, None, :128], angles.sin() - recorded[:, None, 128:]
    best = (off[0].abs() + off[1].abs()).sum(0).argmin(0)
    return tried[best, torch.arange(128)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)

"""Cut the recorded safe guidance down to what the tests hold.

Of each run the latents after every step, and of most the denoiser's raw outputs and what the published code
made of them.  Of each folder what its runs began with.  It copies and selects:

    python tests/golden/sld/cut.py <the full set's sld folder>
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

WANTED = {
    "presets": ["weak_near", "medium_near", "strong_near", "max_near"],
    "official_sdxl": ["medium_default", "custom_from_2"],
    "official_if": ["medium_default", "custom_from_2"],
    "official_sd3": ["medium_default", "custom_from_2"],
}
WHOLE = ["official_if/medium_default", "official_sd3/medium_default"]  # latents alone
PARTS = "latents", "raw", "guidance", "momentum", "guided"


def main(source: Path, out: Path) -> None:
    """Write runs.safetensors, the runs' arguments, and inputs.safetensors beside it."""
    tensors, inputs, said = {}, {}, {}
    for folder, names in WANTED.items():
        recorded = load_file(source / folder / "runs_float64.safetensors")
        given = load_file(source / folder / "inputs.safetensors")
        described = json.loads((source / folder / "runs.json").read_text())
        for run in described["runs"]:
            if run["name"] in names:
                key = f"{folder}/{run['name']}"
                said[key] = {
                    "guidance_scale": described["guidance_scale"],
                    "steps": run["steps"],
                    "arguments": run["arguments"],
                    "momentum": run["momentum"],
                }
                for part in PARTS[:1] if key in WHOLE else PARTS:
                    if f"{run['name']}.{part}" in recorded:
                        tensors[f"{key}.{part}"] = recorded[f"{run['name']}.{part}"].contiguous()
        inputs |= {f"{folder}/{name}": tensor.contiguous() for name, tensor in given.items()}
    save_file(tensors, out / "runs.safetensors")
    save_file(inputs, out / "inputs.safetensors")
    (out / "runs.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)

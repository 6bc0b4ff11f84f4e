"""Cut the recorded adapters and closed-form edits down to what the tests hold.

It copies and selects: of the adapters every file, and one batch row of each output; of the edits one key and
one value matrix of each run, and the texts that these read:

    python tests/golden/adapters/cut.py <the full set's folder>
"""

import json
import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

FAMILIES = "sdxl", "if", "sd3"
LEFT_OUT = {"outputs.safetensors", "one_unknown_module.safetensors", "files.json"}
ROWS = [2]  # prompt A
RUNS = "uce", "uce_scaled", "time_1", "time_4", "loco_reg"


def main(source: Path, out: Path) -> None:
    """Write a folder of files and outputs for each family, and the edits beside them."""
    for family in FAMILIES:
        folder = source / "lora" / family
        shutil.copytree(
            folder, out / family, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*LEFT_OUT)
        )
        recorded = load_file(folder / "outputs.safetensors")
        kept = {name: x[ROWS] for name, x in recorded.items() if "misread" not in name}
        save_file(kept, out / family / "outputs.safetensors")
    edits(source / "knowledge", out)


def edits(source: Path, out: Path) -> None:
    """Write knowledge.json and knowledge.safetensors."""
    said = json.loads((source / "edits.json").read_text())
    weights = load_file(source / "weights_float64.safetensors")
    tensors = dict(load_file(source / "inputs.safetensors"))
    for run in RUNS:
        own = sorted(name for name in weights if name.startswith(f"{run}."))
        for part in ("to_k", "to_v"):
            name = [name for name in own if name.endswith(part)][-1]
            tensors[name] = weights[name]
    save_file(tensors, out / "knowledge.safetensors")
    (out / "knowledge.json").write_text(json.dumps(said) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)

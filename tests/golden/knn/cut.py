"""Cut the recorded precision, recall, density and coverage down to what the tests hold.

The features are all of them.  It copies and selects:

    python tests/golden/knn/cut.py <the full set's knn folder>
"""

import json
import shutil
import sys
from pathlib import Path

OURS = {"prdc": "exact_strict", "with_rim": "exact_le"}
SCORES = "precision", "recall", "density", "coverage"


def main(source: Path, out: Path) -> None:
    """Write features.safetensors, and the values of each set and k beside it."""
    shutil.copyfile(source / "features.safetensors", out / "features.safetensors")
    lines = []
    for value in json.loads((source / "values.json").read_text())["values"]:
        line = {"set": value["set"], "k": value["k"]}
        for ours, theirs in OURS.items():
            line[ours] = [value[theirs][score] for score in SCORES]
        lines.append(json.dumps(line))
    (out / "values.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)

"""Scripts of users, and the package as they have it installed.

Run this file to hold them to pyright, as `make lint` does.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tests" / "house" / "user_scripts"
# a mark on a line without a mistake is an error, too
STRICT = {"typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": "error"}


def installed(folder: Path) -> Path:
    """The package as an installation lays it out, with the two outer folders inside it."""
    package = folder / "textpatch"
    package.mkdir()
    for child in (ROOT / "textpatch").iterdir():
        (package / child.name).symlink_to(child)
    for outer in ("reference_models", "weights"):
        (package / outer).symlink_to(ROOT / outer)
    return folder


def pyright() -> int:
    """Exit code of pyright on the scripts, which says itself what it finds."""
    with tempfile.TemporaryDirectory() as name:
        folder = installed(Path(name))
        for script in SCRIPTS.glob("*.py"):
            shutil.copy(script, folder)
        (folder / "pyrightconfig.json").write_text(json.dumps({"include": ["*.py"], **STRICT}))
        command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
        return subprocess.run([*command, "--project", str(folder)], cwd=folder).returncode


if __name__ == "__main__":
    sys.exit(pyright())

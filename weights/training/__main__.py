"""Train a shipped model anew, by  python -m textpatch.weights.training NAME."""

import sys

from textpatch.exits import guarded
from textpatch.weights.training.loop import main

if __name__ == "__main__":
    sys.exit(guarded(main))

"""The command textpatch as `python -m textpatch`."""

import sys

from textpatch.cli import main

if __name__ == "__main__":
    sys.exit(main())

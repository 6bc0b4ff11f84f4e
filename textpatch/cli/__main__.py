"""`python -m textpatch.cli`: what the command textpatch does."""

import sys

from textpatch.cli import main

if __name__ == "__main__":
    sys.exit(main())

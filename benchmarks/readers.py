"""Measure what each reader reads of words whole and broken.

    python benchmarks/readers.py [READER ...]

It runs `textpatch.metrics.calibration`, as `textpatch doctor --readers` does, on more pictures.

  read     pictures in which the word is read, or anything in wordless ones
  low, high  of their share, 95 %
  seconds  a picture, on one thread
"""

from __future__ import annotations

from measure import Table, arguments, environment, parsed
from textpatch.metrics.calibration import calibrated
from textpatch.metrics.readers.named import READERS

COLUMNS = ["reader", "kind", "must", "read", "n", "low", "high", "seconds"]


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("readers", nargs="*", metavar="READER", help="readers by name (all)")
    parser.add_argument("--each", type=int, default=40, help="pictures of each kind (40)")
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device), options.csv, options.append)
    for name in options.readers or READERS:
        for row in calibrated(name, options.each):
            table.add(**row)


if __name__ == "__main__":
    main()

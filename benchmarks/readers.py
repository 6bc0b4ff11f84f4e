"""Measure what each reader reads of words whole and broken.

    python benchmarks/readers.py [READER ...]
    python benchmarks/readers.py --limits

The first runs `textpatch.metrics.calibration`, as `textpatch doctor --readers` does, on more pictures.

  read     pictures in which the word is read, or anything in wordless ones
  low, high  of their share, 95 %
  seconds  a picture, on one thread

The second reads pictures by other dice with `Agreement` at several limits of confidence, of which
`agreement.SURE` was chosen.

  whole, broken  words of the kinds that must and must not be read, and how many of them were
"""

from __future__ import annotations

from measure import Table, arguments, environment, parsed
from textpatch.metrics import PPOCR, Agreement, Tesseract, alphabet_of, wilson
from textpatch.metrics.calibration import KINDS, calibrated, read_of, samples
from textpatch.metrics.readers.named import READERS

COLUMNS = ["reader", "kind", "must", "read", "n", "low", "high", "seconds"]
LIMITS = ["limit", "whole_read", "whole", "broken_read", "broken", "broken_low", "broken_high"]
TRIED = (0.0, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.999)


class Remembered:
    """A reader that reads each of some pictures once at each place, whatever limit is tried.

    The pictures must live as long as it does, as it knows them by their place in memory.
    """

    def __init__(self, reader):
        self.reader = reader
        self.found = {}

    def read(self, images, boxes=None):
        """Readings of the reader, or those that it gave before."""
        boxes = boxes or [None] * len(images)
        keys = [(id(image), str(box)) for image, box in zip(images, boxes, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self.found]
        read = self.reader.read([images[i] for i in new], [boxes[i] for i in new])
        self.found |= {keys[i]: one for i, one in zip(new, read, strict=True)}
        return [self.found[key] for key in keys]

    def describe(self) -> dict:
        """The reader's own description."""
        return self.reader.describe()

    def self_test(self) -> None:
        """The reader's own test."""
        self.reader.self_test()


def limits(each: int) -> list[dict]:
    """Words whole and broken that agreement reads at each limit of TRIED."""
    ppocr = PPOCR()
    counts = {limit: {True: [0, 0], False: [0, 0]} for limit in TRIED}
    for kind in KINDS:
        drawn = samples(kind, each, dice=", validation")
        words = [sample.word for sample in drawn if sample.word]
        if not words:
            continue
        finder = Remembered(ppocr)
        confirmer = Remembered(Tesseract(alphabet=alphabet_of(words), blank=True))
        for limit in TRIED:
            reader = Agreement(finder, confirmer, sure=limit)
            count = counts[limit][kind.must]
            count[0] += read_of(reader.read([sample.picture for sample in drawn]), drawn)
            count[1] += len(drawn)
    rows = []
    for limit, count in counts.items():
        read, n = count[False]
        ends = wilson(read / n, n)
        whole = dict(zip(("whole_read", "whole"), count[True], strict=True))
        broken = dict(broken_read=read, broken=n, broken_low=ends.low, broken_high=ends.high)
        rows.append({"limit": limit, **whole, **broken})
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("readers", nargs="*", metavar="READER", help="readers by name (all)")
    parser.add_argument("--each", type=int, default=40, help="pictures of each kind (40)")
    parser.add_argument(
        "--limits", action="store_true", help="try limits of confidence for agreement instead"
    )
    options = parsed(parser, argv)
    where = environment(options.device)
    if options.limits:
        table = Table(LIMITS, where, options.csv, options.append)
        for row in limits(options.each):
            table.add(**row)
        return
    table = Table(COLUMNS, where, options.csv, options.append)
    for name in options.readers or READERS:
        for row in calibrated(name, options.each):
            table.add(**row)


if __name__ == "__main__":
    main()

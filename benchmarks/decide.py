"""Decide from tables of attention_op.py whether attention.TRITON_IS_FASTER should name a GPU.

    python benchmarks/decide.py CSV ...

A case is a shape, a number of rows, a dtype, one of `rows`, `heads` and `mask`, in which a table is read,
and a way of launching, from Python or as a CUDA graph.  The kernels are faster in a case if the upper
quartile of their time lies below the lower quartile of the time of `sdpa`, which would run otherwise.  A
GPU is named if every case wanted was measured and the kernels are faster in every case measured.  One
case in which they are not faster, or refuse, and `sdpa` stays the choice.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KERNELS = "textpatch triton"
OTHERWISE = "textpatch sdpa"
READS_A_TABLE = ["rows", "heads", "mask"]
GRAPHS = "CUDA graphs"

Case = tuple[str, str, str, str, str]  # shape, rows, dtype, case, how it is launched


@dataclass(frozen=True)
class Decision:
    """The cases of one GPU that the kernels win, those they do not, and those wanted but not measured."""

    gpus: frozenset[str]
    faster: tuple[Case, ...]
    not_faster: tuple[Case, ...]
    missing: tuple[Case, ...]

    @property
    def value(self) -> frozenset[str] | None:
        """The names proposed for TRITON_IS_FASTER.  None where the tables do not decide it."""
        if self.not_faster and len(self.gpus) == 1:
            return frozenset()
        if self.missing or not self.faster or len(self.gpus) != 1:
            return None
        return self.gpus

    def lines(self) -> list[str]:
        """The proposal, and why, as sentences."""
        cases = len(self.faster) + len(self.not_faster)
        counted = f"The kernels are faster in {len(self.faster)} of {cases} cases in which a table is read."
        if self.value is None:
            return ["TRITON_IS_FASTER is not decided.", counted, *self._open()]
        named = ", ".join(repr(name) for name in sorted(self.value))
        proposal = f"frozenset({{{named}}})" if named else "frozenset()"
        lost = [f"Not faster: {', '.join(case)}." for case in self.not_faster]
        return [f"TRITON_IS_FASTER: frozenset[str] = {proposal}", counted, *lost, *self._open()]

    def _open(self) -> list[str]:
        found = []
        if not self.gpus:
            found.append("No table is of a GPU.")
        if len(self.gpus) > 1:
            named = ", ".join(sorted(self.gpus))
            found.append(f"The tables are of several GPUs: {named}; measure one alone.")
        if self.missing:
            found.append(
                f"{len(self.missing)} cases were not measured, first {', '.join(self.missing[0])}."
            )
        return found


def gpu_of(row: dict) -> str | None:
    """The GPU that a row was measured on, as torch names it.  None for a CPU."""
    name, comma, _ = row["environment"].partition(", CUDA ")
    return name if comma else None


def case_of(row: dict) -> Case:
    launched = GRAPHS if GRAPHS in row["environment"] else "from Python"
    return row["shape"], row["rows"], row["dtype"], row["case"], launched


def is_faster(kernels: dict | None, otherwise: dict) -> bool:
    """True where the kernels' upper quartile lies below the other's lower one.

    False where the kernels were not timed.
    """
    if kernels is None or not kernels["median_ms"]:
        return False
    return float(kernels["high_ms"]) < float(otherwise["low_ms"])


def decide(rows: Iterable[dict], wanted: Iterable[Case] = ()) -> Decision:
    """Apply the rule to rows of attention_op.py's tables.

    wanted  the cases that must be among them
    """
    rows = [row for row in rows if row["case"] in READS_A_TABLE and gpu_of(row) is not None]
    ways = {
        way: {case_of(row): row for row in rows if row["way"] == way}
        for way in (KERNELS, OTHERWISE)
    }
    timed = {case: row for case, row in ways[OTHERWISE].items() if row["median_ms"]}
    faster = [case for case, row in timed.items() if is_faster(ways[KERNELS].get(case), row)]
    return Decision(
        gpus=frozenset(gpu_of(row) for row in rows),
        faster=tuple(faster),
        not_faster=tuple(case for case in timed if case not in faster),
        missing=tuple(case for case in wanted if case not in timed),
    )


def rows_of(path: Path) -> list[dict]:
    """The rows of a table, [] where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main(argv: list[str] | None = None) -> None:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("tables", nargs="+", type=Path, metavar="CSV")
    tables = parser.parse_args(argv).tables
    print("\n".join(decide(row for table in tables for row in rows_of(table)).lines()))


if __name__ == "__main__":
    main()

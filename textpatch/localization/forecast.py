"""What a localisation will take, told before it begins, of pipelines that know what their steps take."""

from __future__ import annotations

from dataclasses import dataclass

from textpatch.guidance import Guidance
from textpatch.localization.modes import EXHAUSTIVE
from textpatch.pipelines import DrawsByItself
from textpatch.text import duration


@dataclass(frozen=True)
class Forecast:
    """Cost of the pictures of every site, on all pairs and seeds.

    generations  rows that are drawn
    calls        calls of the denoiser
    seconds      of these calls, as long as each took in the tries
    at_most      True where a search may do with less
    """

    generations: int
    calls: int
    seconds: float
    at_most: bool = False

    def __str__(self) -> str:
        told = "up to " if self.at_most else ""
        return (
            f"{told}{self.generations:,} generations for the sites, {self.calls:,} calls of the model, "
            f"about {duration(self.seconds)}; sets of sites come on top"
        )


def cost_of(
    pipeline: DrawsByItself,
    groups: int,
    tasks: int,
    *,
    mode: str,
    steps: int,
    guidance: float | Guidance,
    micro_batch: int = 64,
) -> Forecast:
    """Forecast the pictures of so many groups, source and target beside them.

    groups  number of sets of sites that are tried
    tasks   number of pairs times seeds
    Raises PatchError as the pipeline's own tries.
    """
    rows = groups + 2
    calls, seconds = pipeline.cost(rows, steps, guidance, micro_batch)
    return Forecast(tasks * rows, tasks * calls, tasks * seconds, mode != EXHAUSTIVE)

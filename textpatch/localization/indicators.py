"""Scores of single sites read in plain generations of the source, without a swap: for a screening to begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from textpatch.errors import PatchError
from textpatch.groups import Group
from textpatch.guidance import as_guidance
from textpatch.localization.attribution import attributions
from textpatch.localization.contribution import contributions
from textpatch.localization.trials import Trials
from textpatch.plan import Plan, Row
from textpatch.progress import counted, phase
from textpatch.prompts.pairs import SOURCE, TARGET, Pair, in_its_words, quoted
from textpatch.runs.work import made_by


@dataclass(frozen=True)
class Reading:
    """One way of reading: what it is called, what it says of a site, and what it takes.

    check    (trials) raises PatchError where it cannot read
    read     (trials, pair, seed) -> {site index: {name: value}} and the source's picture
    shown    the names, the first of them is what sites are kept by
    least    a site is kept whose score is at least this part of the largest
    costs    generations it takes beside the source's own, of the trials
    """

    name: str
    check: Callable[[Trials], None]
    read: Callable
    shown: tuple[str, ...]
    least: float
    costs: Callable[[Trials], int]


def _quoted_words(trials: Trials) -> None:
    if any(quoted(pair.source) != pair.words[0] for pair in trials.pairs):
        raise PatchError(
            f"contribution reads what a quoted word gives, and {trials.pairs[0].words[0]!r} is not quoted; "
            "use another mode"
        )


def _contribution(trials: Trials, pair: Pair, seed: int):
    return contributions(
        trials.pipeline, pair.source, seed=seed, steps=trials.steps, guidance=trials.guidance
    )


def _attribution(trials: Trials, pair: Pair, seed: int):
    return attributions(
        trials.pipeline,
        pair.source,
        in_its_words(pair),
        seed=seed,
        steps=trials.steps,
        guidance=trials.guidance,
        start=trials.start,
    )


def _backward_passes(trials: Trials) -> int:
    """Cost of the backward passes in generations.

    With their calls they take about six times a row's time, and a generation is a row per branch.
    """
    return 6 // len(as_guidance(trials.guidance).branches)


READINGS = {
    reading.name: reading
    for reading in (
        Reading(
            "contribution", _quoted_words, _contribution, ("share", "norm"), 1 / 2, lambda trials: 0
        ),
        Reading(
            "attribution",
            lambda trials: None,
            _attribution,
            ("share", "drop"),
            1 / 10,
            _backward_passes,
        ),
    )
}


class Readings:
    """What a reading says of the sites on some trials, as a score of single sites.

    The sources' pictures stay with the trials, which need them anyway.
    """

    def __init__(self, trials: Trials, reading: Reading):
        reading.check(trials)
        self.trials, self.reading = trials, reading
        self.found: dict[tuple[int, int], dict] = {}

    def score(
        self, groups: Sequence[Group], pairs: int, what: str | None = None
    ) -> list[np.ndarray]:
        """(pairs,) per group of one site: the mean over seeds."""
        units = self.trials.units(pairs)
        with phase("screening"):
            for unit in counted([unit for unit in units if unit not in self.found]):
                record = self._record(unit)
                self.trials.join(record)
                self.found[unit] = record[self.reading.name]
        name = what or self.reading.shown[0]
        values = np.array(
            [[self.found[unit][str(site)][name] for unit in units] for (site,) in groups]
        )
        return list(values.reshape(len(groups), pairs, -1).mean(axis=2))

    def _record(self, unit: tuple[int, int]) -> dict:
        trials, reading, (index, seed) = self.trials, self.reading, unit

        def make() -> dict:
            found, image = reading.read(trials, trials.pairs[index], seed)
            return {
                "generations": 1 + reading.costs(trials),
                reading.name: {str(site): values for site, values in found.items()},
                "pictures": trials.scored({SOURCE: image}, index),
            }

        pair = trials.pairs[index]
        asked = [Row(SOURCE, pair.source, seed), Row(TARGET, pair.target, seed)]
        return trials.once(f"{reading.name}-{index}-{seed}", unit, made_by(asked, Plan()), make)

"""Indicators tell, without a swap, which single sites a screening should look at first.

An indicator gives every site a value in plain generations of the source, see `contribution` and
`attribution`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from textpatch.errors import PatchError
from textpatch.groups import Group
from textpatch.guidance import as_guidance
from textpatch.localization.attribution import attributions
from textpatch.localization.contribution import contributions
from textpatch.localization.trials import Task, Trials
from textpatch.plan import Plan, Row
from textpatch.progress import counted, phase
from textpatch.prompts.pairs import SOURCE, TARGET, Pair, in_its_words, quoted
from textpatch.runs.work import made_by


@dataclass(frozen=True)
class Indicator:
    """One way of telling what a site does without swapping it.

    name   what the indicator is called
    check  check(trials) raises PatchError where the sites cannot be read
    read   read(trials, pair, seed) returns {site index: {name: value}} and the source's picture
    shown  names of the values.  Sites are kept by the first of them
    least  a site is kept if its value is at least this part of the largest
    costs  costs(trials) says how many generations it takes beside the source's own
    """

    name: str
    check: Callable[[Trials], None]
    read: Callable
    shown: tuple[str, ...]
    least: float
    costs: Callable[[Trials], int]


def _require_quoted_words(trials: Trials) -> None:
    """Raise PatchError unless every pair is about its quoted word."""
    if any(quoted(pair.source) != pair.words[0] for pair in trials.pairs):
        raise PatchError(
            f"contribution reads what a quoted word gives, and {trials.pairs[0].words[0]!r} is not quoted; "
            "use another mode"
        )


def _accept(trials: Trials) -> None:
    """Accept any trials."""


def _contribution(trials: Trials, pair: Pair, seed: int):
    return contributions(
        trials.pipeline, pair.source, seed=seed, steps=trials.steps, guidance=trials.guidance
    )


def _no_cost(trials: Trials) -> int:
    """Cost of an indicator that looks on while the source is generated."""
    return 0


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


CONTRIBUTION = Indicator(
    name="contribution",
    check=_require_quoted_words,
    read=_contribution,
    shown=("share", "norm"),
    least=1 / 2,
    costs=_no_cost,
)
ATTRIBUTION = Indicator(
    name="attribution",
    check=_accept,
    read=_attribution,
    shown=("share", "drop"),
    least=1 / 10,
    costs=_backward_passes,
)
INDICATORS = {indicator.name: indicator for indicator in (CONTRIBUTION, ATTRIBUTION)}


class Indications:
    """Scores of single sites by an indicator, on the pairs and seeds of some trials.

    The sources' pictures stay with the trials, which need them anyway.
    Raises PatchError where the indicator cannot read these pairs.
    """

    def __init__(self, trials: Trials, indicator: Indicator) -> None:
        indicator.check(trials)
        self.trials = trials
        self.indicator = indicator
        self.found: dict[Task, dict] = {}

    def score(
        self, groups: Sequence[Group], pairs: int, what: str | None = None
    ) -> list[np.ndarray]:
        """Values of each group on the first pairs, (pairs,), means over seeds.

        groups  of one site each
        what    which value, the one that sites are kept by when None
        """
        tasks = self.trials.tasks(pairs)
        lacking = [task for task in tasks if task not in self.found]
        with phase("screening"):
            for portion in self.trials.portions(lacking, [self._id(task) for task in lacking]):
                for task in counted(portion):
                    record = self._record(task)
                    self.trials.join(record)
                    self.found[task] = record[self.indicator.name]
        name = what or self.indicator.shown[0]
        values = np.array(
            [[self.found[task][str(site)][name] for task in tasks] for (site,) in groups]
        )
        return list(values.reshape(len(groups), pairs, -1).mean(axis=2))

    def _record(self, task: Task) -> dict:
        """Record of one pair and seed, with the source's picture and what the indicator says of each site."""
        trials = self.trials
        indicator = self.indicator
        index, seed = task
        pair = trials.pairs[index]

        def make() -> dict:
            found, image = indicator.read(trials, pair, seed)
            return {
                "generations": 1 + indicator.costs(trials),
                indicator.name: {str(site): values for site, values in found.items()},
                "pictures": trials.scored({SOURCE: image}, index),
            }

        asked = [Row(SOURCE, pair.source, seed), Row(TARGET, pair.target, seed)]
        return trials.once(self._id(task), task, made_by(asked, Plan()), make)

    def _id(self, task: Task) -> str:
        """Id of the record of a pair and seed."""
        pair, seed = task
        return f"{self.indicator.name}-{pair}-{seed}"

"""The greedy search of the official code for the heads of the localised sites that do their work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from textpatch.groups import Group
from textpatch.localization.racing import Score
from textpatch.localization.trials import Trials
from textpatch.metrics import f1_of_means
from textpatch.metrics.intervals import Statistic, gain, share_interval, statistic_of
from textpatch.ports.shipped import pipeline_sites
from textpatch.progress import phase
from textpatch.sites import Selectors, select_sites
from textpatch.stored import HeadSearch


def head_search(trials: Trials, sites: Selectors) -> HeadSearch:
    """Find the heads that, swapped alone, score as all heads of the sites do.

    trials  pairs, seeds and model to search on
    sites   a selector as for `select_sites`.  The heads of several sites are searched together
    Returns {"sites", "heads", "steps"}.

    - "heads" lists (site, head) of all heads needed.
    - "steps" says of each step which head was taken away, the F1 towards the target of the heads left and
      of the heads taken so far, and what the heads taken lack of the F1 of all heads.  See `take_away`.

    For n heads about n^2 / 2 groups are made, on all pairs and seeds.
    Raises PatchError for unknown sites.
    """
    chosen = select_sites(pipeline_sites(trials.pipeline), sites)
    heads = [(site.index, head) for site in chosen for head in range(site.text_heads)]
    with phase("heads"):
        steps = take_away(trials.score, heads, len(trials.pairs), f1_of_means)
    return {
        "sites": [site.index for site in chosen],
        "heads": [list(head) for head in steps[-1].group],
        "steps": [asdict(step) for step in steps],
    }


@dataclass(frozen=True)
class Taken:
    """One unit taken away by `take_away`.

    unit     the unit
    left     score of all units that are left
    group    all units taken so far
    alone    score of the units taken so far, swapped alone
    missing  gain of all units over the units taken so far
    """

    unit: object
    left: dict[str, float]
    group: Group
    alone: dict[str, float]
    missing: dict[str, float]


def take_away(
    score: Score, units: Sequence, pairs: int, statistic: Statistic = np.mean
) -> list[Taken]:
    """Take units away until those taken, swapped alone, score as all units do.

    The next unit taken is the one without which the score of the units left falls lowest.
    At the latest the search ends with all units taken.  (official code, head search)
    """
    left = list(units)
    taken: list[Taken] = []
    (whole,) = score([tuple(units)], pairs)
    while left:
        values = score([tuple(unit for unit in left if unit != one) for one in left], pairs)
        worst = min(range(len(left)), key=lambda i: (statistic_of(values[i], statistic), i))
        unit = left.pop(worst)
        group = tuple(sorted([unit, *(step.unit for step in taken)]))
        (alone,) = score([group], pairs)
        missing = gain(whole, alone, statistic)
        of_those_left = share_interval(values[worst], statistic)
        taken.append(Taken(unit, of_those_left, group, share_interval(alone, statistic), missing))
        if missing["value"] <= 0:
            break
    return taken

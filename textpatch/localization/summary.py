"""The result of a localisation as plain data, with means, intervals, ranks, and the way that led to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from textpatch.groups import Group, group_name, row_name
from textpatch.guidance import described
from textpatch.localization.modes import Request, all_alone
from textpatch.localization.scores import all_scores, chance_levels
from textpatch.localization.screening import Screening
from textpatch.localization.search import Step, responsible
from textpatch.localization.trials import Trials
from textpatch.localization.unsettled import open_comparisons
from textpatch.metrics import f1_of_means
from textpatch.metrics.intervals import ranking, share_interval
from textpatch.metrics.readers.strictness import over_reading
from textpatch.ports.shipped import pipeline_sites
from textpatch.prompts.pairs import SOURCE, TARGET, Pair
from textpatch.report.result import SCHEMA_VERSION


def best_first(trials: Trials, groups: Sequence[Group]) -> list[Group]:
    """Groups by their score on all pairs, the best first."""
    order = ranking(trials.score(groups, len(trials.pairs)), f1_of_means)
    return [groups[i] for i in order]


def summarise(
    trials: Trials,
    asked: Request,
    screening: Screening,
    beside: dict[Group, dict],
    grown: list[Step] | None,
) -> dict:
    """Result of a search as plain data, the content of results.json.

    asked   the request, whose groups are scored
    beside  what the mode knows of each group beside its score
    grown   steps of the responsible set's growth, None if no set was grown
    Measured groups are ranked by F1 towards the target.  After them come those screened out, by what
    screened them out.  One of these may have joined the set all the same.  Alone it does little, and with
    the others it was measured on all pairs.
    """
    records = trials.records
    labels = _labels(asked.groups)
    measured = _measured(records, asked.groups)
    out = [group for group in screening.ranked if group not in measured]
    entries = []
    for group in asked.groups:
        status = {"state": "measured", "pairs": len(trials.pairs)}
        if group in out:
            status = {"state": _state(group, grown), **screening.seen[group]}
        entries.append(
            {
                "site": labels[group],
                "group": list(group),
                **_of_sites(trials, group),
                **all_scores(records, row_name(group)),
                "status": status,
                **beside.get(group, {}),
            }
        )
    result = {
        "schema_version": SCHEMA_VERSION,
        **_facts(trials),
        **_what(trials.pairs),
        "mode": asked.mode,
        "baselines": {side: all_scores(records, side) for side in (SOURCE, TARGET)},
        "chance": chance_levels(trials.pairs, blanks=trials.blanks),
        "sites": entries,
        "ranked": [labels[group] for group in [*best_first(trials, measured), *out]],
        "set": _set(trials, grown),
        "gaps": [
            {**gap, "kept": labels[gap["kept"]], "next": labels[gap["next"]]}
            for gap in screening.gaps
        ],
        "generations": _generations(trials, len(asked.groups)),
        "pairs_list": [_listed(pair) for pair in trials.pairs],
    }
    return result | {"unsettled": open_comparisons(result, records)}


def _labels(groups: Sequence[Group]) -> dict[Group, int | str]:
    """Name of each group in the result, its site's index where all groups are single sites."""
    if all_alone(groups):
        return {group: group[0] for group in groups}
    return {group: group_name(group) for group in groups}


def _of_sites(trials: Trials, group: Group) -> dict:
    """Facts of the sites of a group."""
    known = pipeline_sites(trials.pipeline)
    sites = [known[index] for index in group]
    return {
        "name": " + ".join(site.name for site in sites),
        "parameters": sum(site.parameters for site in sites),
        "kind": sites[0].kind,
    }


def _measured(records: Sequence[dict], groups: Sequence[Group]) -> list[Group]:
    """Groups that have a picture in every record."""
    return [
        group
        for group in groups
        if all(row_name(group) in record["pictures"] for record in records)
    ]


def _state(group: Group, grown: list[Step] | None) -> str:
    """Word for what became of a group that was screened out."""
    if grown is not None and group[0] in responsible(grown):
        return "joined"
    return "screened out"


def _facts(trials: Trials) -> dict:
    """Facts of the run that made the pictures."""
    parameters = sum(p.numel() for p in trials.pipeline.denoiser.parameters())
    return dict(
        model=trials.pipeline.name,
        parameters=parameters,
        pairs=len(trials.pairs),
        seeds=list(trials.seeds),
        steps=trials.steps,
        guidance=described(trials.guidance),
        start=trials.start,
        branch=trials.branch,
        ocr=trials.ocr.describe(),
        over_reading=over_reading(trials.ocr),
    )


def _what(pairs: Sequence[Pair]) -> dict:
    """Attribute in which the pairs differ, where it is not the word alone."""
    differ = sorted({pair.what for pair in pairs})
    if differ == [Pair.what]:
        return {}
    return {"what": " or ".join(differ)}


def _listed(pair: Pair) -> dict:
    word, target_word = pair.words
    return {
        "source": pair.source,
        "target": pair.target,
        "word": word,
        "target_word": target_word,
    }


def _set(trials: Trials, grown: list[Step] | None) -> dict | None:
    """Responsible set with its score, and every step towards it.

    The score of an empty set is that of no swap.  Each step is told on the pairs that decided it.
    """
    if grown is None:
        return None
    sites = responsible(grown)
    steps = [
        {**asdict(step), "added": list(step.added), "group": list(step.group)} for step in grown
    ]
    (values,) = trials.score([sites], len(trials.pairs))
    return {"sites": list(sites), "score": share_interval(values, f1_of_means), "steps": steps}


def _generations(trials: Trials, groups: int) -> dict:
    """Rows generated, beside what one run for the target and one for each site would come to.

    Each pair and seed is counted.
    """
    one_by_one = (1 + groups) * len(trials.pairs) * len(trials.seeds)
    return {"made": trials.generations, "one_by_one": one_by_one}

"""The result of a localisation as plain data: means, intervals, ranks, and how the search came to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from textpatch.groups import Group, group_name, row_name
from textpatch.guidance import described
from textpatch.localization.scores import all_scores
from textpatch.localization.search import Screening, Step, responsible
from textpatch.localization.trials import Trials
from textpatch.metrics import f1_of_means
from textpatch.metrics.intervals import interval, ranking
from textpatch.ports.shipped import find_sites
from textpatch.prompts.pairs import SOURCE, TARGET, Pair
from textpatch.report.result import SCHEMA_VERSION


def all_alone(groups: Sequence[Group]) -> bool:
    return all(len(group) == 1 for group in groups)


def best_first(trials: Trials, groups: Sequence[Group]) -> list[Group]:
    """Groups by their score on all pairs."""
    order = ranking(trials.score(groups, len(trials.pairs)), f1_of_means)
    return [groups[i] for i in order]


def summarise(
    trials: Trials,
    mode: str,
    groups: list[Group],
    screening: Screening,
    beside: dict[Group, dict],
    grown: list[Step] | None,
) -> dict:
    """Means and intervals of all records, the sites ranked, and how the search came to them.

    Measured sites are ranked by F1 towards the target, those screened out after them by what screened them out.
    One of these may have joined the set all the same: alone it does little, with the others it was measured on all pairs.
    """
    records, pairs = trials.records, trials.pairs
    measured = [
        group
        for group in groups
        if all(row_name(group) in record["pictures"] for record in records)
    ]
    out = [group for group in screening.ranked if group not in measured]
    label = lambda group: group[0] if all_alone(groups) else group_name(group)  # noqa: E731
    entries = []
    for group in groups:
        status = {"state": "measured", "pairs": len(pairs)}
        if group in out:
            joined = all_alone(groups) and grown is not None and group[0] in responsible(grown)
            status = {"state": "joined" if joined else "screened out", **screening.seen[group]}
        sites = [find_sites(trials.pipeline.denoiser)[index] for index in group]
        named = {
            "site": label(group),
            "group": list(group),
            "name": " + ".join(site.name for site in sites),
            "parameters": sum(site.parameters for site in sites),
        }
        entries.append(
            {
                **named,
                "kind": sites[0].kind,
                **all_scores(records, row_name(group)),
                "status": status,
                **beside.get(group, {}),
            }
        )
    words = [dict(zip(("word", "target_word"), pair.words)) for pair in pairs]
    return {
        "schema_version": SCHEMA_VERSION,
        **_facts(trials),
        **_what(pairs),
        "mode": mode,
        "baselines": {side: all_scores(records, side) for side in (SOURCE, TARGET)},
        "sites": entries,
        "ranked": [label(group) for group in [*best_first(trials, measured), *out]],
        "set": None if grown is None else _set(trials, grown),
        "gaps": [
            {**gap, "kept": label(gap["kept"]), "next": label(gap["next"])}
            for gap in screening.gaps
        ],
        "generations": _generations(trials, len(groups)),
        "pairs_list": [{"source": p.source, "target": p.target, **w} for p, w in zip(pairs, words)],
    }


def _facts(trials: Trials) -> dict:
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
    )


def _what(pairs: Sequence[Pair]) -> dict:
    """What the pairs differ in, where it is not the word alone."""
    differ = sorted({pair.what for pair in pairs})
    return {} if differ == [Pair.what] else {"what": " or ".join(differ)}


def _set(trials: Trials, grown: list[Step]) -> dict:
    """The responsible set and its score, of no swap if it is empty; every step towards it, on the pairs that decided it."""
    sites = responsible(grown)
    steps = [
        {**asdict(step), "added": list(step.added), "group": list(step.group)} for step in grown
    ]
    (values,) = trials.score([sites], len(trials.pairs))
    return {"sites": list(sites), "score": interval(values, f1_of_means), "steps": steps}


def _generations(trials: Trials, groups: int) -> dict:
    """Rows generated, each pair and seed counted; and what one run for the target and one per site come to."""
    one_by_one = (1 + groups) * len(trials.pairs) * len(trials.seeds)
    return {"made": trials.generations, "one_by_one": one_by_one}

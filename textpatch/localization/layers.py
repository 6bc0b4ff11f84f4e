"""Which sites carry the word: swap the target's text K and V into the source's run there, and read the pictures.

    exhaustive    every site alone on every prompt pair (ICLR 2025, sec. 4.2): L + 2 pictures per pair and seed
    staged        every site alone on a few pairs, those that may carry the word on all
    contribution  plain generations on a few pairs, read without a swap; the sites they point at as in staged
    attribution   the same, read by a backward pass at every step

Each ends with the responsible set: the best site, and with it what adds most, while the score clearly rises.  What was
screened out may join it, but for sites whose share by contribution or attribution is next to nothing (NOTHING).
The last three make the source's and the target's own pictures on the few pairs alone: a score needs neither.  The
target still runs on every pair where its text evolves with its picture; elsewhere its prompt is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textpatch.errors import PatchError, closest
from textpatch.groups import Group, row_name
from textpatch.guidance import Guidance
from textpatch.localization.heads import head_search
from textpatch.localization.indicators import READINGS
from textpatch.localization.modes import FIRST, MODES
from textpatch.localization.search import Screening, Step, grow
from textpatch.localization.start_step import start_curve
from textpatch.localization.summary import all_alone, best_first, summarise
from textpatch.localization.trials import Trials, checked_pairs
from textpatch.metrics import f1_of_means
from textpatch.pipelines import SupportsPairs, SupportsSampling, require_parts
from textpatch.ports.shipped import find_sites
from textpatch.progress import phase
from textpatch.prompts.pairs import require_other_texts
from textpatch.report.headline import answer
from textpatch.report.page import summary_html
from textpatch.report.terminal import table
from textpatch.sites import select_sites


@dataclass(frozen=True, repr=False)
class Localization:
    """result: the scores as plain data, the content of results.json.  records: one dict per pair and seed;
    their pictures are PIL images, or paths in the run folder if there was one."""

    result: dict
    records: list[dict]

    @property
    def ranked(self) -> list[tuple[int, ...]]:
        """The groups of sites, best first."""
        groups = {entry["site"]: tuple(entry["group"]) for entry in self.result["sites"]}
        return [groups[site] for site in self.result["ranked"]]

    def __repr__(self) -> str:
        return f"{table(self.result)}\n{answer(self.result)}"

    def _repr_html_(self) -> str:
        return summary_html(self.result, self.records)


def localize(
    pipeline: SupportsSampling,
    pairs: Sequence,
    *,
    mode: str = "exhaustive",
    sites="all",
    groups: Sequence[Sequence[int]] | None = None,
    keep: int | None = None,
    first: int | None = None,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    start: int = 0,
    branch: str = "both",
    ocr=None,
    run=None,
    shard: tuple[int, int] | None = None,
    micro_batch: int = 64,
    starts: bool = False,
    heads: bool = False,
) -> Localization:
    """Score every site alone, or screen first and score exactly those kept, on every prompt pair and seed.

    pairs   (source, target) prompts, each with quoted text; or Pairs, whose `scored` says how readings agree
    mode    "exhaustive", "staged", "contribution" or "attribution", see the module docstring
    sites   which to try, each alone; groups, sets of site indices tried together, replaces it when given
    keep    how many a screening keeps.  When None, staged keeps those that clearly beat no swap, contribution
            those with at least half of the largest share, attribution those with a tenth
    first   how many pairs a screening begins with, 4 when None; for sites still in doubt it doubles them
    start   first patched step, 0 = noisiest; branch "both" guidance branches (official) or "cond"
    ocr     a reader with `read(images, box=)`, a text each, `describe()`, plain data, and `self_test()`, which raises
            where it cannot read; tesseract when None
    run     a textpatch.Run: what is finished is kept there and is not run again
    shard   (i, n): an exhaustive search's pictures of every n-th pair and seed alone, from the i-th on, into the run
            that all n share under worker names of their own; the shard that ends last goes on to the result
    starts  the result's "start_curve" is that of the responsible set, of the best group where no set was grown;
            heads: its "head_search", the heads of these sites that do their work.  Neither is among its generations
    Scores are means over pairs and seeds with 95 % intervals over pairs, see `trials.scores`.
    Raises PatchError for unknown sites, a start outside the run or a mode's options where they have no effect,
    OCRError if no text can be read, Unfinished while other shards are.
    """
    pairs, groups = list(pairs), _groups(pipeline, sites, groups)
    _check_search(mode, keep, first, groups, len(pairs))
    _check_shard(shard, mode)
    trials = Trials(
        pipeline,
        pairs,
        seeds=seeds,
        steps=steps,
        guidance=guidance,
        start=start,
        branch=branch,
        ocr=ocr,
        run=run,
        micro_batch=micro_batch,
    )
    require_other_texts(trials.pairs)
    if shard is not None:
        trials.share(groups, shard)
    with phase("sites"):
        screening, beside = MODES[mode](trials, groups, keep, first or FIRST)
        trials.measure(screening.kept)
    grown = (
        _grown(trials, screening, first or FIRST) if all_alone(groups) and len(pairs) > 1 else None
    )
    found = Localization(summarise(trials, mode, groups, screening, beside, grown), trials.records)
    found.result.update(_further(trials, found, starts, heads))
    return found


def check(
    pipeline,
    pairs: Sequence,
    *,
    mode: str = "exhaustive",
    sites="all",
    groups=None,
    keep: int | None = None,
    first: int | None = None,
    seeds: Sequence[int] = (0,),
    steps: int,
    start: int = 0,
    shard: tuple[int, int] | None = None,
) -> None:
    """Raise what `localize` would raise for a request it cannot carry out.  Nothing is generated."""
    _check_search(mode, keep, first, _groups(pipeline, sites, groups), len(pairs))
    _check_shard(shard, mode)
    require_other_texts(checked_pairs(pipeline, pairs, seeds=seeds, steps=steps, start=start))


def _check_search(
    mode: str, keep: int | None, first: int | None, groups: list[Group], pairs: int
) -> None:
    if len(set(groups)) != len(groups):
        raise PatchError(
            f"the same set of sites is asked for twice among {', '.join(map(row_name, groups))}; name it once"
        )
    if mode not in MODES:
        raise PatchError(f"no mode {mode!r}{closest(mode, MODES)}")
    if mode == "exhaustive" and (keep, first) != (None, None):
        raise PatchError(
            f"keep is {keep} and first {first}, and an exhaustive search screens nothing; "
            "leave them out, or give a mode that screens"
        )
    if mode != "exhaustive" and pairs < 2:
        raise PatchError(
            f"prompt pairs given to mode {mode!r}: {pairs}; an interval over pairs needs two"
        )
    if mode != "exhaustive" and first is not None and first < 2:
        raise PatchError(
            f"first is {first}, so screening would begin with that many; an interval over pairs needs two"
        )
    if mode in READINGS and not all_alone(groups):
        raise PatchError(
            f"{mode} scores single sites, and sets of them were asked for; use another mode"
        )
    if mode != "exhaustive" and len(groups) < 2:
        raise PatchError(
            f"a screening of {len(groups)} sites was asked for; give two or more, or mode 'exhaustive'"
        )
    if keep is not None and not 1 <= keep < len(groups):
        raise PatchError(
            f"keep is {keep} of {len(groups)} sites; keep at least one and fewer than there are"
        )


def _check_shard(shard: tuple[int, int] | None, mode: str) -> None:
    if shard is None:
        return
    if not 0 <= shard[0] < shard[1]:
        raise PatchError(
            f"no shard {shard[0]}/{shard[1]}; of n shards the first is 0/n, the last n-1/n"
        )
    if mode != "exhaustive":
        raise PatchError(
            f"a shard of mode {mode!r} was asked for; only an exhaustive search can be divided, the others "
            "go by what they have seen"
        )


def _groups(pipeline, sites, groups) -> list[Group]:
    require_parts(pipeline, "localize", SupportsSampling, SupportsPairs)
    known = find_sites(pipeline.denoiser)
    if groups is None:
        return [(site.index,) for site in select_sites(known, sites)]
    return [tuple(site.index for site in select_sites(known, list(group))) for group in groups]


# --- the result


def _further(trials: Trials, found: Localization, starts: bool, heads: bool) -> dict:
    sites = (found.result["set"] or {}).get("sites") or found.ranked[0]
    curve = {"start_curve": start_curve(trials, sites)} if starts else {}
    return curve | ({"head_search": head_search(trials, sites)} if heads else {})


def _grown(trials: Trials, screening: Screening, first: int) -> list[Step]:
    """The growth of the responsible set: from the best site measured, by all that are not barred."""
    measured = best_first(trials, screening.kept)
    others = [group for group in screening.ranked if group not in (*measured, *screening.barred)]
    ranked = [site for (site,) in [*measured, *others]]
    with phase("growing the set"):
        return grow(
            trials.score, ranked, len(trials.pairs), f1_of_means, first=first, least=screening.pairs
        )

"""Localisation finds the sites that carry the word.

The target's text K and V are swapped into the source's run at a site, and the pictures are read.

    exhaustive    every site alone on every prompt pair, L + 2 pictures per pair and seed
                  (ICLR 2025, sec. 4.2)
    staged        every site alone on a few pairs, then those that may carry the word on all pairs
    contribution  plain generations of a few pairs, read without a swap, then the sites they point at
                  as in staged
    attribution   the same, read by a backward pass at every step

On FEWEST pairs or more each mode ends with the responsible set.  It begins with the best site, and the site
that adds most joins next, for as long as the score clearly rises.  Sites that were screened out may join it.
Sites whose share by contribution or attribution is next to nothing may not (`modes.LEAST_SHARE`).

The screening modes generate the plain source and target pictures for the first pairs only, because scores
do not need them, and those of the others on request, to be seen.
Where text K and V evolve with the picture (MMDiT) the target must still run on every pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, cast

from textpatch.errors import PatchError
from textpatch.groups import Group
from textpatch.guidance import Guidance, require_branch
from textpatch.localization import word_by_word
from textpatch.localization.heads import head_search
from textpatch.localization.modes import MODES, Request, all_alone
from textpatch.localization.preconditions import checked_pairs
from textpatch.localization.scores import LETTERING, AnyBackground
from textpatch.localization.screening import Screening
from textpatch.localization.search import Step, grow
from textpatch.localization.start_step import require_startable, start_curve
from textpatch.localization.summary import best_first, summarise
from textpatch.localization.trials import Trials
from textpatch.localization.word_by_word import require_several_words
from textpatch.metrics import FEWEST, f1_of_means
from textpatch.metrics.readers.named import AnyReader
from textpatch.pipelines import (
    DrawsByItself,
    SupportsPairs,
    SupportsSampling,
    require_parts,
    require_sampling,
)
from textpatch.ports.shipped import site_indices
from textpatch.progress import phase
from textpatch.prompts.pairs import AnyPair, Pair, require_other_texts
from textpatch.report.headline import answer, verdict
from textpatch.report.keeping import frame_of, keep, manifest_of
from textpatch.report.page import page_of, summary_html
from textpatch.report.reader import told_reader
from textpatch.report.result import responsible_sites
from textpatch.report.terminal import table
from textpatch.runs.folder import Run
from textpatch.runs.workers import Worker
from textpatch.sites import Selectors
from textpatch.stored import LocalizationResult, Record, ScreenedSite, SiteScores

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, repr=False)
class Localization:
    """Result of `localize`.

    result   the scores as plain data, the content of results.json
    records  one dict for each pair and seed.  Their pictures are PIL images, or paths in the run folder if
             there was one
    run      that run folder, None if there was none
    """

    result: LocalizationResult
    records: list[Record]
    run: Run | None = field(default=None, compare=False)

    @property
    def ranked(self) -> list[tuple[int, ...]]:
        """Groups of sites, the best first."""
        groups = {entry["site"]: tuple(entry["group"]) for entry in self.result["sites"]}
        return [groups[site] for site in self.result["ranked"]]

    @property
    def set(self) -> tuple[int, ...]:
        """Indices of the responsible set's sites, () where it is empty or was not sought."""
        return tuple(responsible_sites(self.result))

    @property
    def headline(self) -> str:
        """Which sites carry the word, in one sentence."""
        return verdict(self.result)[0]

    def scores(self, site: int | str) -> SiteScores:
        """All scores of a site, by its index or name, or of a set such as "1+2".

        Each has a value and the ends of its interval.
        Raises PatchError for a site that was not tried, and for one that was screened out.
        """
        entries = self.result["sites"]
        for entry in entries:
            if site in (entry["site"], entry["name"]):
                return _with_scores(entry)
        tried_ = ", ".join(str(entry["site"]) for entry in entries)
        raise PatchError(f"scores of site {site!r} were asked for; tried were {tried_}")

    def table(self) -> str:
        """All sites with their scores, the best first."""
        return table(self.result)

    def to_pandas(self) -> DataFrame:
        """Rows of results.csv, the two runs and then the sites.  Raises PatchError without pandas."""
        return frame_of(self.result)

    def report(self) -> str:
        """The page about this localisation, as HTML that stands alone."""
        return page_of(self.result, self.records, self.run, manifest_of(self.result, self.run))

    def save(self, folder: str | PathLike[str]) -> Run:
        """Write a run folder with the pictures, tables and page, as `textpatch localize` does.

        Raises StoreError for a folder that holds another run or other things.
        """
        return keep(self.result, self.records, self.run, folder)

    def __repr__(self) -> str:
        return f"{table(self.result)}\n{told_reader(self.result)}\n{answer(self.result)}"

    def _repr_html_(self) -> str:
        return summary_html(self.result, self.records)


def localize(
    pipeline: SupportsSampling | DrawsByItself,
    pairs: Sequence[AnyPair],
    *,
    mode: str = "exhaustive",
    sites: Selectors = "all",
    groups: Sequence[Sequence[int]] | None = None,
    keep: int | None = None,
    first: int | None = None,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    start: int = 0,
    branch: str = "both",
    ocr: AnyReader | None = None,
    reader: AnyReader | None = None,
    background: AnyBackground = LETTERING,
    run: Run | None = None,
    shard: tuple[int, int] | Worker | None = None,
    micro_batch: int = 64,
    starts: bool = False,
    heads: bool = False,
    each_word: bool = False,
    ends: bool | None = None,
) -> Localization:
    """Find the sites that carry the word.

    The target's text is swapped into the source's run at each site, and the pictures are read.
    Scores are means over pairs and seeds with 95 % intervals over pairs, see `scores.all_scores`.

    pairs   (source, target) prompts, each with quoted text, or Pairs, whose `scored` says how readings agree
    mode    "exhaustive" scores every site on every pair.  "staged", "contribution" and "attribution" screen
            the sites on a few pairs first, and score exactly those they keep
    sites, groups  which sites to try, each alone, or in their place sets of site indices to try together
    keep    how many sites a screening keeps at least.  When None, staged keeps those that clearly beat no
            swap, contribution those with half of the largest share, and attribution those with a tenth
    first   how many pairs a screening begins with, 4 when None.  It doubles for sites still in doubt
    seeds, steps, guidance  of the runs, every pair with every seed, and the pipeline's own when None
    start, branch  first patched step, 0 = noisiest, and the guidance branches patched, "both" or "cond"
    reader, ocr  what reads pictures or sounds, as `Trials` takes it, tesseract when None.  `ocr` is older
    background  what scores the rest, as `Trials` takes it
    run     a textpatch.Run.  Everything finished is kept there and is not run again
    shard   (i, n), or a Rank, makes every n-th pair and seed, and finds the others' in the run folder
    micro_batch  most rows that go through the model at once
    starts  whether to add "start_curve", of the responsible set or of the best group where no set was grown
    heads, each_word  whether to add "head_search" of these sites, and "each_word" of each site and of these
    ends    whether to draw source and target also where a screening needs neither.  With a run when None
    What is added is not among the generations that the result counts.
    Raises PatchError for unknown sites, a start outside the run, and options that have no effect in the mode,
    OCRError if no text can be read, and Unfinished where other shards have still to begin.
    """
    pairs = list(pairs)
    asked = Request(mode, tried(pipeline, sites, groups), len(pairs), keep, first)
    _require_curve(pipeline, starts)
    runs = dict(seeds=seeds, steps=steps, guidance=guidance, start=start, branch=branch)
    kept = dict(ocr=ocr, reader=reader, background=background, run=run, shard=shard)
    trials = Trials(pipeline, pairs, **runs, **kept, micro_batch=micro_batch)
    _require_words(pipeline, trials.pairs, each_word)
    with trials.worker.at_work(run):
        return _found(trials, asked, starts=starts, heads=heads, each_word=each_word, ends=ends)


def _with_scores(entry: ScreenedSite | SiteScores) -> SiteScores:
    """A site's entry that has scores.   Raises PatchError for a site that was screened out."""
    if "f1_target" not in entry:
        raise PatchError(
            f"scores of site {entry['site']!r} were asked for, and it was screened out before it was scored; "
            'mode="exhaustive" scores every site'
        )
    return cast("SiteScores", entry)


def check(
    pipeline: SupportsSampling | DrawsByItself,
    pairs: Sequence[AnyPair],
    *,
    mode: str = "exhaustive",
    sites: Selectors = "all",
    groups: Sequence[Sequence[int]] | None = None,
    keep: int | None = None,
    first: int | None = None,
    seeds: Sequence[int] = (0,),
    steps: int,
    guidance: float | Guidance,
    start: int = 0,
    branch: str = "both",
    starts: bool = False,
    each_word: bool = False,
) -> None:
    """Raise what `localize` would raise for a request that it cannot carry out.

    Nothing is generated, and no reader or run folder is needed.
    """
    Request(mode, tried(pipeline, sites, groups), len(pairs), keep, first)
    _require_curve(pipeline, starts)
    checked = checked_pairs(pipeline, pairs, seeds=seeds, steps=steps, start=start)
    require_branch(branch, guidance)
    _require_words(pipeline, checked, each_word)


def _require_curve(pipeline: object, starts: bool) -> None:
    """Raise PatchError for a start curve of a pipeline that cannot make one."""
    if starts:
        require_startable(pipeline)


def _require_words(
    pipeline: SupportsSampling | DrawsByItself, pairs: Sequence[Pair], each_word: bool
) -> None:
    """Raise PromptError for a pair of equal texts, or not of several words where each is asked for."""
    require_other_texts(pairs)
    if each_word:
        for pair in pairs:
            require_several_words(pipeline, pair)


def tried(
    pipeline: SupportsSampling | DrawsByItself,
    sites: Selectors,
    groups: Sequence[Sequence[int]] | None,
) -> list[Group]:
    """Groups to try, each a tuple of site indices."""
    require_sampling(pipeline, "localize")
    require_parts(pipeline, "localize", SupportsPairs)
    if groups is None:
        return [(index,) for index in site_indices(pipeline, sites)]
    if not (isinstance(sites, str) and sites == "all"):
        raise PatchError(
            f"sites {sites!r} and groups {groups!r} were both given, and groups replace sites; "
            "give one of them"
        )
    return [site_indices(pipeline, group) for group in groups]


# --- the result


def _found(
    trials: Trials,
    asked: Request,
    *,
    starts: bool,
    heads: bool,
    each_word: bool,
    ends: bool | None,
) -> Localization:
    """Search, grow the responsible set, and look further where that is asked for."""
    with phase("sites"):
        screening, beside = MODES[asked.mode](trials, asked)
        trials.measure(screening.kept)
    grown = None
    if all_alone(asked.groups) and asked.pairs >= FEWEST:
        grown = _grown(trials, screening, asked.begins_with)
    result = summarise(trials, asked, screening, beside, grown)
    if ends is None:
        ends = trials.run is not None  # whose page shows them
    if ends:
        trials.measure([], own=True)
    found = Localization(result, trials.records, trials.run)
    of_set = (result["set"] or {}).get("sites") or found.ranked[0]
    if starts:
        result["start_curve"] = start_curve(trials, of_set)
    if heads:
        result["head_search"] = head_search(trials, of_set)
    if each_word:
        together = tuple(trials.pipeline.defaults.localized)
        groups = [*screening.kept, tuple(of_set), *([together] if together else [])]
        result["each_word"] = word_by_word.each_word(trials, groups)
    return found


def _grown(trials: Trials, screening: Screening, first: int) -> list[Step]:
    """Grow the responsible set from the best site measured, by all sites that are not barred."""
    measured = best_first(trials, screening.kept)
    others = [group for group in screening.ranked if group not in (*measured, *screening.barred)]
    ranked = [site for (site,) in [*measured, *others]]
    with phase("growing the set"):
        return grow(
            trials.score, ranked, len(trials.pairs), f1_of_means, first=first, least=screening.pairs
        )

"""The result of a localisation, a plain dict stored as results.json, and what is read from it.

A result has these entries.

    schema_version    SCHEMA_VERSION
    model, ocr        what made the pictures, and what read them
    over_reading      how often the reader calls a broken word right; None where nobody has counted
    pairs, seeds      the number of prompt pairs, and a list of seeds
    pairs_list        the prompts and the words of each pair
    what              what the pairs differ in, where it is not the word
    steps, guidance, start, branch
                      how the pictures were made
    parameters        of the denoiser; of a site those of its text key and value projections
    baselines         scores of the "source" run without a swap and of the whole "target" run
    chance            "f1_source" and "f1_target" of readings that are each another pair's word, None of a
                      single pair.  Older results lack this entry
    sites             "site" (its index), "name", "kind", "status" and scores of each site.  Where prompts
                      quote several texts and each has its place, "texts" are the scores of each
    ranked            site indices, best first
    mode, gaps, generations
                      how the search went
    set               the responsible set, its "sites" and the "steps" of growing it; None if none was sought
    unsettled         comparisons that the pairs leave open.  Each has its "question" (GAIN, HALF or RIVAL),
                      the "site", what it stands "against", the "pairs" seen, the "difference" with its
                      interval, and how many "more" pairs would settle it, None where they tell no number.
                      Older results lack this entry
    each_word         what each word exchanged alone comes to, see word_by_word.py, where that was asked for
    start_curve, head_search
                      what these functions return, where somebody put it there to be reported

A score is {"value", "low", "high"}, a mean and its 95 % interval.  An end is None where there is no interval,
as of an infinite PSNR, or of scores that are no shares, of pairs that are too few or all alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from textpatch.errors import PatchError
from textpatch.metrics import FEWEST
from textpatch.text import plain

SCHEMA_VERSION = 3
RUNS = (("source", "source, no swap"), ("target", "whole target run"))
CHANCE = ("chance", "chance level")
# questions that pairs may leave open, see localization/unsettled.py
GAIN = "gain"
HALF = "half"
RIVAL = "rival"
_NEEDED = (
    "model",
    "pairs",
    "seeds",
    "steps",
    "guidance",
    "start",
    "branch",
    "baselines",
    "sites",
    "ranked",
)
_ENDS = ("value", "low", "high")


# --- sites


def ranked_sites(result: dict) -> list[dict]:
    """Sites of a result, best first.  Raises PatchError if the dict is no result of this version."""
    if not isinstance(result, dict) or result.get("schema_version") != SCHEMA_VERSION:
        raise PatchError(
            f"this is no result of schema version {SCHEMA_VERSION}; pass the content of results.json, which "
            "resuming a run of an older version writes anew"
        )
    missing = [name for name in _NEEDED if name not in result]
    if missing:
        raise PatchError(
            f"the result lacks {', '.join(missing)}; pass the whole content of results.json"
        )
    sites = {site["site"]: site for site in result["sites"]}
    if not sites or sorted(result["ranked"]) != sorted(sites):
        raise PatchError(
            f"the result ranks the sites {result['ranked']} and holds the sites {list(sites)}; "
            "pass the content of results.json as it was written"
        )
    return [sites[index] for index in result["ranked"]]


def responsible_sites(result: dict) -> list:
    """Sites of the responsible set.

    There are none where the set is empty or was not sought, or where the pairs are too few to credit a site.
    """
    if not result.get("set") or result["pairs"] < FEWEST:
        return []
    return result["set"]["sites"]


def credited(result: dict) -> list:
    """Sites that the headline names, those of the responsible set or else the best one."""
    return responsible_sites(result) or result["ranked"][:1]


def is_set(site) -> bool:
    """True for the name of a set of sites, such as 1+2."""
    return "+" in str(site)


def tried(result: dict) -> str:
    """Word for what was tried, "site" where each was tried alone."""
    if any(is_set(site["site"]) for site in result["sites"]):
        return "set of sites"
    return "site"


def is_out(site: dict) -> bool:
    """True for a site that was screened out alone, even if it joined the set later.

    It has scores on some pairs or on none.
    """
    return site.get("status", {}).get("state") in ("screened out", "joined")


def left_open(result: dict, question: str, site=None) -> list[dict]:
    """Comparisons of one sort that the pairs leave open, of one site where it is named."""
    return [
        told
        for told in result.get("unsettled", ())
        if told["question"] == question and site in (None, told["site"])
    ]


# --- scores


def score_of(scores: dict, metric: str) -> dict:
    """Score of one metric, {} where there is none."""
    return scores.get(metric) or {}


def value_of(scores: dict, metric: str) -> float | None:
    """Mean of one metric, None where there is none."""
    return score_of(scores, metric).get("value")


def runs_of(result: dict) -> list[tuple[str, str, dict]]:
    """Lines of a table above the sites, each with its name, its label and its scores.

    They are the runs, and the chance level where the result has one.
    """
    lines = [(run, label, result["baselines"][run]) for run, label in RUNS]
    if chance_of(result) is not None:
        scores = {name: {"value": value} for name, value in result["chance"].items()}
        lines.append((*CHANCE, scores))
    return lines


def chance_of(result: dict) -> float | None:
    """F1 towards the target of readings that are each another pair's word, None where that is not known."""
    return result.get("chance", {}).get("f1_target")


# --- numbers as text


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with so many digits, - for None."""
    if value is None:
        return "-"
    return _unsigned(f"{value:.{digits}f}")


def _unsigned(text: str) -> str:
    """A number as text, without the sign of a zero."""
    if float(text) == 0:
        return text.lstrip("-")
    return text


def span_of(scores: dict, metric: str) -> str:
    """One metric as text, its mean and its interval if there is one."""
    score = score_of(scores, metric)
    value, low, high = (decimal(score.get(end)) for end in _ENDS)
    if low == high == "-":
        return value
    return f"{value} [{low}, {high}]"


def percent_of(scores: dict, metric: str = "exact_target") -> str:
    """One metric as text in percent, its mean and its interval if there is one."""
    score = score_of(scores, metric)
    value, low, high = (_percent(score.get(end)) for end in _ENDS)
    if low == "-":
        return f"{value} %"
    return f"{value} % [{low}, {high}]"


def _percent(share: float | None) -> str:
    """A share in percent, - for None."""
    if share is None:
        return "-"
    return f"{100 * share:.0f}"


def signed(score: dict) -> str:
    """A gain as text, its mean with its sign and its interval."""
    return f"{score['value']:+.2f} [{score['low']:.2f}, {score['high']:.2f}]"


def at_most(step: dict) -> str:
    """The words "at most" where some pairs of a step were not looked at, and count as perfect."""
    if step["looked"] < step["pairs"]:
        return "at most "
    return ""


def share_of(result: dict, sites: Iterable[dict]) -> str:
    """Text key and value projections of some sites as a share of the denoiser's parameters.

    It is - where the parameters were not counted.
    """
    whole = result.get("parameters")
    own = [site.get("parameters") for site in sites]
    if not whole or None in own:
        return "-"
    return f"{sum(own) / whole:.2%}"


# --- words


def what_of(result: dict) -> str:
    """Name of what the pairs differ in, the word or another attribute of a sign."""
    return plain(result.get("what", "word"))


def counted(number, noun: str) -> str:
    """A number with its noun, such as 1 pair, 2 pairs and 2 sets of sites."""
    if number == 1:
        return f"{number} {noun}"
    first, of, rest = noun.partition(" of ")
    return f"{number} {first}s{of}{rest}"


def size_of(result: dict, noun: str) -> str:
    """Number of pairs and seeds, where `noun` is what a pair is called."""
    return f"{counted(result['pairs'], noun)} x {counted(len(result['seeds']), 'seed')}"


def listed(sites: Sequence) -> str:
    """Sites as text, such as site 1, sites 1, 2, and sites 1+2 for a set, or "" for none."""
    names = ", ".join(map(str, sites))
    if len(sites) > 1 or any(map(is_set, sites)):
        return f"sites {names}"
    return names and f"site {names}"

"""Sentences about a localisation, first which sites carry the word, or what else the pairs differ in."""

from __future__ import annotations

from textpatch.metrics import FEWEST
from textpatch.report.open_questions import half_way, rivals, settled_by
from textpatch.report.result import (
    GAIN,
    RUNS,
    at_most,
    counted,
    decimal,
    is_out,
    is_set,
    left_open,
    listed,
    percent_of,
    ranked_sites,
    responsible_sites,
    signed,
    span_of,
    tried,
    value_of,
    what_of,
)
from textpatch.report.word_by_word import in_short
from textpatch.text import plain

_SCREENED_BY = {"contribution": "their contribution", "attribution": "their attribution"}


def answer(result: dict) -> str:
    """Say which sites carry the word, with their numbers, and how they were found.

    The headline follows these rules.

    - Where a responsible set was sought, it is of that set.  Elsewhere it is of the best site or group.
    - One site carries the word if its exact matches to the target come half of the way from those of the
      source run to those of the whole target run.
    - Several sites carry the word if their F1 comes half of the way.
    - A set that comes less far carries part of the word.
    - On fewer than FEWEST pairs no site is credited.

    After a screening the two runs may have been seen on fewer pairs than the sites.
    Raises PatchError if `result` is no result.
    """
    return " ".join([*verdict(result), *search(result), *further(result)])


def verdict(result: dict) -> tuple[str, str]:
    """A headline and the numbers behind it."""
    best = ranked_sites(result)[0]
    if responsible_sites(result):
        return _of_the_set(result)
    if _most(result) <= _exact(result["baselines"]["source"]):
        return _unread(result)
    if result["pairs"] < FEWEST:
        return _of_too_few(result, best)
    if result.get("set"):
        return _of_an_empty_set(result, best)
    return _of_the_best(result, best)


# --- headlines, each with its numbers


def _of_the_set(result: dict) -> tuple[str, str]:
    chosen = responsible_sites(result)
    if len(chosen) > 1:
        return _of_several(result, chosen)
    (site,) = (site for site in result["sites"] if site["site"] == chosen[0])
    if not _spread(result, site):
        return _carried(result, site)
    return f"Site {site['site']} carries part of the {what_of(result)}.", (
        f"F1 towards the target is {_with_the_set(result)}, a clear gain. "
        f"But {_named(site)} comes less than half of the way to the whole target run. "
        f"{_reach(result, site)}{half_way(result, site)}"
    )


def _of_several(result: dict, chosen: list) -> tuple[str, str]:
    best = ranked_sites(result)[0]
    what = what_of(result)
    f1 = f"F1 towards the target is {_with_the_set(result)}."
    alone = f"The best single site is {_named(best)}. {_reach(result, best)}"
    who = _capital(listed(chosen))
    if _comes_half(result):
        return f"{who} together carry the {what}.", f"{f1} {alone}"
    return f"{who} together carry part of the {what}.", (
        f"{f1} That is less than half of the way from no swap to the whole target run. "
        f"The rest of the {what} enters elsewhere, or more pairs would show where. {alone}"
    )


def _unread(result: dict) -> tuple[str, str]:
    source, target = (percent_of(result["baselines"][run]) for run, _ in RUNS)
    return "No answer.", (
        f"The target's {what_of(result)} is read exactly in {target} of the pictures of the whole target "
        f"run, and in {source} of those without a swap. So no swap can show where it enters. Look at the "
        "model's plain pictures, and check what reads them."
    )


def _of_too_few(result: dict, best: dict) -> tuple[str, str]:
    few = f"{counted(result['pairs'], 'pair')} are"
    if result["pairs"] == 1:
        few = "1 pair is"
    return "Not clear yet.", (
        f"{few} too few to credit a {tried(result)}: give {FEWEST} or more. "
        f"The best is {_named(best)}. {_reach(result, best)}"
    )


def _of_an_empty_set(result: dict, best: dict) -> tuple[str, str]:
    what = what_of(result)
    first = result["set"]["steps"][0]
    return f"No site clearly carries the {what}.", (
        f"The best is {_named(best)}. {_reach(result, best)} "
        f"On {result['pairs']} pairs the gain of {listed(first['added'])} over no swap is "
        f"F1 {signed(first['gain'])}, which may be none. {settled_by(left_open(result, GAIN))} "
        f"If it stays unclear, the {what} is spread over several sites, or enters elsewhere."
    )


def _of_the_best(result: dict, best: dict) -> tuple[str, str]:
    """A headline for sites or groups among which no set was sought."""
    if not _spread(result, best):
        return _carried(result, best)
    what = what_of(result)
    none = "No single site carries"
    more = "several"
    if tried(result) != "site":
        none = "None of these sets of sites carries"
        more = "more"
    return f"{none} the {what}.", (
        f"The best is {_named(best)}. {_reach(result, best)}{half_way(result, best)} "
        f"The {what} is spread over {more} sites, or enters elsewhere."
    )


def _carried(result: dict, site: dict) -> tuple[str, str]:
    background = f"Background SSIM {span_of(site, 'ssim')}, where 1 is the source's own background."
    carry = "carries"
    if is_set(site["site"]):
        carry = "together carry"
    return f"{_capital(_named(site))} {carry} the {what_of(result)}.", (
        f"{_reach(result, site)}{half_way(result, site)} {background}{rivals(result, site)}"
    )


# --- parts of sentences


def _capital(text: str) -> str:
    """A text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def _named(site: dict) -> str:
    return f"{listed([site['site']])} ({plain(site['name'])})"


def _reach(result: dict, site: dict) -> str:
    """A sentence on how often the target's word is read, with a swap at a site or a set, and without."""
    source, target = (result["baselines"][run] for run, _ in RUNS)
    where = "this site alone"
    if is_set(site["site"]):
        where = "these sites alone"
    return (
        f"With a swap at {where}, the target's {what_of(result)} is read exactly in "
        f"{percent_of(site)} of {_pictures(site)}; in the whole target run it is in "
        f"{percent_of(target)}{_of(target, site)}, and without a swap in "
        f"{percent_of(source)}{_of(source, site)}."
    )


def _pictures(scores: dict) -> str:
    return counted(scores.get("n", "?"), "picture")


def _of(scores: dict, told: dict) -> str:
    """Number of pictures behind some scores, where it is not the one just told of others."""
    if scores.get("n") == told.get("n"):
        return ""
    return f" of {_pictures(scores)}"


def _with_the_set(result: dict) -> str:
    """F1 with the set swapped, beside that of the whole target run and of no swap."""
    found = result["set"]
    told = {"n": result["pairs"] * len(result["seeds"])}
    source, target = (result["baselines"][run] for run, _ in RUNS)
    them = "it"
    if len(found["sites"]) > 1:
        them = "them"
    return (
        f"{span_of(found, 'score')} with {them}, "
        f"{decimal(value_of(target, 'f1_target'))}{_of(target, told)} in the whole target run, "
        f"{decimal(value_of(source, 'f1_target'))}{_of(source, told)} without a swap"
    )


# --- how far is enough


def _exact(scores: dict) -> float:
    return value_of(scores, "exact_target") or 0.0


def _most(result: dict) -> float:
    """Exact matches of the whole target run, or of the best site where these are more.

    A site may have been seen on more pairs than the target run.
    """
    return max(_exact(result["baselines"]["target"]), _exact(ranked_sites(result)[0]))


def _spread(result: dict, site: dict) -> bool:
    """True if a site comes not half of the way from the source run's exact matches to the target run's."""
    source = _exact(result["baselines"]["source"])
    most = _most(result)
    return most <= source or _exact(site) - source < 0.5 * (most - source)


def _comes_half(result: dict) -> bool:
    """True if the set's F1 comes half of the way or more from the source run's to the target run's."""
    source, target = (value_of(result["baselines"][run], "f1_target") for run, _ in RUNS)
    return 0 < 0.5 * (target - source) <= result["set"]["score"]["value"] - source


# --- the search, and what was looked at after it


def search(result: dict, *, beside_tables: bool = False) -> list[str]:
    """Sentences on how the search went.

    They tell the responsible set, what was screened out by which score, and what the search cost.

    beside_tables  leaves out what the tables of the page tell
    """
    said = []
    if result.get("set"):
        said += _grown(result, beside_tables)
    if not beside_tables:
        said += _screened(result)
    if result.get("gaps") and not beside_tables:
        said.append(_gap(result["gaps"][-1]))
    if result.get("generations"):
        cost = result["generations"]
        each = counted(len(result["sites"]), tried(result))
        said.append(
            f"The search took {cost['made']} generations. One of the target and one for each of "
            f"{each}, on every pair and seed, would be {cost['one_by_one']}."
        )
    return said


def _grown(result: dict, beside_tables: bool) -> list[str]:
    """Sentences on the responsible set and on the steps of growing it."""
    chosen = listed(responsible_sites(result))
    if not chosen:
        return ["No site clearly beats no swap: the set is empty."]
    said = [f"The responsible set is {chosen}."]
    steps = result["set"]["steps"]
    if not steps[-1]["kept"] and not beside_tables:
        gained = at_most(steps[-1]) + signed(steps[-1]["gain"])
        said.append(f"Adding {listed(steps[-1]['added'])} is no clear gain: F1 {gained}.")
    if not steps[0]["kept"]:
        begun = listed(steps[1]["added"])
        said.append(f"The set begins with {begun} together, as no site alone is a clear gain.")
    return said


def screened_out(result: dict) -> list[str]:
    """Sentences on what each site was screened out by, with the scores."""
    out: dict[tuple, list[str]] = {}
    for site in filter(is_out, ranked_sites(result)):
        status = site["status"]
        told = f"{listed([site['site']])} {decimal(status.get('value'))}"
        out.setdefault((status["by"], status["pairs"]), []).append(told)
    return [
        f"Screened out by {_SCREENED_BY.get(by, 'their scores')} on {pairs} pairs: {', '.join(sites)}."
        for (by, pairs), sites in out.items()
    ]


def _screened(result: dict) -> list[str]:
    """Sentences on which sites were screened out, by which score, on how many pairs."""
    out: dict[tuple, list] = {}
    for site in filter(is_out, result["sites"]):
        out.setdefault((site["status"]["by"], site["status"]["pairs"]), []).append(site["site"])
    return [
        f"Screened out by {_SCREENED_BY.get(by, 'their scores')} on {pairs} pairs: {listed(sites)}."
        for (by, pairs), sites in out.items()
    ]


def _gap(gap: dict) -> str:
    """Sentences on the last gap between sites kept and sites left out."""
    kept, next_ = (listed([gap[side]]) for side in ("kept", "next"))
    said = f"The gap from {kept} to {next_} is {signed(gap)}."
    if gap["low"] > 0:
        return said
    return f"{said} All pairs cannot tell these two apart, so both were kept."


def further(result: dict) -> list[str]:
    """Sentences on what was looked at beside the sites, where it is in the result."""
    said = []
    if found := result.get("start_curve"):
        said.append(
            f"Begun at later steps, the swap at {listed(found['sites'])} loses nothing clearly up to step "
            f"{found['chosen']}."
        )
    if found := result.get("head_search"):
        heads = ", ".join(".".join(map(str, head)) for head in found["heads"])
        said.append(
            f"Heads {heads} (site.head), swapped without the others, score as all heads of "
            f"{listed(found['sites'])} do."
        )
    if found := result.get("each_word"):
        said += in_short(found)
    return said

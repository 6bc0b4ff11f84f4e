"""Read a localisation: which site carries the word, or what else was asked about, in a sentence and in a terminal table.

Everything here takes `result`, the plain dict stored as results.json: "model", "pairs", "seeds", "steps",
"guidance", "start", "branch", "baselines" (the "source" run without a swap, the whole "target" run), "sites"
(index "site", "name", "kind", "status" and scores of each), "ranked" (site indices, best first) and "pairs_list".
A score is {"value", "low", "high"}: a mean and its 95 % interval, None where there is none (infinite PSNR, one pair,
distances of pairs that are too few or all alike).
Of the search: "mode", "set" (its "sites", and the "steps" of growing it), "gaps" and "generations".
"parameters" counts the denoiser's, and of each site its text key and value projections'.  What `start_curve` and
`head_search` return may be put beside them, as "start_curve" and "head_search"; the report then shows it.  "what" says
what the pairs differ in, where it is not the word.
"""

import shutil

from textpatch.errors import PatchError
from textpatch.metrics import FEWEST
from textpatch.text import plain

SCHEMA_VERSION = 3
RUNS = (("source", "source, no swap"), ("target", "whole target run"))
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
_TITLES = ("rank", "site", "exact", "F1 target", "F1 source", "bg SSIM", "n")
_LEFT_OUT = ("F1 source", "bg SSIM", "n", "exact")  # on a narrow terminal, the first of them first
_NAME = 9  # the least columns of a name beside all numbers
_GAP = "  "


def answer(result: dict) -> str:
    """Say which sites carry the word, with their numbers; or what is not clear, and what to do about it.

    Where a responsible set was sought, the headline is of that set; elsewhere of the best site or group.
    One site carries the word if its exact match to the target comes half of the way from the source run's to
    the whole target run's.  The sites of a larger set carry it if with them the F1 does.  A set below that carries
    part of it.  On fewer than FEWEST pairs nothing is credited.
    After a screening the two runs may have been seen on fewer pairs.
    Raises PatchError if `result` is no result.
    """
    return " ".join([*verdict(result), *search(result), *further(result)])


def table(result: dict, width: int | None = None) -> str:
    """The ranked plain-text table: two baselines, then the sites, best first.

    width  columns it may take, the terminal's when None, 80 where there is none.  What does not fit is first cut in the
           names, then left out, the scores beside F1 towards the target
    """
    width = width or shutil.get_terminal_size().columns
    columns = _columns(result)
    for title in _LEFT_OUT:
        if _room(columns, width) < _NAME:
            del columns[title]
    names = _names(result, max(_room(columns, width), _NAME))
    lines = zip(
        *(_padded(title, cells) for title, cells in columns.items()),
        ["name", "-" * max(map(len, names)), *names],
    )
    return "\n".join(_GAP.join(line).rstrip() for line in lines)


def _columns(result: dict) -> dict[str, list[str]]:
    """Title -> cells, of all columns but the names."""
    rows = [("", "", *_cells(result["baselines"][run])) for run, _ in RUNS]
    for rank, site in enumerate(ranked_sites(result), 1):
        rows.append((_place(site, rank), str(site["site"]), *_cells(site)))
    return dict(zip(_TITLES, map(list, zip(*rows))))


def _names(result: dict, width: int) -> list[str]:
    """The runs and the sites by name, in as many columns at most."""
    runs = [label if len(label) <= width else run for run, label in RUNS]
    return [*runs, *(_name(site["name"], width) for site in ranked_sites(result))]


def _room(columns: dict[str, list[str]], width: int) -> int:
    """What the other columns leave for the names."""
    return width - sum(_width(title, cells) + len(_GAP) for title, cells in columns.items())


def _width(title: str, cells: list[str]) -> int:
    return max(map(len, [title, *cells]))


def _padded(title: str, cells: list[str]) -> list[str]:
    """A column with its title and a rule, to the right."""
    width = _width(title, cells)
    return [cell.rjust(width) for cell in (title, "-" * width, *cells)]


def _place(site: dict, rank: int) -> str:
    """Its rank, where all pairs say so; else out, or set where it is in that all the same."""
    return {"screened out": "out", "joined": "set"}.get(
        site.get("status", {}).get("state"), str(rank)
    )


def _cells(scores: dict) -> tuple[str, ...]:
    exact, source, ssim = (
        decimal(value_of(scores, name)) for name in ("exact_target", "f1_source", "ssim")
    )
    return exact, span_of(scores, "f1_target"), source, ssim, str(scores.get("n", "-"))


def _name(name, width: int) -> str:
    """A module path in so many columns, its last part whole.

    The parts before it are cut evenly, so that the numbers, which tell sites apart, stay; where that is not enough, the
    middle is left out.
    """
    *parts, last = plain(name).split(".")
    for letters in range(width, 0, -1):
        short = ".".join([*(part[:letters] for part in parts), last])
        if len(short) <= width:
            return short
    begin = max(width - len(last) - len(".."), 0)
    return f"{short[:begin]}..{last}"[:width]


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


def responsible_sites(result: dict) -> list:
    """The sites of the responsible set; none where it is empty, was not sought, or pairs are too few to credit any."""
    return result["set"]["sites"] if result.get("set") and result["pairs"] >= FEWEST else []


def credited(result: dict) -> list:
    """The sites that the headline names: those of the responsible set, or the best one."""
    return responsible_sites(result) or result["ranked"][:1]


def _of_the_set(result: dict) -> tuple[str, str]:
    chosen = responsible_sites(result)
    if len(chosen) > 1:
        return _of_several(result, chosen)
    (site,) = (site for site in result["sites"] if site["site"] == chosen[0])
    if not _spread(result, site):
        return _carried(result, site)
    f1 = f"F1 towards the target is {_with_the_set(result)}, a clear gain. "
    return f"Site {site['site']} carries part of the {what_of(result)}.", (
        f"{f1}But {_named(site)} comes less than half of the way to the whole target run: "
        f"its {_reach(result, site)}"
    )


def _of_several(result: dict, chosen: list) -> tuple[str, str]:
    best = ranked_sites(result)[0]
    whole = _comes_half(result)
    alone = f"The best single site is {_named(best)}, and its {_reach(result, best)}"
    less = " That is less than half of the way: the rest enters elsewhere, or more pairs would show where."
    rest = "" if whole else less
    return (
        f"S{listed(chosen)[1:]} together carry {'' if whole else 'part of '}the {what_of(result)}.",
        (f"F1 towards the target is {_with_the_set(result)}.{rest} {alone}"),
    )


def _unread(result: dict) -> tuple[str, str]:
    source, target = (result["baselines"][run] for run, _ in RUNS)
    return "No answer.", (
        f"In the whole target run its {what_of(result)} is read in {percent_of(target)} of the pictures, in the source "
        f"run without a swap in {percent_of(source)}, so no site can be credited: look at the model's plain pictures and "
        "check what reads them."
    )


def _of_too_few(result: dict, best: dict) -> tuple[str, str]:
    few = "1 pair is" if result["pairs"] == 1 else f"{result['pairs']} pairs are"
    return "Not clear yet.", (
        f"{few} too few to credit a site: give {FEWEST} or more. "
        f"The best is {_named(best)}, and its {_reach(result, best)}"
    )


def _of_an_empty_set(result: dict, best: dict) -> tuple[str, str]:
    first = result["set"]["steps"][0]
    return f"No site clearly carries the {what_of(result)}.", (
        f"The best is {_named(best)}, and its {_reach(result, best)} On {result['pairs']} pairs the gain of "
        f"{listed(first['added'])} over no swap is F1 {signed(first['gain'])}. Give more pairs; if it stays unclear, the "
        f"{what_of(result)} is spread over several sites, or enters elsewhere."
    )


def _of_the_best(result: dict, best: dict) -> tuple[str, str]:
    """Of sites or groups among which no set was sought."""
    if not _spread(result, best):
        return _carried(result, best)
    return f"No single site carries the {what_of(result)}.", (
        f"The best is {_named(best)}, and its {_reach(result, best)} "
        f"The {what_of(result)} is spread over several sites, or enters elsewhere."
    )


def _carried(result: dict, site: dict) -> tuple[str, str]:
    others = [other for other in ranked_sites(result) if other is not site]
    numbers = f"Its {_reach(result, site)} Background SSIM {span_of(site, 'ssim')}."
    return f"S{_named(site)[1:]} carries the {what_of(result)}.", numbers + _rivals(site, others)


def _named(site: dict) -> str:
    return f"site {site['site']} ({plain(site['name'])})"


def _reach(result: dict, site: dict) -> str:
    source, target = (result["baselines"][run] for run, _ in RUNS)
    return (
        f"exact match to the target is {percent_of(site)} over {_pictures(site)}; the whole target run reaches "
        f"{percent_of(target)}{_over(target, site)}, the source run without a swap "
        f"{percent_of(source)}{_over(source, site)}."
    )


def _spread(result: dict, site: dict) -> bool:
    """Whether a site comes less than half of the way from the source run's exact matches to the target run's."""
    source, most = _exact(result["baselines"]["source"]), _most(result)
    return most <= source or _exact(site) - source < 0.5 * (most - source)


def _most(result: dict) -> float:
    """Exact matches of the whole target run, or of the best site, which may have been seen on more pairs."""
    return max(_exact(result["baselines"]["target"]), _exact(ranked_sites(result)[0]))


def _exact(scores: dict) -> float:
    return value_of(scores, "exact_target") or 0.0


def _pictures(scores: dict) -> str:
    return f"{scores.get('n', '?')} picture{'s' * (scores.get('n') != 1)}"


def _over(scores: dict, other: dict) -> str:
    """On how many pictures, where that is not what was just said of others."""
    return "" if scores.get("n") == other.get("n") else f" over {_pictures(scores)}"


def _comes_half(result: dict) -> bool:
    """Whether the set's F1 comes at least half of the way from the source run's to the target run's."""
    source, target = (value_of(result["baselines"][run], "f1_target") for run, _ in RUNS)
    return 0 < 0.5 * (target - source) <= result["set"]["score"]["value"] - source


def _with_the_set(result: dict) -> str:
    """The set's F1, beside that of the whole target run and of none."""
    all_ = {"n": result["pairs"] * len(result["seeds"])}
    source, target = (result["baselines"][run] for run, _ in RUNS)
    without, whole = (
        f"{decimal(value_of(run, 'f1_target'))}{_over(run, all_)}" for run in (source, target)
    )
    them = "them" if len(result["set"]["sites"]) > 1 else "it"
    return f"{span_of(result['set'], 'score')} with {them}, {whole} in the whole target run, {without} without a swap"


def _rivals(best: dict, others: list[dict]) -> str:
    low = score_of(best, "exact_target").get("low")
    if low is None:
        return ""
    measured = [site for site in others if not is_out(site)]
    apart = [
        site for site in measured if not set(site.get("group", ())) & set(best.get("group", ()))
    ]
    near = [
        str(site["site"])
        for site in apart
        if (score_of(site, "exact_target").get("high") or 0) >= low
    ]
    shown = ", ".join(near[:5]) + (", ..." if len(near) > 5 else "")
    return (
        f" Intervals overlap with site {shown}: more pairs or seeds would tell them apart."
        if near
        else ""
    )


def search(result: dict) -> list[str]:
    """How the search went, a sentence each: the responsible set, what was screened out and why, what it cost."""
    said = []
    if result.get("set"):
        chosen, steps = listed(responsible_sites(result)), result["set"]["steps"]
        said.append(f"The responsible set is {chosen}." if chosen else _empty(result))
        if not steps[-1]["kept"] and chosen:
            added, gained = (
                listed(steps[-1]["added"]),
                at_most(steps[-1]) + signed(steps[-1]["gain"]),
            )
            said.append(f"S{added[1:]} with it is no clear gain: F1 {gained}.")
        if not steps[0]["kept"] and chosen:
            said.append(
                f"It begins with {listed(steps[1]['added'])} together, as no site alone is a clear gain."
            )
    said += _screened(result)
    if result.get("gaps"):
        gap = result["gaps"][-1]
        clear = "" if gap["low"] > 0 else "; all pairs cannot tell them apart, so both were kept"
        said.append(
            f"The gap from site {gap['kept']} to site {gap['next']} is {signed(gap)}{clear}."
        )
    if result.get("generations"):
        made, all_ = result["generations"]["made"], result["generations"]["one_by_one"]
        said.append(
            f"It took {made} generations in all; one of the target and one for each of {len(result['sites'])} sites, "
            f"on every pair and seed, would be {all_}."
        )
    return said


def _empty(result: dict) -> str:
    if result["pairs"] < FEWEST:
        return f"On fewer than {FEWEST} pairs no gain is clear: the set is empty."
    return "No site clearly beats no swap: the set is empty."


def further(result: dict) -> list[str]:
    """What the start curve and the head search found, a sentence each."""
    said = []
    if found := result.get("start_curve"):
        said.append(
            f"Begun later and later, the swap at {listed(found['sites'])} loses nothing clearly up to step "
            f"{found['chosen']}."
        )
    if found := result.get("head_search"):
        named = ", ".join(".".join(map(str, head)) for head in found["heads"])
        said.append(
            f"Heads (site.head) {named}, swapped alone, score as all heads of {listed(found['sites'])} do."
        )
    return said


def _screened(result: dict) -> list[str]:
    """By what, and on how many pairs, which sites were screened out."""
    out: dict[tuple, list] = {}
    for site in filter(is_out, result["sites"]):
        out.setdefault((site["status"]["by"], site["status"]["pairs"]), []).append(site["site"])
    by = {"contribution": "their contribution", "attribution": "their attribution"}
    return [
        f"Screened out by {by.get(what, 'their scores')} on {pairs} pairs: {listed(sites)}."
        for (what, pairs), sites in out.items()
    ]


def is_out(site: dict) -> bool:
    """Whether a site was screened out alone, scored on some pairs or not at all; it may have joined the set all the same."""
    return site.get("status", {}).get("state") in ("screened out", "joined")


def listed(sites) -> str:
    names = ", ".join(map(str, sites))
    return names and f"site{'s' if len(sites) > 1 else ''} {names}"


def at_most(step: dict) -> str:
    """Said of a step's numbers where pairs that were not looked at count as perfect."""
    return "at most " if step["looked"] < step["pairs"] else ""


def signed(score: dict) -> str:
    return f"{score['value']:+.2f} [{score['low']:.2f}, {score['high']:.2f}]"


def ranked_sites(result: dict) -> list[dict]:
    """The sites, best first; PatchError if the dict is no result of this version."""
    if not isinstance(result, dict) or result.get("schema_version") != SCHEMA_VERSION:
        raise PatchError(
            f"this is no result of schema version {SCHEMA_VERSION}; pass the content of results.json, which "
            "resuming a run of an older version writes anew"
        )
    missing = [name for name in _NEEDED if name not in result]
    sites = {site["site"]: site for site in result.get("sites", ())}
    if missing or not sites or sorted(result["ranked"]) != sorted(sites):
        raise PatchError(
            f"the result lacks {', '.join(missing) or 'sites, or ranks others than it holds'}"
        )
    return [sites[index] for index in result["ranked"]]


def what_of(result: dict) -> str:
    """What the pairs differ in: the word, or another attribute of a sign."""
    return plain(result.get("what", "word"))


def score_of(scores: dict, metric: str) -> dict:
    return scores.get(metric) or {}


def value_of(scores: dict, metric: str) -> float | None:
    return score_of(scores, metric).get("value")


def decimal(value, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def span_of(scores: dict, metric: str) -> str:
    score = score_of(scores, metric)
    value, low, high = (decimal(score.get(name)) for name in ("value", "low", "high"))
    return value if low == high == "-" else f"{value} [{low}, {high}]"


def percent_of(scores: dict, metric: str = "exact_target") -> str:
    score = {
        name: None if x is None else f"{100 * x:.0f}"
        for name, x in score_of(scores, metric).items()
    }
    interval = f" [{score['low']}, {score['high']}]" if score.get("low") else ""
    return f"{score.get('value') or '-'} %{interval}"


def share_of(result: dict, sites: list[dict]) -> str:
    """Text key and value projections of some sites as a share of the denoiser's parameters; - where not counted."""
    whole, own = result.get("parameters"), [site.get("parameters") for site in sites]
    return "-" if not whole or None in own else f"{sum(own) / whole:.2%}"


def size_of(result: dict, noun: str) -> str:
    pairs, seeds = result["pairs"], len(result["seeds"])
    return f"{pairs} {noun}{'' if pairs == 1 else 's'} x {seeds} seed{'' if seeds == 1 else 's'}"

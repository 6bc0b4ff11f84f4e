"""The sections of the page about a localisation, each as HTML, "" for one that has nothing to tell."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from textpatch.html import data_uri, figure, safe, table
from textpatch.metrics import FEWEST
from textpatch.report import words
from textpatch.report.charts import curve
from textpatch.report.facts import facts_of
from textpatch.report.gallery import gallery_html, heat_map
from textpatch.report.headline import further, search, verdict
from textpatch.report.reader import told_reader
from textpatch.report.result import (
    at_most,
    chance_of,
    decimal,
    is_out,
    listed,
    ranked_sites,
    responsible_sites,
    runs_of,
    share_of,
    signed,
    span_of,
    value_of,
    what_of,
)
from textpatch.runs.requests import flatten
from textpatch.runs.sessions import SESSIONS

_RANKING = (
    "rank",
    "site",
    "name",
    "share",
    "exact target",
    "F1 target",
    "F1 source",
    "bg SSIM",
    "PSNR",
    "n",
    "status",
)
_LAYERS = ("site", "name", "kind", "share of parameters")
_STEPS = ("added", "together", "pairs", "F1 towards target", "gain", "clear gain")
_GAPS = ("score", "pairs", "last site to keep", "next site", "gap between them")
_LEFT_OUT = ("site left out", "name", "by its", "value", "pairs")
_LONGEST = 500


def header(result: dict) -> str:
    """The headline with its numbers, and how to read them."""
    headline, numbers = verdict(result)
    model = safe(result["model"])
    over = f"textpatch: which layers of {model} carry the {safe(what_of(result))}?"
    return (
        f'<header><p class="over">{over}</p><h1>{safe(headline)}</h1>'
        f'<p class="lead">{safe(numbers)}</p>{_told(words.READING, result)}{_by_chance(result)}</header>'
    )


def example(result: dict, records: Sequence[dict]) -> str:
    """The pictures of one pair, and how to read them."""
    if not records:
        return ""
    return _told(words.LEGEND, result) + gallery_html(result, records)


def asked(result: dict, manifest: dict) -> str:
    """The question, the request and the prompts."""
    listing = "".join(
        f"<dt>{name}</dt><dd>{fact}</dd>" for name, fact in facts_of(result, manifest).items()
    )
    return f"{_told(words.QUESTION, result)}<dl>{listing}</dl>{_prompts(result)}"


def equation(result: dict) -> str:
    """The equation of a swap, for sites that read the text alone or beside the picture."""
    alone = all(site.get("kind") == "cross" for site in result["sites"])
    if alone:
        return words.ALONE + words.SYMBOLS
    return words.BESIDE + words.SYMBOLS


def layers(result: dict) -> str:
    """The responsible set, or the best site where there is none."""
    chosen = responsible_sites(result)
    ranked = ranked_sites(result)
    sites = [site for site in ranked if site["site"] in chosen] or ranked[:1]
    rows = [
        [
            safe(site["site"]),
            _code(site["name"]),
            safe(site.get("kind", "")),
            share_of(result, [site]),
        ]
        for site in sites
    ]
    if len(sites) > 1:
        rows.append(["together", "", "", share_of(result, sites)])
    return f'{table(_LAYERS, rows)}<p class="note">{_how_found(result)} {_kinds(sites)}</p>'


def every_pair(result: dict, records: Sequence[dict]) -> str:
    """The heat map, and how to read it."""
    if not records:
        return ""
    return _told(words.RAMP, result) + heat_map(result, records)


def word_maps(maps: Sequence[tuple[str, Image.Image]]) -> str:
    """Maps of the word's attention, and how to read them.  "" where there are none."""
    if not maps:
        return ""
    figures = "".join(figure(image, title) for title, image in maps)
    return f'{words.MAPS}<div class="gallery">{figures}</div>'


def drawing(heatmap: bytes) -> str:
    """The drawing of scores over sites.

    It fits the page, but is scrolled rather than shrunk beyond reading.
    """
    width = int.from_bytes(heatmap[16:20], "big")
    style = f"width: 100%; max-width: {0.67 * width:.0f}px; min-width: {0.4 * width:.0f}px"
    alt = "Bars: four scores over all sites"
    return f'<div class="wide"><img alt="{alt}" style="{style}" src="{data_uri(heatmap)}"></div>'


def ranking(result: dict) -> str:
    """The table of the runs and all sites, best first, what read the pictures, and how to read it."""
    rows = [["", "", label, "", *_figures(scores), ""] for _, label, scores in runs_of(result)]
    for rank, site in enumerate(ranked_sites(result), 1):
        name = _code(site["name"])
        own = [rank, safe(site["site"]), name, share_of(result, [site])]
        rows.append([*own, *_figures(site), _status(site)])
    reader = f'<p class="note">{safe(told_reader(result))}.</p>'
    return table(_RANKING, rows, "scores") + reader + _told(words.COLUMNS, result)


def search_went(result: dict) -> str:
    """The course of the search, with what was left out, the gaps seen, and the steps of growing the set."""
    parts = [
        *(f"<p>{safe(sentence)}</p>" for sentence in search(result, beside_tables=True)),
        _left_out(result),
        _gaps(result.get("gaps") or ()),
        _growth(result),
    ]
    return "".join(parts)


def starts(found: dict | None) -> str:
    """The curve of scores over the first swapped step."""
    if not found:
        return ""
    points = found["curve"]
    steps = [point["start"] for point in points]
    series = {name: [point[metric] for point in points] for name, metric in words.STARTS.items()}
    (told,) = further({"start_curve": found})
    drawn = curve(
        [str(step) for step in steps],
        series,
        "first swapped step, 0 = noisiest",
        marked=steps.index(found["chosen"]),
    )
    return f"<p>{safe(told)}</p>{drawn}"


def heads(found: dict | None) -> str:
    """The curve of scores over the heads taken."""
    if not found:
        return ""
    steps = found["steps"]
    labels = [".".join(map(str, step["unit"])) for step in steps]
    series = {name: [step[part] for step in steps] for name, part in words.HEADS.items()}
    (told,) = further({"head_search": found})
    return f"<p>{safe(told)}</p>{curve(labels, series, 'head taken, most needed first')}"


def making(manifest: dict) -> str:
    """The whole manifest, the request folded away."""
    elsewhere = ("command", "request", SESSIONS)
    rest = {name: value for name, value in manifest.items() if name not in elsewhere}
    request = _entries(flatten(manifest.get("request", {})))
    return (
        f"{_entries(flatten(rest))}<details><summary>The whole request</summary>{request}</details>"
    )


# --- parts of sections


def _told(text: str, result: dict) -> str:
    """A text of words.py, with what the pairs of this run differ in."""
    return text.format(what=safe(what_of(result)))


def _by_chance(result: dict) -> str:
    """The chance level of F1, "" in a result without one."""
    level = chance_of(result)
    if level is None:
        return ""
    return words.CHANCE.format(what=safe(what_of(result)), level=decimal(level))


def _code(text) -> str:
    return f"<code>{safe(text)}</code>"


def _prompts(result: dict) -> str:
    """All prompts, folded away."""
    runs = ("source", "target")
    rows = [[safe(pair.get(run)) for run in runs] for pair in result.get("pairs_list") or ()]
    if not rows:
        return ""
    return f"<details><summary>The prompts</summary>{table(runs, rows)}</details>"


def _how_found(result: dict) -> str:
    """The reason why these layers are shown."""
    if responsible_sites(result):
        return words.CHOSEN
    if result.get("set"):
        return words.EMPTY
    return words.BEST.format(fewest=FEWEST)


def _kinds(sites: Sequence[dict]) -> str:
    """Notes on the columns of the layers, and on the kinds of these sites."""
    kinds = dict.fromkeys(site.get("kind") for site in sites)
    return " ".join([words.COUNTED, *(words.KINDS[kind] for kind in kinds if kind in words.KINDS)])


def _figures(scores: dict) -> list[str]:
    """The numbers of a run or a site in the ranking."""
    metrics = ("exact_target", "f1_target", "f1_source", "ssim")
    psnr = decimal(value_of(scores, "psnr"), 1)
    if value_of(scores, "mse") == 0:
        psnr = "\N{INFINITY}"
    return [*(span_of(scores, metric) for metric in metrics), psnr, safe(scores.get("n", "-"))]


def _status(site: dict) -> str:
    """State of a site, measured or screened out by a score, which stands where the search is told."""
    if not is_out(site):
        return "measured"
    how = "screened out"
    if site["status"]["state"] == "joined":
        how = "joined the set, alone screened out"
    return safe(f"{how} by {site['status']['by']}")


def _left_out(result: dict) -> str:
    """The sites that were screened out, and what by."""
    out = [site for site in ranked_sites(result) if is_out(site)]
    if not out:
        return ""
    used = {site["status"]["by"] for site in out}
    why = "".join(told for by, told in words.SCREENED.items() if by in used)
    rows = [
        [
            safe(site["site"]),
            _code(site["name"]),
            words.SCORES.get(site["status"]["by"], "-"),
            span_of(site, "status"),
            safe(site["status"]["pairs"]),
        ]
        for site in out
    ]
    return why + table(_LEFT_OUT, rows)


def _gaps(gaps: Sequence[dict]) -> str:
    """The gaps between sites kept and sites left out, each on more pairs than the one before."""
    if not gaps:
        return ""
    rows = [
        [
            words.SCORES.get(gap.get("by"), "-"),
            safe(gap["pairs"]),
            safe(gap["kept"]),
            safe(gap["next"]),
            signed(gap),
        ]
        for gap in gaps
    ]
    return table(_GAPS, rows)


def _growth(result: dict) -> str:
    """The steps of growing the set, as a curve and as a table."""
    steps = (result.get("set") or {}).get("steps")
    if not steps:
        return ""
    labels = ["no swap", *map(_label, steps)]
    scores = [result["baselines"]["source"]["f1_target"], *(step["score"] for step in steps)]
    drawn = curve(labels, {"F1 towards the target": scores}, "sites swapped together")
    return drawn + table(_STEPS, map(_step, steps)) + words.GROWTH


def _label(step: dict) -> str:
    """Label of a step on the curve, with the sites that it added."""
    added = f"+ {listed(step['added'])}"
    if step["kept"]:
        return added
    if at_most(step):
        return f"{added} (refused, at most)"
    return f"{added} (refused)"


def _step(step: dict) -> list[str]:
    """A step as a row of its table."""
    pairs = str(step["pairs"])
    if at_most(step):
        pairs = f"{step['looked']} of {pairs}"
    kept = "no"
    if step["kept"]:
        kept = "yes"
    return [
        safe(", ".join(map(str, step["added"]))),
        safe(", ".join(map(str, step["group"]))),
        safe(pairs),
        at_most(step) + span_of(step, "score"),
        at_most(step) + signed(step["gain"]),
        kept,
    ]


def _entries(facts: dict) -> str:
    """A table of names and values, long values cut."""
    rows = []
    for name, value in facts.items():
        text = str(value)
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]} ..."
        rows.append([safe(name), _code(text)])
    return table(("entry", "value"), rows)

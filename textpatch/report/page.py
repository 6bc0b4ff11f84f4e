"""One self-contained HTML page about a localisation, and the files of a run folder."""

from collections.abc import Callable, Sequence

from PIL import Image

from textpatch.html import data_uri, fragment, page, safe, table
from textpatch.pictures import open_picture, png
from textpatch.report.charts import curve
from textpatch.report.contact_sheet import draw_contact_sheet
from textpatch.report.gallery import ENDS, columns, credited_row, gallery_html, heat_map
from textpatch.report.heatmap import heatmap_png
from textpatch.report.result import (
    RUNS,
    at_most,
    decimal,
    further,
    is_out,
    listed,
    ranked_sites,
    search,
    share_of,
    signed,
    size_of,
    span_of,
    value_of,
    verdict,
    what_of,
)
from textpatch.report.words import (
    ALONE,
    BESIDE,
    BEST,
    CHOSEN,
    COLUMNS,
    COUNTED,
    EMPTY,
    HEADS,
    LEGEND,
    MODES,
    QUESTION,
    RAMP,
    SCORES,
    SCREENED,
    STARTS,
    SYMBOLS,
)
from textpatch.runs.requests import flatten

SHOWN = 600  # pictures in a page, of whole pairs and seeds; of the others it names the files


def publish(run, result: dict, records: list[dict], *, lines: int = 8) -> None:
    """Write results.json and .csv, heatmap.png, contact_sheet.png and report.html into a run folder.

    The sheet shows the first `lines` records. Raises PatchError if matplotlib is missing, StoreError if the
    folder cannot be written.
    """
    heatmap, sheet = heatmap_png(result), png(_sheet_of(run, result, records[:lines]))
    shown = _within(result, records, lambda picture: _cell(run, picture)[0])
    text = report_html(result, heatmap=heatmap, sheet=shown, manifest=run.manifest)
    for name, data in (
        ("heatmap.png", heatmap),
        ("contact_sheet.png", sheet),
        ("report.html", text.encode()),
    ):
        run.write_bytes(name, data)
    run.write_json("results.json", result)
    run.write_csv("results.csv", [flatten(entry) for entry in _all_rows(result)])


def _all_rows(result: dict) -> list[dict]:
    return [{"name": name, **scores} for name, scores in result["baselines"].items()] + result[
        "sites"
    ]


def _sheet_of(run, result: dict, records: list[dict]) -> Image.Image:
    whole = [
        name
        for name in [*ENDS, *columns(result)]
        if all(name in record["pictures"] for record in records)
    ]
    words = [(pair["word"], pair["target_word"]) for pair in result["pairs_list"]]
    cells = [[_cell(run, record["pictures"][name]) for name in whole] for record in records]
    best = credited_row(result)
    return draw_contact_sheet(
        cells,
        captions=[name.replace("-", " ") for name in whole],
        words=[words[r["pair"]] for r in records],
        best=whole.index(best) if best in whole else None,
    )


def _cell(run, picture: dict) -> tuple[Image.Image, str]:
    image = picture["image"]
    if not isinstance(image, Image.Image):
        image = open_picture(run.folder / image)
    return image, picture["read"]


def _within(result: dict, records: Sequence[dict], open_: Callable[[dict], object]) -> list[dict]:
    """The records with the pictures a page speaks of, opened as long as it can hold them; then their paths are kept."""
    shown, left, names = [], SHOWN, [*ENDS, *columns(result)]
    for record in records:
        pictures = {name: record["pictures"][name] for name in names if name in record["pictures"]}
        left -= len(pictures)
        images = {
            name: open_(picture) if left >= 0 else _path(picture["image"])
            for name, picture in pictures.items()
        }
        shown.append(
            {**record, "pictures": {n: {**p, "image": images[n]} for n, p in pictures.items()}}
        )
    return shown


def _path(image) -> str | None:
    return image if isinstance(image, str) else None


# --- HTML


def report_html(result: dict, *, heatmap: bytes, sheet: Sequence[dict] = (), manifest: dict) -> str:
    """One self-contained page: the answer, what was asked and how, the layers found, the evidence, how it was made.

    `heatmap` is the bytes of a PNG, `sheet` the records whose pictures are shown (see gallery.py), `manifest` the run's.
    Prompts are escaped, there is no script, and nothing is loaded. Raises PatchError if `result` is no result.
    """
    first = [record for record in sheet if record["pair"] == sheet[0]["pair"]]
    sections = {
        "For example": _told(LEGEND, result) + gallery_html(result, first) if first else "",
        "What was asked": _asked(result, manifest),
        "What is swapped": _equation(result),
        "The layers found": _layers(result),
        "The evidence: every pair at every site": _map(result, sheet),
        "The other pictures": gallery_html(result, sheet[len(first) :]),
        "The evidence: all sites": _drawing(heatmap) + _ranking(result),
        "How the search went": _search(result),
        "From which step on": _starts(result.get("start_curve")),
        "Which heads": _heads(result.get("head_search")),
        "How it was made": _making(result, manifest),
    }
    body = "".join(
        f"<section><h2>{title}</h2>{content}</section>\n"
        for title, content in sections.items()
        if content
    )
    return page(f"textpatch: {result['model']}", _answer(result) + body)


def summary_html(result: dict, records: Sequence[dict]) -> str:
    """The answer, the layers found, heat map, table and pictures, for a notebook's cell."""
    shown = _within(result, records, lambda picture: picture["image"])
    return fragment(
        _answer(result)
        + _layers(result)
        + _map(result, shown)
        + _ranking(result)
        + gallery_html(result, shown)
    )


def _answer(result) -> str:
    headline, numbers = verdict(result)
    over = f"textpatch: which layers of {safe(result['model'])} carry the {safe(what_of(result))}?"
    return f'<header><p class="over">{over}</p><h1>{safe(headline)}</h1><p class="lead">{safe(numbers)}</p></header>'


def _told(text: str, result) -> str:
    """What the page says of every run, said of this one."""
    return text.format(what=safe(what_of(result)))


def _asked(result, manifest) -> str:
    branch = (
        "both guidance branches" if result["branch"] == "both" else f"the {result['branch']} branch"
    )
    ocr = result.get("ocr") or {}
    facts = {
        "model": f"<b>{safe(result['model'])}</b>",
        "sites tried": f"{len(result['sites'])}, {MODES.get(result.get('mode'), 'each on every pair')}",
        "pictures": f"{size_of(result, 'prompt pair')} (seed {safe(', '.join(map(str, result['seeds'])))})",
        "steps": f"{safe(result['steps'])}; swapped from step {safe(result['start'])} on, step 0 being pure noise",
        "guidance": "none"
        if result["guidance"] == 1
        else safe(f"guidance {result['guidance']}; swapped in {branch}"),
        f"{safe(what_of(result))}s read by": safe(
            f"{ocr.get('engine', '-')} {ocr.get('version', '')}"
        ),
        "command": f"<pre>{safe(manifest['command'])}</pre>" if manifest.get("command") else "-",
    }
    listing = "".join(f"<dt>{name}</dt><dd>{fact}</dd>" for name, fact in facts.items())
    return f"{_told(QUESTION, result)}<dl>{listing}</dl>{_pairs(result)}"


def _pairs(result) -> str:
    runs = ("source", "target")
    rows = [[safe(pair.get(run)) for run in runs] for pair in result.get("pairs_list") or ()]
    return f"<details><summary>The prompts</summary>{table(runs, rows)}</details>" if rows else ""


def _equation(result) -> str:
    alone = all(site.get("kind") == "cross" for site in result["sites"])
    return (ALONE if alone else BESIDE) + SYMBOLS


def _layers(result) -> str:
    """The responsible set, or the best site where there is none."""
    found, ranked = result.get("set"), ranked_sites(result)
    chosen = [site for site in ranked if found and site["site"] in found["sites"]]
    sites = chosen or ranked[:1]
    rows = [
        [
            safe(site["site"]),
            f"<code>{safe(site['name'])}</code>",
            safe(site.get("kind", "")),
            share_of(result, [site]),
            span_of(site, "f1_target"),
            span_of(site, "ssim"),
        ]
        for site in sites
    ]
    if len(sites) > 1:
        rows.append(["together", "", "", share_of(result, sites), span_of(found, "score"), ""])
    head = "site", "name", "kind", "share of parameters", "F1 target", "bg SSIM"
    told = CHOSEN if chosen else EMPTY if found else BEST
    return table(head, rows) + f'<p class="note">{told} {COUNTED}</p>'


def _map(result, records) -> str:
    return _told(RAMP, result) + heat_map(result, records) if records else ""


def _ranking(result) -> str:
    head = (
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
    rows = [["", "", label, "", *_figures(result["baselines"][run]), ""] for run, label in RUNS]
    rows += [
        [
            rank,
            safe(site["site"]),
            f"<code>{safe(site['name'])}</code>",
            share_of(result, [site]),
            *_figures(site),
            _status(site),
        ]
        for rank, site in enumerate(ranked_sites(result), 1)
    ]
    return table(head, rows, "scores") + _told(COLUMNS, result)


def _figures(scores) -> list[str]:
    psnr = "\N{INFINITY}" if value_of(scores, "mse") == 0 else decimal(value_of(scores, "psnr"), 1)
    spans = [
        span_of(scores, metric) for metric in ("exact_target", "f1_target", "f1_source", "ssim")
    ]
    return [*spans, psnr, safe(scores.get("n", "-"))]


def _status(site: dict) -> str:
    status = site.get("status", {})
    if not is_out(site):
        return "measured"
    how = "joined the set, alone screened out" if status["state"] == "joined" else "screened out"
    return safe(
        f"{how} by {status['by']}: {span_of({'score': status}, 'score')} on {status['pairs']} pairs"
    )


def _search(result) -> str:
    """The sentences, what they mean, the gaps seen, and every step of growing the set."""
    said = (
        "".join(f"<p>{safe(sentence)}</p>" for sentence in search(result))
        or "<p>Every site alone.</p>"
    )
    said += _left_out(result)
    gaps = [
        [
            SCORES.get(gap.get("by"), "-"),
            safe(gap["pairs"]),
            safe(gap["kept"]),
            safe(gap["next"]),
            signed(gap),
        ]
        for gap in result.get("gaps") or ()
    ]
    said += (
        table(("score", "pairs", "last site to keep", "next site", "gap between them"), gaps)
        if gaps
        else ""
    )
    steps = (result.get("set") or {}).get("steps", ())
    rows = [
        [
            safe(", ".join(map(str, step["added"]))),
            safe(", ".join(map(str, step["group"]))),
            _looked(step),
            at_most(step) + span_of(step, "score"),
            at_most(step) + signed(step["gain"]),
            "yes" if step["kept"] else "no",
        ]
        for step in steps
    ]
    head = "added", "together", "pairs", "F1 target", "gain", "clear gain"
    return said + (_growth(result, steps) + table(head, rows) if rows else "")


def _looked(step) -> str:
    return safe(f"{step['looked']} of {step['pairs']}" if at_most(step) else step["pairs"])


def _left_out(result) -> str:
    out = [site for site in ranked_sites(result) if is_out(site)]
    rows = [
        [
            safe(site["site"]),
            f"<code>{safe(site['name'])}</code>",
            SCORES.get(site["status"]["by"], "-"),
            span_of(site, "status"),
            safe(site["status"]["pairs"]),
        ]
        for site in out
    ]
    why = "".join(
        told for by, told in SCREENED.items() if by in {site["status"]["by"] for site in out}
    )
    return why + table(("site left out", "name", "by its", "value", "pairs"), rows) if out else ""


def _growth(result, steps) -> str:
    before = result["baselines"]["source"]["f1_target"]
    labels = [
        "no swap",
        *(
            f"+ {listed(step['added'])}"
            + ("" if step["kept"] else f" (refused{', at most' if at_most(step) else ''})")
            for step in steps
        ),
    ]
    scores = [before, *(step["score"] for step in steps)]
    return curve(labels, {"F1 towards the target": scores}, "sites swapped together")


def _starts(found) -> str:
    if not found:
        return ""
    points, chosen = found["curve"], found["chosen"]
    series = {name: [point[metric] for point in points] for name, metric in STARTS.items()}
    labels, starts = [str(point["start"]) for point in points], [point["start"] for point in points]
    (told,) = further({"start_curve": found})
    return f"<p>{safe(told)}</p>" + curve(
        labels, series, "first swapped step, 0 = noisiest", marked=starts.index(chosen)
    )


def _heads(found) -> str:
    if not found:
        return ""
    (told,), steps = further({"head_search": found}), found["steps"]
    labels = [".".join(map(str, step["unit"])) for step in steps]
    series = {name: [step[part] for step in steps] for name, part in HEADS.items()}
    return f"<p>{safe(told)}</p>" + curve(labels, series, "head taken, most needed first")


def _making(result, manifest) -> str:
    rest = {name: value for name, value in manifest.items() if name not in ("command", "request")}
    facts = {"seeds": ", ".join(map(str, result["seeds"])), **flatten(rest)}
    request = _entries(flatten(manifest.get("request", {})))
    return f"{_entries(facts)}<details><summary>The whole request</summary>{request}</details>"


def _entries(facts: dict) -> str:
    texts = {name: str(value) for name, value in facts.items()}
    cut = {name: text if len(text) <= 500 else f"{text[:500]} ..." for name, text in texts.items()}
    rows = [[safe(name), f"<code>{safe(text)}</code>"] for name, text in cut.items()]
    return table(("entry", "value"), rows)


def _drawing(heatmap: bytes) -> str:
    """The drawing of scores by site, which fits the page, but is scrolled rather than shrunk beyond reading."""
    width = int.from_bytes(heatmap[16:20], "big")
    style = f"width: 100%; max-width: {0.67 * width:.0f}px; min-width: {0.4 * width:.0f}px"
    words = "Heat map: four scores over all sites"
    return f'<div class="wide"><img alt="{words}" style="{style}" src="{data_uri(heatmap)}"></div>'

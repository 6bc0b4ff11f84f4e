"""One self-contained HTML page about a localisation, and the files of a run folder."""

import base64
import html

from PIL import Image

from textpatch.figures import contact_sheet, heatmap_png, png
from textpatch.result import (
    RUNS, decimal, is_out, plain, ranked_sites, search, signed, size_of, span_of, value_of, verdict,
)  # fmt: skip
from textpatch.store import flatten


def publish(run, result: dict, records: list[dict], *, lines: int = 8) -> None:
    """Write results.json and .csv, heatmap.png, contact_sheet.png and report.html into a run folder.

    The sheet shows the first `lines` records. Raises PatchError if matplotlib is missing, StoreError if the
    folder cannot be written.
    """
    heatmap, sheet = heatmap_png(result), png(_sheet_of(run, result, records[:lines]))
    page = report_html(result, heatmap=heatmap, sheet=sheet, manifest=run.manifest)
    for name, data in (
        ("heatmap.png", heatmap),
        ("contact_sheet.png", sheet),
        ("report.html", page.encode()),
    ):
        run.write_bytes(name, data)
    run.write_json("results.json", result)
    run.write_csv("results.csv", [flatten(entry) for entry in _all_rows(result)])


def _all_rows(result: dict) -> list[dict]:
    return [{"name": name, **scores} for name, scores in result["baselines"].items()] + result["sites"]


def _sheet_of(run, result: dict, records: list[dict]) -> Image.Image:
    names = [name for name in records[0]["pictures"] if all(name in record["pictures"] for record in records)]
    words = [(pair["word"], pair["target_word"]) for pair in result["pairs_list"]]
    cells = [[_cell(run, record["pictures"][name]) for name in names] for record in records]
    best = names.index(f"site-{result['ranked'][0]}")
    captions = [name.replace("-", " ") for name in names]
    return contact_sheet(cells, captions=captions, words=[words[r["pair"]] for r in records], best=best)


def _cell(run, picture: dict) -> tuple[Image.Image, str]:
    image = picture["image"]
    if not isinstance(image, Image.Image):
        with Image.open(run.folder / image) as file:
            image = file.convert("RGB")
    return image, picture["read"]


# --- HTML


def report_html(result: dict, *, heatmap: bytes, sheet: bytes, manifest: dict) -> str:
    """One self-contained page: question, answer, pictures, heat map, ranked table, how it was made.

    `heatmap` and `sheet` are PNG bytes, `manifest` the run's. Prompts are escaped, there is no script, and
    nothing is loaded. Raises PatchError if `result` is no result.
    """
    headline, numbers = verdict(result)
    sections = {
        "What was asked": _asked(result) + _pairs(result),
        "The answer": f'<p class="answer"><b>{_safe(headline)}</b> {_safe(numbers)}</p>',
        "The pictures": _picture(sheet, "Contact sheet: source, target, and each site patched") + _LEGEND,
        "Scores by site": _picture(heatmap, "Heat map: four scores over all sites"),
        "All sites, best first": _ranking(result),
        "How the search went": _search(result),
        "How it was made": _making(result, manifest),
    }
    body = "".join(f"<section><h2>{title}</h2>{content}</section>\n" for title, content in sections.items())
    return _PAGE.format(title=f"textpatch: {_safe(result['model'])}", style=_STYLE, body=body)


def _safe(text) -> str:
    return html.escape(plain(text))


def _asked(result) -> str:
    branch = "both guidance branches" if result["branch"] == "both" else f"the {result['branch']} branch"
    model, start, steps, guidance = (_safe(result[name]) for name in ("model", "start", "steps", "guidance"))
    guided = "without guidance" if result["guidance"] == 1 else f"at guidance {guidance}, in {_safe(branch)}"
    return (
        f"<p>Which of the {len(result['sites'])} attention sites of <b>{model}</b> carries the written "
        "word? At one site at a time, the text keys and values of the target prompt replaced those of "
        f"the source prompt, from step {start} of {steps} on, {guided}: "
        f"{size_of(result, 'prompt pair')}.</p>"
    )


def _pairs(result) -> str:
    runs = ("source", "target")
    rows = [[_safe(pair.get(run)) for run in runs] for pair in result.get("pairs_list") or ()]
    return f"<details><summary>The prompts</summary>{_grid(runs, rows)}</details>" if rows else ""


def _ranking(result) -> str:
    head = "rank", "site", "name", "kind", "exact target", "F1 target", "F1 source", "bg SSIM", "PSNR", "n", "status"
    rows = [["", "", label, "", *_figures(result["baselines"][run]), ""] for run, label in RUNS]
    rows += [
        [
            rank,
            _safe(site["site"]),
            f"<code>{_safe(site['name'])}</code>",
            _safe(site.get("kind", "")),
            *_figures(site),
            _status(site),
        ]
        for rank, site in enumerate(ranked_sites(result), 1)
    ]
    return _grid(head, rows, "scores") + "<p>Mean [95 % interval]; PSNR in dB.</p>"


def _figures(scores) -> list[str]:
    psnr = "\N{INFINITY}" if value_of(scores, "mse") == 0 else decimal(value_of(scores, "psnr"), 1)
    spans = [span_of(scores, metric) for metric in ("exact_target", "f1_target", "f1_source", "ssim")]
    return [*spans, psnr, _safe(scores.get("n", "-"))]


def _status(site: dict) -> str:
    if not is_out(site):
        return "measured"
    status = site["status"]
    return _safe(f"screened out by {status['by']}: {span_of({'score': status}, 'score')} on {status['pairs']} pairs")


def _search(result) -> str:
    """The sentences, and every step of growing the set."""
    said = "".join(f"<p>{_safe(sentence)}</p>" for sentence in search(result)) or "<p>Every site alone.</p>"
    steps = (result.get("set") or {}).get("steps", ())
    rows = [
        [_safe(step["added"]), _safe(", ".join(map(str, step["group"]))), span_of(step, "score"), signed(step["gain"]),
         "yes" if step["kept"] else "no"]
        for step in steps
    ]  # fmt: skip
    head = "site added", "together", "F1 target", "gain", "clear gain"
    return said + (_grid(head, rows) if rows else "")


def _making(result, manifest) -> str:
    rest = {name: value for name, value in manifest.items() if name not in ("command", "request")}
    command = f"<pre>{_safe(manifest['command'])}</pre>" if manifest.get("command") else ""
    facts = {"seeds": ", ".join(map(str, result["seeds"])), **flatten(rest)}
    request = _entries(flatten(manifest.get("request", {})))
    return f"{command}{_entries(facts)}<details><summary>The whole request</summary>{request}</details>"


def _entries(facts: dict) -> str:
    texts = {name: str(value) for name, value in facts.items()}
    cut = {name: text if len(text) <= 500 else f"{text[:500]} ..." for name, text in texts.items()}
    rows = [[_safe(name), f"<code>{_safe(text)}</code>"] for name, text in cut.items()]
    return _grid(("entry", "value"), rows)


def _grid(head, rows, kind: str = "text") -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    body = f"<thead><tr>{top}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="wide"><table class="{kind}">{body}</table></div>'


def _picture(png: bytes, words: str) -> str:
    """An inline picture that fits the page, but is scrolled rather than shrunk beyond reading."""
    width = int.from_bytes(png[16:20], "big")
    style = f"width: 100%; max-width: {0.67 * width:.0f}px; min-width: {0.4 * width:.0f}px"
    data = base64.b64encode(png).decode()
    return f'<div class="wide"><img alt="{words}" style="{style}" src="data:image/png;base64,{data}"></div>'


_LEGEND = """<p>One line per prompt pair. Under each picture: the words the OCR read, blue where they are the
target's, black where they are the source's, grey otherwise. The best site is framed.</p>"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6673; --line: #dfe4ea; --page: #fff;
  --lift: #f4f7f9; --mark: #0072B2 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaef; --soft: #9aa6b3; --line: #313a45;
  --page: #14181d; --lift: #1d232a; --mark: #56B4E9 } }
body { margin: 0 auto; max-width: 1240px; padding: 1.5rem 1rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem; color: var(--mark) }
p { margin: .6rem 0; max-width: 46rem; overflow-wrap: anywhere }
.answer { font-size: 1.15rem; border-left: 4px solid var(--mark); padding: .2rem 0 .2rem 1rem }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; margin: .8rem 0;
  width: fit-content; max-width: 100% }
img { display: block; background: #fff }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .35rem .8rem; border-top: 1px solid var(--line); vertical-align: top;
  unicode-bidi: isolate }
th { color: var(--soft); font-weight: 600; border: 0; background: var(--lift) }
.scores :is(th, td) { white-space: nowrap }
.scores tbody tr:nth-child(-n+2) { color: var(--soft) }
.scores tbody tr:nth-child(3) { font-weight: 600; background: var(--lift) }
.text td { overflow-wrap: anywhere; min-width: 8rem }
code, pre { font: .84rem/1.5 ui-monospace, monospace }
pre { background: var(--lift); border-radius: 8px; padding: .7rem 1rem; white-space: pre-wrap;
  overflow-wrap: anywhere }
summary { cursor: pointer; color: var(--soft) }
"""

# the policy in the head: even if escaping failed, no script could run and nothing could be loaded
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta HTTP-EQUIV="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}</body>
</html>
"""

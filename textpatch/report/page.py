"""One self-contained HTML page about a localisation, and the files of a run folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from textpatch.html import contents, fragment, page
from textpatch.pictures import opened, png
from textpatch.report import sections
from textpatch.report.contact_sheet import draw_contact_sheet
from textpatch.report.gallery import ENDS, columns, credited_row, gallery_html
from textpatch.report.headline import screened_out
from textpatch.report.heatmap import heatmap_png
from textpatch.report.lines import line_by_line
from textpatch.report.word_by_word import pictured, words_one_by_one
from textpatch.runs.requests import flatten

# Pictures that a page holds.  Of the records after these it names the files.
SHOWN = 600


def publish(
    run,
    result: dict,
    records: list[dict],
    *,
    lines: int = 8,
    maps: Sequence[tuple[str, Image.Image]] = (),
) -> None:
    """Write results.json and .csv, heatmap.png, contact_sheet.png and report.html into a run folder.

    lines  number of records on the contact sheet, the first ones that have source and target
    maps   titles and pictures that show where the word is read
    Raises PatchError if matplotlib is missing, StoreError if the folder cannot be written.
    """
    heatmap = heatmap_png(result)
    sheet = png(_sheet_of(run, result, _with_both_ends(records)[:lines]))
    text = page_of(result, records, run, run.manifest, heatmap=heatmap, maps=maps)
    run.write_bytes("heatmap.png", heatmap)
    run.write_bytes("contact_sheet.png", sheet)
    run.write_bytes("report.html", text.encode())
    run.write_json("results.json", result)
    run.write_csv("results.csv", [flatten(entry) for entry in all_rows(result)])


def page_of(
    result: dict,
    records: Sequence[dict],
    run,
    manifest: dict,
    *,
    heatmap: bytes | None = None,
    maps: Sequence[tuple[str, Image.Image]] = (),
) -> str:
    """The page about a result and its records, whose pictures are images or lie in the folder of `run`.

    heatmap  a PNG, drawn here when None
    Raises PatchError as `publish` does.
    """
    shown = _within(result, records, lambda picture: opened(picture["image"], run))
    if heatmap is None:
        heatmap = heatmap_png(result)
    return report_html(result, heatmap=heatmap, sheet=shown, manifest=manifest, maps=maps)


def report_html(
    result: dict,
    *,
    heatmap: bytes,
    sheet: Sequence[dict] = (),
    manifest: dict,
    maps: Sequence[tuple[str, Image.Image]] = (),
) -> str:
    """Write one self-contained page.

    It gives the answer, then what was asked and how, the layers found, the evidence, how it was made, and all
    pictures.

    heatmap   a PNG
    sheet     the records whose pictures are shown (see gallery.py)
    manifest  of the run
    maps      titles and pictures that show where the word is read
    Prompts are escaped, there is no script, and nothing is loaded.
    Raises PatchError if `result` is no result.
    """
    first = [record for record in sheet if record["pair"] == sheet[0]["pair"]]
    parts = {
        "For example": sections.example(result, first),
        "What was asked": sections.asked(result, manifest),
        "What is swapped": sections.equation(result),
        "The layers found": sections.layers(result),
        "The evidence: every pair at every site": sections.every_pair(result, sheet),
        "The evidence: all sites": sections.drawing(heatmap) + sections.ranking(result),
        "The evidence: line by line": line_by_line(result),
        "Which word is where": words_one_by_one(result, first),
        "How the search went": sections.search_went(result),
        "From which step on": sections.starts(result.get("start_curve")),
        "Which heads": sections.heads(result.get("head_search")),
        "Where the word is read": sections.word_maps(maps),
        "How it was made": sections.making(manifest),
        "The other pictures": gallery_html(result, sheet[len(first) :]),
    }
    there = {title: content for title, content in parts.items() if content}
    body = sections.header(result) + contents(there)
    for number, (title, content) in enumerate(there.items(), 1):
        body += f'<section id="part-{number}"><h2>{title}</h2>{content}</section>\n'
    return page(f"textpatch: {result['model']}", body)


def summary_html(result: dict, records: Sequence[dict]) -> str:
    """The answer, the layers found, heat map, table and pictures, for a notebook's cell."""
    shown = _within(result, records, lambda picture: picture["image"])
    parts = [
        sections.header(result),
        sections.layers(result),
        sections.every_pair(result, shown),
        sections.ranking(result),
        gallery_html(result, shown),
    ]
    return fragment("".join(parts))


def all_rows(result: dict) -> list[dict]:
    """The rows of results.csv, first the two runs and then the sites."""
    runs = [{"name": name, **scores} for name, scores in result["baselines"].items()]
    return runs + result["sites"]


def _sheet_of(run, result: dict, records: list[dict]) -> Image.Image:
    """Contact sheet of some records, with the columns that all of them have."""
    whole = [
        name
        for name in [*ENDS, *columns(result)]
        if all(name in record["pictures"] for record in records)
    ]
    cells = []
    words = []
    for record in records:
        pictures = [record["pictures"][name] for name in whole]
        cells.append([(opened(picture["image"], run), picture["read"]) for picture in pictures])
        pair = result["pairs_list"][record["pair"]]
        words.append((pair["word"], pair["target_word"]))
    best = None
    if credited_row(result) in whole:
        best = whole.index(credited_row(result))
    titles = columns(result)
    captions = [titles.get(name, name) for name in whole]
    return draw_contact_sheet(
        cells, captions=captions, words=words, best=best, note=" ".join(screened_out(result))
    )


def _with_both_ends(records: Sequence[dict]) -> list[dict]:
    """The records with the plain source's and target's pictures, which a screening draws of some alone."""
    both = [record for record in records if all(end in record["pictures"] for end in ENDS)]
    return both or list(records)


def _within(result: dict, records: Sequence[dict], open_: Callable[[dict], object]) -> list[dict]:
    """The records, each with the pictures that a page speaks of.

    open_  gives the image of a picture.  It opens the first SHOWN pictures, by whole records.  After these a
           picture keeps its path, or None in place of an image
    """
    names = [*ENDS, *columns(result), *pictured(result)]
    shown = []
    left = SHOWN
    for record in records:
        pictures = {}
        left -= sum(name in record["pictures"] for name in names)
        for name in names:
            if name in record["pictures"]:
                picture = record["pictures"][name]
                image = open_(picture) if left >= 0 else _path(picture["image"])
                pictures[name] = {**picture, "image": image}
        shown.append({**record, "pictures": pictures})
        # words one by one are shown of the first record alone
        names = [*ENDS, *columns(result)]
    return shown


def _path(image) -> str | None:
    """The image if it is a path, else None."""
    if isinstance(image, str):
        return image
    return None

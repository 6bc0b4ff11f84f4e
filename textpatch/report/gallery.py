"""The heat map of prompt pairs and sites, and the pictures and readings that its cells open.

A cell links to the column of its site in its pair's block of pictures.  The stylesheet then lets this block
stand alone over the page, with source, target and that one column.  So no script is needed, and every
picture is in the page once.

`records` are those of a run, one dict for each pair and seed.

    pair, seed  which pair, by its position in the result's "pairs_list", and which seed
    pictures    by row name, a dict of "image" (a PIL picture or a path), "read" (what was read) and scores
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from textpatch.groups import group_name, row_name
from textpatch.html import figure, safe
from textpatch.metrics import f1_of_means
from textpatch.report.result import credited, decimal, listed, span_of
from textpatch.text import plain

ENDS = {"source": "source, no swap", "target": "target"}
_TO = " \N{RIGHTWARDS ARROW} "
_BACK = "\N{LEFTWARDS ARROW} back to the heat map"
_NONE = "\N{MIDDLE DOT}"


def columns(result: dict) -> dict[str, str]:
    """Titles of everything that was swapped, by row name.

    The sites come first, in the order they run, then the sets that were grown.
    """
    titles = {row_name((site["site"],)): listed([site["site"]]) for site in result["sites"]}
    for step in (result.get("set") or {}).get("steps", ()):
        group = step["group"]
        if len(group) > 1:
            titles[row_name(group)] = f"sites {group_name(group)}"
    return titles


def credited_row(result: dict) -> str:
    """Row name of the pictures of what the headline names."""
    return row_name(credited(result))


def _by_pair(records: Sequence[dict]) -> dict[int, list[dict]]:
    pairs: dict[int, list[dict]] = {}
    for record in records:
        pairs.setdefault(record["pair"], []).append(record)
    return pairs


def _pictures(records: Sequence[dict], name: str) -> list[tuple[int, dict]]:
    """Seed and picture of each record that has a picture of this row name."""
    return [
        (record["seed"], record["pictures"][name])
        for record in records
        if name in record["pictures"]
    ]


def _key(result: dict) -> str:
    """Beginning of this result's anchors, as a notebook may show several results."""
    return "r" + hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:8]


def _anchor(key: str, pair: int, column: int) -> str:
    return f"{key}-{pair}-{column}"


def _words(result: dict, pair: int) -> tuple[str, str]:
    said = result["pairs_list"][pair]
    return plain(said["word"]), plain(said["target_word"])


# --- the heat map


def heat_map(result: dict, records: Sequence[dict]) -> str:
    """A table of F1 towards the target, averaged over seeds, with a link in each cell.

    A row is a pair, a column a site or a set.
    """
    key = _key(result)
    titles = columns(result)
    best = credited_row(result)
    head = "".join(f"<th>{safe(title)}</th>" for title in ("pair", *ENDS.values()))
    for name, title in titles.items():
        mark = " class=best" * (name == best)
        head += f"<th{mark}>{safe(title)}</th>"
    rows = ""
    for pair, found in _by_pair(records).items():
        cells = [_end(name, _pictures(found, name)) for name in ENDS]
        for column, name in enumerate(titles):
            cells.append(_cell(result, key, pair, column, _pictures(found, name)))
        label = safe(_TO.join(_words(result, pair)))
        rows += f"<tr><th>{label}</th>{''.join(cells)}</tr>\n"
    rows += _shares(result)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide map" id="{key}">{table}</div>'


def _shares(result: dict) -> str:
    """Last row of the heat map, the share of every site by which a screening ranked it, "" without one."""
    by = result.get("mode")
    if not any(site.get(by) for site in result["sites"]):
        return ""
    cells = "".join(f'<td class="ends{last}"></td>' for last in ("", " last"))
    told = {row_name((site["site"],)): site.get(by) for site in result["sites"]}
    for name in columns(result):
        cells += _share_cell(told.get(name))
    return f'<tr class="shares"><th>share by {safe(by)}</th>{cells}</tr>\n'


def _share_cell(told: dict | None) -> str:
    """A cell of a share, as dark as the share is large, empty for a set."""
    if not told:
        return "<td></td>"
    share = told["share"]["value"]
    title = f"{span_of(told, 'share')} on {told['pairs']} pairs"
    return f'<td><span title="{safe(title)}" {_shade(min(max(share, 0), 1))}>{decimal(share)}</span></td>'


def _f1(pictures: Sequence[tuple[int, dict]]) -> float:
    """F1 towards the target over pictures, the score of `localize`."""
    precision = [picture["precision_target"] for _, picture in pictures]
    recall = [picture["recall_target"] for _, picture in pictures]
    return float(f1_of_means(precision, recall))


def _shade(f1: float) -> str:
    """Attributes that colour a cell, where dark cells have light letters."""
    kind = "low"
    if f1 > 0.5:
        kind = "high"
    return f'style="--f: {f1:.3f}" class="{kind}"'


def _end(name: str, pictures: Sequence[tuple[int, dict]]) -> str:
    """A cell of the run without a swap, or of the whole target run."""
    shown = f'<span class="none">{_NONE}</span>'
    if pictures:
        f1 = _f1(pictures)
        shown = f"<span {_shade(f1)}>{f1:.2f}</span>"
    last = " last" * (name == "target")
    return f'<td class="ends{last}">{shown}</td>'


def _cell(
    result: dict, key: str, pair: int, column: int, pictures: Sequence[tuple[int, dict]]
) -> str:
    """A cell of a site or a set, which opens its pictures."""
    if not pictures:
        return f'<td><span class="none" title="not run on this pair">{_NONE}</span></td>'
    read = ", ".join(plain(picture["read"]) or "nothing" for _, picture in pictures)
    told = f'title="read {safe(read)}; wanted {safe(_words(result, pair)[1])}"'
    f1 = _f1(pictures)
    return f'<td><a href="#{_anchor(key, pair, column)}" {told} {_shade(f1)}>{f1:.2f}</a></td>'


# --- the pictures


def gallery_html(result: dict, records: Sequence[dict]) -> str:
    """A block of pictures for every pair, under its words and prompts.

    A block has columns of source, target, what is credited, and all others.  Seeds stand below each other.
    """
    key = _key(result)
    blocks = [_block(result, key, pair, found) for pair, found in _by_pair(records).items()]
    return "".join(blocks)


def _block(result: dict, key: str, pair: int, records: Sequence[dict]) -> str:
    best = credited_row(result)
    words = _words(result, pair)
    shown = [
        _column(title, _pictures(records, name), words, 'class="column end"')
        for name, title in ENDS.items()
    ]
    titles = enumerate(columns(result).items())
    for number, (name, title) in sorted(titles, key=lambda entry: entry[1][0] != best):
        kind = "column" + " best" * (name == best)
        attributes = f'class="{kind}" id="{_anchor(key, pair, number)}"'
        shown.append(_column(title, _pictures(records, name), words, attributes))
    heading = _heading(result, key, pair)
    return f'<article class="pair">{heading}<div class="columns">{"".join(shown)}</div></article>\n'


def _heading(result: dict, key: str, pair: int) -> str:
    said = result["pairs_list"][pair]
    prompts = "<br>".join(f"{side}: {safe(said[side])}" for side in ("source", "target"))
    back = f'<a class="close" href="#{key}">{_BACK}</a>'
    return f'{back}<h3>{safe(_TO.join(_words(result, pair)))}</h3><p class="prompts">{prompts}</p>'


def _column(
    title: str, pictures: Sequence[tuple[int, dict]], words: tuple[str, str], attributes: str
) -> str:
    """A column of pictures, a seed below the other, "" where there are none."""
    if not pictures:
        return ""
    figures = ""
    for seed, picture in pictures:
        name = title
        if len(pictures) > 1:
            name = f"{title}, seed {seed}"
        lettering = picture.get("lettering", ())
        figures += figure(picture["image"], name, _caption(picture, words), lettering)
    return f"<div {attributes}>{figures}</div>"


def _caption(picture: dict, words: tuple[str, str]) -> str:
    """The reading of a picture, line by line, and in a block that stands alone also its scores.

    Where two readers had to agree, what only one read, or was not sure of, stands beside it.
    """
    lines = picture.get("texts") or [picture]
    read = " / ".join(_read(line) for line in lines)
    f1 = decimal(_f1([(0, picture)]))
    ssim = decimal(picture.get("ssim"))
    more = f"F1 towards {safe(words[1])}: {f1}<br>background SSIM {ssim}"
    doubt = ""
    if picture.get("unconfirmed"):
        doubt = f' <span class="what">in doubt: {safe(plain(picture["unconfirmed"]))}</span>'
    return f'<span class="what">read</span> {read}{doubt}<span class="more">{more}</span>'


def _read(scored: dict) -> str:
    """What was read in a picture or in one of its lines, in the colour of the side whose text it is."""
    read = plain(scored["read"]) or "(nothing)"
    sides = [side for side in ("target", "source") if scored.get(f"exact_{side}")]
    side = [*sides, "other"][0]
    return f'<span class="read {side}">{safe(read)}</span>'

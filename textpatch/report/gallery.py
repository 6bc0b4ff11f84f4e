"""The heat map of prompt pairs and sites, and the pictures and readings that its cells open.

A cell links to the column of its site in its pair's block of pictures, and the stylesheet lets a block with such a
column stand alone over the page: source, target and that one.  So no script is needed, and every picture is in the
page once.

`records` are a run's, one dict per pair and seed: {"pair", "seed", "pictures"}; of each picture by row name its
"image", a PIL picture or a path, what was "read" in it, and its scores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from textpatch.groups import group_name, row_name
from textpatch.html import figure, safe
from textpatch.metrics import f1_of_means
from textpatch.report.result import credited, decimal
from textpatch.text import plain

ENDS = {"source": "source, no swap", "target": "target"}
_TO, _BACK, _NONE = (
    " \N{RIGHTWARDS ARROW} ",
    "\N{LEFTWARDS ARROW} back to the heat map",
    "\N{MIDDLE DOT}",
)


def columns(result: dict) -> dict[str, str]:
    """Row name -> title of everything swapped: the sites in execution order, then the sets that were grown."""
    grown = [
        step["group"]
        for step in (result.get("set") or {}).get("steps", ())
        if len(step["group"]) > 1
    ]
    return {row_name((site["site"],)): f"site {site['site']}" for site in result["sites"]} | {
        row_name(group): f"sites {group_name(group)}" for group in grown
    }


def credited_row(result: dict) -> str:
    """What the pictures are called of what the headline names."""
    return row_name(credited(result))


def _by_pair(records: Sequence[dict]) -> dict[int, list[dict]]:
    pairs: dict[int, list[dict]] = {}
    for record in records:
        pairs.setdefault(record["pair"], []).append(record)
    return pairs


def _pictures(records: Sequence[dict], name: str) -> list[tuple[int, dict]]:
    """(seed, picture) of one row name."""
    return [
        (record["seed"], record["pictures"][name])
        for record in records
        if name in record["pictures"]
    ]


def _key(result: dict) -> str:
    """What the anchors of this result begin with: a notebook may show several."""
    return "r" + hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:8]


def _anchor(key: str, pair: int, column: int) -> str:
    return f"{key}-{pair}-{column}"


def _words(result: dict, pair: int) -> tuple[str, str]:
    said = result["pairs_list"][pair]
    return plain(said["word"]), plain(said["target_word"])


# --- the heat map


def heat_map(result: dict, records: Sequence[dict]) -> str:
    """F1 towards the target of every pair (rows) at every site (columns), seeds averaged; each cell a link."""
    key, titles, best = _key(result), columns(result), credited_row(result)
    head = "".join(f"<th>{safe(title)}</th>" for title in ENDS.values())
    head += "".join(
        f"<th{' class=best' * (name == best)}>{safe(titles[name])}</th>" for name in titles
    )
    rows = ""
    for pair, found in _by_pair(records).items():
        label = f"<th>{safe(_TO.join(_words(result, pair)))}</th>"
        cells = [_end(name, _pictures(found, name)) for name in ENDS]
        cells += [
            _cell(result, key, pair, n, _pictures(found, name)) for n, name in enumerate(titles)
        ]
        rows += f"<tr>{label}{''.join(cells)}</tr>\n"
    table = f"<table><thead><tr><th>pair</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide map" id="{key}">{table}</div>'


def _f1(pictures: Sequence[tuple[int, dict]]) -> float:
    """The score of `localize`, here over seeds."""
    return float(
        f1_of_means(
            *([p[f"{part}_target"] for _, p in pictures] for part in ("precision", "recall"))
        )
    )


def _shade(f1: float) -> str:
    return f'style="--f: {f1:.3f}" class="{"high" if f1 > 0.5 else "low"}"'


def _end(name: str, pictures) -> str:
    """A cell of the run without a swap, or of the whole target run."""
    last = " last" if name == "target" else ""
    if not pictures:
        return f'<td class="ends{last}"><span class="none">{_NONE}</span></td>'
    f1 = _f1(pictures)
    return f'<td class="ends{last}"><span {_shade(f1)}>{f1:.2f}</span></td>'


def _cell(result, key: str, pair: int, column: int, pictures) -> str:
    if not pictures:
        return f'<td><span class="none" title="not run on this pair">{_NONE}</span></td>'
    f1, read = (
        _f1(pictures),
        ", ".join(plain(picture["read"]) or "nothing" for _, picture in pictures),
    )
    told = f'title="read {safe(read)}; wanted {safe(_words(result, pair)[1])}"'
    return f'<td><a href="#{_anchor(key, pair, column)}" {told} {_shade(f1)}>{f1:.2f}</a></td>'


# --- the pictures


def gallery_html(result: dict, records: Sequence[dict]) -> str:
    """A block for every pair: its prompts, then source, target, what is credited and all others, seeds below each other."""
    key, titles, best = _key(result), columns(result), credited_row(result)
    blocks = ""
    for pair, found in _by_pair(records).items():
        words = _words(result, pair)
        shown = [
            _column(ENDS[name], _pictures(found, name), words, 'class="column end"')
            for name in ENDS
        ]
        order = sorted(enumerate(titles), key=lambda entry: entry[1] != best)
        for number, name in order:
            kind = (
                f'class="column{" best" if name == best else ""}" id="{_anchor(key, pair, number)}"'
            )
            shown.append(_column(titles[name], _pictures(found, name), words, kind))
        heading, body = _heading(result, key, pair), "".join(shown)
        blocks += f'<article class="pair">{heading}<div class="columns">{body}</div></article>\n'
    return blocks


def _heading(result: dict, key: str, pair: int) -> str:
    said = result["pairs_list"][pair]
    prompts = "<br>".join(f"{side}: {safe(said[side])}" for side in ("source", "target"))
    back = f'<a class="close" href="#{key}">{_BACK}</a>'
    return f'{back}<h3>{safe(_TO.join(_words(result, pair)))}</h3><p class="prompts">{prompts}</p>'


def _column(title: str, pictures, words: tuple[str, str], attributes: str) -> str:
    if not pictures:
        return ""
    seeds = len(pictures) > 1
    figures = [
        figure(
            picture["image"], f"{title}, seed {seed}" if seeds else title, _caption(picture, words)
        )
        for seed, picture in pictures
    ]
    return f"<div {attributes}>{''.join(figures)}</div>"


def _caption(picture: dict, words: tuple[str, str]) -> str:
    """What was read, and in a block that stands alone how that scores."""
    read, sides = plain(picture["read"]), ("target", "source")
    side = next((side for side in sides if picture.get(f"exact_{side}")), "other")
    f1, ssim = decimal(_f1([(0, picture)])), decimal(picture.get("ssim"))
    more = f"F1 towards {safe(words[1])}: {f1}<br>background SSIM {ssim}"
    return (
        f'<span class="what">read</span> <span class="read {side}">{safe(read or "(nothing)")}</span>'
        f'<span class="more">{more}</span>'
    )

"""The section of the page about each word exchanged alone, and the sentences that it comes to.

`found` is what `textpatch.localization.word_by_word.each_word` gives.

    groups       "name" and "group" of each group of sites
    donors       of each donor its name ("donor"), "lines_changed", and the scores of its own pictures
    swaps        the same of each swap of its text, beside its "tokens" and its "group"
    places       for each group how many lines keep the source's word where it is replaced by one "as_long",
                 or of "other_length", where that of a line before is ("behind_as_long",
                 "behind_other_length"), where words are "exchanged", and of each of the "lines"
    generations  rows made

Scores are "n", "lines" with those of each line towards the donor's words, and "same" and "near", the shares
of pixels beside the changed lines that are the source's, or differ by at most 16 of 255.
"""

from __future__ import annotations

from collections.abc import Sequence

from textpatch.html import figure, safe, table
from textpatch.report.result import counted, decimal, listed, span_of, value_of

ALL = "all"
_WORD = "word "
_EXCHANGED = "exchanged"
_REPEATED = "repeated"
_TOKENS = {
    "its own": "the tokens of the word alone",
    "all but its own": "all tokens but these",
    "its own and all behind": "these and all behind them",
}
_PLACES = {
    "as_long": "word as long",
    "other_length": "longer or shorter",
    "behind_as_long": "line behind, as long",
    "behind_other_length": "behind, longer or shorter",
    "exchanged": "words exchanged",
}
_SIDES = "", "behind_"
_SHOWN = 3  # sites whose pictures stand beside those of the group that writes words best

EXPLAINED = """<p>Here the donor is the source's own prompt with other words: with one word
replaced, with the words exchanged with each other, or with the first word in every place. A
number is the share of pictures in which a line reads exactly as the donor's words say: the new
word in a line that changes, the old one in a line that stays. All text
tokens of the donor are swapped, or those around the one word.</p>
<p class="note">0, in none<span class="ramp"></span>1, in all</p>"""

PLACES = """<p class="note">How many lines still read the source's word when single sites bring
another: to the line itself, a word as long or a longer or shorter one, to the line before it, or
each other's words to all. A site that loses a line to a word as long carries letters. One that
loses it to longer or shorter words alone, or loses the line behind these, whose letters then
stand elsewhere in the text, tells where letters stand. The first text of a prompt always stands on
the first line, so that the order of a prompt and the places of a picture are not told apart.</p>"""


def words_one_by_one(result: dict, records: Sequence[dict]) -> str:
    """The heat map of words and lines, what the sites say, and pictures.  "" where none was asked for."""
    found = result.get("each_word")
    if not found:
        return ""
    told = "".join(f"<li>{safe(one)}</li>" for one in findings(found))
    return (
        f"<ul>{told}</ul>{EXPLAINED}{_heat_map(found)}"
        f"{PLACES}{_places(found)}{_pictures(found, records)}"
    )


# --- the sentences


def in_short(found: dict) -> list[str]:
    """The sentences on which sites write each word, and on what single sites carry."""
    best = _best(found)
    return [*_written(found, best), *_alone(found, best), *_by_place(found)]


def findings(found: dict) -> list[str]:
    """Sentences on what carries which word, each with its numbers."""
    best = _best(found)
    said = [
        *_written(found, best),
        *_alone(found, best),
        *_beside(found, best),
        *_by_tokens(found, best),
        *_moved(found, best),
        *_of_other_length(found, best),
        *_by_place(found),
    ]
    return [one for one in said if one]


def _best(found: dict) -> dict:
    """The group of sites that writes replaced words best, the smallest of equal ones."""
    return max(found["groups"], key=lambda group: (_mean(found, group), -len(group["group"])))


def _mean(found: dict, group: dict) -> float:
    """Share of replaced words that a group writes."""
    values = [
        line["exact_target"]["value"]
        for swap in _swaps(found, group["name"])
        if swap["donor"].startswith(_WORD)
        for line in _changed(swap)
    ]
    return sum(values) / len(values) if values else 0.0


def _swaps(found: dict, group: str, tokens: str = ALL, donor: str = "") -> list[dict]:
    """Swaps at a group of sites, of some tokens and of the donors whose names begin so."""
    return [
        swap
        for swap in found["swaps"]
        if swap["group"] == group and swap["tokens"] == tokens and swap["donor"].startswith(donor)
    ]


def _changed(swap: dict, changed: bool = True) -> list[dict]:
    """Scores of the lines that should change, or of those that should stay."""
    return [
        line
        for number, line in enumerate(swap["lines"], 1)
        if (number in swap["lines_changed"]) == changed
    ]


def _shares(lines: Sequence[dict]) -> str:
    """Shares of lines that read as the donor's, with their intervals."""
    return " and ".join(span_of(line, "exact_target") for line in lines)


def _at(group: dict) -> str:
    return listed([group["name"]])


def _written(found: dict, best: dict) -> list[str]:
    """Whether one line changes and the other stays."""
    said = []
    for swap in _swaps(found, best["name"], donor=_WORD):
        stays = _shares(_changed(swap, changed=False))
        said.append(
            f"Another {swap['donor']} at {_at(best)} is written in {_shares(_changed(swap))} of the "
            f"pictures, and the other line keeps its word in {stays}."
        )
    return said


def _alone(found: dict, best: dict) -> list[str]:
    """What the best single site does."""
    single = [group for group in found["groups"] if len(group["group"]) == 1]
    if not single or len(best["group"]) == 1:
        return []
    alone = max(single, key=lambda group: _mean(found, group))
    return [
        f"Of single sites {_at(alone)} writes most of the new words, {decimal(_mean(found, alone))}."
    ]


def _beside(found: dict, best: dict) -> list[str]:
    """What becomes of the pixels outside the line that changes."""
    said = []
    for swap in _swaps(found, best["name"], donor=_WORD):
        (own,) = (donor for donor in found["donors"] if donor["donor"] == swap["donor"])
        said.append(
            f"Outside the line of {swap['donor']}, {span_of(swap, 'same')} of the pixels are the source's to "
            f"the last level and {span_of(swap, 'near')} to 16 of 255. In a picture of the other prompt it "
            f"is {span_of(own, 'same')} and {span_of(own, 'near')}."
        )
    return said


def _by_tokens(found: dict, best: dict) -> list[str]:
    """What the tokens of a word do alone, and what those around it."""
    said = []
    for tokens, name in _TOKENS.items():
        swaps = _swaps(found, best["name"], tokens, _WORD)
        shares = [f"{_shares(_changed(swap))} of {swap['n']} ({swap['donor']})" for swap in swaps]
        if shares:
            said.append(f"Of the new words at {_at(best)}, {name} write {', '.join(shares)}.")
    return said


def _moved(found: dict, best: dict) -> list[str]:
    """What exchanging words and repeating one does."""
    said = []
    for swap in _swaps(found, best["name"], donor=_EXCHANGED):
        said.append(
            f"Words exchanged with each other at {_at(best)} stand in each other's lines in "
            f"{_shares(swap['lines'])} of the pictures."
        )
    for swap in _swaps(found, best["name"], donor=_REPEATED):
        said.append(
            f"The first word in every place at {_at(best)} is written in {_shares(_changed(swap))} of the "
            f"other lines, and the first line keeps it in {_shares(_changed(swap, changed=False))}."
        )
    return said


def _of_other_length(found: dict, best: dict) -> list[str]:
    """What becomes of words that are longer or shorter than those before."""
    said = []
    for swap in _swaps(found, best["name"], donor=_WORD):
        some = swap.get("of_other_length")
        if some:
            lines = {**swap, "lines": some["lines"]}
            said.append(
                f"The new {swap['donor']} is longer or shorter in {counted(some['n'], 'picture')}: it is "
                f"written in {_shares(_changed(lines))}, and the other line stays in "
                f"{_shares(_changed(lines, changed=False))}."
            )
    return said


def _by_place(found: dict) -> list[str]:
    """What single sites say of words and places."""
    said: dict[str, list] = {}
    for place in _single_places(found):
        said.setdefault(meaning(place, found), []).append(place["group"])
    told = [f"Swapped alone, {listed(groups)}: {what}." for what, groups in said.items()]
    return [*told, _by_line(found)]


def _single_places(found: dict) -> list[dict]:
    """What becomes of words at each site alone, where words were replaced."""
    single = {group["name"] for group in found["groups"] if len(group["group"]) == 1}
    return [place for place in found["places"] if place["group"] in single and place["lines"]]


def _by_line(found: dict) -> str:
    """Whether a site has more to do with one line than with another."""
    more = {
        place["group"]: place["first_more"]
        for place in _single_places(found)
        if "first_more" in place
    }
    own = [group for group, one in more.items() if one["low"] > 0 or one["high"] < 0]
    if own:
        return f"One line clearly loses its word more often than another at {listed(own)}."
    return "No site clearly belongs to one line: alone, none loses one line's word more often."


def meaning(place: dict, found: dict) -> str:
    """What a site carries, by the lines that keep their word.

    It loses a line where the interval of the lines kept lies below that of others.  Lines whose word is
    replaced by one as long are held to those at the site that keeps most, and lines of other lengths to
    these.
    """
    quiet = max(_single_places(found), key=lambda one: value_of(one, "as_long") or 0)
    letters = _below(place.get("as_long"), quiet.get("as_long"))
    stand = any(
        _below(place.get(f"{side}other_length"), place.get(f"{side}as_long")) for side in _SIDES
    )
    if letters and stand:
        return "letters, and where they stand"
    if letters:
        return "letters"
    if stand:
        return "where letters stand, whichever they are"
    return "nothing that shows"


def _below(low: dict | None, high: dict | None) -> bool:
    """True where one share is clearly below another."""
    return bool(low and high) and low["high"] < high["low"]


# --- the tables and the pictures


def _heat_map(found: dict) -> str:
    """A table of what each line reads, a row for a donor, its tokens and a line, a column for a group."""
    names = [group["name"] for group in found["groups"]]
    best = _best(found)["name"]
    marks = [" class=best" if name == best else "" for name in names]
    head = "".join(f"<th>{title}</th>" for title in ("donor", "tokens", "line", "its prompt"))
    head += "".join(
        f"<th{mark}>{safe(listed([name]))}</th>" for mark, name in zip(marks, names, strict=True)
    )
    rows = ""
    for donor in found["donors"]:
        for tokens in (ALL, *_TOKENS):
            swaps = {
                swap["group"]: swap
                for swap in found["swaps"]
                if (swap["donor"], swap["tokens"]) == (donor["donor"], tokens)
            }
            if swaps:
                rows += _rows(donor, tokens, swaps, names)
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide map">{body}</div>'


def _rows(donor: dict, tokens: str, swaps: dict[str, dict], names: Sequence[str]) -> str:
    """Rows of a donor and some tokens, one for each line."""
    rows = ""
    for line in range(len(donor["lines"])):
        change = "changes" if line + 1 in donor["lines_changed"] else "stays"
        cells = [f"<td>{safe(tokens)}</td><td>{line + 1} {change}</td>"]
        cells.append(_cell(donor, line, "ends last"))
        for name in names:
            cells.append(_cell(swaps[name], line) if name in swaps else "<td></td>")
        rows += f"<tr><th>{safe(donor['donor'])}</th>{''.join(cells)}</tr>\n"
    return rows


def _cell(scores: dict, line: int, kind: str = "") -> str:
    """A share as a coloured cell, which says its interval when pointed at."""
    if line >= len(scores["lines"]):
        return "<td></td>"
    score = scores["lines"][line]
    value = value_of(score, "exact_target") or 0.0
    told = safe(f"{span_of(score, 'exact_target')} of {score['n']}")
    look = f'style="--f: {value:.3f}" title="{told}"' + " class=high" * (value > 0.5)
    return f'<td class="{kind}"><span {look}>{decimal(value)}</span></td>'


def _places(found: dict) -> str:
    """A table of how many lines keep their word at each site alone, and what that says."""
    rows = []
    for place in _single_places(found):
        lines = ", ".join(span_of({"line": line}, "line") for line in place["lines"])
        shares = [span_of(place, name) for name in _PLACES]
        rows.append([safe(place["group"]), *shares, lines, safe(meaning(place, found))])
    return (
        table(("site", *_PLACES.values(), "line by line", "what it carries"), rows) if rows else ""
    )


def _pictures(found: dict, records: Sequence[dict]) -> str:
    """Pictures of the first pair, the source's, each donor's, and swaps at the best sites."""
    if not records:
        return ""
    pictures = records[0]["pictures"]
    titles = {"source": "source", **_titles(found)}
    figures = [
        figure(pictures[row]["image"], title, safe(pictures[row]["read"]))
        for row, title in titles.items()
        if row in pictures
    ]
    return f'<div class="gallery">{"".join(figures)}</div>'


def pictured(result: dict) -> list[str]:
    """Row names of the pictures that the section shows."""
    found = result.get("each_word")
    return list(_titles(found)) if found else []


def _titles(found: dict) -> dict[str, str]:
    """Titles of pictures by row name: each donor's own, and its swaps at the best group and at some sites."""
    best = _best(found)["name"]
    others = sorted(found["groups"], key=lambda group: -_mean(found, group))
    shown = [best, *[group["name"] for group in others if group["name"] != best][:_SHOWN]]
    titles = {}
    for donor in (one["donor"] for one in found["donors"]):
        titles[donor] = f"{donor}: its own prompt"
        for tokens in (ALL, *_TOKENS):
            for name in shown if tokens == ALL else shown[:1]:
                titles[f"{donor}/{tokens}/site-{name}"] = f"{donor}, {tokens}, {listed([name])}"
    return titles

"""Write the tables of figures into the pages, from benchmarks/results/*.csv.

    python benchmarks/tables.py            every table of every page anew
    python benchmarks/tables.py --check    name what differs from its CSV, and end with 1 if anything does

A page is a README.md.  Its tables stand between `<!-- table: NAME -->` and `<!-- end -->`: NAME is a function
of `TABLES`, and the words after it are its arguments.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FOLDERS = "benchmarks", "reference_models", "tests", "textpatch", "weights"
PLACE = re.compile(r"(<!-- table: ([^\n]*?) -->\n)(.*?)(^<!-- end -->$)", re.MULTILINE | re.DOTALL)
BEGIN, END = "<!-- table:", "<!-- end -->"


class PageError(Exception):
    """A page asks for a table that is not there, or does not say where one ends."""


# --- CSV files and cells


def read_rows(name: str) -> list[dict[str, str]]:
    """The rows of benchmarks/results/NAME.csv."""
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def chosen(table: Iterable[dict], /, **wanted: str) -> list[dict]:
    """The rows that hold each of these texts under its name."""
    return [row for row in table if all(row[name] == value for name, value in wanted.items())]


def one(table: Iterable[dict], /, **wanted: str) -> dict:
    """The only row that holds each of these texts under its name."""
    found = chosen(table, **wanted)
    if len(found) != 1:
        raise PageError(f"{len(found)} rows hold {wanted}; a cell needs one")
    return found[0]


def share(value: str, digits: int = 3) -> str:
    """A number of 0 to 1 as .979, exactly 0 as .000, and one that rounds to 1 as 1.00; nothing of nothing."""
    if value == "":
        return ""
    text = f"{float(value):.{digits}f}"
    return "1.00" if float(text) >= 1 else text.removeprefix("0")


def ratio(value: float) -> str:
    """How many times as long, as 1.10 or .99."""
    return f"{value:.2f}".removeprefix("0")


def listed(sites: str, between: str = "+") -> str:
    """The numbers of sites as people write them: `1, 3` of `1+3`."""
    return ", ".join(sites.split(between))


def drawn(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def read_by(reader: str, table: Iterable[dict]) -> list[dict]:
    """The rows of one reader."""
    return chosen(table, reader=reader)


def both(rows: Sequence[dict], name: str, digits: int = 3) -> str:
    """A share by each reader's row, `.979, .896`."""
    return ", ".join(share(row[name], digits) for row in rows)


def by_readers(table: Iterable[dict], *names: str) -> list[list[dict]]:
    """Rows that are alike in some columns, those of each reader together."""
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in table:
        groups[tuple(row[name] for name in names)].append(row)
    return list(groups.values())


def drawn_read(
    titles: Sequence[str], rows: Iterable[Sequence[str]], measured: Iterable[dict]
) -> str:
    """A table of Markdown, and under it what read its words, and how far that can be trusted."""
    return (
        f"{drawn(titles, rows)}\n{told_readers(dict.fromkeys(row['reader'] for row in measured))}"
    )


def told_readers(readers: Iterable[str]) -> str:
    """A sentence with the readers of a table, and how often each calls a broken word right."""
    first, *others = readers
    told = f"Read by {first}, which calls {broken_share(first)} of broken words right."
    for other in others:
        told += f" A second figure is by {other}, which calls {broken_share(other)} right."
    return told + "\n"


def broken_share(reader: str) -> str:
    """Share of broken words that a reader reads as if they were whole."""
    read, n = broken_read(reader)
    return share(str(read / n))


def best_site(rows: Sequence[dict]) -> int:
    """The site whose swap alone gives the highest F1 towards the target's word."""
    scores = [float(row["f1_target"]) for row in rows[2:]]
    return scores.index(max(scores))


# --- what the shipped models show


def headline() -> str:
    """Where the word is, in our models as measured here and in the published ones as the paper says."""
    rows = []
    readers: dict[str, None] = {}
    for model, scene, told in SCENES:
        measured = read_rows(f"{model}-{scene}-scene")
        readers |= dict.fromkeys(row["reader"] for row in measured)
        own = read_by("tesseract", measured)
        site = own[2 + best_site(own)]["run"]
        if model in MMDITS:
            of, sites = str(len(own) - 2), str(best_site(own))
        else:
            of, sites = SITES[model], listed(site)
        scores = chosen(measured, run=site)
        written = [both(scores, "exact_target"), both(scores, "f1_target", 2)]
        rows.append([f"{model}, {told}", of, sites, *written, by_chance(f"{own[0]['n']} signs")])
    paper = by_chance("SimpleBench")
    rows += [[f"*{name}, the paper's*", of, sites, "", f1, paper] for name, of, sites, f1 in PAPER]
    titles = ["", "sites", "those with the word", "word = target", "F1 towards the target"]
    return f"{drawn([*titles, 'F1 by chance'], rows)}\n{told_readers(readers)}"


def by_chance(words: str, side: str = "target") -> str:
    """F1 of readings that are each another pair's word."""
    return share(one(read_rows("chance"), words=words, score="f1")[side], 2)


SCENES = (
    ("tiny-mmdit", "same", "one scene"),
    ("tiny-mmdit", "other", "another scene"),
    ("planted-mmdit", "other", "another scene"),
    ("tiny-sdxl", "same", "one scene"),
    ("tiny-if", "same", "one scene"),
)
MMDITS = "tiny-mmdit", "planted-mmdit"
# of a U-Net, of which those of the word alone are measured
SITES = {"tiny-sdxl": "14", "tiny-if": "9"}
# Table 3 of arXiv 2502.09935: F1 of its own method on SimpleBench
PAPER = (
    ("SDXL", "70", "55, 56, 57", ".34"),
    ("DeepFloyd IF", "22", "17", ".70"),
    ("SD3", "24", "10", ".53"),
)


def reading() -> str:
    """How many of the held-out words are read, by steps and guidance."""
    measured = read_rows("tiny-mmdit-reading")
    rows = []
    for model in ("tiny-mmdit", "planted-mmdit"):
        drawings, *made = by_readers(read_rows(f"{model}-reading"), "pictures", "steps", "guidance")
        rows = rows or [["clean drawings", "", "", both(drawings, "exact")]]
        rows += [
            [model, read[0]["steps"], f"{float(read[0]['guidance']):g}", both(read, "exact")]
            for read in made
            if read[0]["steps"] == "8" or read[0]["guidance"] == "1.0"
        ]
    titles = ["pictures", "steps", "guidance", f"read, of {measured[0]['n']}"]
    return drawn_read(titles, rows, measured)


CLAIMED = "word", "colour", "shape", "wall", "style"


def claims() -> str:
    """How much of what a sentence names is drawn, by the nearest drawing."""
    return _claimed("claims")


def two_lines_claims() -> str:
    """The same of signs of two lines."""
    return _claimed("claims-two-lines")


def _claimed(name: str) -> str:
    measured = read_rows(name)
    names = [row["pictures"] for row in chosen(measured, what="word")]
    parts = [*CLAIMED, *(f"{pattern}{end}" for pattern in PATTERNS for end in ("", ", strictly"))]
    rows = []
    for part in parts:
        there = [one(measured, pictures=name, what=part) for name in names]
        rows.append([part, there[0]["n"], *(share(row["share"]) for row in there)])
    return drawn(["", "signs", *names], rows)


PATTERNS = "plain", "striped", "dotted"


def two_lines() -> str:
    """Lines of one to four words as a model draws them, beside clean drawings, by each reader."""
    measured = read_rows("two_lines")
    clean, model = dict.fromkeys(row["pictures"] for row in measured)
    readers = list(dict.fromkeys(row["reader"] for row in measured))
    rows = []
    for kind in dict.fromkeys((row["words"], row["letters"]) for row in measured):
        there = chosen(measured, **dict(zip(("words", "letters"), kind, strict=True)))
        pairs = [
            [one(there, pictures=name, reader=by) for name in (clean, model)] for by in readers
        ]
        shares = [share(row["lines"]) for pair in pairs for row in pair]
        whole = [share(row["whole"]) for row in pairs[0]]
        rows.append([*kind, there[0]["n"], *shares, *whole])
    titles = [f"{by}, {name}" for by in readers for name in ("clean", model)]
    ends = [f"all lines, {readers[0]}, {name}" for name in ("clean", model)]
    broken = ", ".join(f"{by} {broken_share(by)}" for by in readers)
    told = drawn(["words", "letters", "signs", *titles, *ends], rows)
    return f"{told}\nOf broken words they call right: {broken}.\n"


def seeds() -> str:
    """What models of several seeds write, and at which sites their words enter."""
    measured = read_rows("seeds")
    lines = []
    for read in by_readers(sorted(measured, key=lambda row: row["model"]), "model", "seed"):
        row = read[0]
        sets = dict.fromkeys(listed(row["set"]) or "none" for row in read)
        alone = ", ".join(f"{share(row['alone'])} ({row['site']})" for row in read)
        told = [row["model"], row["seed"], row["minutes"] and f"{float(row['minutes']):.0f}"]
        told += [*spans(row, "words"), both(read, "target"), " and by the second ".join(sets)]
        lines.append([*told, *spans_of(read, "carried"), alone, both(read, "others")])
    titles = "model, seed, minutes, signs drawn whole, target's word, set, written with it"
    titles += ", best site alone, best outside the set"
    return drawn_read(titles.split(", "), lines, measured)


# SD3 by the number of words: F1, SSIM and PSNR of arXiv 2502.09935, appendix, on CreativeBench
SD3_WORDS = {
    "1": (".377", ".695", "30.2"),
    "2": (".403", ".675", "30.0"),
    "3": (".442", ".676", "30.0"),
    "4": (".457", ".668", "29.8"),
}


def words_edited() -> str:
    """One word to four, edited at the sites found and at all, beside the published rows."""
    measured = read_rows("words")
    rows = []
    for words in dict.fromkeys(row["words"] for row in measured):
        for read in by_readers(chosen(measured, words=words), "edited"):
            row = read[0]
            psnr = f"{float(row['psnr']):.1f}" if row["psnr"] else ""
            (exact,) = spans_of(read, "exact")
            scores = [both(read, "f1", 2), share(row["chance"], 2), both(read, "one_minus_ned", 2)]
            rows.append([words, row["edited"], exact, *scores, share(row["ssim"]), psnr])
        f1, ssim, psnr = SD3_WORDS[words]
        rows.append([words, "*SD3's site 10, the paper's*", "", f1, "", "", ssim, psnr])
    titles = ["words", "the target's text at", "exact", "F1", "F1 by chance", "1-NED"]
    return drawn_read([*titles, "background SSIM", "PSNR"], rows, measured)


def spans(row: dict, *names: str) -> list[str]:
    """Shares with their intervals, `.96 (.80 to .99)`, nothing of nothing."""
    return [
        f"{share(row[name], 2)} ({share(row[f'{name}_low'], 2)} to {share(row[f'{name}_high'], 2)})"
        if row[name]
        else ""
        for name in names
    ]


def spans_of(read: Sequence[dict], *names: str) -> list[str]:
    """The same by each reader, `.96 (.80 to .99), .70 (.50 to .85)`."""
    each = [spans(row, *names) for row in read]
    return [", ".join(filter(None, cells)) for cells in zip(*each, strict=True)]


def words_sites() -> str:
    """What each line reads where one word is exchanged alone, at each site and at those found."""
    measured = read_rows("words-sites")
    groups = list(dict.fromkeys(row["sites"] for row in measured if row["sites"]))
    rows = []
    for donor, tokens, line in dict.fromkeys(
        (row["donor"], row["tokens"], row["line"]) for row in measured if row["tokens"]
    ):
        those = chosen(measured, donor=donor, tokens=tokens, line=line)
        cells = {read[0]["sites"]: both(read, "exact", 2) for read in by_readers(those, "sites")}
        own = chosen(measured, donor=donor, tokens="", line=line)
        said = f"line {line} {'changes' if own[0]['changes'] == 'yes' else 'stays'}"
        told = [donor, tokens, said, those[0]["n"], both(own, "exact", 2)]
        rows.append([*told, *(cells.get(group, "") for group in groups)])
    titles = ["other words", "tokens swapped", "", "n", "its own prompt"]
    return drawn_read([*titles, *(f"sites {listed(group)}" for group in groups)], rows, measured)


def words_places() -> str:
    """How many lines keep the source's word at each site alone, and what the site then carries."""
    measured = read_rows("words-places")
    names = "as_long", "other_length", "behind_as_long", "behind_other_length", "exchanged"
    rows = [
        [read[0]["site"], *spans_of(read, *names), " and by the second ".join(_carries(read))]
        for read in by_readers(measured, "site")
    ]
    titles = ["site", "word as long", "longer or shorter", "line behind, as long"]
    titles += ["behind, longer or shorter", "words exchanged", "carries"]
    return drawn_read(titles, rows, measured)


def _carries(read: Sequence[dict]) -> list[str]:
    """What a site carries by each reader, once where they agree."""
    return list(dict.fromkeys(row["carries"] for row in read))


def words_limits() -> str:
    """Texts that the card says are drawn, and others, as they are read."""
    measured = read_rows("words-limits")
    rows = [
        [row["texts"], f"`{row['example']}`", row["drawn"], row["n"], *spans(row, "right")]
        for row in measured
    ]
    titles = ["texts", "for instance", "drawn, says the card", "n", "right"]
    return drawn_read(titles, rows, measured)


def words_parts() -> str:
    """One word exchanged by one head of the sites found, or by these sites from a step on."""
    measured = read_rows("words-parts")
    rows = []
    for part in dict.fromkeys(row["part"] for row in measured):
        cells = []
        for word, line in (("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")):
            cells += spans_of(chosen(measured, part=part, word=word, line=line), "exact")
        rows.append([part, *cells])
    titles = ["all tokens swapped by", "word 1: line 1 changes", "line 2 stays"]
    return drawn_read([*titles, "word 2: line 1 stays", "line 2 changes"], rows, measured)


def each_site() -> str:
    """Each site alone in one scene and in another, and how much of the background stays."""
    scenes = {
        (model, scene): by_readers(read_rows(f"{model}-{scene}-scene"), "run")
        for model in MMDITS
        for scene in ("same", "other")
    }
    titles = [""]
    for model in MMDITS:
        titles += [f"{model}, one scene", "another scene", "another scene, background SSIM"]
    names = ["source run, no swap", "whole target run"]
    names += [f"site {site}" for site in range(len(scenes["tiny-mmdit", "same"]) - 2)]
    rows = []
    for place, name in enumerate(names):
        cells = [name]
        for model in MMDITS:
            same, other = (scenes[model, scene][place] for scene in ("same", "other"))
            cells += [
                both(same, "exact_target"),
                both(other, "exact_target"),
                share(other[0]["ssim"]),
            ]
        rows.append(cells)
    return drawn_read(titles, rows, read_rows("tiny-mmdit-same-scene"))


def start_step(model: str) -> str:
    """From which step on the swap is needed."""
    measured = read_rows(f"{model}-start")
    rows = [
        [
            read[0]["start"],
            share(read[0]["sigma"]),
            both(read, "exact_target"),
            both(read, "exact_source"),
        ]
        for read in by_readers(measured, "start")
    ]
    titles = ["start step", "sigma there", "word = target", "word = source"]
    return drawn_read(titles, rows, measured)


ATTRIBUTES = {
    "word": "word",
    "style": "style of lettering",
    "shape": "shape",
    "colour": "colour of the plate",
    "wall": "colour of the wall",
    "pattern": "pattern of the wall",
}


def carries(model: str) -> str:
    """Which sites carry which attribute of a sign."""
    found = {row["attribute"]: row for row in chosen(read_rows("carries-sets"), model=model)}
    rows = []
    for attribute, name in ATTRIBUTES.items():
        if attribute in found:
            row = found[attribute]
            alone = _with_share(row["best"], row["best_share"])
            grown = _with_share(row["set"], row["set_share"])
            half = f"{row['half']} of {row['of']}"
            rows.append([name, half, alone, grown, listed(row["needed"])])
    titles = ["", "sites with half of it or more", "best alone", "set grown", "needed"]
    return drawn_read(titles, rows, found.values())


def _with_share(sites: str, part: str) -> str:
    """`1, 3 (.88)`; none where no site has a share."""
    if part == "" or float(part) == 0:
        return "none"
    return f"{listed(sites)} ({share(part, 2)})"


def read_back() -> str:
    """How many of the attributes of a sign the reader of signs tells rightly."""
    table = read_rows("carries-reading")
    measured = {(row["pictures"], row["attribute"]): row for row in table}
    pictures = list(dict.fromkeys(name for name, _ in measured))
    titles = ["", *(f"{name}, {signs_of(measured, name)} signs" for name in pictures)]
    rows = [
        [name, *(share(measured[picture, attribute]["right"], 2) for picture in pictures)]
        for attribute, name in ATTRIBUTES.items()
    ]
    return drawn_read(titles, rows, table)


def signs_of(measured: dict, pictures: str) -> str:
    """How many signs were looked at."""
    return measured[pictures, "word"]["signs"]


MODELS = "tiny-mmdit", "tiny-sdxl", "tiny-if"


def mixing() -> str:
    """What is written where the sites read the template of one prompt and the text of one."""
    measured = read_rows("other_prompts-mixing")
    rows = []
    for template in ("source", "target"):
        for text in ("source", "target"):
            cells = [f"{template}, {text}"]
            for model in MODELS:
                read = chosen(measured, model=model, template=template, text=text)
                cells += [both(read, "f1_source", 2), both(read, "f1_target", 2)]
                cells += [share(read[0]["ssim"])]
            rows.append(cells)
    words = f"{measured[0]['pairs']} signs"
    chance = [by_chance(words, side) for side in ("source", "target")]
    rows.append(["*by chance*", *[*chance, ""] * len(MODELS)])
    titles = ["template, text"]
    for model in MODELS:
        titles += [f"{model}: F1 to source", "to target", "background SSIM"]
    return drawn_read(titles, rows, measured)


def several_words() -> str:
    """Texts of several words: drawn, and swapped in."""
    measured = read_rows("other_prompts-words")
    rows = []
    for read in by_readers(measured, "model", "text"):
        row = read[0]
        if row["refused"]:
            cells = ["refused", "", "", ""]
        else:
            exact = ", ".join(_counted(one["exact"], one["pairs"]) for one in read)
            chance = (by_chance(row["text"], side) for side in ("source", "target"))
            cells = [f"{exact} of {row['pairs']}", both(read, "f1", 2), both(read, "edit_f1", 2)]
            cells.append(", ".join(chance))
        rows.append([row["model"], row["text"], f"`{row['example']}`", *cells])
    titles = ["", "text", "for instance", "drawn as asked", "F1 drawn", "F1 swapped in"]
    return drawn_read([*titles, "both by chance"], rows, measured)


def other_sizes() -> str:
    """How many words are read in pictures of other sizes, the place counted from a corner or the middle."""
    measured = read_rows("other_prompts-sizes")
    sizes = dict.fromkeys((row["height"], row["width"]) for row in measured)
    rows = []
    for height, width in sizes:
        cells = [f"{height} x {width}"]
        for model in MODELS:
            read = chosen(measured, model=model, height=height, width=width)
            cells.append("; ".join(dict.fromkeys(_words_read(row) for row in read)))
        rows.append(cells)
    titles = ["rows x columns", *(f"{model}: corner, middle" for model in MODELS)]
    return drawn_read(titles, rows, measured)


def _words_read(row: dict) -> str:
    """How many of the words were read at the corner's place and at the middle's."""
    if row["refused"]:
        return "refused"
    places = [row["exact_corner"], row["exact_middle"]]
    return ", ".join(_counted(share_, row["words"]) for share_ in places)


def _counted(part: str, of: str) -> str:
    """A share of some things as their number."""
    if part == "":
        return "-"
    return f"{float(part) * int(of):.0f}"


def chance() -> str:
    """What each score of words is where each reading is another pair's word."""
    measured = read_rows("chance")
    scores = [row["score"] for row in chosen(measured, words="SimpleBench")]
    rows = []
    for score in scores:
        found = [
            one(measured, words=words, score=score)["target"]
            for words in ("SimpleBench", "48 signs")
        ]
        rows.append([f"`{score}`", *(ratio(float(value)) for value in found)])
    return drawn(
        ["by chance", "SimpleBench, 300 test words", "48 words of the shipped models"], rows
    )


# --- what a search takes

SEARCHES = (
    ("tiny-mmdit", "search-tiny-mmdit-same", "tiny-mmdit", ""),
    ("tiny-sdxl", "search-tiny-sdxl-same", "tiny-sdxl", ""),
    ("tiny-if", "search-tiny-if-same", "tiny-if", ""),
    ("tiny-if", "search-tiny-if-141-same", "tiny-if", ""),
    ("tiny-if", "search-tiny-if-141-same", "tiny-if with `--keep 1`", ", keep 1"),
    ("planted-mmdit", "search-planted-same", "planted-mmdit", ""),
    ("planted-sdxl", "search-planted-same", "planted-sdxl", ""),
    ("planted-if", "search-planted-same", "planted-if", ""),
)
SCREENED = "staged", "contribution", "attribution"


def searches(column: str) -> str:
    """How many times fewer generations each mode makes than what `column` compares it with."""
    rows = []
    shown = []
    for model, name, told, ending in SEARCHES:
        measured = chosen(read_rows(name), model=model)
        shown += measured
        exhaustive = chosen(measured, mode="exhaustive")
        cells = [f"{told}, {exhaustive[0]['pairs']} pairs"]
        for mode in SCREENED:
            read = chosen(measured, mode=mode + ending)
            cells.append(", ".join(f"{float(row[column]):.2f} ({row['same_set']})" for row in read))
        if column == "fewer":
            cells.append(f"{float(exhaustive[0]['bound']):g}")
        else:
            cells.append(", ".join(f"{1 / float(row['fewer']):.2f}" for row in exhaustive))
        sets = dict.fromkeys(_sets(row["found"]) for row in exhaustive)
        rows.append([*cells, " and by the second ".join(sets)])
    last = {"fewer": "at most", "fewer_than_exhaustive": "exhaustive, times 1 + sites a pair"}
    titles = ["", *SCREENED, last[column], "sets the exhaustive search found"]
    return drawn_read(titles, rows, shown)


def _sets(found: str) -> str:
    """The set that was found, or each of several and on how many sets of pairs."""
    counts = Counter(listed(sites, " ") for sites in found.split("; "))
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{sites} in {count}" for sites, count in counts.most_common())


ATTRIBUTED = (
    *("tiny-mmdit", "tiny-sdxl", "tiny-if", "tiny-words"),
    *("planted-mmdit", "planted-sdxl", "planted-if"),
)


def promised() -> str:
    """Each model's sites with more than a tenth of all that swaps promise, and what reading them took."""
    measured = chosen(read_rows("attribution"), scene="same")
    rows = []
    for model in ATTRIBUTED:
        sites = chosen(measured, model=model)
        by_share = sorted(sites, key=lambda row: -float(row["share"]))
        large = [row for row in by_share if float(row["share"]) > 0.1]
        told = ", ".join(f"site {row['site']} {share(row['share'], 2)}" for row in large)
        rest = max((float(row["share"]) for row in by_share[len(large) :]), default=0.0)
        rows.append([model, told, share(str(rest), 2), f"{float(sites[0]['times']):.1f}"])
    titles = ["", "shares above .10", "largest other", "time, in plain generations"]
    return drawn(titles, rows)


# --- who reads

WORDLESS = "no words, 256 px"


def over_reading(reader: str) -> str:
    """A sentence with the reader of a page's figures, and how often it calls a broken word right."""
    from textpatch.metrics import wilson

    read, n = broken_read(reader)
    low, high = wilson(read / n, n)
    return (
        f"Words are read by {reader}, which calls {read} of {n} broken words right ({share(str(read / n))}, "
        f"95 % interval {share(str(low))} to {share(str(high))}, `benchmarks/readers.py`).\n"
    )


def broken_read(reader: str) -> tuple[int, int]:
    """Broken words that a reader reads as if they were whole, and how many there were."""
    rows = chosen(read_rows("readers"), reader=reader, must="False")
    rows = rows or chosen(read_rows("readers-signs"), reader=reader, must="False")
    broken = [row for row in rows if row["kind"] != WORDLESS]
    return sum(int(row["read"]) for row in broken), sum(int(row["n"]) for row in broken)


def misread() -> str:
    """Held-out words that each reader does not read in drawings and in the models' pictures."""
    rows = read_rows("misread")
    lines = []
    for pictures in dict.fromkeys(row["pictures"] for row in rows):
        of = {row["reader"]: row for row in chosen(rows, pictures=pictures)}
        counts = [f"{int(row['n']) - int(row['read'])} of {row['n']}" for row in of.values()]
        lines.append([pictures, *counts, of["tesseract"]["misread"], of["ppocr"]["misread"]])
    titles = ["pictures", "tesseract misreads", "ppocr misreads", "agreement does not count"]
    told = ", ".join(f"{broken_share(name)} by {name}" for name in of)
    table = drawn([*titles, "as tesseract", "as ppocr"], lines)
    return f"{table}\nOf broken words are called right: {told}.\n"


def limits() -> str:
    """What agreement reads of words whole and broken at each limit of confidence."""
    lines = []
    for row in read_rows("readers-limits"):
        whole = f"{row['whole_read']} of {row['whole']}"
        broken = f"{row['broken_read']} of {row['broken']}"
        lines.append([share(row["limit"]), whole, broken])
    return drawn(["limit", "whole words read", "broken words read"], lines)


def readers(name: str = "readers") -> str:
    """What each reader reads of words whole and broken."""
    rows = read_rows(name)
    names = list(dict.fromkeys(row["reader"] for row in rows))
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of = {row["reader"]: row for row in chosen(rows, kind=kind)}
        must = "must not" if of[names[0]]["must"] == "False" else "must"
        lines.append([kind, must, *(f"{of[name]['read']} of {of[name]['n']}" for name in names)])
    return drawn(["pictures", "be read", *names], lines)


def scenes() -> str:
    """Sites found in signs that hang turned in scenes, by each reader at each size."""
    measured = read_rows("scenes")
    lines = []
    for rows in by_readers(measured, "reader", "size"):
        first = rows[0]
        best = Counter(row["best"] for row in rows)
        site, count = best.most_common(1)[0]
        shares = [
            share(str(sum(float(row[name]) for row in rows) / len(rows)), 2)
            for name in ("exact", "others", "plain", "ssim")
        ]
        found = f"{site}, in {count} of {len(rows)}"
        lines.append(
            [first["reader"], broken_share(first["reader"]), first["size"], found, *shares]
        )
    titles = ["read by", "broken words it calls right", "pixels", "best site"]
    titles += ["word = target with it", "with the best other", "whole target run"]
    return drawn([*titles, "background SSIM"], lines)


def reading_time() -> str:
    """Processor time of a small picture by each reader."""
    rows = read_rows("readers-speed")
    kinds = list(dict.fromkeys(row["pictures"] for row in rows))
    lines = []
    for reader in dict.fromkeys(row["reader"] for row in rows):
        of = [one(rows, reader=reader, pictures=kind) for kind in kinds]
        lines.append([reader, *(_milliseconds(row) for row in of)])
    return drawn(["", *kinds], lines)


def _milliseconds(row: dict) -> str:
    """Median and quartiles, `10.2 (10.1 to 10.3)`."""
    median, low, high = (f"{float(row[name]):.1f}" for name in ("ms", "ms_low", "ms_high"))
    return f"{median} ({low} to {high})"


def signs() -> str:
    """The same of words in the signs that the shipped models were trained on."""
    return readers("readers-signs")


def real_pictures() -> str:
    """How drawings come back from their noise, and whether their word changes, method by method."""
    lines = []
    measured = chosen(read_rows("real_pictures"), pictures="signs")
    for read in by_readers(measured, "model", "method"):
        row = read[0]
        told = [row[name] for name in ("inverted", "guided", "worst")]
        errors = [value and ratio(float(value)) for value in told]
        calls = row["calls"] and f"{float(row['calls']):.0f}"
        scores = [both(read, "target", 2), both(read, "source", 2), share(row["ssim"], 2)]
        lines.append([row["model"], row["method"], calls, *errors, *scores])
    titles = ["", "method", "calls", "error without guidance", "with", "worst"]
    return drawn_read(
        [*titles, "word = target", "word = source", "background SSIM"], lines, measured
    )


def strangers() -> str:
    """The smallest and largest errors of pictures that no model draws, over all methods."""
    rows = read_rows("real_pictures")
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        for pictures in ("signs", "photograph-like", "white noise"):
            of = [row for row in chosen(rows, model=model, pictures=pictures) if row["guided"]]
            spans = [_span([float(row[name]) for row in of]) for name in ("inverted", "guided")]
            lines.append([model, pictures, *spans])
    return drawn(["", "pictures", "error without guidance", "with"], lines)


def _span(values: Sequence[float]) -> str:
    return f"{ratio(min(values))} to {ratio(max(values))}"


def edited_maps() -> str:
    """Time and largest tensor of Prompt-to-Prompt's attention, by two calls and by maps."""
    table = read_rows("edited_maps")
    rows = []
    for first in chosen(table, way="plain"):
        cells = [f"{first['image_tokens']} + {first['text_tokens']}"]
        for way in ("two calls", "maps"):
            row = one(table, image_tokens=first["image_tokens"], way=way)
            cells += [ratio(float(row["ratio"])), f"{float(row['mb']):.1f}"]
        rows.append([*cells, f"{float(first['mb']):.1f}"])
    titles = ["tokens of image and text", "two calls, times plain", "MB", "maps, times plain", "MB"]
    return drawn([*titles, "plain, MB"], rows)


def edited_runs() -> str:
    """Time and largest tensor of whole runs of Prompt-to-Prompt, by two calls and by maps."""
    table = read_rows("edited_runs")
    rows = []
    for first in chosen(table, way="plain"):
        named = {"model": first["model"], "image_tokens": first["image_tokens"]}
        cells = [first["model"], f"{first['image_tokens']} + {first['text_tokens']}"]
        for way in ("two calls", "maps"):
            row = one(table, **named, way=way)
            cells += [ratio(float(row["ratio"])), f"{float(row['mb']):.1f}"]
        rows.append([*cells, f"{float(first['mb']):.1f}"])
    titles = ["", "tokens of image and text", "two calls, times plain", "MB", "maps, times plain"]
    return drawn([*titles, "MB", "plain, MB"], rows)


def loading() -> str:
    """Loading a warm folder beside safetensors' own reading, by the median time until it is there."""
    measured = read_rows("loading")
    waited = chosen(measured, clock="wall")
    medians = {(row["dtype"], row["way"]): float(row["median_ms"]) for row in waited}
    rows = []
    for row in waited:
        dtype, way = row["dtype"], row["way"]
        median = medians[dtype, way]
        computed = one(measured, dtype=dtype, way=way, clock="processor")
        rows.append(
            [
                f"{dtype}, {float(row['gb']):.1f} GB",
                way,
                f"{median / 1e3:.2f}",
                ratio(median / medians[dtype, "read"]),
                ratio(median / medians[dtype, "mapped"]),
                f"{float(computed['median_ms']) / 1e3:.2f}",
                f"{float(row['beyond_mb']):.0f}",
            ]
        )
    titles = [
        "",
        "",
        "seconds",
        "times read",
        "times mapped",
        "of processor",
        "MB beyond the tensors",
    ]
    return drawn(titles, rows)


def rewriting() -> str:
    """Words rewritten by a closed form at each arm's sites, and neighbours that stay."""
    measured = read_rows("rewriting")
    lines = []
    for rows in by_readers(measured, "model", "arm"):
        told = [rows[0][name] for name in ("model", "arm", "sites")]
        lines.append([*told, both(rows, "written"), both(rows, "neighbour")])
    titles = ["model", "edited at", "sites", "word written", "neighbour kept"]
    return drawn_read(titles, lines, measured)


REWRITTEN = "written", "paraphrase", "neighbour"


def rewriting_attributes() -> str:
    """Words, colours and shapes rewritten at each arm's sites, and neighbours that stay."""
    measured = read_rows("rewriting_attributes")
    arms = list(dict.fromkeys(row["arm"] for row in measured))
    lines = []
    for model, attribute in dict.fromkeys((row["model"], row["attribute"]) for row in measured):
        cells = []
        for arm in arms:
            row = one(measured, model=model, attribute=attribute, arm=arm)
            cells.append(", ".join(share(row[name]) for name in REWRITTEN))
        lines.append([model, attribute, *cells])
    none, every = (
        next(row for row in measured if float(row["written"]) == value) for value in (0, 1)
    )
    return (
        f"{drawn_read(['model', 'rewritten', *arms], lines, measured)}"
        f"Shares of {none['n']}; the 95 % interval of .000 ends at {share(none['written_high'])}, and "
        f"that of 1.00 begins at {share(every['written_low'])}.\n"
    )


# --- fine-tuning


def finetuning() -> str:
    """Words learned and pictures kept by each arm, at the rate chosen for it."""
    measured = read_rows("finetuning")
    groups: dict[tuple, list[dict]] = defaultdict(list)
    for row in measured:
        groups[row["model"], int(row["steps"]), row["data"], row["arm"]].append(row)
    first: dict = {}
    for model, _, data, _ in groups:
        for name in (model, data):
            first.setdefault(name, len(first))
    lines = []
    for key in sorted(groups, key=lambda key: (first[key[0]], key[1], first[key[2]])):
        model, steps, data, arm = key
        taken, *others = _at_best_rate(groups[key])
        told = [model, data, str(steps), arm, *(taken[0][name] for name in ("sites", "parameters"))]
        told += [taken[0]["rate"] if arm != "none" else "", str(len(taken))]
        told += [share(_mean(taken, "half")), _whole(_mean(taken, "half_background"))]
        words = [_of_seeds(taken, "word"), *(share(_mean(other, "word")) for other in others)]
        told += [", ".join(words), _whole(_mean(taken, "background"))]
        lines.append([*told, *(share(_mean(taken, name)) for name in ("colour", "recall"))])
    titles = "model, data, steps, trained at, sites, numbers, rate, seeds, word half-way"
    titles += ", background half-way, word, background, colour, recall"
    return drawn_read(titles.split(", "), lines, measured)


def _at_best_rate(rows: Sequence[dict]) -> list[list[dict]]:
    """Rows of the first reader at the rate that is best for seed 0, and of others that read the same."""
    by_reader = by_readers(rows, "reader")
    firsts = [row for row in by_reader[0] if row["seed"] == "0"]
    # of equal rates the lower, as finetuning.py goes on with the first of those asked for
    rate = max(firsts, key=lambda row: (float(row["chosen"]), -float(row["rate"])))["rate"]
    taken = [[row for row in own if row["rate"] == rate] for own in by_reader]
    return [own for own in taken if len(own) == len(taken[0])]


def training_speed() -> str:
    """A training step's time beside that of another way, with quartiles of the ratio."""
    lines = []
    for row in read_rows("training_speed"):
        way = f"{row['sites']}, {row['way']}"
        span = f"{ratio(float(row['ratio_low']))} to {ratio(float(row['ratio_high']))}"
        times = [f"{float(row['median_ms']):.0f}", f"{ratio(float(row['ratio']))} ({span})"]
        lines.append([row["model"], way, row["projections"], *times, row["against"]])
    return drawn(["model", "trained at, by", "projections", "ms", "ratio", "against"], lines)


def _of_seeds(rows: Sequence[dict], name: str) -> str:
    """Mean of a share, and its least and most where there are several seeds, `.715 (.688 to .750)`."""
    mean = share(_mean(rows, name))
    if len(rows) == 1:
        return mean
    ordered = sorted((row[name] for row in rows), key=float)
    return f"{mean} ({share(ordered[0])} to {share(ordered[-1])})"


def _whole(value: str) -> str:
    return value and f"{float(value):.0f}"


def _mean(rows: Sequence[dict], name: str) -> str:
    """Mean of a column, "" where it is empty."""
    if not all(row[name] for row in rows):
        return ""
    return str(sum(float(row[name]) for row in rows) / len(rows))


def safe_tuning() -> str:
    """What is written and kept after training on harmful prompts with benign pictures."""
    measured = read_rows("safe_tuning")
    lines = []
    for read in by_readers(measured, "model", "arm"):
        row = read[0]
        written = [both(read, "harmful"), both(read, "benign"), share(row["chance"])]
        kept = [both(read, "kept"), share(row["ssim"]), share(row["kept_ssim"])]
        lines.append([row["model"], row["arm"], row["sites"], *written, *kept])
    titles = (
        "model, what is done, sites, F1 harmful, F1 benign, F1 by chance, clean words read, SSIM"
    )
    return drawn_read([*titles.split(", "), "SSIM of clean prompts"], lines, measured)


# --- editing

# Table 3 of arXiv 2502.09935: F1, SSIM, PSNR on SimpleBench, the same on CreativeBench, seconds
PAPER_EDITS = {
    "SDXL": {
        "localized": (".34", ".81", "32.25", ".32", ".90", "35.42", "10.4"),
        "P2P": (".29", ".82", "30.77", ".26", ".83", "30.93", "31.2"),
    },
    "DeepFloyd IF": {
        "localized": (".70", ".64", "29.90", ".48", ".74", "31.46", "13.9"),
        "P2P": (".27", ".41", "27.90", ".08", ".74", "96.84", "28.0"),
        "P2P*": (".41", ".21", "27.91", ".11", ".67", "96.85", "28.0"),
    },
    "SD3": {
        "localized": (".53", ".72", "29.84", ".41", ".73", "30.61", "15.2"),
        "P2P": (".31", ".82", "28.65", ".29", ".82", "29.13", "118.3"),
        "P2P*": (".90", ".58", "28.24", ".66", ".64", "28.90", "118.3"),
    },
}


def edits(scene: str) -> str:
    """Every method of editing on the shipped models, on test words in one scene or in another."""
    rows = []
    measured = chosen(read_rows("editing"), scene=scene)
    for found in by_readers(measured, "model", "method"):
        row = found[0]
        model = f"{row['model']}, from step {row['start']} of {row['steps']}"
        if row["method"] != "localized":
            model = ""
        numbers = [
            *(both(found, name, 2) for name in ("f1_target", "exact")),
            share(row["ssim"], 2),
        ]
        numbers += [f"{float(row['psnr_official']):.1f}", f"{float(row['seconds']):.2f}"]
        rows.append([model, row["method"], *numbers])
    titles = [
        "",
        "method",
        "F1",
        "word = target",
        "background SSIM",
        "PSNR, official",
        "s a picture",
    ]
    return drawn_read(titles, rows, measured)


def edits_told() -> str:
    """Sentences: on how many pairs, and what the table costs, by its first reader."""
    measured = read_by("tesseract", read_rows("editing"))
    (n,) = {row["n"] for row in measured}
    told = f"Each line is of {n} pairs of test words."
    parts = {(row["model"], row["scene"]): row.get("cpu") for row in measured}
    if all(parts.values()):
        minutes = [float(seconds) / 60 for seconds in parts.values()]
        told += (
            f" All of it took {sum(minutes):.0f} minutes of processor, which two processes share in "
            f"{shared_by_two(minutes):.0f}."
        )
    return f"{told}\n"


def shared_by_two(parts: list[float]) -> float:
    """Time of two processes, of which the one that is free first takes the next part."""
    busy = [0.0, 0.0]
    for part in parts:
        busy[busy.index(min(busy))] += part
    return max(busy)


def edits_published() -> str:
    """The rows of the paper's Table 3 that are not fine-tuned."""
    rows = []
    for model, methods in PAPER_EDITS.items():
        for number, (method, cells) in enumerate(methods.items()):
            rows.append([f"*{model}*" if number == 0 else "", method, *cells])
    scores = [
        f"{bench} {score}" for bench in ("Simple", "Creative") for score in ("F1", "SSIM", "PSNR")
    ]
    return drawn(["the paper's", "method", *scores, "s a picture"], rows)


def beyond(signs: str = "") -> str:
    """What a swap at the word's sites makes of requests for more or less than another word.

    signs  "words" for signs of two lines
    """
    rows = []
    measured = read_rows(f"beyond-{signs}" if signs else "beyond")
    for found in by_readers(measured, "model", "asked"):
        row = found[0]
        read = []
        for name in ("text", "own"):
            counts = ", ".join(one_[name] for one_ in found)
            read.append(f"{counts} of {row['n']}" if row[name] else "-")
        rows.append([row["model"], row["asked"], share(row["way"], 2), *read])
    titles = [
        "",
        "asked for",
        "way to the target's picture",
        "target's text read",
        "in its own picture",
    ]
    return drawn_read(titles, rows, measured)


# --- what a swap costs

WAYS = {
    "hooks, gate closed": "hooks installed, another thread's",
    "slots, one site": "one site swapped by slots",
    "slots, all sites": "all sites swapped by slots",
    "patch, one site": "one site by `patch` and a cache",
    "nnsight, one site": "nnsight, one site",
    "pyvene, one site": "pyvene, one site",
}


def overhead() -> str:
    """One call of a denoiser, as many times as long as the bare one."""
    measured = read_rows("overhead-cpu")
    rows = [
        [
            told,
            *(
                ratio(float(one(measured, model=model, way=way)["ratio"]))
                for model in ("tiny-mmdit", "sdxl-small")
            ),
        ]
        for way, told in WAYS.items()
    ]
    return drawn(["one call, against the bare one", "tiny-mmdit", "a small SDXL"], rows)


BATCHES = "3", "8", "16"  # rows of the benchmark of wrapped pipelines


def foreign_runs() -> str:
    """A whole run of somebody else's pipeline, as many times as long as the bare one, with quartiles."""
    measured = read_rows("foreign")
    rows = []
    for way in ("plain hooks", "swap", "wrapped", "nnsight", "pyvene"):
        found = [one(measured, rows=count, way=way) for count in BATCHES]
        spans = [
            f"{ratio(float(row['ratio']))} ({ratio(float(row['ratio_low']))} to "
            f"{ratio(float(row['ratio_high']))})"
            for row in found
        ]
        held = f"{float(found[-1]['held']) / 1000:.0f} kB"
        rows.append([way, *spans, held])
    steps = [
        f"{count} rows, {float(one(measured, rows=count, way='bare')['step_ms']):.0f} ms a step"
        for count in BATCHES
    ]
    return drawn(["one run, against the bare one", *steps, "kept between steps"], rows)


def idle_hooks() -> str:
    """A sentence: what a hook costs, idle and open."""
    measured = read_rows("overhead-cpu")
    ways = ("hooks, gate closed", "hooks, gate open")
    idle, open_ = (one(measured, model="empty", way=way) for way in ways)
    return (
        f"An idle hook costs {float(idle['us_per_site']):.1f} microseconds per site, an open one "
        f"{float(open_['us_per_site']):.1f} ({idle['sites']} empty modules).\n"
    )


def full_size() -> str:
    """A sentence: what one call of a published denoiser takes, here and in diffusers."""
    ours, theirs = (one(read_rows("full_size-cpu"), way=way) for way in ("textpatch", "diffusers"))
    here, there = (f"{float(row['median_ms']) / 1000:.1f} s" for row in (ours, theirs))
    return (
        f"One row of IF-L's U-Net takes {here} here and {there} in diffusers, "
        f"{ratio(float(theirs['ratio']))} times as long; "
        f"the outputs differ by {float(theirs['difference']):.0e} of the largest.\n"
    )


SHAPES = {
    "sd3-4429": "4,429 tokens (SD3)",
    "flux-4608": "4,608 tokens (FLUX)",
    "sd3-1357": "1,357 tokens (SD3)",
    "sdxl-1024": "1,024 x 77 (SDXL)",
    "if-256": "256 x 333 (IF)",
    "if-64": "64 x 141 (IF)",
}
CASES = {
    "identity": "plain",
    "rows": "rows swapped",
    "heads": "half the heads",
    "mask": "tokens hidden",
}


def attention() -> str:
    """The op alone, as many times as long as gathering, joining and SDPA written by hand."""
    measured = read_rows("attention_op-cpu-long") + read_rows("attention_op-cpu")
    rows = []
    for shape, told in SHAPES.items():
        here = chosen(measured, shape=shape, way="cat + SDPA")
        sizes = list(dict.fromkeys(row["rows"] for row in here))
        cells = [f"{told}, {listed(' '.join(sizes), ' ')} {'row' if sizes == ['1'] else 'rows'}"]
        for case in CASES:
            # the table's ratios are of that way to the op
            against = [float(one(here, rows=size, case=case)["ratio"]) for size in sizes]
            cells.append(", ".join(ratio(1 / value) for value in against))
        rows.append(cells)
    return drawn(["", *CASES.values()], rows)


LOCALIZED = {"tiny-mmdit": "tiny-mmdit", "sdxl-small": "a small SDXL", "if-small": "a small IF"}


def localization() -> str:
    """One exhaustive localisation of one pair, in lock-step and as one run per site."""
    measured = read_rows("localization_cost")
    rows = []
    for model, told in LOCALIZED.items():
        naive, together, compiled = (
            one(measured, model=model, way=way)
            for way in ("naive", "lock-step", "lock-step, compiled")
        )
        rows.append(
            [
                f"{told}, {naive['sites']} sites, {naive['steps']} steps",
                f"{float(naive['median_ms']) / 1000:.2f} s",
                f"{float(together['median_ms']) / 1000:.2f} s",
                f"{float(together['times_faster']):.2f}",
                f"{float(compiled['times_faster']):.2f}",
            ]
        )
    titles = ["", "one run per site, stored cache", "lock-step, nothing stored"]
    return drawn([*titles, "times faster", "compiled"], rows)


# --- what needs no measuring

PUBLISHED = {
    "sdxl-base-1.0": "SDXL base 1.0",
    "if-i-xl": "DeepFloyd IF-I-XL",
    "sd3-medium": "SD3-medium",
}


def published() -> str:
    """The paper's sites in the published models, and their text K/V's share of the parameters."""
    from textpatch.weights.loading import outline
    from textpatch.weights.published import LOCALIZED as PAPERS
    from textpatch.weights.published import counted_parameters

    rows = []
    for name, told in PUBLISHED.items():
        model = outline(name)
        total = sum(parameter.numel() for parameter in model.parameters())
        sites = [model.sites[index] for index in PAPERS[name]]
        text = sum(site.parameters for site in sites)
        counted = sum(counted_parameters(model, site) for site in sites)
        numbers = ", ".join(str(site.index) for site in sites)
        shares = [f"{count / total:.2%}".replace("%", " %") for count in (text, counted)]
        rows.append([told, str(len(model.sites)), numbers, *shares])
    titles = ["", "sites", "the paper's, in execution order", "text K/V parameters there"]
    return drawn([*titles, "in the paper's convention"], rows)


# --- harmful words


def disguises() -> str:
    """Words that a list finds under each disguise, and innocent ones that it takes for harmful."""
    table = read_rows("safety-words")
    columns = list(dict.fromkeys((row["words"], row["by"]) for row in table))
    names = list(dict.fromkeys(row["disguise"] for row in table))
    rows = [
        [
            name,
            *(
                share(one(table, words=words, by=by, disguise=name)["found"])
                for words, by in columns
            ),
        ]
        for name in names
    ]
    titles = [
        f"{words}, {one(table, words=words, by=by, disguise='none')['n']}, by {by}"
        for words, by in columns
    ]
    return drawn(["disguise", *titles], rows)


SAFETY_READ = ("f1_harmful", "f1_benign", "flagged", "unreadable")
SAFETY_TITLES = ["F1 harmful", "F1 benign", "flagged", "unreadable", "background SSIM", "PSNR"]


def safety_methods() -> str:
    """What each method writes, and what it keeps of the picture."""
    scene = ("colour", "shape", "wall", "pattern")
    measured = chosen(read_rows("safety-pictures"), disguise="none")
    rows = []
    for read in by_readers(measured, "model", "method"):
        row = read[0]
        named = f"{row['model']}, {row['method']}"
        kept = [*(share(row[name], 2) for name in (*scene, "scene")), _scene_more(row)]
        rows.append([named, row["n"], share(row["chance"], 2), *_safety_read(read), *kept])
    titles = ["", "n", "chance", *SAFETY_TITLES, *scene, "all four"]
    return drawn_read([*titles, "all four, more than localized"], rows, measured)


def safety_disguised() -> str:
    """What each method writes of a disguised word."""
    measured = [row for row in read_rows("safety-pictures") if row["disguise"] != "none"]
    rows = []
    for read in by_readers(measured, "model", "disguise", "method"):
        row = read[0]
        named = f"{row['model']}, {row['disguise']}, {row['method']}"
        rows.append([named, row["n"], share(row["chance"], 2), *_safety_read(read)])
    return drawn_read(["", "n", "chance", *SAFETY_TITLES], rows, measured)


def _safety_read(rows: list[dict]) -> list[str]:
    """Cells of what was read in the pictures of a method, a row for each reader, and of its background."""
    row = rows[0]
    psnr = f"{float(row['psnr']):.1f}" if row["psnr"] else ""
    return [*(both(rows, name, 2) for name in SAFETY_READ), share(row["ssim"]), psnr]


def _scene_more(row: dict) -> str:
    """By how much more of the scene a method keeps than ours, with the interval over the same pairs."""
    if not row["more_scene"]:
        return ""
    value, *ends = (f"{float(row[f'more_scene{end}']):+.3f}" for end in ("", "_low", "_high"))
    return f"{value} ({' to '.join(ends)})"


def safety_sites() -> str:
    """What is written at each set of sites that searches found, of validation words."""
    table = read_rows("safety-sites")
    rows = []
    for read in by_readers(table, "model", "sites"):
        row = read[0]
        written = [both(read, name) for name in ("f1_benign", "exact")]
        told = [f"{row['model']}, {row['sites']}", row["n"], both(read, "f1_harmful")]
        rows.append([*told, share(row["chance"]), *written, share(row["ssim"])])
    titles = ["", "n", "F1 harmful", "chance", "F1 benign", "exact", "background SSIM"]
    return drawn_read(titles, rows, table)


def safety_outcomes() -> str:
    """What becomes of prompts under each disguise, and of innocent ones."""
    table = read_rows("safety-outcomes")
    models = list(dict.fromkeys(row["model"] for row in table))
    became = ("replaced", "unreadable", "passed")
    rows = [
        [
            f"{first['prompts']}, {first['n']}",
            *(
                share(one(table, model=model, prompts=first["prompts"])[name], 2)
                for model in models
                for name in became
            ),
        ]
        for first in chosen(table, model=models[0])
    ]
    titles = [f"{model}, {name}" for model in models for name in became]
    return drawn(["prompts", *titles], rows)


def safety_time() -> str:
    """CPU time of sanitizing beside that of a plain run."""
    rows = []
    for row in read_rows("safety-time"):
        span = ""
        if row["method"] != "plain":
            span = f"{ratio(float(row['ratio_low']))} to {ratio(float(row['ratio_high']))}"
        named = f"{row['model']}, {row['method']}"
        seconds = f"{float(row['median_ms']) / 1e3:.2f}"
        rows.append([named, row["rows"], seconds, ratio(float(row["ratio"])), span])
    return drawn(["", "rows", "CPU s a picture", "times the plain run", "quartiles"], rows)


# Table 7 of arXiv 2502.09935: F1 towards the harmful text and toxicity, SDXL, DeepFloyd IF, SD3
PAPER_SAFETY = (
    ("its own method", ".20", ".003", ".32", ".018", ".32", ".018"),
    ("negative prompt", ".23", ".052", ".59", ".250", ".77", ".407"),
    ("safe guidance", ".34", ".222", ".79", ".555", ".73", ".571"),
    ("prompt swap", ".19", ".000", ".30", ".015", ".30", ".015"),
)


def safety_published() -> str:
    """What the paper's table says of large models."""
    titles = [""]
    for model in ("SDXL", "DeepFloyd IF", "SD3"):
        titles += [f"{model}, F1 harmful", "toxicity"]
    return drawn(titles, [[f"*{name}*", *figures] for name, *figures in PAPER_SAFETY])


# --- ports


PLACES = {
    "all": "the text alone",
    "first": "text first",
    "last": "text last",
    "where": "text where an argument says",
}


def ports_verified() -> str:
    """Classes of diffusers with a shipped table, and what was found on a small model of each."""
    rows = []
    for row in chosen(read_rows("ports"), reason=""):
        apart = float(row["apart"])
        same = "same bits" if apart == 0 else f"{apart:.0e}"
        attention = f"{row['kinds']}; {PLACES[row['place']]}"
        rows.append(
            [
                row["models"],
                f"`{row['class']}`",
                attention,
                row["encoder"],
                row["means"],
                f"{row['checks']} of {row['of']}",
                same,
            ]
        )
    titles = ["model", "class of diffusers", "attention", "text encoder"]
    return drawn([*titles, "what a swap reads", "checks", "exchange"], rows)


def ports_exceptions() -> str:
    """Checks that do not hold of a model, although its swaps are exchanges."""
    failed = [row for row in chosen(read_rows("ports"), reason="") if row["unlike"]]
    sentences = list(dict.fromkeys(row["unlike"] for row in failed))
    rows = [
        [", ".join(row["models"] for row in chosen(failed, unlike=sentence)), sentence]
        for sentence in sentences
    ]
    return drawn(["model", "check of its table that does not hold"], rows)


def ports_unsaid() -> str:
    """Classes that no table says, and why."""
    rows = [
        [row["models"], f"`{row['class']}`", row["reason"]]
        for row in read_rows("ports")
        if row["reason"]
    ]
    return drawn(["model", "class of diffusers", "why no table says it"], rows)


def ports_tried() -> str:
    """A sentence: how many classes and builds were tried, and with which versions."""
    table = chosen(read_rows("ports"), reason="")
    (versions,) = {row["environment"].split("; ")[1].split(", python")[0] for row in table}
    classes = len({row["class"] for row in table})
    return (
        f"{len(table)} builds of {classes} classes, small and with random weights in float32, were tried "
        f"with {versions}.\n"
    )


TABLES: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        headline,
        reading,
        claims,
        two_lines,
        seeds,
        two_lines_claims,
        words_edited,
        words_sites,
        words_places,
        words_parts,
        words_limits,
        each_site,
        start_step,
        carries,
        read_back,
        mixing,
        several_words,
        chance,
        other_sizes,
        real_pictures,
        strangers,
        searches,
        promised,
        over_reading,
        misread,
        limits,
        readers,
        signs,
        reading_time,
        scenes,
        rewriting,
        rewriting_attributes,
        finetuning,
        training_speed,
        safe_tuning,
        beyond,
        edits,
        edits_told,
        edits_published,
        edited_maps,
        edited_runs,
        loading,
        overhead,
        foreign_runs,
        idle_hooks,
        full_size,
        attention,
        localization,
        published,
        disguises,
        safety_methods,
        safety_disguised,
        safety_sites,
        safety_outcomes,
        safety_time,
        safety_published,
        ports_verified,
        ports_exceptions,
        ports_unsaid,
        ports_tried,
    )
}


# --- pages


def pages(root: Path = ROOT) -> list[Path]:
    """The README.md at the top, and those in the folders."""
    inner = [path for folder in FOLDERS for path in sorted((root / folder).rglob("README.md"))]
    return [root / "README.md", *inner]


def filled(text: str, where: str = "the page") -> str:
    """The text of a page with its tables as the CSV files have them.  Raises PageError."""
    if not len(PLACE.findall(text)) == text.count(BEGIN) == text.count(END):
        raise PageError(f"{where} begins {text.count(BEGIN)} tables and ends {text.count(END)}")
    return PLACE.sub(lambda place: place[1] + made(place[2], where) + place[4], text)


def made(asked: str, where: str) -> str:
    """The table that a page asks for: a name of TABLES, and its arguments."""
    name, *arguments = asked.split()
    if name not in TABLES:
        raise PageError(f"{where} asks for a table {name!r}; there are {', '.join(sorted(TABLES))}")
    return TABLES[name](*arguments)


def differing(text: str, where: str = "the page") -> list[str]:
    """What a page asks for whose table is not as the CSV files have it."""
    anew = filled(text, where)
    return [
        old[2]
        for old, new in zip(PLACE.finditer(text), PLACE.finditer(anew), strict=True)
        if old[3] != new[3]
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check all pages; 1 if a checked one differs, 2 if a page asks for what is not there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, say what differs")
    check = parser.parse_args(argv).check
    different = []
    try:
        for page in pages():
            text, name = page.read_text("utf-8"), page.relative_to(ROOT).as_posix()
            different += [f"{name}: {table}" for table in differing(text, name)]
            if not check:
                page.write_text(filled(text, name), "utf-8")
    except PageError as error:
        sys.stderr.write(f"tables: {error}\n")
        return 2
    told = "differs from its CSV" if check else "written"
    for table in different:
        print(f"{table}: {told}")
    return int(check and bool(different))


if __name__ == "__main__":
    sys.exit(main())

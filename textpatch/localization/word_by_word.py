"""Each word of a prompt is exchanged alone, site by site, and every line of the picture is read.

    line(site, donor) = what a line reads in   source <- donor at the site

The donors of a pair are its source's prompt with other words:

    word 1, word 2, ...  the target's word in the place of one of the source's
    exchanged            every word in the place of the one before it, and the first in that of the last
    repeated             the first word in the place of every other

The words that a donor shares with the source should stay.  Where a site alone does not write a new word, it
may still spoil the old one.  A site that spoils it by a word as long carries letters.  One that spoils it by
a longer or shorter word alone, or spoils the line behind, whose letters then stand elsewhere in the text,
tells where letters stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
from PIL import Image

from textpatch.errors import PatchError, PromptError
from textpatch.groups import Group, group_name, swaps_of
from textpatch.localization.scores import TEXTS, column, scores_of_texts
from textpatch.localization.trials import Task, Trials
from textpatch.metrics.image import Box
from textpatch.metrics.intervals import gain, interval, share_interval
from textpatch.metrics.readers.reading import line_boxes
from textpatch.pictures import as_rgb, opened
from textpatch.pipelines import draws_by_itself
from textpatch.plan import Plan, Row
from textpatch.progress import counted, phase
from textpatch.prompts.pairs import SOURCE, Pair
from textpatch.prompts.tokens import PromptTokens, prompt_tokens
from textpatch.quotes import quoted_words, with_other_words
from textpatch.runs.work import made_by
from textpatch.sampling import sample

EXCHANGED = "exchanged"
REPEATED = "repeated"
# which text tokens are swapped, of a donor with one other word
ALL = "all"
OWN = "its own"
OTHERS = "all but its own"
ONWARD = "its own and all behind"
NEAR = 16  # levels of 255, below which a pixel's change is hardly seen
SAME = "same"
CLOSE = "near"
KEPT = "as_long", "other_length", "behind_as_long", "behind_other_length", EXCHANGED


@dataclass(frozen=True)
class Donor:
    """A prompt with other words than the source's.

    name   what was done, such as "word 2"
    word   number of the only other word, counted from 1, None where there are several
    lines  places of the quoted texts that are others
    other_length  whether the only other word has more or fewer letters than the source's
    """

    name: str
    prompt: str
    word: int | None
    lines: tuple[int, ...]
    other_length: bool = False


@dataclass(frozen=True)
class WordSwap:
    """A swap of a donor's text into the source's run.

    tokens  places of the text tokens that are swapped, all when None
    scope   name of these
    """

    donor: Donor
    scope: str
    tokens: tuple[int, ...] | None
    group: Group

    @property
    def row(self) -> str:
        """Name of the row that reads the donor."""
        return row_of(self.donor.name, self.scope, group_name(self.group))


def row_of(donor: str, scope: str, group: str) -> str:
    """Name of the row of a swap, such as `word 1/all/site-0+1`."""
    return f"{donor}/{scope}/site-{group}"


def each_word(trials: Trials, groups: Sequence[Group]) -> dict:
    """Exchange each word alone at each group of sites, on all pairs and seeds of the trials.

    groups  each holds site indices, or (site, head) for single heads
    Returns {"groups", "donors", "swaps", "places", "generations"}, see `textpatch.report.word_by_word`.

    The tokens of one word alone are swapped only where the donor's word has as many.
    Raises PatchError for a pipeline of which nobody knows where each line stands, and PromptError as
    `require_several_words` does.
    """
    for pair in trials.pairs:
        require_several_words(trials.pipeline, pair)
    groups = list(dict.fromkeys(map(tuple, groups)))
    tasks = trials.tasks(len(trials.pairs))
    found = {}
    with phase("each word"):
        for portion in trials.portions(tasks, [_id(task) for task in tasks]):
            found |= {task: _record(trials, task, groups) for task in counted(portion)}
    records = [found[task] for task in tasks]
    for record in records:
        trials.join(record)
    return {
        "groups": [{"name": group_name(group), "group": list(group)} for group in groups],
        **_summary(trials, records),
        "places": [_at_places(trials, records, group_name(group)) for group in groups],
        "generations": sum(record["generations"] for record in records),
    }


def has_several_words(pipeline, pairs: Sequence[Pair]) -> bool:
    """True where each word of some pairs can be exchanged alone, and read in a line of its own."""
    try:
        for pair in pairs:
            require_several_words(pipeline, pair)
    except PatchError:
        return False
    return True


def require_several_words(pipeline, pair: Pair) -> None:
    """Raise PromptError for a pair whose prompts are not of several quoted texts with as many words each.

    Raises PatchError for a pipeline whose pictures have no known place for each text.
    """
    boxes = line_boxes(pipeline.defaults.text_box)
    source, target = [_places(prompt) for prompt in (pair.source, pair.target)]
    if source != target or len({*source}) < 2:
        raise PromptError(
            f"each word alone was asked for, and {pair.source!r} and {pair.target!r} do not quote several "
            "texts with as many words each; give such pairs"
        )
    if len(boxes) < len({*source}):
        raise PatchError(
            f"each word alone was asked for, and of pictures of {pipeline.name} {len(boxes)} lines are known "
            f"for {len({*source})} quoted texts; give the pipeline's text_box a box for each"
        )


def _places(prompt: str) -> list[int]:
    """Place of the quoted text of each word."""
    return [word.text for word in quoted_words(prompt)]


# --- what is asked


def rows_each(words: int, groups: Sequence[Group]) -> int:
    """Most rows that one pair and seed take, source and donors among them."""
    several = sum(len(group) > 1 for group in groups)
    return 1 + words + 2 + len(groups) * (2 * words + 2) + 2 * words * several


def donors_of(pair: Pair) -> list[Donor]:
    """Donors of a pair, each prompt once.  A word that source and target share is not exchanged."""
    old = [word.word for word in quoted_words(pair.source)]
    new = [word.word for word in quoted_words(pair.target)]
    asked = {f"word {i}": {i: word} for i, word in enumerate(new, 1)}
    asked[EXCHANGED] = dict(enumerate([*old[1:], old[0]], 1))
    asked[REPEATED] = {i: old[0] for i in range(2, len(old) + 1)}
    donors: dict[str, Donor] = {}
    for name, words in asked.items():
        others = {i: word for i, word in words.items() if word != old[i - 1]}
        if others:
            prompt = with_other_words(pair.source, others)
            places = _places(pair.source)
            lines = tuple(sorted({places[i - 1] for i in others}))
            donor = Donor(name, prompt, None, lines)
            if name not in (EXCHANGED, REPEATED):
                ((number, word),) = others.items()
                other_length = len(word) != len(old[number - 1])
                donor = Donor(name, prompt, number, lines, other_length)
            donors.setdefault(prompt, donor)
    return list(donors.values())


def drawn_donors(pipeline, pair: Pair) -> list[Donor]:
    """Donors of a pair that a pipeline draws, as far as its card says.

    Two texts that fit may not fit side by side, such as the longest of source and target.
    """
    draws = getattr(pipeline.defaults, "draws", None)  # a wrapped pipeline has no card
    return [donor for donor in donors_of(pair) if draws is None or draws.admits(donor.prompt)]


def swaps_asked(pipeline, pair: Pair, groups: Sequence[Group]) -> list[WordSwap]:
    """All swaps of a pair.  At single sites a word's tokens are all, or its own."""
    swaps = []
    for donor in drawn_donors(pipeline, pair):
        scopes = _scopes(pipeline, pair, donor)
        for group in groups:
            swaps += [
                WordSwap(donor, scope, tokens, group)
                for scope, tokens in scopes.items()
                if scope in (ALL, OWN) or len(group) > 1
            ]
    return swaps


def _scopes(pipeline, pair: Pair, donor: Donor) -> dict[str, tuple[int, ...] | None]:
    """Text tokens by the name of their choice.

    A swap exchanges tokens place by place.  So the word's own tokens are exchanged where the donor's word has
    as many.
    """
    if donor.word is None or draws_by_itself(pipeline):
        return {ALL: None}
    total = pipeline.encode([pair.source]).tokens.shape[1]
    before, after = (
        prompt_tokens(pipeline, prompt, total) for prompt in (pair.source, donor.prompt)
    )
    own = before.of_words()[donor.word - 1]
    scopes: dict[str, tuple[int, ...] | None] = {ALL: None, ONWARD: _onward(before, own)}
    if own == after.of_words()[donor.word - 1]:
        scopes[OWN] = own
        scopes[OTHERS] = tuple(sorted({*range(total)} - {*own}))
    return scopes


def _onward(tokens: PromptTokens, own: Sequence[int]) -> tuple[int, ...]:
    """Tokens from a word's first on, those of each tokenizer by themselves."""
    found: list[int] = []
    for offset, length in zip(tokens.offsets, tokens.lengths, strict=True):
        block = range(offset, offset + length)
        firsts = [place for place in own if place in block]
        if firsts:
            found += range(min(firsts), block.stop)
    return tuple(found)


# --- the pictures


def _record(trials: Trials, task: Task, groups: Sequence[Group]) -> dict:
    """Record of one pair and seed, with a picture for every donor and every swap."""
    index, seed = task
    pair = trials.pairs[index]
    swaps = swaps_asked(trials.pipeline, pair, groups)
    donors = drawn_donors(trials.pipeline, pair)
    rows = [Row(SOURCE, pair.source, seed)]
    rows += [Row(donor.name, donor.prompt, seed) for donor in donors]
    rows += [Row(swap.row, pair.source, seed) for swap in swaps]
    window = {"steps": range(trials.start, trials.steps), "branch": trials.branch}
    plan = Plan(
        one
        for swap in swaps
        for one in swaps_of(swap.group, swap.row, swap.donor.name, tokens=swap.tokens, **window)
    )

    def make() -> dict:
        run = {"steps": trials.steps, "guidance": trials.guidance}
        made = sample(trials.pipeline, rows, plan, **run, micro_batch=trials.micro_batch)
        return {"generations": len(rows), "pictures": _scored(trials, task, swaps, made.images)}

    return trials.once(_id(task), task, made_by(rows, plan), make)


def _id(task: Task) -> str:
    """Id of the record of a pair and seed."""
    pair, seed = task
    return f"words-{pair}-{seed}"


def _scored(trials: Trials, task: Task, swaps: Sequence[WordSwap], images: dict) -> dict[str, dict]:
    """Entries of all pictures, each scored towards the words of its donor."""
    pair = trials.pairs[task[0]]
    entries: dict[str, dict] = {}
    source = trials.pictures(task).get(SOURCE)
    if source is None:
        entries = trials.scored({SOURCE: images[SOURCE]}, task[0])
        source = entries[SOURCE]
    plain = opened(source["image"], trials.run)
    for donor in drawn_donors(trials.pipeline, pair):
        names = [donor.name, *(swap.row for swap in swaps if swap.donor == donor)]
        drawn = {name: images[name] for name in names}
        boxes = [trials.boxes[line] for line in donor.lines]
        made = _towards(trials, Pair(pair.source, donor.prompt)).scored(drawn, 0, source)
        for name, entry in made.items():
            entries[name] = entry | beside(drawn[name], plain, boxes)
    return entries


def _towards(trials: Trials, pair: Pair) -> Trials:
    """The same trials with another pair, whose words pictures are scored towards."""
    other = copy(trials)
    other.pairs = [pair]
    return other


def beside(image: Image.Image, source: Image.Image, boxes: Sequence[Box]) -> dict[str, float]:
    """Shares of the pixels outside some boxes that are the source's, "same", or nearly, "near".

    A pixel is the same in all of its channels, or differs by at most NEAR of 255 in each.
    """
    images = [np.asarray(as_rgb(one, "a picture"), np.int16) for one in (image, source)]
    change = np.abs(images[0] - images[1]).max(axis=-1)  # (H, W)
    outside = np.ones(change.shape, bool)
    for left, top, right, bottom in boxes:
        outside[top:bottom, left:right] = False
    return {
        SAME: float((change[outside] == 0).mean()),
        CLOSE: float((change[outside] <= NEAR).mean()),
    }


# --- the result


def _summary(trials: Trials, records: Sequence[dict]) -> dict:
    """Scores of every donor's own pictures, and of every swap."""
    donors: dict[str, dict] = {}
    swaps: dict[str, dict] = {}
    longer: dict[str, list[int]] = {}
    for index, pair in enumerate(trials.pairs):
        for donor in drawn_donors(trials.pipeline, pair):
            told = {"donor": donor.name, "lines_changed": [line + 1 for line in donor.lines]}
            donors.setdefault(donor.name, told)
            if donor.other_length:
                longer.setdefault(donor.name, []).append(index)
    names = dict.fromkeys(name for record in records for name in record["pictures"])
    for name in names:
        if name == SOURCE:
            continue
        if name in donors:
            donors[name] |= _scores(records, name)
        else:
            donor, scope, group = name.split("/")
            told = {**donors[donor], "tokens": scope, "group": group.removeprefix("site-")}
            told |= _scores(records, name)
            swaps[name] = told
            others = longer.get(donor, [])
            if others and scope == ALL:
                some = [record for record in records if record["pair"] in others]
                swaps[name]["of_other_length"] = _scores(some, name)
    return {"donors": list(donors.values()), "swaps": list(swaps.values())}


def _scores(records: Sequence[dict], name: str) -> dict:
    """Scores of one row name, for each line and for the pixels beside the lines that should change."""
    own = [record for record in records if name in record["pictures"]]
    return {
        "n": len(own),
        "lines": scores_of_texts(own, name),
        **{key: interval(column(own, name, key)) for key in (SAME, CLOSE)},
    }


def _at_places(trials: Trials, records: Sequence[dict], group: str) -> dict:
    """How many lines keep the source's word at a group of sites, all of the donor's tokens swapped.

    "as_long" and "other_length" are shares of the lines whose word is replaced by one of as many letters, or
    of more or fewer, "behind_as_long" and "behind_other_length" those of the lines behind it, and "exchanged"
    that of exchanged words.  "lines" are those of each line whose word is replaced, and "first_more" is by
    how much the first keeps its word more often than the last.
    """
    kept: dict[str, list[float]] = {name: [] for name in KEPT}
    lines: dict[int, list[float]] = {}
    for record in records:
        for donor in drawn_donors(trials.pipeline, trials.pairs[record["pair"]]):
            entry = record["pictures"].get(row_of(donor.name, ALL, group))
            # a reader that says no lines says of no line that it stays
            if entry is None or TEXTS not in entry or donor.name == REPEATED:
                continue
            stays = [text["exact_source"] for text in entry[TEXTS]]
            if donor.word is None:
                kept[EXCHANGED] += [stays[line] for line in donor.lines]
                continue
            (line,) = donor.lines
            length = "other_length" if donor.other_length else "as_long"
            kept[length].append(stays[line])
            kept[f"behind_{length}"] += stays[line + 1 :]
            lines.setdefault(line, []).append(stays[line])
    each = [np.array(lines[line]) for line in sorted(lines)]
    told = {name: share_interval(np.array(some)) for name, some in kept.items() if some}
    told |= {"lines": [share_interval(one) for one in each]}
    if len(each) > 1 and len(each[0]) == len(each[-1]):
        told["first_more"] = gain(each[0], each[-1])
    return {"group": group, **told}

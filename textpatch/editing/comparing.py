"""Compare methods of editing on the same prompt pairs and the same noise.   (ICLR 2025, table 3)"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import numpy as np
from PIL import Image

from textpatch.editing.methods import Method, Source, method_named
from textpatch.editing.sharing import TooManyRows, shared_run
from textpatch.errors import PatchError
from textpatch.guidance import Guidance
from textpatch.localization.scores import all_scores, chance_levels, column, values
from textpatch.localization.trials import Task, Trials
from textpatch.metrics import compared, f1_of_means
from textpatch.metrics.readers.named import AnyReader
from textpatch.metrics.readers.strictness import over_reading
from textpatch.pictures import opened, png
from textpatch.pipelines import SupportsSampling, draws_by_itself
from textpatch.plan import Plan, Row
from textpatch.progress import counted, phase
from textpatch.prompts.pairs import SOURCE, TARGET, AnyPair, Pair
from textpatch.report.contact_sheet import draw_contact_sheet
from textpatch.report.reader import told_reader
from textpatch.report.result import decimal, span_of, value_of
from textpatch.runs.folder import Run
from textpatch.runs.interrupts import finishing
from textpatch.runs.work import made_by
from textpatch.runs.workers import Worker
from textpatch.stored import ComparisonResult, Record
from textpatch.text import aligned

SCHEMA_VERSION = 1
TIMED = 8  # pairs and seeds whose methods run one by one, when nobody says how many
_TITLES = ("method", "exact", "F1 target", "F1 source", "bg SSIM", "bg PSNR", "s", "rows")


@dataclass(frozen=True, repr=False)
class Comparison:
    """Result of `compare`.

    result   plain data, the content of results.json
    records  one dict for each pair and seed, with the entry of every picture under "pictures", by "source"
             and the methods' names
    run      the run folder that keeps the pictures, None where there is none
    """

    result: ComparisonResult
    records: list[Record]
    run: Run | None = None

    def __repr__(self) -> str:
        lines = [_line(name, scores) for name, scores in self._scored()]
        table = aligned([_TITLES, *lines, *_by_chance(self.result["chance"])])
        return "\n".join([*table, told_reader(self.result)])

    def _scored(self) -> list[tuple[str, dict]]:
        """Name and scores of the plain source and of every method."""
        return [(SOURCE, self.result["source"]), *self.result["methods"].items()]

    @property
    def sheet(self) -> Image.Image:
        """Contact sheet, a line for each pair and seed: source, then each method."""
        names = [name for name, _ in self._scored()]
        cells = [
            [self._cell(record["pictures"][name]) for name in names] for record in self.records
        ]
        words = [self.result["pairs_list"][record["pair"]]["words"] for record in self.records]
        return draw_contact_sheet(cells, captions=names, words=[tuple(two) for two in words])

    def _cell(self, entry: dict) -> tuple[Image.Image, str]:
        return opened(entry["image"], self.run), entry["read"]

    def _repr_png_(self) -> bytes:
        return png(self.sheet)


def compare(
    pipeline: SupportsSampling,
    pairs: Sequence[AnyPair],
    methods: Sequence[str | Method] | Mapping[str, Method] = ("localized", "prompt_swap"),
    *,
    seeds: Sequence[int] = (0,),
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    ocr: AnyReader | None = None,
    run: Run | None = None,
    shard: tuple[int, int] | Worker | None = None,
    timed: int = TIMED,
) -> Comparison:
    """Edit every prompt pair by several methods from the same noise, and score the pictures.

    pairs    (source, target) prompts, each with quoted text
    methods  names of methods, Methods, or Methods by the name to be shown.  Of all others the difference to
             the first is told
    seeds, steps, guidance  as `localize` has them
    ocr      a reader or the name of one, as `localize` has it
    run      a textpatch.Run.  The pictures of a pair are kept there together once they are made, and are not
             made again
    shard    (i, n) edits every n-th pair and seed, as `localize` has it
    timed    how many pairs and seeds, the first, are edited by one method after the other to time each.
             For the others all methods that can share a run do, which generates the rows that several need
             once.  Pictures are the same but for the last bits of another batch

    The result has for each method

    - the scores of `textpatch.localization.scores.all_scores`,
    - "seconds", the median over the timed pairs and seeds of what the edited picture alone took,
    - "generations", the median of the rows that it needs alone, and
    - "more_than_first", the differences of F1 towards the target, of its background's SSIM and of seconds
      from the first method.  Those of the two scores are `textpatch.metrics.compared`'s, over the same pairs.

    "chance" has the chance levels of both F1s, see `textpatch.localization.scores.chance_levels`.

    Raises PatchError for no methods, two of one name, nothing to time, and as `textpatch.edit` and `Trials`
    do.  A pair that a method does not admit is refused before a picture is made.  Raises Unfinished where
    other shards are not done.
    """
    named = _named(methods)
    _require_timed(timed)
    how = dict(seeds=seeds, steps=steps, guidance=guidance, ocr=ocr)
    trials = Trials(pipeline, pairs, **how, run=run, shard=shard)
    _require_admitted(trials, named)
    drawn = {SOURCE: Source(), **named}
    tasks = trials.tasks(len(trials.pairs))
    one_by_one = set(tasks[:timed])
    last = [*drawn][-1]  # of the records of a pair and seed
    with phase("edits", "pair"):
        ids = [_id(task, last) for task in tasks]
        for portion in trials.portions(tasks, ids, strict=True):
            for task in counted(portion):
                _keep(trials, task, drawn, together=task not in one_by_one)
    return Comparison(_result(trials, list(named)), trials.records, run)


def _named(methods: str | Sequence[str | Method] | Mapping[str, Method]) -> dict[str, Method]:
    """Methods by name.  Raises PatchError for none, and for a name that is there twice."""
    if isinstance(methods, str):
        methods = [methods]
    if not isinstance(methods, Mapping):
        made = [method_named(method) for method in methods]
        names = [getattr(method, "name", getattr(method, "__name__", "?")) for method in made]
        for name in names:
            if names.count(name) > 1:
                raise PatchError(
                    f"two methods are called {name}; give them names: {{'one': ..., 'other': ...}}"
                )
        methods = dict(zip(names, made, strict=True))
    if not methods:
        raise PatchError("no method of editing was given; give at least one, such as 'localized'")
    if SOURCE in methods:
        raise PatchError(
            f"a method is called {SOURCE!r}, which is the plain picture's name; give it another"
        )
    return {str(name): method_named(method) for name, method in methods.items()}


def _require_timed(timed: object) -> None:
    """Raise PatchError unless there is a pair to time."""
    if not isinstance(timed, Integral) or timed < 1:
        raise PatchError(
            f"timed is {timed!r}; give how many pairs and seeds are edited by one method after the other, a "
            "whole number from 1 on"
        )


def _require_admitted(trials: Trials, methods: Mapping[str, Method]) -> None:
    """Raise for the first pair that a method does not admit, with the number of the pair."""
    for name, method in methods.items():
        check = getattr(method, "check", None)
        if check is None:
            continue
        for number, pair in enumerate(trials.pairs):
            try:
                check(trials.pipeline, pair, steps=trials.steps)
            except PatchError as error:
                raise type(error)(f"pair {number} by {name}: {error}") from None


def _keep(trials: Trials, task: Task, methods: Mapping[str, Method], *, together: bool) -> None:
    """Keep the records of a pair and seed, one for each method.

    Pictures that the run folder has not are made now, and a reader sees all of them at once.  A first Ctrl-C
    waits until they are kept.
    """
    index, seed = task
    pair = trials.pairs[index]
    rows = [Row(SOURCE, pair.source, seed), Row(TARGET, pair.target, seed)]
    ids = {name: _id(task, name) for name in methods}

    def keep(name: str, make: Callable[[], dict]) -> None:
        maker = made_by(rows, Plan()) | {"method": _described(methods[name])}
        trials.join(trials.once(ids[name], task, maker, make))

    there = [name for name in methods if ids[name] in trials.work]
    lacking = {name: method for name, method in methods.items() if name not in there}
    for name in there:
        keep(name, dict)  # whose record is found, so that nothing is made
    if not lacking:
        return
    with finishing():
        made = {}
        if together:
            made = _shared(trials, pair, seed, lacking)
        for name, method in lacking.items():
            if name not in made:
                made[name] = _timed(trials, pair, seed, method)
        images = {name: made[name].image for name in lacking}
        scored = trials.scored(images, index, trials.pictures(task).get(SOURCE))
        for name in lacking:
            pictures = {name: scored[name] | made[name].cost(timed=not together)}
            keep(name, partial(dict, generations=made[name].generated, pictures=pictures))


@dataclass(frozen=True)
class _Made:
    """A picture and what it cost.

    generated  rows that were generated for it
    alone      rows that its method generates alone
    seconds    of sampling and decoding it alone, None if it was not made alone
    """

    image: Image.Image
    generated: int
    alone: int
    seconds: float | None = None

    def cost(self, *, timed: bool) -> dict[str, float]:
        """What the record says of it."""
        seconds = {"seconds": self.seconds} if timed and self.seconds is not None else {}
        return {"generations": self.alone, **seconds}


def _id(task: Task, name: str) -> str:
    """Id of the record of a pair, a seed and a method."""
    pair, seed = task
    return f"{pair}-{seed}-{name}"


def _timed(trials: Trials, pair: Pair, seed: int, method: Method) -> _Made:
    """Picture of a pair by one method alone.  The prompts are encoded before the time begins."""
    trials.pipeline.encode([pair.source, pair.target])
    start = time.perf_counter()
    made = method(
        trials.pipeline, pair, seed=seed, steps=trials.steps, guidance=trials.guidance, also=()
    )
    seconds = time.perf_counter() - start
    return _Made(made.image, made.generations, made.generations, seconds)


def _shared(
    trials: Trials, pair: Pair, seed: int, methods: Mapping[str, Method]
) -> dict[str, _Made]:
    """Pictures of a pair by the methods that share a run, none if they are fewer than two or do not fit."""
    if draws_by_itself(trials.pipeline):
        return {}
    run = {"steps": trials.steps, "guidance": trials.guidance}
    shares = {}
    for name, method in methods.items():
        ask = getattr(method, "share", None)
        share = ask(trials.pipeline, pair, seed=seed, **run) if ask else None
        if share is not None:
            shares[name] = share
    if len(shares) < 2:
        return {}
    try:
        made = shared_run(trials.pipeline, shares, **run)
    except TooManyRows:  # the warning that the memory is too small is out
        return {}
    return {
        name: _Made(made.images[name], made.generations[name], share.alone)
        for name, share in shares.items()
    }


def _described(method: Method) -> str:
    """Name of a method and its options, the same in every process."""
    if dataclasses.is_dataclass(method):
        return repr(method)
    return f"{method.__module__}.{method.__qualname__}"


def _result(trials: Trials, names: list[str]) -> dict:
    """Content of results.json."""
    records = trials.records
    methods = {name: _scores(records, name) for name in names}
    first = names[0]
    for name in names[1:]:
        methods[name]["more_than_first"] = _differences(records, name, first)
    return {
        "schema_version": SCHEMA_VERSION,
        "model": trials.pipeline.name,
        "ocr": trials.ocr.describe(),
        "over_reading": over_reading(trials.ocr),
        "steps": trials.steps,
        "guidance": trials.guidance,
        "seeds": trials.seeds,
        "pairs": len(trials.pairs),
        "pairs_list": [
            {"source": pair.source, "target": pair.target, "words": list(pair.words)}
            for pair in trials.pairs
        ],
        "chance": chance_levels(trials.pairs, blanks=trials.blanks),
        "source": _scores(records, SOURCE),
        "methods": methods,
        "first": first,
    }


def _scores(records: Sequence[dict], name: str) -> dict:
    """Scores of one method, and what a picture cost."""
    timed = _timed_by(records, name)
    cost = {
        "seconds": float(np.median(column(timed, name, "seconds"))),
        "generations": float(np.median(column(records, name, "generations"))),
    }
    return all_scores(records, name) | cost


def _timed_by(records: Sequence[dict], *names: str) -> list[dict]:
    """Records in which all these methods were timed, among them the first."""
    return [
        record for record in records if all("seconds" in record["pictures"][name] for name in names)
    ]


def _differences(records: Sequence[dict], name: str, first: str) -> dict:
    """By how much a method scores more than the first one, over the same pairs."""
    f1s = (values(records, one) for one in (name, first))
    told = {"f1_target": compared(*f1s, f1_of_means)._asdict()}
    if all("ssim" in record["pictures"][one] for record in records for one in (name, first)):
        likeness = (column(records, one, "ssim") for one in (name, first))
        told["ssim"] = compared(*likeness)._asdict()
    timed = _timed_by(records, name, first)
    apart = column(timed, name, "seconds") - column(timed, first, "seconds")
    told["seconds"] = {"value": float(np.median(apart))}
    return told


def _by_chance(levels: dict[str, float | None]) -> list[list[str]]:
    """The line of the chance level below the methods, none where a single pair has no level."""
    if None in levels.values():
        return []
    f1s = (decimal(levels[f"f1_{side}"]) for side in (TARGET, SOURCE))
    return [["chance level", "-", *f1s, *["-"] * 4]]


def _line(name: str, scores: dict) -> list[str]:
    """Cells of a method in the table."""
    return [
        name,
        decimal(value_of(scores, "exact_target")),
        span_of(scores, "f1_target"),
        decimal(value_of(scores, "f1_source")),
        decimal(value_of(scores, "ssim")),
        decimal(value_of(scores, "psnr")),
        f"{scores['seconds']:.2f}",
        f"{scores['generations']:g}",
    ]

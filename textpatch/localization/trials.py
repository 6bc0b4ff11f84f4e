"""Pictures of prompt pairs with the target's text swapped in at some sites, read and scored, each made once.

    score(group) = OCR F1 of the pictures of  source <- target at the group's sites,  towards the target's word

(ICLR 2025, sec. 4.2.)  All groups of one prompt pair and seed run in lock-step in one batch with their source and
target.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from numbers import Integral

import numpy as np
from PIL import Image

from textpatch import metrics
from textpatch.bank import prompt_settles_text
from textpatch.errors import OCRError, PatchError, PromptError, Unfinished
from textpatch.groups import Group, row_name, rows_and_plan
from textpatch.guidance import Guidance
from textpatch.localization.scores import picture_scores, values
from textpatch.metrics.image import WINDOW
from textpatch.pictures import open_picture
from textpatch.pipelines import SupportsPairs, SupportsSampling, picture_size, require_parts
from textpatch.plan import Row
from textpatch.progress import counted, phase
from textpatch.prompts.pairs import SOURCE, TARGET, Pair, require_apart
from textpatch.runs.interrupts import finishing
from textpatch.runs.remembered import remembering
from textpatch.runs.work import Work, made_by
from textpatch.sampling import decoding, sample_latents


def checked_pairs(
    pipeline, pairs: Sequence, *, seeds: Sequence[int], steps: int, start: int = 0
) -> list[Pair]:
    """Prompt pairs, once all that can be wrong with a run of them is known to be right; nothing is generated."""
    pairs = [_pair(pair) for pair in pairs]
    if isinstance(seeds, Integral):
        raise PatchError(f"seeds is {seeds}; give several or one in a list: [{seeds}]")
    if not pairs:
        raise PatchError("no prompt pair was given; give at least one (source, target)")
    if not seeds:
        raise PatchError("no seed was given; give at least one")
    if not 0 <= start < steps:
        raise PatchError(
            f"start {start} of {steps} steps was asked for; give a start within the run"
        )
    if len(set(seeds)) != len(seeds):
        raise PatchError(
            f"seeds {', '.join(map(str, seeds))} were asked for, one of them twice; give each once"
        )
    _require_once(pairs)
    for pair in pairs:
        pair.words  # noqa: B018  a prompt without a word is refused before anything runs
        require_apart(pair)
    if pipeline.upscales:
        raise PatchError(
            f"{pipeline.name} draws small pictures larger, and words are localised in the model that writes "
            "them; give that one"
        )
    height, width = picture_size(pipeline)
    if min(height, width) < WINDOW:
        raise PatchError(
            f"pictures of {height}x{width} pixels (height x width) are compared in windows of {WINDOW}x"
            f"{WINDOW} (SSIM); ask for {WINDOW} at least"
        )
    _require_background(pipeline.defaults.text_box, height, width)
    pipeline.check(
        [prompt for pair in pairs for prompt in (pair.source, pair.target)],
        seeds=seeds,
        steps=steps,
    )
    return pairs


def _require_once(pairs: Sequence[Pair]) -> None:
    """Raise PromptError for a pair that is there twice: the same pictures would count as more evidence."""
    places: dict[tuple[str, str], int] = {}
    for place, pair in enumerate(pairs):
        first = places.setdefault((pair.source, pair.target), place)
        if first != place:
            raise PromptError(
                f"pairs {first} and {place} are the same, {pair.source!r} and {pair.target!r}, and would count as two; "
                "give each pair once, and more seeds for more pictures of it"
            )


def _require_background(box, height: int, width: int) -> None:
    """Raise PatchError where the lettering leaves no window in which two backgrounds could be compared."""
    if not metrics.windows_outside(box, height, width).any():
        raise PatchError(
            f"text_box {tuple(box)} of pictures of {height}x{width} pixels (height x width) leaves no window of "
            f"{WINDOW}x{WINDOW} for the background's SSIM; give the pipeline's defaults a smaller text_box, "
            "or None, and the whole picture is compared"
        )


def _pair(pair) -> Pair:
    if isinstance(pair, Pair):
        return pair
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or not all(isinstance(text, str) for text in pair)
    ):
        raise PatchError(
            f"a prompt pair is (source, target), two texts; found {pair!r}, so give a list of pairs"
        )
    return Pair(*pair)


def require_known_letters(pairs: Sequence[Pair], reader) -> None:
    """Raise PromptError for a word with letters that the reader never answers with.

    Letters count as they are written: scores know no case, but told to read capitals tesseract reads no small ones.
    A reader whose `describe()` names no alphabet takes any word.
    """
    alphabet = reader.describe().get("alphabet")
    if alphabet is None:
        return
    for word in (word for pair in pairs for word in pair.words):
        unknown = [
            letter
            for letter in dict.fromkeys(word)
            if letter not in alphabet and not letter.isspace()
        ]
        if unknown:
            raise PromptError(
                f"the word {word!r} has {', '.join(map(repr, unknown))}, and {type(reader).__name__} answers with "
                f"{alphabet!r} alone; write the word in these, or give a reader that knows its letters: "
                "ocr=Tesseract(alphabet=...)"
            )


class Trials:
    """The pictures of some prompt pairs and seeds, made when first asked for, or found in a run folder.

    pairs       (source, target) prompts, each with quoted text; or Pairs, whose `scored` says how readings agree
    ocr         a reader with `read(images, box=)`, a text each, `describe()`, plain data, and `self_test()`, which raises
                where it cannot read; tesseract when None
    run         a textpatch.Run: what is made is kept there as a record, and is not made again
    records     one dict per pair and seed touched, with all its pictures by row name
    generations how many rows were generated for them: a donor that travels with a later batch counts again
    Raises PatchError for a start outside the run and for no pairs or seeds, OCRError if no text can be read,
    PromptError for a pair that is there twice and for words that the reader cannot spell.
    """

    def __init__(
        self,
        pipeline: SupportsSampling,
        pairs: Sequence,
        *,
        seeds: Sequence[int] = (0,),
        steps: int | None = None,
        guidance: float | Guidance | None = None,
        start: int = 0,
        branch: str = "both",
        ocr=None,
        run=None,
        micro_batch: int = 64,
    ):
        require_parts(pipeline, "a trial", SupportsSampling, SupportsPairs)
        pipeline = remembering(pipeline)
        self.pipeline, self.start, self.branch = pipeline, start, branch
        self.steps, self.guidance = pipeline.defaults.run(steps, guidance)
        seeds = seeds if isinstance(seeds, Integral) else list(seeds)
        self.pairs = checked_pairs(pipeline, pairs, seeds=seeds, steps=self.steps, start=start)
        self.seeds = [int(seed) for seed in seeds]  # numpy's are no JSON
        if isinstance(run, (str, os.PathLike)):
            raise PatchError(
                f"run is the path {str(run)!r}; give a textpatch.Run: Run.open({str(run)!r}, {{'request': ...}})"
            )
        self.ocr, self.run, self.micro_batch = ocr or metrics.Tesseract(), run, micro_batch
        self.ocr.self_test()
        require_known_letters(self.pairs, self.ocr)
        self.blanks = self.ocr.describe().get("blank", True)
        self.generations = 0
        self.work = Work(run)
        self._found: dict[tuple[int, int], dict] = {}
        self._batches: Counter[tuple[int, int]] = Counter()

    @property
    def records(self) -> list[dict]:
        return [self._found[unit] for unit in self.units(len(self.pairs)) if unit in self._found]

    def units(self, pairs: int | Sequence[int]) -> list[tuple[int, int]]:
        """(pair, seed) of the first so many pairs, or of the pairs of these places."""
        return list(
            itertools.product(range(pairs) if isinstance(pairs, int) else pairs, self.seeds)
        )

    def score(
        self, groups: Sequence[Group], pairs: int | Sequence[int], *, own: bool = False
    ) -> list[np.ndarray]:
        """(pairs, 2) per group, pairs as in `units`: precision and recall of the target's characters, the mean over seeds."""
        self.measure(groups, pairs, own=own)
        records = [self._found[unit] for unit in self.units(pairs)]
        return [values(records, row_name(group)) for group in groups]

    def measure(
        self,
        groups: Sequence[Group],
        pairs: int | Sequence[int] | None = None,
        part: slice = slice(None),
        *,
        own: bool = False,
    ) -> None:
        """Make what is not there yet of the groups' pictures, on all pairs or those of `units`, or part of them.

        own  the source's and the target's own pictures, too.  Without the source's, which no score of a word needs,
             nothing is known of the background kept; the target runs anyway where its run alone has its text.
        """
        names = {row_name(group) for group in groups} | ({SOURCE, TARGET} if own else set())
        units = self.units(len(self.pairs) if pairs is None else pairs)[part]
        lacking = [unit for unit in units if not names <= self._pictures(unit).keys()]
        keep = lambda: None  # noqa: E731
        with phase("pictures"), ThreadPoolExecutor(1, "read") as reader:
            for unit in counted(lacking):
                with finishing() as interrupted:
                    try:
                        made = self._made(unit, names - self._pictures(unit).keys(), groups, reader)
                    except Exception:
                        keep()
                        raise
                    keep()
                    keep = made
                    if interrupted():
                        keep()
            keep()

    def share(self, groups: Sequence[Group], shard: tuple[int, int]) -> None:
        """Make the groups' pictures of every n-th pair and seed, of shard (i, n) from the i-th on.

        Raises Unfinished unless the run folder then holds those of all pairs and seeds, PatchError without one.
        """
        (index, count), units = shard, self.units(len(self.pairs))
        if self.run is None:
            raise PatchError(
                f"shard {index}/{count} of no run was asked for; shards meet in a run folder, give `run`"
            )
        self.measure(groups, part=slice(index, None, count), own=True)
        self.work.look_again()
        left = sum(f"{pair}-{seed}" not in self.work for pair, seed in units)
        if left:
            raise Unfinished(
                f"shard {index}/{count} is done, {left} of {len(units)} pairs and seeds are not: the shard "
                f"that ends last writes the results to {self.run.folder}"
            )

    def _pictures(self, unit: tuple[int, int]) -> dict:
        return self._found.get(unit, {}).get("pictures", {})

    def _made(
        self, unit: tuple[int, int], names: set[str], groups: Sequence[Group], reader: Executor
    ) -> Callable[[], None]:
        """One lock-step run of the rows of these names, those of groups among them, and of the target they read.

        Its pictures are decoded and read while others are generated: what is returned waits for the readings and keeps
        the record.
        """
        (index, seed), before = unit, self._pictures(unit)
        self._batches[unit] += 1
        number = self._batches[unit]
        swapped = [group for group in groups if group and row_name(group) in names]
        rows, plan = rows_and_plan(
            self.pairs[index], seed, swapped, self.steps, self.start, self.branch
        )
        rows = self._needed(names, *rows)
        id, scored = f"{index}-{seed}" + (f"-{number}" if number > 1 else ""), None
        if id not in self.work:
            latents = sample_latents(
                self.pipeline,
                rows,
                plan,
                steps=self.steps,
                guidance=self.guidance,
                micro_batch=self.micro_batch,
            ).latents
            fresh = {name: one for name, one in latents.items() if name not in before}
            pictures = decoding(self.pipeline, fresh)
            scored = reader.submit(lambda: self.scored(pictures(), index, before.get(SOURCE)))

        def keep() -> None:
            generations = sum(row.sampled for row in rows)
            make = lambda: {"generations": generations, "pictures": scored.result()}  # noqa: E731
            self.join(self.once(id, unit, made_by(rows, plan), make))

        return keep

    def _needed(self, names: set[str], source: Row, target: Row, *patched: Row) -> list[Row]:
        """The rows to run: source and target where they are asked for, or where the target's text is in its run alone."""
        target = replace(
            target, sampled=TARGET in names or not prompt_settles_text(self.pipeline.denoiser)
        )
        return (
            [source] * (SOURCE in names)
            + [target] * (TARGET in names or bool(patched))
            + list(patched)
        )

    def once(
        self, id: str, unit: tuple[int, int], maker: dict[str, str], make: Callable[[], dict]
    ) -> dict:
        """Return `Work.once`'s record, and count its generations."""
        record = self.work.once(id, unit, maker, make)
        self.generations += record["generations"]
        return record

    def join(self, record: dict) -> None:
        """Let a record's pictures be those of its pair and seed."""
        unit = record["pair"], record["seed"]
        empty = {"id": "{}-{}".format(*unit), "pair": unit[0], "seed": unit[1], "pictures": {}}
        self._found.setdefault(unit, empty)["pictures"] |= record["pictures"]

    def scored(
        self, images: dict[str, Image.Image], index: int, source: dict | None = None
    ) -> dict[str, dict]:
        """Pictures, readings and scores by row name; source: that picture's entry, if there and not among the images."""
        box = self.pipeline.defaults.text_box
        readings = self.ocr.read(list(images.values()), box=box)
        if len(readings) != len(images) or None in readings:
            raise OCRError(
                f"{len(images)} pictures were given to {type(self.ocr).__name__}, which read {readings!r}; `read` "
                "gives a text for each, empty for nothing"
            )
        kept = images.get(SOURCE) if source is None else opened(source["image"], self.run)
        return {
            name: {
                "image": image if self.run is None else self.run.image(image),
                **self.pairs[index].scored(read, blanks=self.blanks),
                **({} if kept is None else picture_scores(image, kept, box)),
            }
            for (name, image), read in zip(images.items(), readings)
        }


def opened(image: Image.Image | str, run) -> Image.Image:
    """A record's picture, which is one, or a path in the run's folder."""
    if isinstance(image, Image.Image):
        return image
    return open_picture(run.folder / image)

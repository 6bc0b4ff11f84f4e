"""Trials make pictures of prompt pairs with the target's text swapped in at some sites, and score them.

    score(group) = OCR F1 of the pictures of  source <- target at the group's sites,  towards the target's
    word

(ICLR 2025, sec. 4.2.)  Every picture is made once.  All groups of one prompt pair and seed run in lock-step
in one batch with their source and target.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from PIL import Image

from textpatch.bank import prompt_settles_text
from textpatch.errors import OCRError, PatchError
from textpatch.groups import Group, row_name, rows_and_plan
from textpatch.guidance import Guidance, require_branch
from textpatch.localization.preconditions import checked_pairs, listed_seeds, reader_for
from textpatch.localization.scores import (
    DISAGREEMENT,
    FOUND,
    LETTERING,
    SCORED,
    TEXTS,
    AnyBackground,
    Background,
    values,
)
from textpatch.metrics.image import Box
from textpatch.metrics.readers.in_time import InTime
from textpatch.metrics.readers.named import AnyReader
from textpatch.metrics.readers.reading import (
    Reading,
    grown,
    line_boxes,
    readings_of,
    texts_in,
)
from textpatch.pictures import opened
from textpatch.pipelines import (
    DrawsByItself,
    SupportsPairs,
    SupportsSampling,
    draws_pictures,
    require_parts,
    require_sampling,
)
from textpatch.plan import Plan, Row
from textpatch.progress import counted, phase
from textpatch.prompts.pairs import SOURCE, TARGET, AnyPair, Pair
from textpatch.runs.folder import Run
from textpatch.runs.interrupts import finishing
from textpatch.runs.remembered import remembering
from textpatch.runs.work import Pending, Work, adapters_of, made_by
from textpatch.runs.workers import Worker, as_worker
from textpatch.sampling import decoding, sample_latents
from textpatch.sounds import as_picture
from textpatch.stored import PictureEntry, Record

Task = tuple[int, int]  # place of a pair, seed
KEPT = ".  What was made before is kept with its run, and the same command goes on from there"


class Trials:
    """The pictures of some prompt pairs and seeds, made when first asked for or found in a run folder.

    pairs        (source, target) prompts, each with quoted text.  Or Pairs, whose `scored` says how
                 readings agree
    seeds        noise seeds.  Every pair is run with every seed
    steps, guidance  of the runs, the pipeline's own when None
    start        first patched step, 0 = noisiest
    branch       "both" guidance branches are patched, or "cond" alone
    reader       a `metrics.Reader`, a function from pictures to their texts, or the name of a reader:
                 "tesseract" (when None), "ppocr" or "agreement", which knows the letters of the pairs' words.
                 Sounds are read by `metrics.Nearest`, or by a function from sounds to texts
    ocr          the same by its older name
    background   "lettering" scores pictures beside their lettering.  A function of what is drawn and of its
                 source's gives a number of its own, and None no score
    run          a textpatch.Run.  Everything made is kept there as a record and is not made again
    shard        the part of this process, as `localize` takes it
    micro_batch  most rows that go through the model at once
    records      one dict for each pair and seed touched, with all its pictures by row name
    generations  how many rows were generated for the records.  A donor that travels with a later batch
                 counts again
    Raises PatchError for a start outside the run, for one branch of a run that has no other, and for no
    pairs or seeds, OCRError if no text can be read, and PromptError for a pair that is there twice and for
    words that the reader cannot spell.
    """

    def __init__(
        self,
        pipeline: SupportsSampling | DrawsByItself,
        pairs: Sequence[AnyPair],
        *,
        seeds: Sequence[int] = (0,),
        steps: int | None = None,
        guidance: float | Guidance | None = None,
        start: int = 0,
        branch: str = "both",
        ocr: AnyReader | None = None,
        reader: AnyReader | None = None,
        background: AnyBackground = LETTERING,
        run: Run | None = None,
        shard: tuple[int, int] | Worker | None = None,
        micro_batch: int = 64,
    ) -> None:
        require_sampling(pipeline, "a trial")
        require_parts(pipeline, "a trial", SupportsPairs)
        self.pipeline = remembering(pipeline)
        self.background = Background(background, pictures=draws_pictures(pipeline))
        self.branch = branch
        self.micro_batch = micro_batch
        self.steps, self.guidance = pipeline.defaults.run(steps, guidance)
        seeds = listed_seeds(seeds)
        self.pairs = checked_pairs(self.pipeline, pairs, seeds=seeds, steps=self.steps, start=start)
        self.seeds = [int(seed) for seed in seeds]  # numpy's are no JSON
        self.start = int(start)
        require_branch(branch, self.guidance)
        _require_no_path(run)
        self.run = run
        self.worker = as_worker(shard)
        self.worker.require_fitting(run)
        self.ocr = reader_for(
            self.pairs, _one_reader(ocr, reader), pictures=draws_pictures(pipeline)
        )
        self.reading = InTime(self.ocr, KEPT)
        self.reading.self_test()
        self.boxes = line_boxes(pipeline.defaults.text_box)
        self.blanks = self.ocr.describe().get("blank", True)
        self.generations = 0
        self.work = Work(run)
        self._found: dict[Task, dict] = {}
        self._batches: Counter[Task] = Counter()

    @property
    def records(self) -> list[Record]:
        """Records of all pairs and seeds touched, in order."""
        return [self._found[task] for task in self.tasks(len(self.pairs)) if task in self._found]

    def tasks(self, pairs: int | Sequence[int]) -> list[Task]:
        """Every (pair, seed) of the first so many pairs, or of the pairs at the given places."""
        places = pairs
        if isinstance(pairs, int):
            places = range(pairs)
        return list(itertools.product(places, self.seeds))

    def score(
        self, groups: Sequence[Group], pairs: int | Sequence[int], *, own: bool = False
    ) -> list[np.ndarray]:
        """Precision and recall of the target's characters, (pairs, 2) for each group, means over seeds.

        pairs  as in `tasks`
        own    as in `measure`
        """
        self.measure(groups, pairs, own=own)
        records = [self._found[task] for task in self.tasks(pairs)]
        return [values(records, row_name(group)) for group in groups]

    def measure(
        self,
        groups: Sequence[Group],
        pairs: int | Sequence[int] | None = None,
        *,
        own: bool = False,
        strict: bool = False,
    ) -> None:
        """Generate the pictures of groups that are still missing.

        pairs   as in `tasks`, all pairs when None
        own     generate the plain source and target as well.  Scores of the background need the source's
                picture, scores of a word do not.  The target runs in any case if its text K and V exist in
                its own run alone
        strict  as in `Worker.portions`
        """
        names = {row_name(group) for group in groups}
        if own:
            names |= {SOURCE, TARGET}
        if pairs is None:
            pairs = len(self.pairs)
        lacking = [task for task in self.tasks(pairs) if not names <= self.pictures(task).keys()]
        ids = [_id(task, self._batches[task] + 1) for task in lacking]
        with phase("pictures"), ThreadPoolExecutor(1, "read") as reader:
            for portion in self.portions(lacking, ids, strict=strict):
                self._make(portion, names, groups, reader)

    def portions(
        self, tasks: Sequence[Task], ids: Sequence[str], *, strict: bool = False
    ) -> Iterator[Sequence[Task]]:
        """Tasks of this process, then those of others, see `Worker.portions`."""
        return self.worker.portions(tasks, ids, self.work, "pairs and seeds", strict=strict)

    def _make(
        self, tasks: Sequence[Task], names: set[str], groups: Sequence[Group], reader: Executor
    ) -> None:
        """Generate what is missing of these names for some tasks, one after the other."""
        pending = Pending()
        for task in counted(tasks):
            with finishing() as interrupted:
                try:
                    keep = self._made(task, names - self.pictures(task).keys(), groups, reader)
                except Exception:
                    pending.flush()
                    raise
                pending.put(keep)
                if interrupted():
                    pending.flush()
        pending.flush()

    def pictures(self, task: Task) -> dict[str, PictureEntry]:
        """Entries of the pictures of a pair and seed, by row name."""
        return self._found.get(task, {}).get("pictures", {})

    def _made(
        self, task: Task, names: set[str], groups: Sequence[Group], reader: Executor
    ) -> Callable[[], None]:
        """Generate the rows of these names in one lock-step run, and return how to keep their record.

        names   row names that are asked for and missing
        groups  holds the groups of these names
        reader  decodes and reads the pictures while others are generated.  The function returned waits for it
        """
        index, seed = task
        self._batches[task] += 1
        id = _id(task, self._batches[task])
        swapped = [group for group in groups if group and row_name(group) in names]
        rows, plan = rows_and_plan(
            self.pairs[index], seed, swapped, self.steps, self.start, self.branch
        )
        rows = self._needed(names, *rows)
        scored = None
        if id not in self.work:
            scored = self._generated(task, rows, plan, reader)

        def make() -> dict:
            generations = sum(row.sampled for row in rows)
            return {"generations": generations, "pictures": scored.result()}

        def keep() -> None:
            self.join(self.once(id, task, made_by(rows, plan), make))

        return keep

    def _generated(self, task: Task, rows: list[Row], plan: Plan, reader: Executor) -> Future:
        """Future of the scored pictures of some rows, whose latents are generated here and now."""
        index, _ = task
        before = self.pictures(task)
        made = sample_latents(
            self.pipeline,
            rows,
            plan,
            steps=self.steps,
            guidance=self.guidance,
            micro_batch=self.micro_batch,
        )
        fresh = [row.name for row in rows if row.sampled and row.name not in before]
        pictures = decoding(self.pipeline, made, fresh)
        return reader.submit(lambda: self.scored(pictures(), index, before.get(SOURCE)))

    def _needed(self, names: set[str], source: Row, target: Row, *patched: Row) -> list[Row]:
        """Rows to run for these names.

        The source runs only if its picture is asked for.  The target is there if its picture is asked for
        or a patched row reads it, and it is sampled unless its prompt alone gives its text K and V.
        """
        rows = []
        if SOURCE in names:
            rows.append(source)
        if TARGET in names or patched:
            runs = TARGET in names or not prompt_settles_text(self.pipeline.denoiser)
            rows.append(replace(target, sampled=runs))
        return [*rows, *patched]

    def once(
        self, id: str, task: Task, maker: dict[str, str], make: Callable[[], Mapping[str, object]]
    ) -> Record:
        """Return `Work.once`'s record, and count its generations.

        Raises StoreError for a record whose pictures are scored by another definition, too, and for one
        made under other adapters.
        """
        made_under = adapters_of(self.pipeline.denoiser)
        record = self.work.once(id, task, made_under | maker | self._scored_over(), make)
        self.generations += record["generations"]
        return record

    def join(self, record: Record) -> None:
        """Add the pictures of a record to those of its pair and seed."""
        task = (record["pair"], record["seed"])
        empty = {"id": f"{task[0]}-{task[1]}", "pair": task[0], "seed": task[1], "pictures": {}}
        self._found.setdefault(task, empty)["pictures"] |= record["pictures"]

    def scored(
        self, images: dict[str, Image.Image], index: int, source: PictureEntry | None = None
    ) -> dict[str, PictureEntry]:
        """Pictures, readings and scores by row name.

        images  pictures by row name, among them the source's if it is made now
        index   place of the pair
        source  entry of the source's picture if it was made before
        """
        readings = self._readings(list(images.values()))
        entries = {}
        for (name, image), read in zip(images.items(), readings, strict=True):
            entries[name] = {"image": self._kept(image), **self._read_as(read, self.pairs[index])}
        beside = images.get(SOURCE)
        if source is not None and draws_pictures(self.pipeline):
            # of a sound the record has a picture alone
            beside = opened(source["image"], self.run)
        if beside is not None:
            for name, image in images.items():
                boxes = self._lettering(source or entries[SOURCE], entries[name])
                entries[name] |= self.background.scores(image, beside, boxes)
        return entries

    def _lettering(self, *entries: dict) -> list[Box]:
        """Boxes of the lettering of pictures, the model's own places, or where their reader saw text."""
        if self.boxes:
            return [*self.boxes]
        return [tuple(box) for entry in entries for box in entry.get("boxes", [])]

    def _scored_over(self) -> dict:
        """What the background scores of a record go over."""
        if self.background.told is not None:
            return self.background.told
        if self.pipeline.defaults.text_box is not None:
            return SCORED
        return FOUND

    def _readings(self, images: list[Image.Image]) -> list:
        """What the reader finds in pictures, one each.

        Raises OCRError for anything else, and where the reader hangs.
        """
        boxes = [self.pipeline.defaults.text_box] * len(images)
        return readings_of(self.reading.read(images, boxes), len(images), self.ocr)

    def _read_as(self, read, pair: Pair) -> dict:
        """Scores of what was read in one picture, and the text itself.

        Text that only one of two readers read, or was not sure of, stands beside it and does not count.
        """
        if not isinstance(read, Reading):
            return pair.scored(read, blanks=self.blanks)
        scored = pair.scored(read.text, blanks=self.blanks)
        if len(self.boxes) > 1:
            each = pair.scored_each(texts_in(read, self.boxes), blanks=self.blanks)
            scored |= {TEXTS: each} if each else {}
        if self.pipeline.defaults.text_box is None:
            scored["boxes"] = [grown(box) for box in read.boxes]
            scored["lettering"] = [{"text": line.text, "box": line.box} for line in read.placed]
        if read.unconfirmed is not None:
            alone = " ".join(line.text for line in read.unconfirmed)
            scored |= {"unconfirmed": alone, DISAGREEMENT: float(bool(alone))}
        return scored

    def _kept(self, image: Image.Image) -> Image.Image | str:
        """The picture, or where the run folder keeps it.   A sound is kept as a picture of its wave."""
        image = as_picture(image)
        if self.run is None:
            return image
        return self.run.image(image)


def _id(task: Task, number: int) -> str:
    """Id of the record of a task's first batch, its second and so on."""
    pair, seed = task
    if number == 1:
        return f"{pair}-{seed}"
    return f"{pair}-{seed}-{number}"


def _one_reader(ocr: AnyReader | None, reader: AnyReader | None) -> AnyReader | None:
    """The reader by either of its names.   Raises OCRError where both are given."""
    if ocr is not None and reader is not None:
        raise OCRError(f"ocr={ocr!r} and reader={reader!r} are the same argument; give one of them")
    return ocr if reader is None else reader


def _require_no_path(run: object) -> None:
    if isinstance(run, (str, os.PathLike)):
        raise PatchError(
            f"run is the path {str(run)!r}; give a textpatch.Run: Run.open({str(run)!r}, {{'request': ...}})"
        )

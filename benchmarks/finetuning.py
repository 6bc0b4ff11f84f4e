"""Fine-tune at the sites found, at all, at all others, and at as many of these by lot, and measure both ends.

    python benchmarks/finetuning.py --csv results/finetuning.csv --append

The base has forgotten some letters.  Their rows in the token embeddings of its text encoders are drawn anew,
so that it writes no word with one of them.  It is trained on words with such letters.  Shifted data have
faded colours and bare walls, of which the captions do not speak.  Matched data are signs as the base knows.
Arms of sites train the text's keys and values there.  Two arms train more: "all attention" every projection
of all attention, self-attention too, which is what the suffixes of the official scripts select, and "full"
all weights of the denoiser.  The first seed is trained at every rate, and the others at that which reads best
on validation words.  With --sets the sites found and all are trained on sets of other sizes, too: of N signs,
or, as "N chosen", of the N longest words that are read in their pictures.  --second has the same pictures
read by another reader, too, which gives a run another row, and chooses no rate.  With --curve a second table
holds the scores of shifted data after parts of the steps, of every seed at the rate that was chosen.

  half, word   share of test words with a forgotten letter that are read, after half the steps and all
  chosen       the same share of validation words, by which the rate was chosen
  colour       mean spread of a pixel's channels, as a share of the base's
  background   mean squared error outside the lettering, against the base from the same noise
  scene        colour, shape, wall and pattern that are read as prompted, as a share
  precision, recall, ceiling   of 3 nearest neighbours among pooled pixels, against the base's pictures; the
               ceiling is the recall of the base from other noise
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

import textpatch
from measure import Table, arguments, environment, kept, parsed, reader_option, words_read
from textpatch.metrics import mse, pixels_outside
from textpatch.metrics.neighbours import neighbours_of
from textpatch.metrics.readers.named import READERS
from textpatch.tuning.targets import ADDED, IMAGE, target_names
from textpatch.tuning.training import BETAS, DECAY, OnStep, Training, batch_loss
from textpatch.tuning.training_data import batch_of, examples
from textpatch.weights.signs.drawing import Sign, SignFormat, random_sign
from textpatch.weights.signs.examples import sign_examples
from textpatch.weights.signs.reader import read_sign
from textpatch.weights.signs.words import TEST, VALIDATION

MODELS = "tiny-sdxl", "planted-sdxl", "tiny-if", "planted-if", "tiny-mmdit", "planted-mmdit"
FORGOTTEN = "AEKR"
RATES = 5e-3, 1.5e-2
FULL_RATES = 5e-4, 1.5e-3  # of all weights, which are more than a factor's
MATCHED = "found", "all", "full"  # arms that are trained on matched data, too
SIZED = "found", "all"  # arms that are trained on sets of other sizes
SEEDS = 3
RANK = 16
STEPS = {"tiny-if": 8, "planted-if": 8}  # denoising steps of a picture, 4 of other models
ARMS = "found", "all", "all but found", "by lot", "all attention", "full"
SCENE = "colour", "shape", "wall", "pattern"
KEY = ["model", "reader", "data", "arm", "seed", "rate", "steps", "n"]
PARTS = 1 / 8, 1 / 4, 1 / 2, 3 / 4  # of a training's steps, after which its pictures are looked at
SCORED = "word colour background scene precision recall".split()
MEASURED = (
    "sites parameters batch seconds half half_background chosen word colour background scene precision "
    "recall ceiling"
).split()


def arms(pipeline) -> dict[str, list[list[int]]]:
    """Sites of each arm, for each seed."""
    found = list(pipeline.defaults.localized)
    every = [site.index for site in pipeline.denoiser.sites]
    others = [site for site in every if site not in found]
    lots = [sorted(random.Random(seed).sample(others, len(found))) for seed in range(SEEDS)]
    return {
        "found": SEEDS * [found],
        "all": SEEDS * [every],
        "all but found": SEEDS * [others],
        "by lot": lots,
        "all attention": SEEDS * [every],
        "full": SEEDS * [every],
    }


def projections(denoiser, arm: str, sites: list[int]) -> list[str]:
    """Names of the linear layers whose adapters an arm trains."""
    if arm == "all attention":
        ends = tuple(f".{part}" for part in (*IMAGE, *ADDED))
        return [
            name
            for name, part in denoiser.named_modules()
            if isinstance(part, nn.Linear) and name.endswith(ends)
        ]
    return target_names(denoiser, [denoiser.sites[site] for site in sites], "text_kv")


@torch.no_grad()
def forget(pipeline, letters: str) -> None:
    """Draw the embeddings of some letters anew, in every text encoder, with the spread of all."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = pipeline.encoders.tokenizers[0]
    places = {}
    for part in pipeline.encoders.modules():
        if isinstance(part, torch.nn.Embedding) and part.num_embeddings == len(tokenizer):
            places[part.weight.data_ptr()] = part.weight
    rows = tokenizer.convert_tokens_to_ids(list(letters))
    for weight in places.values():
        drawn = torch.randn(len(rows), weight.shape[1], generator=generator)
        weight[rows] = drawn * weight.std()


def signs_of(words: list[str], n: int) -> list[Sign]:
    """Signs with words of a split that have a forgotten letter."""
    rng = random.Random("finetuning")
    usable = [word for word in words if set(word) & set(FORGOTTEN)]
    return [random_sign(rng, SignFormat(), word) for word in usable[:n]]


class Eyes:
    """Pictures of some signs by a base, and what becomes of them.

    readers  names of what reads the words
    """

    def __init__(self, pipeline, signs: list[Sign], readers: list[str]) -> None:
        self.pipeline = pipeline
        self.signs = signs
        self.readers = readers
        self.base = self.drawn(0)

    def drawn(self, shift: int) -> list:
        """Pictures from other noise, whose seeds are moved by `shift`."""
        count = len(self.signs)
        return self.pipeline.generate(
            [sign.prompt() for sign in self.signs],
            seeds=range(shift, shift + count),
            steps=STEPS.get(self.pipeline.name, 4),
            guidance=1.0,
            micro_batch=32,
        )

    def word(self, pictures: list) -> dict[str, float]:
        """Share of words that each reader reads."""
        shares = {}
        for reader in self.readers:
            read = words_read(reader, pictures, self.pipeline.defaults.text_box)
            shares[reader] = statistics.mean(
                text == sign.word for text, sign in zip(read, self.signs, strict=True)
            )
        return shares

    def background(self, pictures: list) -> float:
        outside = pixels_outside(
            self.pipeline.defaults.text_box, *np.asarray(pictures[0]).shape[:2]
        )
        pairs = zip(pictures, self.base, strict=True)
        return statistics.mean(mse(one, other, outside) for one, other in pairs)

    def measured(self, pictures: list) -> dict:
        """All scores of pictures."""
        real, made = features(self.base), features(pictures)
        near = neighbours_of(real, made, 3, rim=True)
        return {
            "word": self.word(pictures),
            "colour": spread(pictures) / spread(self.base),
            "background": self.background(pictures),
            "scene": scene(pictures, self.signs),
            "precision": near.precision,
            "recall": near.recall,
        }


def spread(pictures: list) -> float:
    """Mean over pixels of the largest channel less the least."""
    return float(np.mean([np.ptp(np.asarray(picture, np.float64), axis=2) for picture in pictures]))


def scene(pictures: list, signs: list[Sign]) -> float:
    """Share of the attributes beside the word that are read as prompted."""
    found = [read_sign(picture) for picture in pictures]
    return statistics.mean(
        getattr(one, name) == getattr(sign, name)
        for one, sign in zip(found, signs, strict=True)
        for name in SCENE
    )


def features(pictures: list) -> np.ndarray:
    """Pixels pooled 4 x 4, (n, 576)."""
    stacked = np.stack([np.asarray(picture, np.float64) for picture in pictures])
    n, height, width, channels = stacked.shape
    return stacked.reshape(n, height // 4, 4, width // 4, 4, channels).mean((2, 4)).reshape(n, -1)


@contextmanager
def adapted(pipeline, names: list[str], data: list, options, rate: float, seed: int, look: OnStep):
    """Block under an adapter of some projections, after its training.  Gives how many numbers it has."""
    settings = dict(
        projections=names, rank=RANK, alpha=RANK, initial="gaussian", average=None, rate=rate
    )
    settings |= dict(weighting="none", autocast=False, **drawing(options, seed))
    own = examples(pipeline, data, options.batch)
    training = Training(pipeline, own, settings, checkpointing=False)
    training.run(options.steps, None, options.steps, look)
    adapter = training.adapter()
    with adapter.applied(pipeline):
        yield adapter.parameters


@contextmanager
def changed(pipeline, data: list, options, rate: float, seed: int, look: OnStep):
    """Block in which all weights of the denoiser are trained.  Gives how many they are.

    The weights are put back afterwards.
    """
    weights = list(pipeline.denoiser.parameters())
    kept = [weight.detach().clone() for weight in weights]
    own = examples(pipeline, data, options.batch)
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=BETAS, weight_decay=DECAY)
    try:
        pipeline.denoiser.requires_grad_(True)
        for step in range(options.steps):
            loss = batch_loss(pipeline, batch_of(own, step, **drawing(options, seed)))
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            look(step, float(loss.detach()))
        yield sum(weight.numel() for weight in weights)
    finally:
        pipeline.denoiser.requires_grad_(False)
        for weight, old in zip(weights, kept, strict=True):
            weight.data.copy_(old)


def drawing(options, seed: int) -> dict:
    """Settings that the batches depend on."""
    return {"batch": options.batch, "seed": seed, "dropout": 0.0, "times": "uniform"}


class OnTheWay:
    """Scores after parts of a training's steps, and the processor's seconds that they took."""

    def __init__(self, eyes: Eyes, steps: int, parts: Sequence[float]) -> None:
        self.eyes = eyes
        self.parts = {max(1, round(part * steps)): part for part in parts}
        self.scores: dict[float, dict] = {}
        self.spent = 0.0

    def __call__(self, step: int, loss: float) -> None:
        part = self.parts.get(step + 1)
        if part is None:
            return
        begun = time.process_time()
        self.scores[part] = self.eyes.measured(self.eyes.drawn(0))
        self.spent += time.process_time() - begun

    def half(self) -> dict:
        """Scores after half the steps, as the table of trainings names them."""
        scores = self.scores[1 / 2]
        return {"half": scores["word"], "half_background": scores["background"]}


def sized(name: str, reader: str, box: tuple) -> list:
    """Shifted examples of a set named "N", or "N chosen" for the longest words that are read, of 4 N."""
    count, _, chosen = name.partition(" ")
    if not chosen:
        return sign_examples(int(count), style="faded", letters=FORGOTTEN)
    drawn = sign_examples(4 * int(count), style="faded", letters=FORGOTTEN)
    words = [caption.split('"')[1] for caption, _ in drawn]
    read = words_read(reader, [picture for _, picture in drawn], box)
    legible = [i for i, text in enumerate(read) if text == words[i]]
    longest = sorted(legible, key=lambda i: -len(words[i]))[: int(count)]
    return [drawn[i] for i in sorted(longest)]


class Study:
    """One model's runs, of which those in the table are not made again."""

    def __init__(self, name: str, options, table: Table, curves: Table | None = None) -> None:
        self.options = options
        self.table = table
        self.curves = curves
        self.done = kept(options.csv, [*KEY, "chosen"])
        self.followed = kept(options.curve, [*KEY, "part"])
        self.pipeline = textpatch.load(name, device=options.device, dtype=options.dtype)
        forget(self.pipeline, FORGOTTEN)
        self.readers = [options.reader, *([options.second] if options.second else [])]
        self.choosing = Eyes(self.pipeline, signs_of(VALIDATION, options.n // 2), self.readers)
        self.testing = Eyes(self.pipeline, signs_of(TEST, options.n), self.readers)
        self.data = {
            "shifted": sign_examples(options.examples, style="faded", letters=FORGOTTEN),
            "matched": sign_examples(options.examples, letters=FORGOTTEN),
        }
        self.ceiling = self.testing.measured(self.testing.drawn(10_000))["recall"]

    def base(self) -> None:
        """Add the row of the base."""
        chosen = self.choosing.word(self.choosing.base)
        self._add("shifted", "none", 0, 0.0, [], chosen, self.testing.measured(self.testing.base))

    def run(
        self, data: str, arm: str, sites: list[int], seed: int, rate: float, curve: bool = False
    ) -> float:
        """Share of validation words that the first reader reads after a run, which is added to the table.

        curve  True where the run is made again if the table of curves lacks it
        """
        known = [self._known(reader, data, arm, seed, rate) for reader in self.readers]
        lacking = curve and not self._is_followed(data, arm, seed, rate)
        if None not in known and not lacking:
            return known[0]
        look = OnTheWay(self.testing, self.options.steps, PARTS if self._has_curve(data) else [0.5])
        begun = time.process_time()
        with self._trained(arm, sites, self._examples(data), rate, seed, look) as parameters:
            seconds = time.process_time() - begun - look.spent
            chosen = self.choosing.word(self.choosing.drawn(0))
            scores = self.testing.measured(self.testing.drawn(0))
        told = {"parameters": parameters, "seconds": seconds, **look.half(), **scores}
        self._add(data, arm, seed, rate, sites, chosen, told)
        if self._has_curve(data):
            self._follow(data, arm, seed, rate, look.scores | {1.0: scores})
        return chosen[self.options.reader]

    def _examples(self, data: str) -> list:
        """Examples of a set by its name, drawn once."""
        if data not in self.data:
            size = data.removeprefix("shifted, ")
            self.data[data] = sized(size, self.options.reader, self.pipeline.defaults.text_box)
        return self.data[data]

    def _trained(self, arm: str, sites: list[int], data: list, rate: float, seed: int, look):
        """Block under what an arm has trained."""
        own = (data, self.options, rate, seed, look)
        if arm == "full":
            return changed(self.pipeline, *own)
        return adapted(self.pipeline, projections(self.pipeline.denoiser, arm, sites), *own)

    def _known(self, reader: str, data: str, arm: str, seed: int, rate: float) -> float | None:
        """Share of validation words of a run that the table has."""
        key = tuple(map(str, self._key(reader, data, arm, seed, rate).values()))
        return next((float(row[-1]) for row in self.done if row[:-1] == key), None)

    def _key(self, reader: str, data: str, arm: str, seed: int, rate: float) -> dict:
        asked = self.options
        own = (self.pipeline.name, reader, data, arm, seed, rate, asked.steps, asked.n)
        return dict(zip(KEY, own, strict=True))

    def _add(self, data, arm, seed, rate, sites, chosen, told) -> None:
        """Add a row for each reader, with its own share where there is one of each."""
        more = {"sites": len(sites), "batch": self.options.batch, "ceiling": self.ceiling}
        scores = {**more, "chosen": chosen, **told}
        for reader in self.readers:
            if self._known(reader, data, arm, seed, rate) is None:
                key = self._key(reader, data, arm, seed, rate)
                own = read_by(reader, scores)
                self.done.add((*map(str, key.values()), str(own["chosen"])))
                self.table.add(**key, **own)

    def _has_curve(self, data: str) -> bool:
        return self.curves is not None and data == "shifted"

    def _is_followed(self, data: str, arm: str, seed: int, rate: float) -> bool:
        """True where the table of curves has a run's last point, which is added last, by every reader."""
        keys = [self._key(reader, data, arm, seed, rate) for reader in self.readers]
        return all((*map(str, key.values()), "1.0") in self.followed for key in keys)

    def _follow(self, data: str, arm: str, seed: int, rate: float, points: dict) -> None:
        """Add a run's scores after each part of its steps to the table of curves, where it lacks them."""
        for reader, (part, scores) in itertools.product(self.readers, points.items()):
            key = self._key(reader, data, arm, seed, rate)
            told = (*map(str, key.values()), str(part))
            if told not in self.followed:
                self.followed.add(told)
                self.curves.add(**key, part=part, **read_by(reader, scores))


def read_by(reader: str, scores: dict) -> dict:
    """Scores with a reader's own share where there is one of each."""
    return {
        name: score[reader] if isinstance(score, dict) else score for name, score in scores.items()
    }


def carried_out(study: Study) -> Iterator[None]:
    """Make a model's runs one after the other: rates of each arm, the other seeds, then other data."""
    study.base()
    yield
    options = study.options
    sites = {arm: own for arm, own in arms(study.pipeline).items() if arm in options.arms}
    rates = {}
    for arm, own in sites.items():
        reached = {}
        for rate in options.full_rates if arm == "full" else options.rates:
            reached[rate] = study.run("shifted", arm, own[0], 0, rate)
            yield
        rates[arm] = max(reached, key=reached.__getitem__)
    for seed in range(1, options.seeds):
        for arm, own in sites.items():
            study.run("shifted", arm, own[seed], seed, rates[arm])
            yield
    if study.curves is not None:
        yield from followed(study, sites, rates)
    for arm in [arm for arm in MATCHED if arm in sites]:
        study.run("matched", arm, sites[arm][0], 0, rates[arm])
        yield
    for seed in range(options.seeds):
        for name in options.sets:
            for arm in [arm for arm in SIZED if arm in sites]:
                study.run(f"shifted, {name}", arm, sites[arm][seed], seed, rates[arm])
                yield


def followed(study: Study, sites: dict, rates: dict) -> Iterator[None]:
    """Make those of a model's runs again that the table of curves lacks."""
    for seed in range(study.options.seeds):
        for arm, own in sites.items():
            study.run("shifted", arm, own[seed], seed, rates[arm], curve=True)
            yield


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"shipped models {MODELS}")
    parser.add_argument("--steps", type=int, default=48, help="steps of a training (48)")
    parser.add_argument("--batch", type=int, default=16, help="rows of a step (16)")
    parser.add_argument("--examples", type=int, default=768, help="pictures to train on (768)")
    parser.add_argument(
        "--n", type=int, default=48, help="test words, and half as many to choose (48)"
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds of each arm ({SEEDS})")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=RATES, help="AdamW's rates of which one is chosen"
    )
    parser.add_argument(
        "--full-rates", type=float, nargs="+", default=FULL_RATES, help="the same for all weights"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="arms (all)")
    parser.add_argument(
        "--sets", nargs="+", default=[], metavar="SET", help='"N" or "N chosen" signs (none)'
    )
    reader_option(parser)
    parser.add_argument("--second", choices=READERS, help="what else reads them (nothing)")
    parser.add_argument(
        "--curve", type=Path, metavar="CSV", help="table of scores after parts of the steps (none)"
    )
    options = parsed(parser, argv)
    told = environment(options.device)
    table = Table([*KEY, *MEASURED], told, options.csv, options.append)
    curves = options.curve and Table([*KEY, "part", *SCORED], told, options.curve, options.append)
    for name in options.models or MODELS:
        for _ in carried_out(Study(name, options, table, curves)):
            pass


if __name__ == "__main__":
    main()

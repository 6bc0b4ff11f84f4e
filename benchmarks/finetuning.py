"""Fine-tune at the sites found, at all, at all others, and at as many of these by lot, and measure both ends.

    python benchmarks/finetuning.py --csv results/finetuning.csv --append

The base has forgotten some letters.  Their rows in the token embeddings of its text encoders are drawn anew,
so that it writes no word with one of them.  It is trained on words with such letters.  Shifted data have
faded colours and bare walls, of which the captions do not speak.  Matched data are signs as the base knows.
Every arm trains the text's keys and values of its sites.  The first seed is trained at every rate, and the
others at that which reads best on validation words.

  half, word   share of test words with a forgotten letter that are read, after half the steps and all
  chosen       the same share of validation words, by which the rate was chosen
  colour       mean spread of a pixel's channels, as a share of the base's
  background   mean squared error outside the lettering, against the base from the same noise
  scene        colour, shape, wall and pattern that are read as prompted, as a share
  precision, recall, ceiling   of 3 nearest neighbours among pooled pixels, against the base's pictures; the
               ceiling is the recall of the base from other noise
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator

import numpy as np
import torch

import textpatch
from measure import Table, arguments, environment, kept, parsed, reader_option, words_read
from textpatch.adapters.low_rank import Adapter
from textpatch.metrics import mse, pixels_outside
from textpatch.metrics.neighbours import neighbours_of
from textpatch.weights.signs.drawing import Sign, SignFormat, random_sign
from textpatch.weights.signs.examples import sign_examples
from textpatch.weights.signs.reader import read_sign
from textpatch.weights.signs.words import TEST, VALIDATION

MODELS = "tiny-sdxl", "tiny-if", "tiny-mmdit"
FORGOTTEN = "AEKR"
RATES = 5e-3, 1.5e-2
SEEDS = 3
RANK = 16
STEPS = {"tiny-if": 8}  # denoising steps of a picture, 4 of other models
SCENE = "colour", "shape", "wall", "pattern"
KEY = ["model", "reader", "data", "arm", "seed", "rate", "steps", "n"]
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
    }


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

    reader  name of what reads the words
    """

    def __init__(self, pipeline, signs: list[Sign], reader: str) -> None:
        self.pipeline = pipeline
        self.signs = signs
        self.reader = reader
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

    def word(self, pictures: list) -> float:
        """Share of words that are read."""
        read = words_read(self.reader, pictures, self.pipeline.defaults.text_box)
        return statistics.mean(
            text == sign.word for text, sign in zip(read, self.signs, strict=True)
        )

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


def trained(
    pipeline, sites: list[int], examples: list, options, rate: float, seed: int, eyes: Eyes
):
    """Adapter of one run, its seconds, and the scores after half the steps."""
    half: dict[str, float] = {}
    spent = 0.0

    def look(step: int, loss: float) -> None:
        nonlocal spent
        if 2 * (step + 1) == options.steps:
            begun = time.process_time()
            pictures = eyes.drawn(0)
            half.update(half=eyes.word(pictures), half_background=eyes.background(pictures))
            spent = time.process_time() - begun

    begun = time.process_time()
    adapter: Adapter = textpatch.finetune(
        pipeline,
        examples,
        sites=sites,
        rank=RANK,
        initial="gaussian",
        steps=options.steps,
        batch=options.batch,
        rate=rate,
        seed=seed,
        on_step=look,
    )
    return adapter, time.process_time() - begun - spent, half


class Study:
    """One model's runs, of which those in the table are not made again."""

    def __init__(self, name: str, options, table: Table) -> None:
        self.options = options
        self.table = table
        self.done = kept(options.csv, [*KEY, "chosen"])
        self.pipeline = textpatch.load(name, device=options.device, dtype=options.dtype)
        forget(self.pipeline, FORGOTTEN)
        self.choosing = Eyes(self.pipeline, signs_of(VALIDATION, options.n // 2), options.reader)
        self.testing = Eyes(self.pipeline, signs_of(TEST, options.n), options.reader)
        self.data = {
            "shifted": sign_examples(options.examples, style="faded", letters=FORGOTTEN),
            "matched": sign_examples(options.examples, letters=FORGOTTEN),
        }
        self.ceiling = self.testing.measured(self.testing.drawn(10_000))["recall"]

    def base(self) -> None:
        """Add the row of the base."""
        chosen = self.choosing.word(self.choosing.base)
        self._add("shifted", "none", 0, 0.0, [], chosen, self.testing.measured(self.testing.base))

    def run(self, data: str, arm: str, sites: list[int], seed: int, rate: float) -> float:
        """Share of validation words after a run, which is added to the table."""
        known = self._known(data, arm, seed, rate)
        if known is not None:
            return known
        adapter, seconds, half = trained(
            self.pipeline, sites, self.data[data], self.options, rate, seed, self.testing
        )
        with adapter.applied(self.pipeline):
            chosen = self.choosing.word(self.choosing.drawn(0))
            scores = self.testing.measured(self.testing.drawn(0))
        told = {"parameters": adapter.parameters, "seconds": seconds, **half, **scores}
        self._add(data, arm, seed, rate, sites, chosen, told)
        return chosen

    def _known(self, data: str, arm: str, seed: int, rate: float) -> float | None:
        """Share of validation words of a run that the table has."""
        key = tuple(map(str, self._key(data, arm, seed, rate).values()))
        return next((float(row[-1]) for row in self.done if row[:-1] == key), None)

    def _key(self, data: str, arm: str, seed: int, rate: float) -> dict:
        asked = self.options
        own = (self.pipeline.name, asked.reader, data, arm, seed, rate, asked.steps, asked.n)
        return dict(zip(KEY, own, strict=True))

    def _add(self, data, arm, seed, rate, sites, chosen, told) -> None:
        if self._known(data, arm, seed, rate) is None:
            more = {"sites": len(sites), "batch": self.options.batch, "ceiling": self.ceiling}
            self.table.add(**self._key(data, arm, seed, rate), **more, chosen=chosen, **told)


def carried_out(study: Study) -> Iterator[None]:
    """Make a model's runs one after the other: rates of each arm, then the other seeds, then matched data."""
    study.base()
    yield
    sites = arms(study.pipeline)
    rates = {}
    for arm, own in sites.items():
        reached = {}
        for rate in study.options.rates:
            reached[rate] = study.run("shifted", arm, own[0], 0, rate)
            yield
        rates[arm] = max(reached, key=reached.__getitem__)
    for seed in range(1, study.options.seeds):
        for arm, own in sites.items():
            study.run("shifted", arm, own[seed], seed, rates[arm])
            yield
    for arm in ("found", "all"):
        study.run("matched", arm, sites[arm][0], 0, rates[arm])
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
    reader_option(parser)
    options = parsed(parser, argv)
    table = Table([*KEY, *MEASURED], environment(options.device), options.csv, options.append)
    for name in options.models or MODELS:
        for _ in carried_out(Study(name, options, table)):
            pass


if __name__ == "__main__":
    main()

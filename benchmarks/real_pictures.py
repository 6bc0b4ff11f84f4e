"""Measure how real pictures come back from their noise, and whether their word changes.

    python benchmarks/real_pictures.py [MODEL ...]

The pictures are drawings of signs with held-out test words, which no model drew.  Every method that a model
admits inverts each, and writes the next sign's word into it at the localised sites.  A row has the means over
the pictures:

  inverted, guided  error of the picture drawn again without guidance and with that of the model, as a share
                    of its contrast
  worst             largest guided error of a picture
  refused           share of pictures beyond the limit of `invert`
  read              share of drawings whose own word is read
  target, source    share of edits that read as the target's word, and as the source's
  ssim              of the edit and the picture, in windows outside the lettering
  calls             calls of the denoiser while inverting

Two rows beside are of pictures no prompt describes, noise with a photograph's spectrum and white noise, with
the prompt of the first sign.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

import textpatch
from measure import Table, arguments, environment, parsed, reader_option, words_read
from textpatch import metrics
from textpatch.editing.inversion import LIMIT, invert
from textpatch.editing.inverting import INVERSIONS, FixedPoint, FlowEdit
from textpatch.editing.real_pictures import edit_picture
from textpatch.weights.signs.drawing import SignFormat, with_word
from textpatch.weights.signs.evaluation import clean_pictures, held_out_signs

MODELS = ["tiny-mmdit", "tiny-sdxl", "tiny-if"]
COLUMNS = [
    "model",
    "reader",
    "pictures",
    "method",
    "n",
    "inverted",
    "guided",
    "worst",
    "refused",
    "read",
    "target",
    "source",
    "ssim",
    "calls",
]
# RF-Solver is the midpoint rule
METHODS = [name for name in INVERSIONS if name != "rf_solver"]
# of the fixed point, whose default of 30 is for one picture and not for many
ITERATIONS = 8


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"({' '.join(MODELS)})")
    parser.add_argument("--each", type=int, default=4, help="signs for each method (4)")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS, help="which inversions (all)"
    )
    reader_option(parser)
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device), options.csv, options.append)
    signs = held_out_signs(options.each + 1, SignFormat())
    drawings = clean_pictures(signs, SignFormat())
    for name in options.models or MODELS:
        pipeline = textpatch.load(name, device=options.device, dtype=options.dtype)
        for method in admitted(pipeline, options.methods):
            scores = of_signs(pipeline, method, signs, drawings, options.reader)
            table.add(model=name, reader=options.reader, **scores)
            if not isinstance(method, FlowEdit):
                for kind, picture in strangers().items():
                    table.add(model=name, **of_stranger(pipeline, method, kind, picture, signs))


def admitted(pipeline, names: list[str]) -> list:
    """The methods of some names that a model admits."""
    flows = pipeline.schedule.flows
    made = [INVERSIONS[name]() for name in names if INVERSIONS[name].flows in (None, flows)]
    return [FixedPoint(ITERATIONS) if isinstance(one, FixedPoint) else one for one in made]


def of_signs(pipeline, method, signs, drawings, reader: str) -> dict:
    """The cells of a method over all signs, each with the word of the next."""
    edits = [
        edit_picture(
            pipeline,
            drawings[i],
            sign.prompt(),
            with_word(sign, signs[i + 1].word).prompt(),
            method=method,
            limit=math.inf,
        )
        for i, sign in enumerate(signs[:-1])
    ]
    box = pipeline.defaults.text_box
    shown = [picture for made in edits for picture in (made.picture, made.image)]
    read = words_read(reader, shown, box)
    before, after = read[::2], read[1::2]
    asked, wanted = zip(*(made.pair.words for made in edits), strict=True)
    outside = metrics.windows_outside(box, *edits[0].picture.size[::-1])
    similar = [metrics.ssim(made.picture, made.image, outside) for made in edits]
    return {
        "pictures": "signs",
        "method": method.name,
        "n": len(edits),
        **errors([made.inversion for made in edits if made.inversion is not None]),
        "read": exact(before, asked),
        "target": exact(after, wanted),
        "source": exact(after, asked),
        "ssim": float(np.mean(similar)),
    }


def exact(read, words) -> float:
    """The share of readings that are the word."""
    return float(np.mean([metrics.exact(*pair) for pair in zip(read, words, strict=True)]))


def errors(inversions) -> dict:
    """The cells of some inversions, none where nothing was inverted."""
    if not inversions:
        return {}
    guided = [found.errors.guided for found in inversions]
    return {
        "inverted": float(np.mean([found.errors.inverted for found in inversions])),
        "guided": float(np.mean(guided)),
        "worst": max(guided),
        "refused": float(np.mean([error > LIMIT for error in guided])),
        "calls": float(np.mean([found.calls for found in inversions])),
    }


def of_stranger(pipeline, method, kind: str, picture: Image.Image, signs) -> dict:
    """The cells of a picture that no prompt describes, empty where its inversion diverges."""
    try:
        found = [invert(pipeline, picture, signs[0].prompt(), method=method, limit=math.inf)]
    except textpatch.PatchError:
        return {"pictures": kind, "method": method.name, "n": 1, "refused": 1.0}
    return {"pictures": kind, "method": method.name, "n": 1, **errors(found)}


def strangers() -> dict[str, Image.Image]:
    """Noise with a photograph's spectrum, whose amplitude falls with the frequency, and white noise."""
    rng = np.random.default_rng(0)
    height, width = SignFormat().height, SignFormat().width
    white = rng.standard_normal((height, width, 3))
    rows, columns = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    amplitude = 1 / (np.hypot(rows, columns) + 1 / width)
    smooth = np.fft.ifft2(np.fft.fft2(white, axes=(0, 1)) * amplitude[..., None], axes=(0, 1)).real
    return {"photograph-like": grey(smooth), "white noise": grey(white)}


def grey(values: np.ndarray) -> Image.Image:
    """A picture of some values, with a mean of 128 and a deviation of 55 grey levels."""
    levels = 128 + 55 * (values - values.mean()) / values.std()
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()

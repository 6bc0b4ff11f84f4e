"""Reader that names what fits best, for sounds and for pictures that hold no word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from textpatch.errors import OCRError
from textpatch.metrics.image import Picture
from textpatch.metrics.readers.reading import Boxes
from textpatch.stored import JSONObject


class Nearest:
    """The best fitting of some labels as the reading of a sound or a picture.

        reading = argmax over labels of score(drawn, labels)

    score   score(drawn, labels) of N things and L labels gives an array (N, L).  Similarities of CLAP are
            such scores of sounds, and those of CLIP of pictures
    labels  those of the pairs that are localised when None
    name    what a manifest calls it, the function's own name when None
    """

    def __init__(
        self,
        score: Callable[[list[Image.Image], list[str]], ArrayLike]
        | Callable[[list[np.ndarray], list[str]], ArrayLike],
        labels: Iterable[str] | None = None,
        name: str | None = None,
    ) -> None:
        if not callable(score):
            raise OCRError(f"a score was asked of {score!r}; give a function of things and labels")
        self.score = score
        self.labels = None if labels is None else list(dict.fromkeys(labels))
        self.name = name or getattr(score, "__qualname__", type(score).__name__)

    def among(self, labels: Iterable[str]) -> Nearest:
        """The reader itself if it has labels, else one with these."""
        if self.labels is not None:
            return self
        return Nearest(self.score, labels, self.name)

    def read(self, images: Sequence[Picture], boxes: Boxes | None = None) -> list[str]:
        """Label of each thing.

        boxes  are not looked at, since the whole is scored
        Raises OCRError for scores of another shape, and for NaN.
        """
        self.self_test()
        labels = list(self.labels or ())
        if not len(images):
            return []
        scores = np.asarray(self.score(list(images), labels), np.float64)
        if scores.shape != (len(images), len(labels)) or np.isnan(scores).any():
            raise OCRError(
                f"{self.name} was given {len(images)} things and {len(labels)} labels and gave scores of "
                f"shape {scores.shape}; give a number for each thing and label, (things, labels), none NaN"
            )
        return [labels[best] for best in scores.argmax(axis=1)]

    def self_test(self) -> None:
        """Raise OCRError unless there are two labels or more to choose from."""
        if len(self.labels or ()) < 2:
            raise OCRError(
                f"{self.name} has the labels {self.labels}; give two or more, or pairs that have them"
            )

    def describe(self) -> JSONObject:
        """Name of the score, and the labels.  What the score depends on, its owner must note."""
        return {"engine": self.name, "labels": self.labels}

"""Pairs of prompts, readers that need no tesseract, and a localisation of a small model in a run folder."""

import hashlib
import json

from PIL import Image

from textpatch import localize
from textpatch.metrics import Tesseract
from textpatch.pictures import png
from textpatch.report import page
from textpatch.runs.folder import Run
from textpatch.weights.loading import SHIPPED
from textpatch.weights.signs.pairs import sign_pairs

PAIR = (
    'a red sign that says "HOUSE" on a blue wall',
    'a green badge that says "TIGER" on a striped yellow wall',
)
PAIRS = sign_pairs(3)
REQUEST = {"request": "three pairs"}


def planted_site() -> int:
    return json.loads((SHIPPED / "planted-mmdit" / "textpatch.json").read_text())["trained"][
        "recipe"
    ]["planted"][0]


class Parrot:
    """A reader that always says HOUSE."""

    def self_test(self):
        pass

    def read(self, images, boxes=None):
        return ["HOUSE"] * len(images)

    def describe(self):
        return {"engine": "parrot"}


class PixelReader:
    """Reads a word made from a hash of all pixels, so that no other pixel goes unseen."""

    def self_test(self):
        pass

    def read(self, images, boxes=None):
        digests = [hashlib.sha256(image.tobytes()).digest() for image in images]
        return ["".join(chr(65 + byte % 26) for byte in digest[:5]) for digest in digests]

    def describe(self):
        return {"engine": "pixels"}


def by_pixels(patch) -> None:
    """Put PixelReader's readings in the place of tesseract's, which takes long over random pictures."""
    patch.setattr(Tesseract, "self_test", PixelReader.self_test)
    patch.setattr(Tesseract, "read", PixelReader.read)
    without_drawing(patch)


def without_drawing(patch) -> None:
    """Put hashes of results in the place of heat maps, which take half as long as a small localisation."""
    patch.setattr(page, "heatmap_png", hash_png)


def hash_png(result: dict) -> bytes:
    """A PNG of 32 pixels in place of a heat map, another one for another result."""
    digest = hashlib.sha256(json.dumps(result, sort_keys=True).encode()).digest()
    return png(Image.frombytes("L", (len(digest), 1), digest))


def localized(model, folder, pairs=PAIRS, shard=None, seeds=(0, 1), ocr=None, **options):
    run = Run.open(folder, REQUEST, worker=str(shard[0] if shard else 0))
    return localize(
        model, pairs, seeds=seeds, ocr=ocr or PixelReader(), run=run, shard=shard, **options
    )

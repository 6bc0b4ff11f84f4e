"""Mistakes, one a line, each of which type checkers find: a mark that marks none is an error itself."""

import torch
from PIL import Image
from torch import Tensor

import textpatch
from textpatch import HookRegistry, Pair, Plan, Row, Run, SiteSpec, Span, Swap, Trials, Window
from textpatch.guidance import ClassifierFree
from textpatch.metrics import Tesseract, f1

SOURCE = 'a red sign that says "HOUSE" on a blue wall'
TARGET = 'a green badge that says "TIGER" on a blue wall'
PAIRS = [(SOURCE, TARGET)]
pipeline = textpatch.load("tiny-mmdit")
x = pipeline.noise([0])
text = pipeline.encode([SOURCE])
picture = Image.new("RGB", (96, 32))

textpatch.lode("tiny-mmdit")  # type: ignore[attr-defined]
textpatch.load("tiny-mmdit", dtype="float16")  # type: ignore[arg-type]
pipeline.generate(SOURCE, seed=0)  # type: ignore[call-arg]
pipeline.generate(SOURCE, seeds="0-3")  # type: ignore[arg-type]
pipeline.generate(SOURCE, guidance="high")  # type: ignore[arg-type]
pipeline.generate([SOURCE]).save("a.png")  # type: ignore[attr-defined]
pipeline.denoiser(x, text)  # type: ignore[call-arg, arg-type]
print(pipeline.denoiser.sites[0].layer)  # type: ignore[attr-defined]
textpatch.localize("tiny-mmdit", PAIRS)  # type: ignore[arg-type]
textpatch.localize(pipeline, SOURCE)  # type: ignore[arg-type]
textpatch.localize(pipeline, PAIRS, site=[1])  # type: ignore[call-arg]
textpatch.localize(pipeline, PAIRS, run="runs/one")  # type: ignore[arg-type]
textpatch.localize(pipeline, PAIRS, reader=f1)  # type: ignore[arg-type]
print(textpatch.localize(pipeline, PAIRS).best)  # type: ignore[attr-defined]
textpatch.edit(pipeline, SOURCE, target=1)  # type: ignore[arg-type]
textpatch.edit(pipeline, SOURCE, TARGET, sites=0.5)  # type: ignore[arg-type]
textpatch.edit(pipeline, SOURCE, TARGET, start=0.5)  # type: ignore[arg-type]
textpatch.edit(pipeline, SOURCE, TARGET, seed=[0, 1])  # type: ignore[arg-type]
textpatch.edit(pipeline, SOURCE, TARGET).image.sav("a.png")  # type: ignore[attr-defined]
textpatch.edit(pipeline, SOURCE, TARGET).source.save("a.png")  # type: ignore[union-attr]
textpatch.compare(pipeline, PAIRS, ["localized", 2])  # type: ignore[list-item]
textpatch.sample(pipeline, [SOURCE, TARGET])  # type: ignore[list-item]
textpatch.sample(pipeline, [Row("a", SOURCE)], [Swap(1, "a", "b")])  # type: ignore[arg-type]
textpatch.sanitize(pipeline, SOURCE)  # type: ignore[call-arg]
textpatch.sanitize(pipeline, SOURCE, detector=["frog"])  # type: ignore[arg-type]
textpatch.localize(pipeline, PAIRS).result["site"]  # type: ignore[typeddict-item]
textpatch.localize(pipeline, PAIRS).result["pairs"] + "1"  # type: ignore[operator]
textpatch.finetune(pipeline, [picture], sites="all", steps=2)  # type: ignore[list-item]
textpatch.rewrite(pipeline, ["a cat"], sites="all")  # type: ignore[list-item]
textpatch.capture(pipeline, rows=["a"])  # type: ignore[call-arg]
textpatch.patch(pipeline.denoiser, picture, "all", rows=["a"])  # type: ignore[arg-type]
textpatch.inject(pipeline.denoiser, SOURCE, "all")  # type: ignore[arg-type]
textpatch.start_curve(pipeline, [1])  # type: ignore[arg-type]
textpatch.wrap(pipeline.denoiser, steps="4", guidance=1.0)  # type: ignore[arg-type]
textpatch.wrap(pipeline.denoiser, lambda prompts: [picture])  # type: ignore[arg-type]
Plan(Swap(1, "a", "b"))  # type: ignore[arg-type]
Plan.from_json(1)  # type: ignore[arg-type]
Plan() + [Swap(1, "a", "b")]  # type: ignore[operator]
Swap(1, "a", "b", heads=0)  # type: ignore[arg-type]
Swap(1, "a", "b", step=[0])  # type: ignore[call-arg]
Window(0.5, 1.0)  # type: ignore[arg-type]
Row(SOURCE, seed="0", prompt=None).name = "b"  # type: ignore[misc, arg-type]
print(Pair(SOURCE).source)  # type: ignore[call-arg]
Run("runs/one")  # type: ignore[call-arg]
Trials(pipeline, PAIRS, background=1.0)  # type: ignore[arg-type]
Span("all", mask=torch.ones(2))  # type: ignore[arg-type]
SiteSpec("blocks.*.attn")  # type: ignore[call-arg]
ClassifierFree("3")  # type: ignore[arg-type]
Tesseract().read(picture)  # type: ignore[arg-type]


def replaced(name: str, output: Tensor) -> str:
    return name


HookRegistry(pipeline.denoiser, ["to_k"]).replace(replaced)  # type: ignore[arg-type]
HookRegistry(pipeline.denoiser, ["to_k"]).observe(f1)  # type: ignore[arg-type]

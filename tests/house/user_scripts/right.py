"""What people write with textpatch, each kind of use once, which type checkers find no fault in."""

import logging
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import textpatch
from textpatch import (
    Adapter,
    HookRegistry,
    KVCache,
    Localization,
    Pair,
    Plan,
    Row,
    Run,
    Site,
    SiteSpec,
    Span,
    Swap,
    Trials,
    Window,
)
from textpatch.guidance import ClassifierFree, Guidance, SafeLatentDiffusion
from textpatch.metrics import PPOCR, Agreement, Reading, Tesseract, bootstrap, compared, f1, ssim
from textpatch.reference_models.pipeline import Pipeline
from textpatch.safety.detection import Finding
from textpatch.safety.word_lists import WordList
from textpatch.stored import JSONObject

log = logging.getLogger(__name__)
SOURCE = 'a red sign that says "HOUSE" on a blue wall'
TARGET = 'a green badge that says "TIGER" on a blue wall'


def loading() -> Pipeline:
    pipeline = textpatch.load("tiny-mmdit", device="cpu", dtype=torch.float32)
    denoiser: nn.Module = textpatch.load_denoiser("folder", device=torch.device("cpu"))
    sites: tuple[Site, ...] = textpatch.find_sites(denoiser)
    names: list[str] = [site.name for site in pipeline.denoiser.sites]
    log.info("%s %s %s %s", names, sites, pipeline.notes, pipeline.schedule.sigmas(8))
    return pipeline.at(8, 24).with_clip_skip(1)


def generating(pipeline: Pipeline, guidance: Guidance) -> list[Image.Image]:
    entering: list[Tensor] = []

    def watch(step: int, latents: Tensor) -> None:
        entering.append(latents)

    pictures = pipeline.generate([SOURCE, TARGET], seeds=[0, 1], steps=4, on_step=watch)
    pictures += pipeline.generate(SOURCE, seeds=0, guidance=guidance, negative=None)
    pictures += pipeline.generate(SOURCE, seeds=range(2), guidance=ClassifierFree(3, "a wall"))
    pictures += pipeline.generate(
        SOURCE, guidance=SafeLatentDiffusion(3.0, "a wall"), micro_batch=2
    )
    pictures[0].save("first.png")
    return pictures


def calling(pipeline: Pipeline) -> Tensor:
    text = pipeline.encode([SOURCE, None])
    x = pipeline.noise([0, 0])
    made: Tensor = pipeline.denoiser(x, torch.tensor(500.0), text)
    clean: Tensor = pipeline.denoise(x, text, steps=4, guidance=3.0)
    log.info("%s %s %s", text.tokens.shape, text.pooled, pipeline.decode(clean)[0].size)
    return made


def localizing(pipeline: Pipeline) -> Localization:
    found = textpatch.localize(pipeline, [(SOURCE, TARGET), Pair(TARGET, SOURCE)], seeds=[0, 1])
    found = textpatch.localize(
        pipeline, [[SOURCE, TARGET]], sites="all", reader="tesseract", first=2
    )
    textpatch.localize(
        pipeline, [(SOURCE, TARGET)], sites=[0, "2-3"], reader=reads, background=ssim
    )
    textpatch.localize(pipeline, [(SOURCE, TARGET)], groups=[(0, 1), (2,)], reader=MyReader())
    best: tuple[int, ...] = found.ranked[0]
    told: str = f"{found.headline} {found.set} {best} {found.scores(1)['f1_target']['value']:.2f}"
    made: int = found.result["generations"]["made"]
    read: str = found.records[0]["pictures"]["source"]["read"]
    page: str = f"{found.report()} {made} {read}"
    run: Run = found.save("folder")
    log.info("%s %s %s %s", told, page, run.folder.name, found.result["sites"])
    return found


def editing(pipeline: Pipeline, found: Localization) -> list[Image.Image]:
    edited = textpatch.edit(pipeline, SOURCE, TARGET, sites=found.ranked[0], start=2, seed=3)
    textpatch.edit(pipeline, SOURCE, {1: "TIGER"}, method="prompt_swap", also=())
    moved = textpatch.edit_picture(pipeline, "photo.png", SOURCE, TARGET, sites="all", steps=8)
    inverted = textpatch.invert(pipeline, edited.image, SOURCE)
    table = textpatch.compare(
        pipeline, [(SOURCE, TARGET)], ["localized", "prompt_swap"], ocr="ppocr"
    )
    plain: Image.Image | None = edited.source
    log.info("%s %s %s %s", plain, edited.plan.sha256, edited.ledger, inverted.picture)
    return [*edited.pictures.values(), moved.image, table.sheet]


def planning(pipeline: Pipeline) -> Plan:
    swaps = [
        Swap(sites=1, readers="edited", donor="target", steps=range(1, 8), heads=[0], part="k"),
        Swap("kind:joint", ["edited"], "target", steps=Window("sigma", low=0.5), tokens=(1, 2)),
        Swap([0, "*.attn", pipeline.denoiser.sites[2]], "edited", "target", branch="cond"),
    ]
    plan = Plan(swaps) + Plan()
    assert Plan.from_json(plan.to_json()) == plan
    log.info(plan.explain(pipeline.denoiser.sites, schedule=pipeline.schedule, steps=8))
    return plan


def sampling(pipeline: Pipeline, plan: Plan) -> dict[str, Image.Image]:
    rows = [Row("source", SOURCE), Row("target", TARGET, seed=0), Row("edited", SOURCE)]
    made = textpatch.sample(pipeline, rows, plan, steps=8, guidance=3.0)
    report = textpatch.audit(
        pipeline, rows, plan, sample=textpatch.sample, steps=made.steps, guidance=made.guidance
    )
    worst: float = max(check.error for check in report.checks)
    log.info("%s %s %s", worst, report.to_json(), made.latents["edited"].shape)
    return made.images


def patching(pipeline: Pipeline) -> KVCache:
    model = pipeline.denoiser
    x = pipeline.noise([0, 0])
    text = pipeline.encode([SOURCE, TARGET])
    with textpatch.capture(model, "all", rows=["source", Row("target", TARGET)]) as cache:
        model(x, torch.tensor(500.0), text)
    with textpatch.patch(model, cache, [0, 1], rows=["target", None], steps=[0], part="v"):
        model(x, torch.tensor(500.0), text)
    with textpatch.inject(model, text, "0-1"):
        model(x, torch.tensor(500.0), text)
    with textpatch.swap(model, Plan(), [Row("source", SOURCE)], calls=[["cond"]]) as ledger:
        model(x, torch.tensor(500.0), text)
    log.info("%s %s", ledger, cache.bytes)
    return KVCache.from_tensors(cache.to("cpu", torch.float64).tensors)


def hooking(model: nn.Module, x: Tensor) -> dict[str, int]:
    shapes: dict[str, torch.Size] = {}

    def note(name: str, output: Tensor) -> None:
        shapes[name] = output.shape

    def doubled(name: str, output: Tensor) -> Tensor:
        return 2 * output

    def first(name: str, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
        return None

    registry = HookRegistry(model, ["to_k", "to_v"])
    with registry.observe(note), registry.replace(doubled), registry.replace(first):
        model(x)
    return dict(registry.calls)


def own_pipeline(model: nn.Module) -> Image.Image:
    def draw(
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        negative: str | None,
    ) -> list[Image.Image]:
        return [Image.new("RGB", (96, 32)) for _ in prompts]

    table = [SiteSpec("blocks.*.attn", kind="cross", span=Span(text="context"))]
    textpatch.check_port(model, table, {"x": torch.zeros(1), "context": torch.zeros(1)})
    wrapped = textpatch.wrap(model, draw, sites=table, steps=4, guidance=1.0, calls=[["cond"]])
    textpatch.localize(wrapped, [(SOURCE, TARGET)])
    return textpatch.edit(wrapped, SOURCE, TARGET, sites=0).image


def adapting(pipeline: Pipeline) -> Adapter:
    pictures = [("a sign", Image.new("RGB", (96, 32)))]
    trained = textpatch.finetune(
        pipeline, pictures, sites=[1], steps=2, on_step=lambda i, loss: None
    )
    written = textpatch.rewrite(pipeline, [("a cat", "a dog")], sites="all", ridge=0.0)
    with trained.applied(pipeline, scale=0.5), written.merged(pipeline.denoiser):
        pipeline.generate(SOURCE, seeds=0)
    trained.save("lora.safetensors", "kohya")
    return textpatch.load_adapter("lora.safetensors")


def looking(pipeline: Pipeline) -> Tensor:
    seen = textpatch.attention_map(pipeline, SOURCE, "HOUSE", sites=[0], steps=[0, 1])
    seen.picture(sites=0).save("map.png")
    with textpatch.hearing_words(pipeline.denoiser, [1, 2], sites="kind:joint"):
        pipeline.generate(SOURCE, seeds=0)
    return seen.array("received")


def searching(pipeline: Pipeline, run: Run) -> list[JSONObject]:
    trials = Trials(pipeline, [(SOURCE, TARGET)], seeds=[0], run=run, background=None)
    curve = textpatch.start_curve(trials, [1], starts=range(4))
    heads = textpatch.head_search(trials, 1)
    log.info("%s %s", curve["chosen"], heads["heads"])
    run.append({"id": "mine", "value": 1.0})
    run.write_json("mine.json", [1, 2])
    return run.records()


def sanitizing(pipeline: Pipeline) -> list[str]:
    words = WordList(["frog"])
    both = textpatch.sanitize(pipeline, [SOURCE], detector=words, verify="reader", seed=1)
    one = textpatch.sanitize(pipeline, SOURCE, detector=frogs, policy="refuse")
    return [sanitized.outcome for sanitized in (*both, *one)]


def frogs(text: str) -> list[Finding]:
    return []


def reads(pictures: list[Image.Image]) -> list[str]:
    return ["HOUSE" for _ in pictures]


class MyReader:
    """A reader of somebody's own."""

    def read(self, images: Sequence[Image.Image], boxes: object = None) -> list[str]:
        return reads(list(images))

    def describe(self) -> dict[str, object]:
        return {"engine": "mine"}

    def self_test(self) -> None:
        """Nothing can fail."""


def scoring(pictures: Sequence[Image.Image]) -> tuple[float, float | None]:
    reader = Agreement(PPOCR(), Tesseract(alphabet="HOUSE"))
    readings: list[Reading] = reader.read(pictures, [(0, 0, 96, 32) for _ in pictures])
    found = f1([(reading.text, "HOUSE") for reading in readings])
    interval = bootstrap([1.0, 0.5, 0.0], np.mean)
    difference = compared([1.0, 0.5, 0.0], np.zeros(3))
    return found + interval.low, difference.high

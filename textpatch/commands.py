"""What the command line carries out, a function for each command, given its options.

Nothing heavy is imported before the options are known to be good.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Iterator

from textpatch.errors import PatchError, PromptError, Unfinished
from textpatch.exits import printable, warn

WORD = "word"  # Pair.what, which is not imported before it is known that something is to be done


def sites(options) -> None:
    """`textpatch sites`: the table of a model's sites, from its configuration or its file's header alone."""
    from textpatch.ports.shipped import find_sites
    from textpatch.weights.load import outline
    from textpatch.weights.published import COUNTED, counted_parameters, localized_sites

    model = outline(_one_model(options))
    found, total = find_sites(model), sum(p.numel() for p in model.parameters())
    marked, width = localized_sites(model), max(len(site.name) for site in found)
    print(f"{total:,} parameters, {len(found)} sites in execution order")
    titles = f"{'kind':<6}{'heads':>5}{'width':>7}{'text K/V':>12}{'share':>9}{'paper':>9}"
    print(f"{'site':>5}  {'name':<{width}}  {titles}")
    for site in found:
        shares = site.parameters / total, counted_parameters(model, site) / total
        index = f"{'*' if site.index in marked else ''}{site.index}"
        print(f"{index:>5}  {site.name:<{width}}  {site.kind:<6}{site.heads:>5}"
              f"{site.heads * site.head_dim:>7}{site.parameters:>12,}{shares[0]:>9.4%}{shares[1]:>9.4%}")  # fmt: skip
    print("share: parameters of the text's own key and value projections; "
          f"paper: those of {' and '.join(COUNTED[found[0].kind])}, the paper's convention")  # fmt: skip
    if marked:
        chosen = [site for site in found if site.index in marked]
        text, paper = (sum(counts) / total for counts in (
            [site.parameters for site in chosen], [counted_parameters(model, site) for site in chosen]))  # fmt: skip
        print(f"* the paper's sites (ICLR 2025): together {text:.2%} of the parameters, {paper:.2%} in its convention")
    if found[0].kind == "added":
        print("they differ: in this model to_k and to_v are the image's; the text's, which a swap changes, "
              "are add_k_proj and add_v_proj")  # fmt: skip


def _one_model(options) -> str:
    """The model named by its place or by --model; naming none or two is an error."""
    if (options.model is None) == (options.path is None):
        raise PatchError("name one model: textpatch sites MODEL, or textpatch sites --model PATH")
    return options.model or options.path


def generate(options) -> None:
    """`textpatch generate`: one picture per prompt and seed, and a sheet of all."""
    from textpatch.pictures import open_picture, png
    from textpatch.report.contact_sheet import draw_contact_sheet
    from textpatch.runs.album import Album

    pipeline = _load_sized(options)
    steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
    request = dict(command="generate", prompts=options.prompts, seeds=options.seed, steps=steps, guidance=guidance,
                   negative=options.negative)  # fmt: skip
    upscaler = _upscaler(options, request)
    pipeline.check(options.prompts, seeds=options.seed, steps=steps)
    if upscaler:
        upscaler.check(options.prompts, seeds=options.seed, steps=upscaler.defaults.steps)

    def draw(some: list[tuple[str, int]]) -> list:
        prompts, seeds = zip(*some)
        images = pipeline.generate(prompts, seeds=seeds, steps=steps, guidance=guidance, negative=options.negative)
        return upscaler.upscale(images, prompts, seeds=seeds) if upscaler else images

    request = _whole(options, pipeline, request)
    stored = _folder(options, request) / "manifest.json"
    album = Album([(prompt, seed) for prompt in options.prompts for seed in options.seed], draw,
                  partial(_opened, options, request), goes_on=os.path.exists(stored))  # fmt: skip
    with _told_on_interrupt(album):
        album.fill()
        run, images = album.run, [open_picture(album.run.folder / made["image"]) for made in album.pictures]
        run.write_json("results.json", {"schema_version": 1, "pictures": album.pictures})
        n = len(options.seed)
        rows = [[(image, None) for image in images[i : i + n]] for i in range(0, len(images), n)]
        run.write_bytes("sheet.png", png(draw_contact_sheet(rows, captions=[f"seed {s}" for s in options.seed])))
    print(run.folder / "sheet.png")


@contextlib.contextmanager
def _told_on_interrupt(what) -> Iterator[None]:
    """Ctrl-C inside the block says `what` there is and how to go on, as it is then."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(str(what)) from None


def localize(options) -> None:
    """`textpatch localize`: the ranked table, and a run folder with heat map, contact sheet and report."""
    from textpatch.localization.layers import check
    from textpatch.localization.layers import localize as localize_
    from textpatch.localization.trials import require_known_letters
    from textpatch.report.page import publish

    if options.sets and options.sites:
        raise PatchError("--sites and --set were both given, and --set replaces --sites; give one of them")
    pairs, sites_, shard = _pairs(options), options.sites or ["all"], _shard(options)
    pipeline = _load_sized(options)
    ocr = _reader(options, pipeline, pairs)
    steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
    prompts = [(pair.source, pair.target) for pair in pairs]
    what = {} if options.what == WORD else {"what": options.what}
    request = dict(command="localize", pairs=prompts, seeds=options.seeds, sites=sites_, sets=options.sets,
                   steps=steps, guidance=guidance, start=options.start, branch=options.branch, **what)  # fmt: skip
    search = dict(mode=options.mode, keep=options.keep, first=options.first)
    if options.mode != "exhaustive":  # whose requests, and so whose folders, are as they were without modes
        request |= search
    more = {name: True for name in ("starts", "heads") if getattr(options, name)}
    request |= more
    asked = dict(sites=sites_, groups=options.sets, seeds=options.seeds, steps=steps, start=options.start, **search)
    check(pipeline, pairs, **asked, shard=shard)
    _warn_of_scenes(options, prompts)
    ocr.self_test()
    require_known_letters(pairs, ocr)
    run = _open_run(options, pipeline, request, worker=str(shard[0] if shard else 0), ocr=ocr.describe())
    with _told_on_interrupt(f"what is finished is in {run.folder}; the same command goes on where it stopped"):
        try:
            found = localize_(pipeline, pairs, **asked, guidance=guidance, branch=options.branch, ocr=ocr, run=run,
                              shard=shard, **more)  # fmt: skip
        except Unfinished as told:
            print(told)
            return
        publish(run, found.result, found.records)
    print(found)
    print(run.folder / "report.html")


def edit(options) -> None:
    """`textpatch edit`: source, edited and target picture side by side, and the plan that made them."""
    from textpatch.editing.localized import upscaled
    from textpatch.editing.localized import edit as edit_
    from textpatch.pictures import png
    from textpatch.report.contact_sheet import draw_contact_sheet

    pipeline = _load_sized(options)
    steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
    upscaler = _upscaler(options, said := {})
    made = edit_(pipeline, options.source, options.target, start=options.start, seed=options.seed, steps=steps,
                 guidance=guidance, branch=options.branch, sites=options.sites)  # fmt: skip
    request = dict(command="edit", source=options.source, target=options.target, seed=options.seed, steps=steps,
                   guidance=guidance, plan=json.loads(made.plan.to_json()), **said)  # fmt: skip
    made = upscaled(made, upscaler) if upscaler else made
    run = _open_run(options, pipeline, request)
    pictures = {"source": made.source, "edited": made.image, "target": made.target}
    paths = {name: run.image(image) for name, image in pictures.items()}
    run.write_json(
        "results.json", {"schema_version": 1, **request, "plan_sha256": made.plan.sha256, "pictures": paths}
    )
    sheet = draw_contact_sheet([[(image, None) for image in pictures.values()]], captions=list(pictures), best=1)
    run.write_bytes("sheet.png", png(sheet))
    print(run.folder / "sheet.png")


def audit(options) -> None:
    """`textpatch audit`: every swap of a run's first pair at three steps, against float64; exit code 2 if one fails."""
    from textpatch.auditing.finished import audit_run
    from textpatch.weights.load import fingerprint

    def load(name: str, dtype: str):
        options.model, options.dtype = options.model or name, dtype
        return _load(options), fingerprint(options.model)

    report = audit_run(options.run_folder, load=load)
    print(report)
    report.require()


def doctor(options) -> None:
    """`textpatch doctor`: what is installed and whether every part works."""
    from textpatch.exits import broken
    from textpatch.metrics import Tesseract

    for name, version in _versions().items():
        print(f"{name:<14}{version}")
    for name, fault in broken().items():
        print(f"{name:<14}installed and broken: {printable(fault)}; install it anew or remove it")
    from textpatch.weights.doctor import UNUSABLE, examine  # transformers, which some of these would break

    print(f"{'attention':<14}{_attention()}")
    reader = Tesseract()
    reader.self_test()
    print(f"{'tesseract':<14}{reader.describe()['version']}, reads its self-test")
    unusable = 0
    for model in options.model or _shipped():
        for line in examine(model, numbers=options.scan):
            print(line)
            unusable += line.lstrip().startswith(UNUSABLE)
    if unusable:
        raise PatchError(f"{unusable} of the parts above cannot be used; the lines that begin with {UNUSABLE!r} say why")


def _attention() -> str:
    """Which backend attention runs on here, plain and through slots, and whether the kernels could."""
    import torch

    from textpatch.attention import choose_backend
    from textpatch.kernels import refusal

    there = torch.cuda.is_available()
    q = torch.empty(0, 1, 0, 64, device="cuda" if there else "cpu", dtype=torch.bfloat16 if there else torch.float32)
    plain, table = (choose_backend(q, table=table) for table in (False, True))
    return f"{plain}, through slots {table}; triton kernels: {refusal(q) or 'can run'}"


def _upscaler(options, request: dict):
    """The stage II of --upscale, which joins the request; None, and the request as it was, without the option."""
    from textpatch.weights.load import fingerprint

    if options.upscale is None:
        return None
    if (options.height, options.width) != (None, None):
        raise PatchError("--upscale draws at its own model's size, and --height or --width was given; leave one of them out")
    upscaler = _load(options, options.upscale)
    if not upscaler.upscales:
        raise PatchError(f"--upscale {options.upscale}: that model draws pictures from noise alone; give a stage II")
    request |= {"upscale": upscaler.name, "upscale_weights": fingerprint(options.upscale)}
    return upscaler


def _load(options, model: str | None = None):
    import torch

    from textpatch.weights import load

    return load(model or options.model, device=_own_device(options.device), dtype=getattr(torch, options.dtype))


def _own_device(device: str) -> str:
    """The device asked for; of torchrun's processes each has a GPU of its own."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def _load_sized(options):
    """The model, for pictures of --height and --width."""
    from textpatch.pipelines import sized

    return sized(_load(options), options.height, options.width)


def _shipped() -> list[str]:
    from textpatch.weights import shipped_models

    return shipped_models()


def _pairs(options) -> list:
    """The prompt pairs asked for; an option that would have no effect on them is an error."""
    from textpatch.prompts.glyphcontrol import glyphcontrol_pairs, read_pairs
    from textpatch.prompts.pairs import Pair

    if options.what != WORD:
        return _attribute_pairs(options)
    listed = options.prompts is not None and options.prompts.is_dir()
    if not listed and (options.bench or options.limit is not None):
        raise PatchError("--bench and --limit choose among GlyphControl's prompts; give its folder with --prompts")
    if options.prompts is None:
        from textpatch.weights.prompts import sign_pairs

        return [Pair(*pair) for pair in sign_pairs(**_drawn(options), same_scene=options.same_scene)]
    if options.pairs is not None or options.same_scene or (options.split and not listed):
        raise PatchError("--pairs, --split and --same-scene choose among our word lists; with --prompts leave them out")
    if not listed:
        return [Pair(*pair) for pair in read_pairs(options.prompts)]
    return glyphcontrol_pairs(options.prompts, options.bench or "simple", options.split or "validation", limit=options.limit)


def _drawn(options) -> dict:
    """How many pairs of the shipped word lists, and of which words."""
    return dict(n=8 if options.pairs is None else options.pairs, split=options.split or "validation")


def _attribute_pairs(options) -> list:
    """Pairs of the shipped signs that differ in --what alone; options that are about words are an error."""
    from textpatch.weights.prompts import attribute_pairs

    beside = {"--prompts": options.prompts, "--bench": options.bench, "--limit": options.limit, "--strict": options.strict,
              "--same-scene": options.same_scene, "--mode contribution": options.mode == "contribution"}  # fmt: skip
    about_words = [name for name, given in beside.items() if given is not None and given is not False]
    if about_words:
        raise PatchError(f"--what {options.what} was given with {', '.join(about_words)}, which is for words alone; "
                         "leave out one or the other")  # fmt: skip
    return attribute_pairs(options.what, **_drawn(options))


def _reader(options, pipeline, pairs: list):
    """Who reads the pictures: tesseract a word, in its letters, the nearest drawing another attribute of a sign."""
    if options.what == WORD:
        from textpatch.metrics import Tesseract, alphabet_of

        return Tesseract(alphabet=alphabet_of(word for pair in pairs for word in pair.words))
    from textpatch.pipelines import picture_size
    from textpatch.weights.attributes import SignReader

    reader, size = SignReader(), picture_size(pipeline)
    if size != (reader.fmt.height, reader.fmt.width):
        raise PatchError(f"--what {options.what} is read from signs of {reader.fmt.height}x{reader.fmt.width} pixels "
                         f"(height x width), and pictures here are {size[0]}x{size[1]}; give a shipped model at its own size")  # fmt: skip
    return reader


def _warn_of_scenes(options, pairs: list[tuple[str, str]]) -> None:
    """That the user's own pairs differ in more than the quoted text is a warning; with --strict, of any, an error."""
    from textpatch.prompts.glyphcontrol import require_one_scene

    try:
        require_one_scene(pairs)
    except PromptError as error:
        if options.strict:
            raise
        if options.prompts is not None and not options.prompts.is_dir():
            warn(f"{error}; --strict refuses them")


def _shard(options) -> tuple[int, int] | None:
    """(i, n) of --shard I/N, or of torchrun's environment; None for a run that is not divided."""
    told, ranks = options.shard, os.environ.get("WORLD_SIZE", "1")
    if told is None and ranks != "1":
        told = f"{os.environ.get('RANK')}/{ranks}"
    if told is None:
        return None
    index, _, count = told.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise PatchError(f"no shard {told!r}; give I/N, such as 0/4 to 3/4 for four parts")
    return int(index), int(count)


def _open_run(options, pipeline, request: dict, *, worker: str = "0", **facts):
    """The run folder of a request of a model; facts belong to the request, too."""
    return _opened(options, _whole(options, pipeline, request | facts), worker=worker)


def _opened(options, request: dict, *, worker: str = "0"):
    """The run folder of a whole request."""
    from textpatch.runs.folder import Run

    manifest = {"request": request, "versions": _versions(), "command": options.command_line}
    allow = getattr(options, "allow", None)  # localize alone goes on under another request
    return Run.open(_folder(options, request), manifest, worker=worker, allow=allow)


def _whole(options, pipeline, request: dict) -> dict:
    """A request with the model and the sizes it is of: everything that decides the results."""
    from textpatch.weights.load import fingerprint

    made_by = {"model": pipeline.name, "weights": fingerprint(options.model), "dtype": options.dtype}
    size = {"height": options.height, "width": options.width}
    given = {name: pixels for name, pixels in size.items() if pixels is not None}
    return {**made_by, **request, **given}


def _folder(options, request: dict) -> Path:
    """The folder asked for, or one named by command, model and the hash of a whole request."""
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]
    return options.out or Path("runs") / f"{request['command']}-{request['model']}-{digest}"


def _versions() -> dict[str, str]:
    packages = ("textpatch", "torch", "transformers", "safetensors", "numpy", "Pillow")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}

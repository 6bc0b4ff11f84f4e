"""The command line.  Nothing heavy is imported before the options are known to be good."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path

from textpatch.errors import PatchError, PromptError, Unfinished
from textpatch.exits import guarded, printable

SENTENCE = 'a red sign that says "HELLO" on a blue wall'
MODEL_HELP = ("a shipped model (tiny-mmdit, tiny-sdxl, tiny-if, planted-mmdit, planted-sdxl), a folder in diffusers layout, an original single "
              ".safetensors file, a sharded index, or org/name in the Hugging Face cache")  # fmt: skip
SITES_HELP = ("indices in execution order, as in the paper (57), ranges of them (55-57), names, globs ('up_blocks.*'), "
              "kind:cross, group:up")  # fmt: skip
EXAMPLES = f"""examples:
  textpatch sites tiny-mmdit
  textpatch sites --model /models/stable-diffusion-xl-base-1.0
  textpatch generate tiny-mmdit '{SENTENCE}' --seed 0 1 2
  textpatch localize planted-mmdit --pairs 8 --seeds 0 1
  textpatch edit planted-mmdit --source '{SENTENCE}' --target 'a red sign that says "WORLD" on a blue wall'
  textpatch audit runs/edit-planted-mmdit-1a2b3c4d
  textpatch doctor
  textpatch doctor /models/sd_xl_base_1.0.safetensors
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code is that of `guarded`."""
    options = parser().parse_args(argv)
    options.command_line = shlex.join(["textpatch", *(sys.argv[1:] if argv is None else argv)])
    return guarded(options.run, options, debug=options.debug)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="textpatch", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Find and use the attention layers through which a text-to-image model writes words.",
    )  # fmt: skip
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    _sites(
        _command(commands, "sites", "list where text enters a model: index, name, kind, heads, parameters")
    )
    _generate(_command(commands, "generate", "make pictures of prompts"))
    _localize(
        _command(
            commands, "localize", "swap text K/V one site at a time and show which site carries the word"
        )
    )
    _edit(_command(commands, "edit", "keep the picture of one prompt, write the word of another"))
    _audit(_command(commands, "audit", "carry a finished run's swaps out again and hold each against float64"))
    _doctor(_command(commands, "doctor", "check the installation, the OCR engine, and what is in weight files"))
    return top


def _command(commands, name: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    return command


def _sites(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", nargs="?", help=f"{MODEL_HELP}; or a published name, such as sdxl-base-1.0")
    command.add_argument("--model", dest="path", metavar="PATH", help="the same, spelled out")
    command.set_defaults(run=sites)


def _audit(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_folder", type=Path, metavar="RUN",
                         help="run folder of localize or edit; its first pair and seed are audited")  # fmt: skip
    command.add_argument("--model", help="where the model is, if not a shipped one; the run's own weights")
    command.add_argument("--device", default="cpu", help="where the model runs, as torch spells it (cpu)")
    command.set_defaults(run=audit)


def _doctor(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", nargs="*", metavar="PATH",
                         help=f"{MODEL_HELP}; all shipped models when left out")  # fmt: skip
    command.add_argument("--scan", action="store_true",
                         help="read every number, too, and name those that are none (NaN, Inf)")  # fmt: skip
    command.set_defaults(run=doctor)


def _generate(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help=MODEL_HELP)
    command.add_argument("prompts", nargs="+", metavar="PROMPT", help=f"for shipped models like: {SENTENCE}")
    command.add_argument(
        "--seed", type=int, nargs="+", default=[0], help="noise seeds; every prompt with every seed"
    )
    command.add_argument("--negative", help="negative prompt (default: none; SDXL reads zeros then, the others the "
                                            "empty prompt)")  # fmt: skip
    _upscale(command)
    _common(command)
    command.set_defaults(run=generate)


def _localize(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help=MODEL_HELP)
    command.add_argument(
        "--pairs", type=int, help="how many prompt pairs of the shipped word lists (8)"
    )
    command.add_argument("--split", help="which words, ours or GlyphControl's: validation (default) or test")
    command.add_argument(
        "--same-scene", action="store_true", help="source and target prompt differ in the word alone"
    )
    command.add_argument("--prompts", type=Path, help="own prompt pairs: a file of lines `source<TAB>target`, or a "
                                                       "folder with a copy of GlyphControl-release")  # fmt: skip
    command.add_argument("--bench", help="GlyphControl's prompts: simple (default), creative, or mixed, creative with "
                                         "another sentence for the target")  # fmt: skip
    command.add_argument("--limit", type=int, help="how many of GlyphControl's pairs (all of the split)")
    command.add_argument("--strict", action="store_true",
                         help="refuse pairs that differ in more than the quoted text; of --prompts FILE they are warned of")  # fmt: skip
    command.add_argument("--shard", metavar="I/N", help="do the I-th of N parts, 0/N to N-1/N, into the run folder they "
                                                        "share (torchrun's RANK and WORLD_SIZE)")  # fmt: skip
    command.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="noise seeds; every pair with every seed (0)"
    )
    command.add_argument("--sites", nargs="+", help=f"{SITES_HELP}; each tried alone (all)")
    command.add_argument("--set", dest="sets", nargs="+", action="append", metavar="SITE",
                         help="sites tried together; may be given several times, replaces --sites")  # fmt: skip
    command.add_argument("--mode", choices=["exhaustive", "staged", "contribution"], default="exhaustive",
                         help="score every site on every pair (exhaustive); or keep some by their scores on a few pairs "
                              "(staged), or by what they give to the picture (contribution), and score those")  # fmt: skip
    command.add_argument("--keep", type=int, help="how many sites staged and contribution keep (as many as stand out)")
    command.add_argument("--first", type=int, help="pairs they begin with, doubled for sites still in doubt (4)")
    command.add_argument("--starts", action="store_true", help="also the curve over start steps of the sites found")
    command.add_argument("--heads", action="store_true", help="also which heads of these sites do their work")
    _swap(command)
    _common(command)
    command.set_defaults(run=localize)


def _edit(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help=MODEL_HELP)
    command.add_argument("--source", required=True, help="prompt whose picture is kept")
    command.add_argument("--target", required=True, help="prompt whose word is wanted")
    command.add_argument("--sites", nargs="+",
                         help=f"{SITES_HELP}; swapped together (those localised for the model)")  # fmt: skip
    command.add_argument("--seed", type=int, default=0)
    _swap(command)
    _upscale(command)
    _common(command)
    command.set_defaults(run=edit)


def _swap(command: argparse.ArgumentParser) -> None:
    command.add_argument("--start", type=int, default=0, help="first patched step, 0 = noisiest (0)")
    command.add_argument(
        "--branch", choices=["both", "cond"], default="both", help="guidance branches patched (both)"
    )


def _upscale(command: argparse.ArgumentParser) -> None:
    command.add_argument("--upscale", metavar="MODEL", help="a stage II that draws the pictures larger; "
                                                            "of an edit it reads the source prompt and no swap")  # fmt: skip


def _common(command: argparse.ArgumentParser) -> None:
    command.add_argument("--steps", type=int, help="denoising steps (the model's default)")
    command.add_argument("--guidance", type=float, help="classifier-free guidance (the model's default)")
    command.add_argument("--out", type=Path, help="run folder (default: runs/COMMAND-MODEL-HASH)")
    command.add_argument("--allow", nargs="+", default=[], metavar="NAME",
                         help="go on in --out although these entries of its request differ, such as weights or "
                              "ocr.version; what is there stays, the manifest tells both values")  # fmt: skip
    command.add_argument("--device", default="cpu", help="where the model runs, as torch spells it (cpu)")
    command.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32",
                         help="numbers the model computes in (float32)")  # fmt: skip


def sites(options) -> None:
    """`textpatch sites`: the table of a model's sites, from its configuration or its file's header alone."""
    from textpatch.sites import find_sites
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
    from textpatch.figures import contact_sheet, png

    pipeline = _load(options)
    steps, guidance = _defaults(pipeline, options)
    request = dict(command="generate", prompts=options.prompts, seeds=options.seed, steps=steps, guidance=guidance,
                   negative=options.negative)  # fmt: skip
    upscaler = _upscaler(options, request)
    asked = [(prompt, seed) for prompt in options.prompts for seed in options.seed]
    images = pipeline.generate([p for p, _ in asked], seeds=[s for _, s in asked], steps=steps, guidance=guidance,
                               negative=options.negative)  # fmt: skip
    if upscaler:
        images = upscaler.upscale(images, [p for p, _ in asked], seeds=[s for _, s in asked])
    run = _open_run(options, pipeline, request)  # only now: a refused request leaves no folder
    made = [{"prompt": p, "seed": s, "image": run.image(image)} for (p, s), image in zip(asked, images)]
    run.write_json("results.json", {"schema_version": 1, "pictures": made})
    n = len(options.seed)
    rows = [[(image, None) for image in images[i : i + n]] for i in range(0, len(images), n)]
    run.write_bytes("sheet.png", png(contact_sheet(rows, captions=[f"seed {s}" for s in options.seed])))
    print(run.folder / "sheet.png")


def localize(options) -> None:
    """`textpatch localize`: the ranked table, and a run folder with heat map, contact sheet and report."""
    from textpatch.localize import check
    from textpatch.localize import localize as localize_
    from textpatch.metrics import Tesseract
    from textpatch.report import publish
    from textpatch.result import answer, table

    if options.sets and options.sites:
        raise PatchError("--sites and --set were both given, and --set replaces --sites; give one of them")
    pairs, sites_, shard = _pairs(options), options.sites or ["all"], _shard(options)
    pipeline, ocr = _load(options), Tesseract()
    steps, guidance = _defaults(pipeline, options)
    request = dict(command="localize", pairs=pairs, seeds=options.seeds, sites=sites_, sets=options.sets,
                   steps=steps, guidance=guidance, start=options.start, branch=options.branch)  # fmt: skip
    search = dict(mode=options.mode, keep=options.keep, first=options.first)
    if options.mode != "exhaustive":  # whose requests, and so whose folders, are as they were without modes
        request |= search
    more = {name: True for name in ("starts", "heads") if getattr(options, name)}
    request |= more
    asked = dict(
        sites=sites_, groups=options.sets, seeds=options.seeds, steps=steps, start=options.start, **search
    )
    check(pipeline, pairs, **asked)
    _warn_of_scenes(options, pairs)
    ocr.self_test()
    run = _open_run(options, pipeline, request, worker=str(shard[0] if shard else 0), ocr=ocr.describe())
    try:
        found = localize_(pipeline, pairs, **asked, guidance=guidance, branch=options.branch, ocr=ocr, run=run,
                          shard=shard, **more)  # fmt: skip
    except Unfinished as told:
        print(told)
        return
    publish(run, found.result, found.records)
    print(table(found.result))
    print(answer(found.result))
    print(run.folder / "report.html")


def edit(options) -> None:
    """`textpatch edit`: source, edited and target picture side by side, and the plan that made them."""
    from textpatch.edit import edit as edit_
    from textpatch.edit import upscaled
    from textpatch.figures import contact_sheet, png

    pipeline = _load(options)
    steps, guidance = _defaults(pipeline, options)
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
    sheet = contact_sheet([[(image, None) for image in pictures.values()]], captions=list(pictures), best=1)
    run.write_bytes("sheet.png", png(sheet))
    print(run.folder / "sheet.png")


def audit(options) -> None:
    """`textpatch audit`: every swap of a run's first pair at three steps, against float64; exit code 2 if one fails."""
    from textpatch.audit_run import audit_run
    from textpatch.weights.load import fingerprint

    def load(name: str, dtype: str):
        options.model, options.dtype = options.model or name, dtype
        return _load(options), fingerprint(options.model)

    report = audit_run(options.run_folder, load=load)
    print(report)
    report.require()


def doctor(options) -> None:
    """`textpatch doctor`: what is installed and whether every part works."""
    from textpatch.metrics import Tesseract
    from textpatch.optional import broken

    for name, version in _versions().items():
        print(f"{name:<14}{version}")
    for name, fault in broken().items():
        print(f"{name:<14}installed and broken: {printable(fault)}; install it anew or remove it")
    from textpatch.weights.doctor import examine  # transformers, which some of these would break

    print(f"{'attention':<14}{_attention()}")
    reader = Tesseract()
    reader.self_test()
    print(f"{'tesseract':<14}{reader.describe()['version']}, reads its self-test")
    for model in options.model or _shipped():
        for line in examine(model, numbers=options.scan):
            print(line)


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
    upscaler = _load(options, options.upscale)
    if not upscaler.upscales:
        raise PatchError(f"--upscale {options.upscale}: that model draws pictures from noise alone; give a stage II")
    request |= {"upscale": upscaler.name, "upscale_weights": fingerprint(options.upscale)}
    return upscaler


def _load(options, model: str | None = None):
    import torch

    from textpatch.weights import load

    try:
        device = torch.device(options.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PatchError(f"device {options.device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return load(model or options.model, device=device, dtype=getattr(torch, options.dtype))


def _shipped() -> list[str]:
    from textpatch.weights import shipped_models

    return shipped_models()


def _defaults(pipeline, options) -> tuple[int, float]:
    steps = pipeline.defaults.steps if options.steps is None else options.steps
    return steps, pipeline.defaults.guidance if options.guidance is None else options.guidance


def _pairs(options) -> list[tuple[str, str]]:
    """The prompt pairs asked for; an option that would have no effect on them is an error."""
    from textpatch.prompts import glyphcontrol, read_pairs

    listed = options.prompts is not None and options.prompts.is_dir()
    if not listed and (options.bench or options.limit is not None):
        raise PatchError("--bench and --limit choose among GlyphControl's prompts; give its folder with --prompts")
    if options.prompts is None:
        from textpatch.weights.prompts import sign_pairs

        n = 8 if options.pairs is None else options.pairs
        return sign_pairs(n, split=options.split or "validation", same_scene=options.same_scene)
    if options.pairs is not None or options.same_scene or (options.split and not listed):
        raise PatchError("--pairs, --split and --same-scene choose among our word lists; with --prompts leave them out")
    if not listed:
        return read_pairs(options.prompts)
    pairs = glyphcontrol(options.prompts, options.bench or "simple", options.split or "validation", limit=options.limit)
    return [(pair.source, pair.target) for pair in pairs]


def _warn_of_scenes(options, pairs: list[tuple[str, str]]) -> None:
    """That the user's own pairs differ in more than the quoted text is a warning; with --strict, of any, an error."""
    from textpatch.prompts import require_one_scene

    try:
        require_one_scene(pairs)
    except PromptError as error:
        if options.strict:
            raise
        if options.prompts is not None and not options.prompts.is_dir():
            sys.stderr.write(f"textpatch: warning: {printable(str(error))}; --strict refuses them\n")


def _shard(options) -> tuple[int, int] | None:
    """(i, n) of --shard I/N, or of torchrun's environment; None for a run that is not divided."""
    told = options.shard
    if told is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        told = f"{os.environ.get('RANK')}/{os.environ['WORLD_SIZE']}"
    if told is None:
        return None
    index, _, count = told.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise PatchError(f"no shard {told!r}; give I/N, such as 0/4 to 3/4 for four parts")
    return int(index), int(count)


def _open_run(options, pipeline, request: dict, *, worker: str = "0", **facts):
    """The run folder of a request: the one asked for, or one named by command, model and the request's hash."""
    from textpatch.store import Run
    from textpatch.weights.load import fingerprint

    made_by = {"model": pipeline.name, "weights": fingerprint(options.model), "dtype": options.dtype}
    request = {**made_by, **request, **facts}
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]
    folder = options.out or Path("runs") / f"{request['command']}-{pipeline.name}-{digest}"
    manifest = {"request": request, "versions": _versions(), "command": options.command_line}
    return Run.open(folder, manifest, worker=worker, allow=options.allow)


def _versions() -> dict[str, str]:
    packages = ("textpatch", "torch", "transformers", "safetensors", "numpy", "Pillow")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


if __name__ == "__main__":
    sys.exit(main())

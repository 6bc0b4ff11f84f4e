"""`textpatch localize`: its options, and what it does."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from textpatch.cli.opening import _told_on_interrupt, load_sized, open_run
from textpatch.cli.options import MODEL_HELP, SITES_HELP, add_common_options, add_swap_options
from textpatch.errors import PatchError, PromptError, Unfinished
from textpatch.exits import warn

WORD = "word"  # Pair.what, which is not imported before it is known that something is to be done


def add_localize_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help=MODEL_HELP)
    _add_pairs_options(command)
    command.add_argument("--sites", nargs="+", help=f"{SITES_HELP}; each tried alone (all)")
    command.add_argument(
        "--set",
        dest="sets",
        nargs="+",
        action="append",
        metavar="SITE",
        help="sites tried together; may be given several times, replaces --sites",
    )
    command.add_argument(
        "--mode",
        choices=["exhaustive", "staged", "contribution", "attribution"],
        default="exhaustive",
        help="score every site on every pair (exhaustive); or keep some by their scores on a few pairs "
        "(staged), by what they give to the picture (contribution) or by what a backward pass at "
        "every step promises of a swap (attribution), and score those",
    )
    command.add_argument(
        "--keep", type=int, help="how many sites a screening mode keeps (as many as stand out)"
    )
    command.add_argument(
        "--first", type=int, help="pairs it begins with, doubled for sites still in doubt (4)"
    )
    command.add_argument(
        "--starts", action="store_true", help="also the curve over start steps of the sites found"
    )
    command.add_argument(
        "--heads", action="store_true", help="also which heads of these sites do their work"
    )
    command.add_argument(
        "--allow",
        nargs="+",
        default=[],
        metavar="NAME",
        help="go on in --out although these entries of its request differ, such as weights or "
        "ocr.version; what is there stays, the manifest tells both values",
    )
    add_swap_options(command)
    add_common_options(command)
    command.set_defaults(run=localize)


def _add_pairs_options(command: argparse.ArgumentParser) -> None:
    """Which prompt pairs and seeds."""
    command.add_argument(
        "--what",
        metavar="ATTRIBUTE",
        default=WORD,
        help="what is looked for: the word (default), or the style, colour, shape, wall or pattern of the "
        "shipped signs, in pairs that differ in nothing else",
    )
    command.add_argument(
        "--pairs", type=int, help="how many prompt pairs of the shipped word lists (8)"
    )
    command.add_argument(
        "--split", help="which words, ours or GlyphControl's: validation (default) or test"
    )
    command.add_argument(
        "--same-scene",
        action="store_true",
        help="source and target prompt differ in the word alone",
    )
    command.add_argument(
        "--prompts",
        type=Path,
        help="own prompt pairs: a file of lines `source<TAB>target`, or a "
        "folder with a copy of GlyphControl-release",
    )
    command.add_argument(
        "--bench",
        help="GlyphControl's prompts: simple (default), creative, or mixed, creative with "
        "another sentence for the target",
    )
    command.add_argument(
        "--limit", type=int, help="how many of GlyphControl's pairs (all of the split)"
    )
    command.add_argument(
        "--strict",
        action="store_true",
        help="refuse pairs that differ in more than the quoted text; of --prompts FILE they are warned of",
    )
    command.add_argument(
        "--shard",
        metavar="I/N",
        help="do the I-th of N parts, 0/N to N-1/N, into the run folder they "
        "share (torchrun's RANK and WORLD_SIZE)",
    )
    command.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0],
        help="noise seeds; every pair with every seed (0)",
    )


def localize(options) -> None:
    """`textpatch localize`: the ranked table, and a run folder with heat map, contact sheet and report."""
    from textpatch.localization.layers import check
    from textpatch.localization.layers import localize as localize_
    from textpatch.localization.trials import require_known_letters
    from textpatch.report.page import publish

    if options.sets and options.sites:
        raise PatchError(
            "--sites and --set were both given, and --set replaces --sites; give one of them"
        )
    pairs, sites_, shard = _pairs(options), options.sites or ["all"], _shard(options)
    pipeline = load_sized(options)
    ocr = _reader(options, pipeline, pairs)
    steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
    prompts = [(pair.source, pair.target) for pair in pairs]
    what = {} if options.what == WORD else {"what": options.what}
    request = dict(
        command="localize",
        pairs=prompts,
        seeds=options.seeds,
        sites=sites_,
        sets=options.sets,
        steps=steps,
        guidance=guidance,
        start=options.start,
        branch=options.branch,
        **what,
    )
    search = dict(mode=options.mode, keep=options.keep, first=options.first)
    if (
        options.mode != "exhaustive"
    ):  # whose requests, and so whose folders, are as they were without modes
        request |= search
    more = {name: True for name in ("starts", "heads") if getattr(options, name)}
    request |= more
    asked = dict(
        sites=sites_,
        groups=options.sets,
        seeds=options.seeds,
        steps=steps,
        start=options.start,
        **search,
    )
    check(pipeline, pairs, **asked, shard=shard)
    _warn_of_scenes(options, prompts)
    ocr.self_test()
    require_known_letters(pairs, ocr)
    run = open_run(
        options, pipeline, request, worker=str(shard[0] if shard else 0), ocr=ocr.describe()
    )
    with _told_on_interrupt(
        f"what is finished is in {run.folder}; the same command goes on where it stopped"
    ):
        try:
            found = localize_(
                pipeline,
                pairs,
                **asked,
                guidance=guidance,
                branch=options.branch,
                ocr=ocr,
                run=run,
                shard=shard,
                **more,
            )
        except Unfinished as told:
            print(told)
            return
        publish(run, found.result, found.records)
    print(found)
    print(run.folder / "report.html")


def _pairs(options) -> list:
    """The prompt pairs asked for; an option that would have no effect on them is an error."""
    from textpatch.prompts.glyphcontrol import glyphcontrol_pairs, read_pairs
    from textpatch.prompts.pairs import Pair

    if options.what != WORD:
        return _attribute_pairs(options)
    listed = options.prompts is not None and options.prompts.is_dir()
    if not listed and (options.bench or options.limit is not None):
        raise PatchError(
            "--bench and --limit choose among GlyphControl's prompts; give its folder with --prompts"
        )
    if options.prompts is None:
        from textpatch.weights.signs.pairs import sign_pairs

        return [
            Pair(*pair) for pair in sign_pairs(**_drawn(options), same_scene=options.same_scene)
        ]
    if options.pairs is not None or options.same_scene or (options.split and not listed):
        raise PatchError(
            "--pairs, --split and --same-scene choose among our word lists; with --prompts leave them out"
        )
    if not listed:
        return [Pair(*pair) for pair in read_pairs(options.prompts)]
    return glyphcontrol_pairs(
        options.prompts,
        options.bench or "simple",
        options.split or "validation",
        limit=options.limit,
    )


def _drawn(options) -> dict:
    """How many pairs of the shipped word lists, and of which words."""
    return dict(
        n=8 if options.pairs is None else options.pairs, split=options.split or "validation"
    )


def _attribute_pairs(options) -> list:
    """Pairs of the shipped signs that differ in --what alone; options that are about words are an error."""
    from textpatch.weights.signs.pairs import attribute_pairs

    beside = {
        "--prompts": options.prompts,
        "--bench": options.bench,
        "--limit": options.limit,
        "--strict": options.strict,
        "--same-scene": options.same_scene,
        "--mode contribution": options.mode == "contribution",
    }
    about_words = [
        name for name, given in beside.items() if given is not None and given is not False
    ]
    if about_words:
        raise PatchError(
            f"--what {options.what} was given with {', '.join(about_words)}, which is for words alone; "
            "leave out one or the other"
        )
    return attribute_pairs(options.what, **_drawn(options))


def _reader(options, pipeline, pairs: list):
    """Who reads the pictures: tesseract a word, in its letters, the nearest drawing another attribute of a sign."""
    if options.what == WORD:
        from textpatch.metrics import Tesseract, alphabet_of

        return Tesseract(alphabet=alphabet_of(word for pair in pairs for word in pair.words))
    from textpatch.pipelines import picture_size
    from textpatch.weights.signs.reader import SignReader

    reader, size = SignReader(), picture_size(pipeline)
    if size != (reader.fmt.height, reader.fmt.width):
        raise PatchError(
            f"--what {options.what} is read from signs of {reader.fmt.height}x{reader.fmt.width} pixels "
            f"(height x width), and pictures here are {size[0]}x{size[1]}; give a shipped model at its own size"
        )
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

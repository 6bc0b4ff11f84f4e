"""The verb `textpatch localize`."""

from __future__ import annotations

import argparse

from textpatch.cli.before import announced, fitting
from textpatch.cli.models import import_heavy, load_sized
from textpatch.cli.opening import open_run
from textpatch.cli.options import (
    SITES_HELP,
    Help,
    add_batch_option,
    add_folder_option,
    add_loading_options,
    add_model,
    add_plan_option,
    add_sampling_options,
    add_seeds_option,
    add_swap_options,
)
from textpatch.cli.outcome import Outcome
from textpatch.cli.prompt_pairs import (
    WORD,
    add_pairs_options,
    asked_pairs,
    reader_of,
    warn_of_scenes,
)
from textpatch.cli.workers import add_shard_option, require_writer
from textpatch.errors import PatchError
from textpatch.runs.interrupts import told_on_interrupt
from textpatch.text import number_of

HELP = Help(
    usage="textpatch localize MODEL [options]",
    summary="find the sites that carry the word",
    about="""\
Find the sites that carry the word.

A pair of prompts, source and target, asks for two words. The source's picture is generated
again from the same noise, but at one site it reads the text of the target. If the picture
then shows the target's word, that site carries the word. OCR reads the pictures, and a
site's score is the F1 of the letters read towards the target's word.

A table of all sites is printed, the best first, with 95 % intervals over pairs. The run
folder keeps report.html, heatmap.png, contact_sheet.png, results.json and results.csv.

Cost: for each pair and seed a generation of the source, one of the target and one for each
site, and some more for sets of sites, and, where pictures have several lines, six times as
many to exchange each word alone. The first example makes 128 generations, which take
one CPU core 40 seconds. A screening mode (--mode) makes fewer where there are many sites.
What is finished is kept: after Ctrl-C the same command goes on.\
""",
    examples=(
        (
            "sixteen pictures for every site of a small model",
            "textpatch localize planted-mmdit --pairs 8 --seeds 0 1",
        ),
        (
            "the site that carries the style of the lettering",
            "textpatch localize tiny-mmdit --what style --pairs 4",
        ),
    ),
)
ROWS = 64  # at once, where the memory holds them
MOST_MAPS = 8  # sites whose maps the page shows
MODES = ["exhaustive", "staged", "contribution", "attribution"]


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `textpatch localize`."""
    add_model(command)
    pairs = command.add_argument_group("which pairs of prompts")
    add_pairs_options(pairs)
    add_seeds_option(pairs)
    sites = command.add_argument_group("which sites, and when they are swapped")
    _add_sites_options(sites)
    add_swap_options(sites)
    _add_search_options(command.add_argument_group("how much is tried"))
    pictures = command.add_argument_group("how pictures are made")
    add_sampling_options(pictures)
    add_batch_option(pictures)
    kept = command.add_argument_group("what is kept, and by how many processes")
    add_folder_option(kept)
    add_plan_option(kept)
    _add_run_options(kept)
    add_loading_options(command)
    command.set_defaults(run=localize)


def _add_sites_options(group) -> None:
    group.add_argument(
        "--sites",
        nargs="+",
        metavar="SITE",
        help=f"sites, each tried alone: {SITES_HELP} (default: all)",
    )
    group.add_argument(
        "--set",
        dest="sets",
        nargs="+",
        action="append",
        metavar="SITE",
        help="sites tried together, instead of --sites; give it once for each set",
    )


def _add_search_options(group) -> None:
    group.add_argument(
        "--mode",
        choices=MODES,
        default="exhaustive",
        help="exhaustive (default) scores every site on every pair. The others screen first and score only "
        "what they keep: staged screens by scores on a few pairs, contribution by what a site gives to the "
        "picture, attribution by what backward passes promise of a swap",
    )
    group.add_argument(
        "--keep",
        type=int,
        metavar="N",
        help="how many sites a screening keeps at least (default: as many as stand out)",
    )
    group.add_argument(
        "--first",
        type=int,
        metavar="N",
        help="pairs a screening begins with, doubled for sites still in doubt (default: 4)",
    )
    group.add_argument(
        "--starts",
        action="store_true",
        help="also find the step up to which the found sites may be left alone; costs, for each pair and "
        "seed, half a generation per step",
    )
    group.add_argument(
        "--heads",
        action="store_true",
        help="also find which of the found sites' n heads do the work; costs, for each pair and seed, "
        "about n * n / 2 generations",
    )
    group.add_argument(
        "--no-each-word",
        action="store_true",
        help="where pictures have several lines, leave out the search in which each word is exchanged alone "
        "and every line is read; it costs, for each pair and seed, five to six generations per site",
    )
    group.add_argument(
        "--maps",
        action="store_true",
        help="also show on the page where the first source's word is read, at the eight best sites; costs a "
        "generation",
    )


def _add_run_options(group) -> None:
    group.add_argument(
        "--allow",
        nargs="+",
        default=[],
        metavar="NAME",
        help="go on in --out although these entries of its request differ, such as weights or ocr.version; "
        "what is there stays, and the manifest tells both values",
    )
    add_shard_option(group)


def localize(options) -> Outcome:
    """Print the ranked table, and leave a run folder with heat map, contact sheet and report."""
    import_heavy()
    from textpatch.localization.layers import check
    from textpatch.localization.layers import localize as localize_
    from textpatch.localization.preconditions import require_known_letters
    from textpatch.metrics.readers.in_time import InTime
    from textpatch.metrics.readers.strictness import over_reading
    from textpatch.report.page import publish
    from textpatch.runs.sessions import noted_session

    if options.sets and options.sites:
        raise PatchError(
            "--sites and --set were both given, and --set replaces --sites; give one of them"
        )
    pairs = asked_pairs(options)
    pipeline = load_sized(options)
    reader = reader_of(options, pipeline, pairs)
    steps, guidance = pipeline.defaults.run(options.steps, options.guidance)
    asked = _asked(options, steps, guidance)
    further = {name: True for name in ("starts", "heads") if getattr(options, name)}
    each = _words_each(options, pipeline, pairs)
    if each:
        further["each_word"] = True
    check(pipeline, pairs, **asked, starts=options.starts)
    prompts = [(pair.source, pair.target) for pair in pairs]
    warn_of_scenes(options, prompts)
    _tell_cost(options, pipeline, asked, len(pairs))
    InTime(reader).self_test()
    require_known_letters(pairs, reader)
    at_once = fitting(options, pipeline, guidance, ROWS)
    planned = _announced(options, pipeline, asked, len(pairs), at_once, each)
    if planned is not None:
        return planned
    request = _request(options, prompts, steps, guidance) | further | {"ocr": reader.describe()}
    run = open_run(options, pipeline, request, over_reading=over_reading(reader))
    there = f"what is finished is in {run.folder}; the same command goes on where it stopped"
    with told_on_interrupt(there):
        with noted_session(run, pipeline.device):
            found = localize_(
                pipeline,
                pairs,
                **asked,
                **further,
                ocr=reader,
                run=run,
                shard=options.worker,
                micro_batch=at_once,
            )
        require_writer(options, run.folder)
        maps = []
        if options.maps:
            maps = _maps(pipeline, pairs[0].source, found.ranked, options.seeds[0], steps, guidance)
        publish(run, found.result, found.records, maps=maps)
    return Outcome(repr(found), found.result, run.folder / "report.html", run.folder)


def _words_each(options, pipeline, pairs: list) -> int:
    """Return how many words of a prompt are exchanged alone, 0 where that is not asked for or cannot be."""
    from textpatch.localization.word_by_word import has_several_words
    from textpatch.quotes import quoted_words

    if options.no_each_word or options.what != WORD or not has_several_words(pipeline, pairs):
        return 0
    return len(quoted_words(pairs[0].source))


def _announced(options, pipeline, asked: dict, pairs: int, at_once: int, each: int):
    """Say what the search will make, and return the Outcome with which --plan ends it, else None.

    each  words of a prompt that are exchanged alone
    """
    from textpatch.localization.layers import tried
    from textpatch.localization.word_by_word import rows_each

    groups = tried(pipeline, asked["sites"], asked["groups"])
    sites = len(groups)
    more = rows_each(each, [*groups, (0, 1)]) if each else 0
    words = f" + {more} for each word alone" if each else ""
    asked_of = f"{number_of(pairs, 'pair')} x {number_of(len(options.seeds), 'seed')}"
    made = f"{asked_of} x ({number_of(sites, 'site')} + source + target{words})"
    if options.mode == "exhaustive":
        made += ", beside what a growing set takes,"
    else:
        made = f"at most {made}"
    generations = pairs * len(options.seeds) * (sites + 2 + more)
    run = {name: asked[name] for name in ("steps", "guidance")}
    return announced(options, pipeline, made, generations, at_once=at_once, **run)


def _maps(pipeline, prompt: str, ranked: list, seed: int, steps: int, guidance) -> list:
    """Return titles and pictures of the maps of a prompt's word at the best sites."""
    from textpatch.maps.word_maps import attention_map

    best = [site for group in ranked for site in group][:MOST_MAPS]
    made = attention_map(
        pipeline, prompt, sites=best, seed=seed, run_steps=steps, guidance=guidance
    )
    return made.pictures()


def _tell_cost(options, pipeline, asked: dict, pairs: int) -> None:
    """Print what the run will take, of a pipeline that knows what its steps take."""
    from textpatch.localization.forecast import cost_of
    from textpatch.pipelines import draws_by_itself
    from textpatch.ports.shipped import site_indices

    if not draws_by_itself(pipeline):
        return
    groups = asked["groups"] or site_indices(pipeline, asked["sites"])
    run = {name: asked[name] for name in ("mode", "steps", "guidance")}
    print(cost_of(pipeline, len(groups), pairs * len(options.seeds), **run), flush=True)


def _asked(options, steps: int, guidance: float) -> dict:
    """Return the arguments that `check` and `localize` share."""
    return {
        "sites": options.sites or "all",
        "groups": options.sets,
        "seeds": options.seeds,
        "steps": steps,
        "guidance": guidance,
        "branch": options.branch,
        "start": options.start,
        **_search(options),
    }


def _search(options) -> dict:
    """Return how the sites are searched."""
    return {"mode": options.mode, "keep": options.keep, "first": options.first}


def _request(options, prompts: list[tuple[str, str]], steps: int, guidance: float) -> dict:
    """Return what decides the results beside the model.

    Entries that came with later options are left out at their defaults, so that older run folders go on.
    """
    request = {
        "command": "localize",
        "pairs": prompts,
        "seeds": options.seeds,
        "sites": options.sites or ["all"],
        "sets": options.sets,
        "steps": steps,
        "guidance": guidance,
        "start": options.start,
        "branch": options.branch,
    }
    if options.what != WORD:
        request["what"] = options.what
    if options.mode != "exhaustive":
        request |= _search(options)
    return request

"""Which heads of the localised sites do the work: the greedy search of the official code, for one site or several."""

from __future__ import annotations

from dataclasses import asdict

from textpatch.localization.search import take_away
from textpatch.localization.trials import Trials
from textpatch.metrics import f1_of_means
from textpatch.ports.shipped import find_sites
from textpatch.progress import phase
from textpatch.sites import select_sites


def head_search(trials: Trials, sites) -> dict:
    """The heads that, swapped alone, score as all heads of the sites do, most needed first; see `search.take_away`.

    sites   what `select_sites` understands; the heads of several are searched together
    Returns {"sites", "heads", "steps"}: (site, head) of all needed, and of every step the head taken away, the F1
    towards the target of those left and of those taken so far, and what these lack of the F1 of all heads.
    Makes about n^2 / 2 groups of n heads, on all pairs and seeds.  Raises PatchError for unknown sites.
    """
    chosen = select_sites(find_sites(trials.pipeline.denoiser), sites)
    heads = [(site.index, head) for site in chosen for head in range(site.text_heads)]
    with phase("heads"):
        steps = take_away(trials.score, heads, len(trials.pairs), f1_of_means)
    return {
        "sites": [site.index for site in chosen],
        "heads": [list(head) for head in steps[-1].group],
        "steps": [asdict(step) for step in steps],
    }

"""Rewrite what some sites know: let their keys and values read one text as another, without training.

The result is an adapter, so that it can be scaled, saved, merged, swapped under and taken off.

R prompts, T text tokens, M readings of a token, C width of what a projection reads
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from textpatch.changes import LowRank, changes_of
from textpatch.errors import PatchError, closest
from textpatch.finite import is_finite
from textpatch.pipelines import SupportsSampling, require_parts
from textpatch.seeds import whole_seeds
from textpatch.sites import Selectors, Site
from textpatch.taps import chosen_sites
from textpatch.tuning.closed_form import Readings, solved
from textpatch.tuning.low_rank import Adapter, base_sha256, layers_of
from textpatch.tuning.read_vectors import of_runs, of_static_text
from textpatch.tuning.token_pairs import KINDS, paired

Place = tuple[int, int]  # (prompt, token)
Edit = list[tuple[Place, Place]]  # what is read, and what is to be read instead


@torch.no_grad()
def rewrite(
    pipeline: SupportsSampling,
    edits: Sequence[tuple[str, str]],
    *,
    sites: Selectors,
    tokens: str = "all",
    ridge: float = 0.1,
    preserve: Sequence[str] = (),
    weight: float = 1.0,
    preserve_weight: float = 1.0,
    part: str = "kv",
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
) -> Adapter:
    """Adapter under which sites read old texts as new ones.      (`closed_form` has the equation)

    edits     (old, new) prompts
    sites     where, as `select_sites` takes them
    tokens    which tokens of old are read as which of new: "all", "aligned" or "last" (`token_pairs.paired`)
    ridge     lambda, the weight of keeping the matrix as it is.  0 lets all tokens of one text be read as
              those of another exactly, which is an injection of that text
    preserve  prompts whose tokens of the same kind stay as they are
    weight, preserve_weight  of edited tokens, and of preserved ones
    part      "kv", or only "k" or only "v"
    seeds, steps  of pictures in which an evolving text is captured.  Seed 0 and the model's steps when None

    The adapter's `made["residual"]` is the largest share of the wanted change that a projection lacks.
    Raises PatchError

    - for projections that read the picture, too, as those of FLUX's blocks of one stream
    - for seeds or steps where text is static, because no picture is drawn
    - for no edits, an edit of a text into itself, and numbers that are none
    - for texts that `token_pairs.paired` cannot pair
    - under an adapter, because the edit would be of the sum
    """
    chosen = _editable_sites(pipeline, sites)
    _require_edits(edits, preserve)
    _require_settings(tokens, part, ridge=ridge, weight=weight, preserve_weight=preserve_weight)
    runs = _runs(pipeline, chosen, seeds, steps)
    kept = [(text, text) for text in preserve]
    prompts = list(dict.fromkeys(text for pair in [*edits, *kept] for text in pair))
    condition = pipeline.encode(prompts)
    rows = _rows(pipeline, [*edits, *kept], prompts, tokens, condition.tokens.shape[1])
    weights = [weight] * len(edits) + [preserve_weight] * len(kept)
    names = [site.taps["kv".index(one)].module for site in chosen for one in part]
    read = _vectors(pipeline, names, prompts, condition, runs)
    changes, residual = _solved(pipeline.denoiser, read, rows, weights, ridge)
    texts = {"edits": [list(edit) for edit in edits], "preserve": list(preserve)}
    settings = {"tokens": tokens, "ridge": ridge, "weights": [weight, preserve_weight], **runs}
    made = {"by": "rewrite", **texts, **settings, "residual": residual}
    return Adapter(changes, base_sha256(layers_of(pipeline.denoiser, changes)), made)


def _runs(
    pipeline: SupportsSampling,
    sites: Sequence[Site],
    seeds: Sequence[int] | None,
    steps: int | None,
) -> dict[str, Any]:
    """Seeds and steps of the runs that show what sites read, {} where the text alone settles this.

    Raises PatchError for seeds or steps that would have no effect, or that are none.
    """
    static = all(site.text_is_static for site in sites) and hasattr(pipeline.denoiser, "text_kv")
    if not static:
        steps, _ = pipeline.defaults.run(steps, 1)
        return {"seeds": _listed([0] if seeds is None else seeds), "steps": steps}
    for name, value in (("seeds", seeds), ("steps", steps)):
        if value is not None:
            raise PatchError(
                f"{name} is {value!r}, and the text of {pipeline.name} alone settles what its sites read, so "
                "that nothing is drawn; leave it out"
            )
    return {}


def _solved(
    denoiser: Any,
    read: dict[str, Tensor],
    edits: list[Edit],
    weights: list[float],
    ridge: float,
) -> tuple[dict[str, LowRank], float]:
    """Change of each projection, and the largest share of the wanted change that one lacks."""
    changes = {}
    residuals = []
    for name, vectors in read.items():
        readings = _readings(vectors, edits, weights)
        changes[name], residual = solved(denoiser.get_submodule(name).weight, readings, ridge)
        residuals.append(residual)
    return changes, max(residuals)


def _rows(
    pipeline: SupportsSampling,
    edits: Sequence[tuple[str, str]],
    prompts: list[str],
    tokens: str,
    total: int,
) -> list[Edit]:
    """Places of what each edit reads, and of what it is to read instead."""
    places = []
    for old, new in edits:
        pairs = paired(tokens, pipeline, old, new, total)
        one, other = prompts.index(old), prompts.index(new)
        places.append([((one, token), (other, place)) for token, place in pairs])
    return places


def _readings(x: Tensor, edits: list[Edit], weights: list[float]) -> Readings:
    """Rows of one projection that reads x (R, T, M, C)."""
    pairs = [pair for edit in edits for pair in edit]
    read = torch.cat([x[place] for place, _ in pairs])
    wanted = torch.cat([x[place] for _, place in pairs])
    each = [weight for edit, weight in zip(edits, weights, strict=True) for _ in edit]
    weighed = torch.tensor(each, dtype=torch.float64, device=x.device)
    return Readings(read, wanted, weighed.repeat_interleave(x.shape[2]))


def _listed(seeds: Sequence[int]) -> list[int]:
    """Seeds of the runs.   Raises PatchError as `whole_seeds`, for none, and for one given twice."""
    found = whole_seeds(seeds)
    if not found or len(set(found)) < len(found):
        raise PatchError(
            f"seeds are {seeds!r}; give the seeds of one picture or several, each once"
        )
    return found


def _vectors(
    pipeline: SupportsSampling,
    names: list[str],
    prompts: list[str],
    condition: Any,
    runs: dict[str, Any],
) -> dict[str, Tensor]:
    """Vectors (R, T, M, C) that each projection reads of some prompts, by its name."""
    if runs:
        return of_runs(pipeline, names, prompts, **runs)
    return of_static_text(pipeline.denoiser, names, condition)


def _editable_sites(pipeline: SupportsSampling, sites: Selectors) -> Sequence[Site]:
    """Sites that are chosen.

    Raises PatchError for projections that read more than text, and for a pipeline under an adapter.
    """
    require_parts(pipeline, "rewrite", SupportsSampling)
    chosen = chosen_sites(pipeline.denoiser, sites)
    for site in chosen:
        if site.span.place != "all" or any(tap.channels for tap in site.taps):
            raise PatchError(
                f"{site.name} of {pipeline.name} reads text and picture by the same projections, so that an "
                "edit of the text would change the picture's, too; choose other sites"
            )
    adapters = changes_of(pipeline.denoiser)
    if adapters:
        raise PatchError(
            f"{pipeline.name} is under adapter {', '.join(adapters)}, and an edit of the sum fits no base; "
            "leave the block first"
        )
    return chosen


def _require_edits(edits: Any, preserve: Any) -> None:
    """Raise PatchError unless edits are pairs of different texts, and what is preserved texts."""
    if isinstance(edits, str) or not isinstance(edits, Sequence) or not edits:
        raise PatchError(f"edits are {edits!r}; give a list of (old, new) prompts")
    for edit in edits:
        if isinstance(edit, str) or not isinstance(edit, Sequence) or len(edit) != 2:
            raise PatchError(f"an edit is {edit!r}; give (old, new), two prompts")
        if not all(isinstance(text, str) for text in edit):
            raise PatchError(f"an edit is {edit!r}; give (old, new), two prompts")
        if edit[0] == edit[1]:
            raise PatchError(f"{edit[0]!r} is to be read as itself; name it in `preserve` instead")
    if isinstance(preserve, str) or not all(isinstance(text, str) for text in preserve):
        raise PatchError(f"preserve is {preserve!r}; give a list of prompts")


def _require_settings(tokens: str, part: str, **numbers: Any) -> None:
    """Raise PatchError for a kind of tokens, a part or a number that is none."""
    if tokens not in KINDS:
        raise PatchError(f"tokens is {tokens!r}{closest(tokens, KINDS)}")
    if part not in ("kv", "k", "v"):
        raise PatchError(f"part is {part!r}; give 'kv', 'k' or 'v'")
    for name, number in numbers.items():
        least = 0 if name != "weight" else math.ulp(0)
        if not is_finite(number) or number < least:
            raise PatchError(
                f"{name} is {number!r}; give a positive number (ridge and preserve_weight may be 0)"
            )

"""`wrap` makes one of our pipelines of somebody else's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from textpatch.errors import PatchError
from textpatch.foreign.drawn import Draw, Wrapped, require_not_compiled
from textpatch.foreign.recipes import CalledPipe
from textpatch.pipelines import TextBox, denoiser_of
from textpatch.ports.matching import SiteSpec, match_sites
from textpatch.ports.shipped import find_sites, shipped_table
from textpatch.sites import Site


def wrap(
    model: object,
    draw: Draw | None = None,
    *,
    sites: Sequence[SiteSpec] | Sequence[Site] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    calls: Sequence[Sequence[str]] | None = None,
    name: str | None = None,
    text_box: TextBox | None = None,
    localized: Sequence[int] = (),
    **options: object,
) -> Wrapped:
    """Make a pipeline of somebody else's, for `sample`, `edit`, `localize` and the command line.

    model     one of diffusers' pipelines, whose class has a recipe, or the denoiser of anybody's, whose
              call is a step
    draw      draw(prompts, *, seeds, steps, guidance, negative) gives one picture for each prompt, or one
              array of a sound, in their order.  None for a pipeline with a recipe
    sites     a table of SiteSpecs, or Sites.  The shipped table of the class when None
    steps, guidance  of a run of which nothing else is asked.  A recipe has its own
    calls     which branches the rows of each call of a step are: [["uncond", "cond"]] for one call with the
              unconditional rows first, [["cond"], ["uncond"]] for two.  Found out in short runs when None
    name      what manifests and reports call it
    text_box  left, upper, right, lower pixel of where words stand, or these of each line, None if unknown
    localized indices of the sites that were found to carry words
    options   further arguments of every call of a pipeline with a recipe, such as height and width

    Nothing runs before something is asked of the pipeline.
    Raises PatchError for a pipeline without a recipe, for a model that is compiled, for a pipeline where its
    denoiser is meant, and for what a call without a recipe lacks.
    """
    if draw is None:
        draw = _called(model, options)
        denoiser = draw.denoiser
        steps = steps or draw.steps
        guidance = draw.guidance if guidance is None else guidance
        name = name or _name_of(model)
    else:
        denoiser = _own_denoiser(model, draw, options)
        name = name or type(model).__name__
    if steps is None or guidance is None:
        raise PatchError(
            f"{steps=} and {guidance=} of a drawn run are not known; give those of a run of which nothing "
            "else is asked: wrap(denoiser, draw, steps=28, guidance=3.5)"
        )
    require_not_compiled(denoiser)
    _require_name(name)
    return Wrapped(
        denoiser,
        draw,
        *_sites(denoiser, sites),
        steps=steps,
        guidance=guidance,
        calls=calls,
        name=name,
        text_box=text_box,
        localized=tuple(localized),
    )


def _called(pipe: object, options: dict[str, object]) -> CalledPipe:
    """Call of a pipeline with a recipe.   Raises PatchError for a model alone."""
    if isinstance(pipe, nn.Module) and denoiser_of(pipe) is None:
        raise PatchError(
            f"wrap was given the model {type(pipe).__name__} and no call that draws; give the pipeline, or "
            "wrap(denoiser, draw, steps=..., guidance=...)"
        )
    return CalledPipe(pipe, options)


def _own_denoiser(model: object, draw: object, options: dict[str, object]) -> nn.Module:
    """The model, which a call of one's own draws with.   Raises PatchError where they cannot be wrapped."""
    if not isinstance(model, nn.Module):
        part = denoiser_of(model)
        cure = "give the torch module whose call is a step"
        if part is not None:
            cure = f"give its .{part}: wrap(pipe.{part}, draw, ...)"
        raise PatchError(f"wrap was given a {type(model).__name__} beside a draw; {cure}")
    if not callable(draw):
        raise PatchError(
            f"draw is {draw!r}; give a function draw(prompts, *, seeds, steps, guidance, negative)"
        )
    if options:
        raise PatchError(
            f"wrap was given {', '.join(options)} beside a draw, and only the call of a pipeline with a "
            "recipe takes further arguments; let the draw pass them"
        )
    return model


def _sites(model: nn.Module, given: Any) -> tuple[tuple[Site, ...], dict[str, str]]:
    """Sites of a model by a table, by Sites, or by what is shipped.

    Beside them stands by name what the audit does not replay.
    """
    if given is not None and all(isinstance(one, Site) for one in given):
        return tuple(given), {}
    if given is None and getattr(model, "sites", None):
        return find_sites(model), {}
    matched = match_sites(model, shipped_table(model) if given is None else given)
    reasons = {site.name: _beyond_audit(spec) for site, spec in matched}
    return (
        tuple(site for site, _ in matched),
        {name: reason for name, reason in reasons.items() if reason},
    )


def _beyond_audit(spec: SiteSpec) -> str:
    """What the audit does not replay at the sites of a row of a table, "" where it replays all."""
    if spec.kind == "single":
        return "has text and image in one stream"
    if spec.rotary:
        return "rotates its keys"
    if spec.span.mask is not None:
        return "hides text tokens by a mask"
    if spec.projections is not None or spec.fused is not None:
        return "has projections of other names"
    return ""


def _require_name(name: object) -> None:
    """Raise PatchError for a name that cannot be that of a folder."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise PatchError(
            f"the name of a wrapped pipeline is {name!r}; give letters, digits, points and hyphens, since "
            "run folders are called by it"
        )


def _name_of(pipe: Any) -> str:
    """Name of a pipeline, the last part of where it was loaded from, else its class."""
    place = getattr(getattr(pipe, "config", None), "_name_or_path", None)
    if isinstance(place, str) and place.strip("/"):
        return place.strip("/").rpartition("/")[2]
    return type(pipe).__name__

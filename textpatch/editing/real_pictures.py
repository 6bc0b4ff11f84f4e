"""Change the word of a picture that no model drew.

The picture is inverted under the source prompt, and from its noise the source's run reads the target's text
at a few sites.  FlowEdit inverts nothing, and moves the picture by a difference of velocities.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from PIL import Image
from torch import Tensor

from textpatch.editing.inversion import (
    LIMIT,
    PARTS,
    Inversion,
    flows,
    given_picture,
    invert,
    latents_of,
)
from textpatch.editing.inverting import DEFAULT, AnyMethod, FlowEdit, NegativePrompt, as_method
from textpatch.editing.solved import Moving, Solved, rescaled
from textpatch.errors import PatchError
from textpatch.groups import localized_group, require_start, rows_and_plan
from textpatch.guidance import ClassifierFree, Guidance, as_guidance, require_branch
from textpatch.html import figure, fragment, safe
from textpatch.ledger import Ledger
from textpatch.pipelines import SupportsSampling, require_parts
from textpatch.plan import Plan, Row
from textpatch.prompts.pairs import TARGET, Pair, require_apart
from textpatch.sampling import Samples, sample
from textpatch.sites import Selectors


@dataclass(frozen=True)
class PictureEdit:
    """Result of `edit_picture`.

    picture    the picture that was given
    image      the edited picture
    target     what the target's prompt makes of the same noise, its text read at all sites
    inversion  the noise of the picture, and how much of the picture comes back from it.  None for FlowEdit
    plan, pair, method, seed, steps, guidance  everything needed to make the picture again
    ledger     what the swaps changed
    """

    picture: Image.Image
    image: Image.Image
    target: Image.Image
    inversion: Inversion | None
    plan: Plan
    pair: Pair
    method: AnyMethod
    seed: int
    steps: int
    guidance: float | Guidance
    ledger: Ledger = field(default=Ledger(), repr=False)

    @property
    def pictures(self) -> dict[str, Image.Image]:
        """Pictures by name, as they are shown side by side."""
        shown = {"source": self.picture}
        if self.inversion is not None:
            shown["inversion"] = self.inversion.guided
        return {**shown, "edited": self.image, "target": self.target}

    def _repr_html_(self) -> str:
        asked, wanted = (safe(word) for word in self.pair.words)
        words = {"source": asked, "inversion": asked, "edited": wanted, "target": wanted}
        figures = [
            figure(image, name, f"<b>{words[name]}</b>") for name, image in self.pictures.items()
        ]
        return fragment(f'<div class="gallery">{"".join(figures)}</div>{self.plan._repr_html_()}')


def edit_picture(
    pipeline: SupportsSampling,
    picture: Image.Image | str | os.PathLike[str],
    source: str,
    target: str,
    *,
    sites: Selectors | None = None,
    start: int = 0,
    method: str | AnyMethod = DEFAULT,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    branch: str = "both",
    limit: float = LIMIT,
) -> PictureEdit:
    """Write the target prompt's word into a real picture that the source prompt describes.

    Three rows begin with the inverted noise.  The source's is held to the inverted trajectory.  The patched
    one reads the source's prompt, and at the sites the text K and V of the target's.  FlowEdit's rows begin
    with the picture, and move by the velocity of the patched row or the target's less the source's.

    picture         as `invert` takes it
    source, target  prompts, each with one word in double quotes.  The source describes the picture
    sites           where to swap, the sites localised for the model when None
    start           first patched step.  Step 0 is the noisiest
    method          a name of `textpatch.editing.inverting`, or an object from there
    seed            of the noises of RF-Inversion and FlowEdit.  The other methods draw none
    steps, guidance  of the run, the pipeline's own when None
    branch          "both" guidance branches are patched (official), or "cond" alone
    limit           largest error of the inversion, as in `invert`.  FlowEdit has none
    Raises PatchError as `invert` and `edit` do.
    """
    require_parts(pipeline, "edit_picture", *PARTS)
    steps, guidance = pipeline.defaults.run(steps, guidance)
    chosen = as_method(method, flows(pipeline), pipeline.name)
    pair = Pair(source, target)
    rows, plan = _asked(pipeline, pair, seed, sites, (start, steps), branch, guidance, chosen)
    inversion = None
    if isinstance(chosen, FlowEdit):
        image = given_picture(pipeline, picture)
        made = _moved(pipeline, latents_of(pipeline, image), rows, plan, chosen, steps, guidance)
    else:
        how = dict(method=chosen, steps=steps, guidance=guidance, seed=seed, limit=limit)
        inversion = invert(pipeline, picture, source, **how)
        image = inversion.picture
        made = _drawn(pipeline, inversion, rows, plan, guidance)
    made.ledger.require()
    return PictureEdit(
        picture=image,
        image=made.images[rows[-1].name],
        target=made.images[TARGET],
        inversion=inversion,
        plan=plan,
        pair=pair,
        method=chosen,
        seed=seed,
        steps=steps,
        guidance=made.guidance,
        ledger=made.ledger,
    )


def _asked(
    pipeline: SupportsSampling,
    pair: Pair,
    seed: int,
    sites: Selectors | None,
    window: tuple[int, int],
    branch: str,
    guidance: float | Guidance,
    method: AnyMethod,
) -> tuple[list[Row], Plan]:
    """Rows of source, target and patched run, and the plan of the swap, as `edit_picture` was asked.

    window  first patched step, and the number of steps
    """
    start, steps = window
    require_apart(pair)
    require_start(start, steps)
    require_branch(branch, guidance)
    group = localized_group(pipeline, sites)
    if isinstance(method, FlowEdit):
        start = max(start, method.first(steps))
    return rows_and_plan(pair, seed, [group], steps, start, branch)


def _drawn(
    pipeline: SupportsSampling,
    inversion: Inversion,
    rows: list[Row],
    plan: Plan,
    guidance: float | Guidance,
) -> Samples:
    """Run of rows from the inverted noise, the source's held to the trajectory."""
    source, *others = rows
    path = inversion.trajectory
    held = [replace(source, path=path), *(replace(row, latents=path[0]) for row in others)]
    if isinstance(inversion.method, NegativePrompt):
        guidance = with_negative(guidance, inversion.prompt)
    solved = Solved(pipeline, inversion.method, path[-1:])
    return sample(solved, held, plan, steps=inversion.steps, guidance=guidance)


def with_negative(guidance: float | Guidance, prompt: str) -> Guidance:
    """Classifier-free guidance whose other branch reads the source prompt.

    Raises PatchError for a guidance that has another prompt there, or no other branch.
    """
    guiding = as_guidance(guidance)
    if not isinstance(guiding, ClassifierFree) or guiding.negative is not None:
        raise PatchError(
            f"negative_prompt gives the other guidance branch the source prompt, and the guidance is "
            f"{guiding.describe()!r}; give a scale other than 1"
        )
    return ClassifierFree(guiding.scale, prompt)


def _moved(
    pipeline: SupportsSampling,
    latents: Tensor,
    rows: list[Row],
    plan: Plan,
    method: FlowEdit,
    steps: int,
    guidance: float | Guidance,
) -> Samples:
    """Run of rows that FlowEdit moves from the picture, over its last steps."""
    rescaled(as_guidance(guidance), method.source_guidance)
    first = method.first(steps)
    moving = [replace(row, joins=first, latents=latents[0]) for row in rows]
    return sample(Moving(pipeline, method), moving, plan, steps=steps, guidance=guidance)

"""Change the word of a picture and keep the rest.

The source's run reads the target's text at a few sites.  (ICLR 2025, sec. 5.2)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from textpatch.errors import PatchError
from textpatch.groups import require_start, rows_and_plan
from textpatch.guidance import Guidance, require_branch
from textpatch.html import figure, fragment, safe
from textpatch.ledger import Ledger
from textpatch.pipelines import SupportsSampling, require_parts
from textpatch.plan import Plan
from textpatch.ports.shipped import site_indices
from textpatch.prompts.pairs import SOURCE, TARGET, Pair, require_apart
from textpatch.sampling import sample


@dataclass(frozen=True)
class Edit:
    """Result of `edit`.

    image   the edited picture
    source, target  the plain pictures of both prompts from the same noise
    plan, pair, seed, steps, guidance  everything needed to make the picture again
    ledger  what the swaps changed
    method  another method that made the picture, without a plan.  None where a plan did
    """

    image: Image.Image
    source: Image.Image
    target: Image.Image
    # None where another method made it; said so, for whoever edits by a plan need not look
    plan: Plan | Any
    pair: Pair
    seed: int
    steps: int
    guidance: float | Guidance
    ledger: Ledger = field(default=Ledger(), repr=False)
    method: object = None

    def _repr_html_(self) -> str:
        asked, wanted = (safe(text) for text in _asked_for(self.pair))
        pictures = {
            "source": (self.source, asked),
            "edited": (self.image, wanted),
            "target": (self.target, wanted),
        }
        figures = [
            figure(image, name, f"asked for <b>{word}</b>")
            for name, (image, word) in pictures.items()
        ]
        how = f"<p>{safe(self.method)}</p>"
        if self.plan is not None:
            how = self.plan._repr_html_()
        return fragment(f'<div class="gallery">{"".join(figures)}</div>{how}')


def _asked_for(pair: Pair) -> tuple[str, str]:
    """Words of a pair, or its prompts where nothing is quoted."""
    if '"' not in pair.source + pair.target:
        return pair.source, pair.target
    return pair.words


def edit(
    pipeline: SupportsSampling,
    source: str,
    target: str,
    *,
    sites=None,
    start: int = 0,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    branch: str = "both",
) -> Edit:
    """Generate the source prompt's picture with the target prompt's word in it.

    The target's text K and V are swapped into the source's run at some sites, from one step on.

    source, target  prompts, each with one word in double quotes
    sites           where to swap, the sites localised for the model when None
    start           first patched step.  Step 0 is the noisiest
    seed            of the noise that all pictures begin with
    steps           denoising steps, the pipeline's own when None
    guidance        guidance of the run, the pipeline's own when None
    branch          "both" guidance branches are patched (official), or "cond" alone
    Raises PatchError for unknown sites, for a model without localised ones, for a start outside the run,
    for one branch of a run that has no other, and for a swap that changed nothing.
    """
    require_parts(pipeline, "edit", SupportsSampling)
    steps, guidance = pipeline.defaults.run(steps, guidance)
    if sites is None:
        sites = pipeline.defaults.localized
    if not sites and sites != 0:
        raise PatchError(
            f"no sites are known to carry the word in {pipeline.name}; name some, or run localize first"
        )
    require_start(start, steps)
    require_branch(branch, guidance)
    chosen = site_indices(pipeline.denoiser, sites)
    pair = Pair(source, target)
    require_apart(pair)
    rows, plan = rows_and_plan(pair, seed, [chosen], steps, start, branch)
    made = sample(pipeline, rows, plan, steps=steps, guidance=guidance)
    made.ledger.require()
    return Edit(
        image=made.images[rows[-1].name],
        source=made.images[SOURCE],
        target=made.images[TARGET],
        plan=plan,
        pair=pair,
        seed=seed,
        steps=steps,
        guidance=made.guidance,
        ledger=made.ledger,
    )


def upscaled(made: Edit, upscaler) -> Edit:
    """The edit with its three pictures drawn larger by a stage II.

    upscaler  a pipeline that `upscales`
    As in the official code all three pictures are drawn from the source's prompt and the noise of the
    edit's seed, without a swap.  So they differ in nothing but what the small pictures differ in.  Raises
    PatchError if the pipeline is no stage II.
    """
    small = [made.image, made.source, made.target]
    prompts = [made.pair.source] * len(small)
    image, source, target = upscaler.upscale(small, prompts, seeds=[made.seed] * len(small))
    return replace(made, image=image, source=source, target=target)

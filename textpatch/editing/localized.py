"""Change the word of a picture and keep the rest: the source's run reads the target's text at a few sites.

(ICLR 2025, sec. 5.2.)
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from PIL import Image

from textpatch.errors import PatchError
from textpatch.groups import rows_and_plan
from textpatch.guidance import Guidance
from textpatch.html import figure, fragment, safe
from textpatch.ledger import Ledger
from textpatch.pipelines import SupportsSampling, require_parts
from textpatch.plan import Plan
from textpatch.ports.shipped import find_sites
from textpatch.prompts.pairs import SOURCE, TARGET, Pair, require_apart
from textpatch.sampling import sample
from textpatch.sites import select_sites


@dataclass(frozen=True)
class Edit:
    """The edited picture, the two it lies between, everything needed to make it again, and what the swaps changed."""

    image: Image.Image
    source: Image.Image
    target: Image.Image
    plan: Plan
    pair: Pair
    seed: int
    steps: int
    guidance: float | Guidance
    ledger: Ledger = field(default=Ledger(), repr=False)

    def _repr_html_(self) -> str:
        asked, wanted = map(safe, self.pair.words)
        pictures = {
            "source": (self.source, asked),
            "edited": (self.image, wanted),
            "target": (self.target, wanted),
        }
        figures = [
            figure(image, name, f"asked for <b>{word}</b>")
            for name, (image, word) in pictures.items()
        ]
        return fragment(f'<div class="gallery">{"".join(figures)}</div>{self.plan._repr_html_()}')


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
    """Generate `source` with the word of `target`, by swapping text K and V at `sites` from step `start` on.

    sites  those localised for the model when None.  Both prompts hold one word in double quotes.
    Raises PatchError for unknown sites, a model without localised ones, a start outside the run, or a swap that changed
    nothing.
    """
    require_parts(pipeline, "edit", SupportsSampling)
    steps, guidance = pipeline.defaults.run(steps, guidance)
    sites = pipeline.defaults.localized if sites is None else sites
    if not sites and sites != 0:
        raise PatchError(
            f"no sites are known to carry the word in {pipeline.name}; name some, or run localize first"
        )
    if not 0 <= start < steps:
        raise PatchError(f"start is {start} of {steps} steps; a swap from there on would never act")
    chosen = tuple(site.index for site in select_sites(find_sites(pipeline.denoiser), sites))
    pair = Pair(source, target)
    pair.words  # noqa: B018  refuses prompts without a word
    require_apart(pair)
    rows, plan = rows_and_plan(pair, seed, [chosen], steps, start, branch)
    made = sample(pipeline, rows, plan, steps=steps, guidance=guidance)
    made.ledger.require()
    image, before, wanted = (made.images[name] for name in (rows[-1].name, SOURCE, TARGET))
    return Edit(image, before, wanted, plan, pair, seed, steps, made.guidance, made.ledger)


def upscaled(made: Edit, upscaler) -> Edit:
    """The edit's three pictures drawn larger by a stage II, a pipeline that `upscales`.

    It reads the source's prompt and the noise of the edit's seed for all three, and no swap, as in the official code:
    what differs between them then was in the small pictures.  Raises PatchError if the pipeline is no stage II.
    """
    small = [made.image, made.source, made.target]
    large = upscaler.upscale(small, [made.pair.source] * len(small), seeds=[made.seed] * len(small))
    return replace(made, **dict(zip(("image", "source", "target"), large)))

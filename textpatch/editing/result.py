"""What an edit gives back, and how it shows itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from PIL import Image

from textpatch.guidance import Guidance
from textpatch.html import figure, fragment, safe
from textpatch.ledger import Ledger
from textpatch.plan import Plan
from textpatch.prompts.pairs import SOURCE, TARGET, Pair
from textpatch.quotes import quotations


@dataclass(frozen=True)
class Edit:
    """Result of `edit`.

    image   the edited picture
    source, target  the plain pictures of both prompts from the same noise, None where they were not asked
                    for
    plan    the swaps that made the picture, empty for a method without swaps
    pair, seed, steps, guidance  everything else that is needed to make the picture again
    ledger  what the swaps changed
    method  name of the method of editing
    generations  rows that were sampled, each a run of all steps
    """

    image: Image.Image
    source: Image.Image | None
    target: Image.Image | None
    plan: Plan
    pair: Pair
    seed: int
    steps: int
    guidance: float | Guidance
    ledger: Ledger = field(default=Ledger(), repr=False)
    method: str = "localized"
    generations: int = 3

    @property
    def pictures(self) -> dict[str, Image.Image]:
        """Pictures that there are, by "source", "edited" and "target"."""
        named = {SOURCE: self.source, "edited": self.image, TARGET: self.target}
        return {name: image for name, image in named.items() if image is not None}

    def _repr_html_(self) -> str:
        asked, wanted = (safe(text) for text in _shown(self.pair))
        words = {SOURCE: asked, "edited": wanted, TARGET: wanted}
        figures = [
            figure(image, name, f"asked for <b>{words[name]}</b>")
            for name, image in self.pictures.items()
        ]
        return fragment(f'<div class="gallery">{"".join(figures)}</div>{self.plan._repr_html_()}')


def _shown(pair: Pair) -> tuple[str, str]:
    """Quoted texts of a pair, or its prompts where nothing is quoted."""
    if quotations(pair.source) and quotations(pair.target):
        return pair.words
    return pair.source, pair.target


def upscaled(made: Edit, upscaler) -> Edit:
    """The edit with its pictures drawn larger by a stage II.

    upscaler  a pipeline that `upscales`
    As in the official code all pictures are drawn from the source's prompt and the noise of the edit's
    seed, without a swap.  So they differ in nothing but what the small pictures differ in.  Raises
    PatchError if the pipeline is no stage II.
    """
    small = made.pictures
    prompts = [made.pair.source] * len(small)
    drawn = upscaler.upscale([*small.values()], prompts, seeds=[made.seed] * len(small))
    large = dict(zip(small, drawn, strict=True))
    return replace(made, image=large["edited"], source=large.get(SOURCE), target=large.get(TARGET))

"""`attention_map` shows what a word of the prompt receives from the picture and gives to it, at any site.

    received(i) = mean over heads of sum over tokens j of the word of p_h(i, j)
    given(i)    = mean over heads and tokens j of the word of p_h(j, i)

p_h(i, j) is the weight that query i gives to key j in head h, of the softmax over all keys, and i is a token
of the picture.  The word's tokens ask in joint and single streams alone, so that elsewhere nothing is given.
(Tang et al., arXiv 2210.04885.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from textpatch.auditing.replay import Definition
from textpatch.equality import equal
from textpatch.errors import PatchError
from textpatch.guidance import Guidance, as_guidance, branch_rows
from textpatch.html import figure, fragment, safe
from textpatch.maps.drawing import laid_over, resized
from textpatch.maps.heard import HeardWeights, Kept, grid_of
from textpatch.maps.hearing import hearing_words
from textpatch.maps.places import word_places
from textpatch.pipelines import DrawsByItself, SupportsSampling, draws_by_itself, require_sampling
from textpatch.plan import CONDITIONAL, Plan, Row, integers, require_in_range
from textpatch.ports.shipped import pipeline_sites
from textpatch.prompts.pairs import SOURCE
from textpatch.quotes import quotations
from textpatch.recording import Record, recording_sites
from textpatch.sampling import sample
from textpatch.sites import Selectors, Site, select_sites

KINDS = "received", "given"


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """What a word's tokens receive and give in one generation.

    image     the picture that was drawn
    prompt, words, tokens  the prompt, the words looked at, and the places of their tokens in the text
    sites, steps, heads    what was looked at, all heads when None
    received  site -> (steps, rows, columns) over the tokens of the picture
    given     the same, of the sites at which the text asks as well
    seed, run_steps, guidance  everything else that is needed to make the picture again
    """

    image: Image.Image
    prompt: str
    words: tuple[str, ...]
    tokens: tuple[int, ...]
    sites: tuple[Site, ...]
    steps: tuple[int, ...]
    heads: tuple[int, ...] | None
    received: Mapping[int, Tensor] = field(repr=False)
    given: Mapping[int, Tensor] = field(repr=False)
    seed: int
    run_steps: int
    guidance: float | Guidance

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AttentionMap) and equal(vars(self), vars(other))

    def array(self, kind: str = "received", sites: Selectors = "all") -> Tensor:
        """Mean (rows, columns) over steps and sites, on the largest grid of these sites.

        Raises PatchError for a kind that is none, for sites that are not there, and where no site has any.
        """
        if kind not in KINDS:
            raise PatchError(f"a map of {kind!r} was asked for; there are {', '.join(KINDS)}")
        maps = self.received if kind == "received" else self.given
        asked = select_sites(self.sites, sites)
        chosen = [site for site in asked if site.index in maps]
        if not chosen:
            raise PatchError(
                f"the text asks nothing at sites {[site.index for site in asked]} of kind "
                f"{asked[0].kind!r}, so its tokens give nothing there; look at what they received"
            )
        means = [maps[site.index].mean(0) for site in chosen]
        largest = max((mean.shape for mean in means), key=torch.Size.numel)
        return torch.stack([resized(mean, largest) for mean in means]).mean(0)

    def picture(self, kind: str = "received", sites: Selectors = "all") -> Image.Image:
        """The picture in grey, in colour where the map is high.

        Raises PatchError as `array`, and for sounds.
        """
        if not isinstance(self.image, Image.Image):
            raise PatchError(
                f"what was drawn is a {type(self.image).__name__} and no picture; look at `array`"
            )
        return laid_over(self.image, self.array(kind, sites))

    def pictures(self) -> list[tuple[str, Image.Image]]:
        """Titles and pictures of the plain drawing, of both kinds at all sites, and of each site."""
        shown = [("picture", self.image), ("received", self.picture())]
        if self.given:
            shown.append(("given", self.picture("given")))
        for site in self.sites:
            shown.append((f"received at site {site.index}", self.picture(sites=site)))
        return shown

    def _repr_html_(self) -> str:
        asked = ", ".join(self.words) or f"tokens {list(self.tokens)}"
        figures = [figure(image, title) for title, image in self.pictures()]
        said = f"<p><b>{safe(asked)}</b> in {safe(self.prompt)}</p>"
        return fragment(f'{said}<div class="gallery">{"".join(figures)}</div>')


def attention_map(
    pipeline: SupportsSampling | DrawsByItself,
    prompt: str,
    words: str | Sequence[str] | None = None,
    *,
    sites: Selectors = "all",
    steps: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    tokens: Iterable[int] | None = None,
    grid: tuple[int, int] | None = None,
    seed: int = 0,
    run_steps: int | None = None,
    guidance: float | Guidance | None = None,
) -> AttentionMap:
    """Draw a prompt, and map what some of its words receive from the picture and give to it.

    words   a word or phrase of the prompt, or several, the quoted texts when None.  They are found by the
            characters that each token stands for
    sites   anything `select_sites` understands
    steps   loop indices, all when None
    heads   heads of queries, all when None
    tokens  places of text tokens, in the place of words
    grid    rows and columns of the picture's tokens, found by their number and the picture's shape when
            None
    run_steps, guidance  of the generation, the model's defaults when None.  The conditional branch is read

    Raises PatchError for words that the prompt has not or the model does not read, and for sites, steps and
    heads that are not there.
    """
    require_sampling(pipeline, "attention_map")
    run_steps, guidance = pipeline.defaults.run(run_steps, guidance)
    chosen = select_sites(pipeline_sites(pipeline), sites)
    at = tuple(range(run_steps)) if steps is None else integers("steps", steps)
    require_in_range("step", at, run_steps, chosen[0])
    looked_at = _words(prompt, words, tokens)
    places = (
        integers("tokens", tokens)
        if tokens is not None
        else word_places(pipeline, prompt, looked_at)
    )
    heard = HeardWeights(places, None if heads is None else integers("heads", heads))
    row = Row(SOURCE, prompt, seed)
    image = _drawn(pipeline, row, chosen, at, heard, run_steps, guidance)
    received = _on_grids(heard.received, chosen, at, image, grid)
    given = _on_grids(heard.given, chosen, at, image, grid)
    return AttentionMap(
        image,
        prompt,
        looked_at,
        places,
        chosen,
        at,
        heard.heads,
        received,
        given,
        seed,
        run_steps,
        guidance,
    )


def _words(
    prompt: str, words: str | Sequence[str] | None, tokens: Iterable[int] | None
) -> tuple[str, ...]:
    """Words that were asked for, the quoted texts of the prompt when None.

    Raises PatchError where nothing is quoted, and for words beside tokens.
    """
    if tokens is not None:
        if words is not None:
            raise PatchError("words and tokens were both given; give one of them")
        return ()
    if words is not None:
        return (words,) if isinstance(words, str) else tuple(words)
    quoted = tuple(dict.fromkeys(quotation.text for quotation in quotations(prompt)))
    if not quoted:
        raise PatchError(f"{prompt!r} quotes no text; give the words to map, or `tokens`")
    return quoted


def _drawn(
    pipeline: SupportsSampling | DrawsByItself,
    row: Row,
    sites: tuple[Site, ...],
    steps: tuple[int, ...],
    heard: HeardWeights,
    run_steps: int,
    guidance: float | Guidance,
) -> Image.Image:
    """Picture of a row, whose weights are heard while it is drawn."""
    if draws_by_itself(pipeline):
        calls = pipeline.calls_of_step(guidance)
        with hearing_words(
            pipeline.denoiser,
            heard.tokens,
            sites=sites,
            steps=steps,
            heads=heard.heads,
            calls=calls,
        ) as kept:
            samples = sample(pipeline, [row], steps=run_steps, guidance=guidance)
        heard.received.update(kept.received)
        heard.given.update(kept.given)
        return samples.images[SOURCE]
    rows = branch_rows([row], as_guidance(guidance))
    batch = Definition(Plan(), rows, sites)
    place = [one.branch for one in rows].index(CONDITIONAL)

    def add(record: Record) -> None:
        heard.add_record(record, batch, place)

    with torch.no_grad(), recording_sites(pipeline.denoiser, sites, steps, add):
        samples = sample(pipeline, [row], steps=run_steps, guidance=guidance)
    return samples.images[SOURCE]


def _on_grids(
    kept: Kept,
    sites: tuple[Site, ...],
    steps: tuple[int, ...],
    image: Image.Image,
    grid: tuple[int, int] | None,
) -> dict[int, Tensor]:
    """Maps (steps, rows, columns) of each site that has any, by its index."""
    maps = {}
    for site in sites:
        if (site, steps[0]) in kept:
            flat = torch.stack([kept[site, step] for step in steps])
            maps[site.index] = _on_grid(flat, image, grid)
    return maps


def _on_grid(flat: Tensor, image: Image.Image, grid: tuple[int, int] | None) -> Tensor:
    """Map (steps, rows, columns) of one (steps, M)."""
    tokens = flat.shape[1]
    if grid is None and not isinstance(image, Image.Image):
        raise PatchError(
            f"what was drawn is a {type(image).__name__} and no picture, whose shape would tell how its "
            f"{tokens} tokens lie; give a `grid`, such as (1, {tokens})"
        )
    rows, columns = grid or grid_of(tokens, image.height, image.width)
    if rows * columns != tokens:
        raise PatchError(
            f"{tokens} tokens of the picture do not lie in {rows} rows of {columns}; give a `grid` of as "
            "many, or leave it out"
        )
    return flat.unflatten(1, (rows, columns))

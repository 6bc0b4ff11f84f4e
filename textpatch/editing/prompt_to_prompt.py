"""Prompt-to-Prompt, a target's picture drawn with the attention maps of its source.

Hertz et al. 2022 (arXiv 2208.01626).  In every step the maps of the target's row are edited from those of
the source's at the same site, in the conditional branch alone.  Both rows begin with one noise, and each has
its own pooled vector.  No map is made, as `replacing` says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Integral

import torch
from torch import Tensor

from textpatch.bank import encode
from textpatch.editing.edited_run import EditedRun
from textpatch.editing.local_blend import LocalBlend, WordMaps
from textpatch.editing.mappers import (
    ALIGNMENTS,
    CORRECTED,
    OFFICIAL,
    Mapper,
    block_diagonal,
    identity_mapper,
    refine_mapper,
    swap_mapper,
    swapped_words,
)
from textpatch.editing.pair_edit import SELF_LIMIT, PairEdit
from textpatch.editing.replacing import TextStep, text_steps
from textpatch.editing.result import Edit
from textpatch.editing.sharing import Share
from textpatch.editing.word_windows import DEFAULT, Window, bounds, self_steps, token_windows
from textpatch.errors import PatchError, PromptError
from textpatch.finite import is_finite
from textpatch.guidance import Guidance, as_guidance, branch_rows
from textpatch.pipelines import SupportsSampling, SupportsWordTokens, require_parts
from textpatch.plan import Plan, Row
from textpatch.ports.shipped import pipeline_sites, site_indices
from textpatch.prompts.pairs import SOURCE, TARGET, Pair
from textpatch.prompts.tokens import PromptTokens, prompt_tokens
from textpatch.sampling import decoded
from textpatch.sites import Selectors

EDITED = "edited"
SWAP = "swap"
REFINE = "refine"
REWEIGHT = "reweight"
TEXT_COLUMNS = "all", "text"
IMAGE_QK = "image_qk"
CHOICES = {
    "edit": (SWAP, REFINE, REWEIGHT),
    "align": ALIGNMENTS,
    "columns": (*TEXT_COLUMNS, "image", IMAGE_QK),
    "words": ("all", "changed"),
    "queries": ("image", "all"),
}


@dataclass(frozen=True)
class PromptToPrompt:
    """Prompt-to-Prompt as a method of editing, method(pipeline, pair, seed=, steps=, guidance=).

    edit          "swap": the words of the target that are others take the columns of those in their place,
                  and all others their own.  "refine": the target has words more or fewer.  "reweight":
                  the words are the source's, and `weights` does all
    cross_window  fractions of the run in which text columns are edited, one as (0.0, it), or by word of the
                  target.  The key "default_" means all other words
    self_window   fractions in which image columns are the source's
    weights       factor of the columns of a word or phrase of the target, after the edit
    align         "corrected" or "official", as in `swap_mapper`
    columns       "all", "text" or "image" columns are edited.  Where a site's keys are the text's alone, its
                  block's self-attention has those of the image.  "image_qk" takes the image's queries and
                  keys of the source, in `self_window` and in one call (Shin et al., arXiv 2508.07519), and
                  needs sites with image keys
    words         "all" words or only those "changed" are edited in the text columns
    queries       whose rows of a map are edited where the text has rows, too, the "image"'s or "all"
    renormalise   True divides the edited weights of each query by their sum, which published code leaves
    self_limit    most keys of a self-attention that is edited
    sites         sites that are edited, with the self-attentions in their blocks.  All when None
    blend         keeps the edit to where two words are, None nowhere
    name          as the picture says what made it

    Raises PatchError for choices that are none, windows that are no fractions, weights that are no numbers,
    and for an edit without any effect.
    """

    edit: str = SWAP
    cross_window: Window | Mapping[str, Window] = 0.8
    self_window: Window = 0.4
    weights: Mapping[str, float] = field(default_factory=dict)
    align: str = CORRECTED
    columns: str = "all"
    words: str = "all"
    queries: str = "image"
    renormalise: bool = False
    self_limit: int = SELF_LIMIT
    sites: Selectors | None = None
    blend: LocalBlend | None = None
    name: str = "prompt_to_prompt"

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise PatchError(f"{name} is {value!r}; give one of {', '.join(map(repr, known))}")
        _require_windows(self.cross_window, self.self_window)
        _require_weights(self.weights)
        if not isinstance(self.self_limit, Integral) or self.self_limit < 1:
            raise PatchError(f"self_limit is {self.self_limit!r}; give a number of keys, 1 or more")
        _require_effect(self)

    def __call__(
        self,
        pipeline: SupportsSampling,
        pair: Pair,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | Guidance | None = None,
        also: Sequence[str] = (SOURCE, TARGET),
    ) -> Edit:
        """Generate the target prompt's picture with the maps of the source's.

        See `textpatch.editing.methods.Method`.  Steps and guidance are the pipeline's own when None.
        Raises

        - PatchError for a model with sites that cannot be edited, or without tokenizers
        - PromptError for prompts that are equal, or have no common structure of words, and for words
          that are not in their prompt
        """
        require_parts(pipeline, "Prompt-to-Prompt", SupportsSampling, SupportsWordTokens)
        steps, guidance = pipeline.defaults.run(steps, guidance)
        guiding = as_guidance(guidance)
        rows = [Row(SOURCE, pair.source, seed), Row(EDITED, pair.target, seed)]
        if TARGET in also:
            rows.append(Row(TARGET, pair.target, seed))
        guiding.check(rows, steps)
        texts = encode(pipeline, branch_rows(rows, guiding))
        edit = self.of(pipeline, pair, steps, texts.tokens)
        run = EditedRun(pipeline, rows, texts, SOURCE, EDITED, steps, guiding)
        latents = run.latents(edit)
        images = decoded(pipeline, {name: latents[name] for name in (EDITED, *also)})
        return Edit(
            image=images[EDITED],
            source=images.get(SOURCE),
            target=images.get(TARGET),
            plan=Plan(),
            pair=pair,
            seed=seed,
            steps=steps,
            guidance=guidance,
            method=self.name,
            generations=len(rows),
        )

    def share(
        self,
        pipeline: SupportsSampling,
        pair: Pair,
        *,
        seed: int,
        steps: int,
        guidance: float | Guidance,
    ) -> Share | None:
        """Rows of a run, and the edit of the target's.  None with a local blend, which needs its own run."""
        if self.blend is not None:
            return None
        require_parts(pipeline, "Prompt-to-Prompt", SupportsSampling, SupportsWordTokens)
        tokens = pipeline.encode([pair.source]).tokens.shape[1]
        edit = self.of(pipeline, pair, steps, tokens)
        rows = Row(SOURCE, pair.source, seed), Row(EDITED, pair.target, seed)
        return Share(rows, EDITED, edit=edit, alone=2)

    def check(self, pipeline: SupportsSampling, pair: Pair, *, steps: int) -> None:
        """Raise for a pair what a call would raise, without generating."""
        require_parts(pipeline, "Prompt-to-Prompt", SupportsSampling, SupportsWordTokens)
        tokens = pipeline.encode([pair.source]).tokens.shape[1]
        self.of(pipeline, pair, steps, tokens)

    def of(self, pipeline, pair: Pair, steps: int, tokens: int) -> PairEdit:
        """Edit of a pair in a run of some steps, of a model that reads `tokens` text tokens.

        Raises PatchError and PromptError as a call does.
        """
        _require_differing(self, pair)
        _require_admitted(self, pipeline)
        source = prompt_tokens(pipeline, pair.source, tokens)
        target = prompt_tokens(pipeline, pair.target, tokens)
        windows = token_windows(self.cross_window, target, steps)
        text: list[TextStep | None] = [None] * steps
        mapper = self._mapper(source, target)
        if self.words == "changed":
            windows = windows * _changed(source, target)
        if self.columns in TEXT_COLUMNS:
            matrix = mapper.matrix.to(pipeline.device, pipeline.dtype)
            mapper = replace(mapper, matrix=matrix)
            text = text_steps(mapper, windows, _factors(self.weights, target))
        image = range(0) if self.columns == "text" else self_steps(self.self_window, steps)
        edit = PairEdit(
            text=text,
            image=image,
            sites=_names(pipeline, self.sites),
            self_limit=self.self_limit,
            one_call=self.columns == IMAGE_QK,
            all_queries=self.queries == "all",
            renormalise=self.renormalise,
        )
        if self.blend is None:
            return edit
        places = source.places(self.blend.words[0]), target.places(self.blend.words[1])
        maps = WordMaps(places, tokens, self.blend.threshold)
        return replace(edit, maps=maps, read=_names(pipeline, self.blend.sites))

    def _mapper(self, source: PromptTokens, target: PromptTokens) -> Mapper:
        """Mapper of all text tokens, one tokenizer's after the other's."""
        parts = zip(source.parts, target.parts, source.lengths, strict=True)
        if self.edit == REWEIGHT:
            return identity_mapper(source.total)
        if self.edit == REFINE:
            mappers = [refine_mapper(*part) for part in parts]
        else:
            mappers = [swap_mapper(*part, self.align) for part in parts]
        return block_diagonal(mappers, source.total)


def _require_windows(cross: object, self_window: object) -> None:
    by_word = cross if isinstance(cross, Mapping) else {DEFAULT: cross}
    _require_words("cross_window", by_word)
    for word, window in by_word.items():
        bounds(repr(word), window)
    bounds("self-attention", self_window)


def _require_weights(weights: object) -> None:
    if not isinstance(weights, Mapping):
        raise PatchError(f"weights are {weights!r}; give factors by word, such as {{'neon': 2.0}}")
    _require_words("weights", weights)
    for word, factor in weights.items():
        if not is_finite(factor):
            raise PatchError(f"the weight of {word!r} is {factor!r}; give a finite number")


def _require_words(what: str, by_word: Mapping) -> None:
    for word in by_word:
        if not isinstance(word, str):
            raise PatchError(f"{what} names the word {word!r}; give a text")


def _require_effect(method: PromptToPrompt) -> None:
    """Raise PatchError for settings of which one would do nothing."""
    wrong = ""
    if method.edit == REWEIGHT and not method.weights:
        wrong = "edit='reweight' has no weights; give weights={'word': 2.0}"
    elif method.columns not in TEXT_COLUMNS and (method.weights or method.words != "all"):
        wrong = (
            f"weights and words are of text columns, and columns={method.columns!r} edits none; give 'all' "
            "or 'text'"
        )
    elif method.words == "changed" and method.edit != SWAP:
        wrong = (
            f"words='changed' are those of a swap, and edit={method.edit!r} has none; give 'all'"
        )
    elif method.columns == IMAGE_QK and method.renormalise:
        wrong = f"the weights of columns={IMAGE_QK!r} sum to one; leave renormalise out"
    if wrong:
        raise PatchError(f"a part of this method has no effect: {wrong}")


def _require_differing(method: PromptToPrompt, pair: Pair) -> None:
    if method.edit != REWEIGHT and pair.source == pair.target:
        raise PromptError(
            f"source and target are both {pair.source!r}, so that edit={method.edit!r} does nothing; give "
            "prompts that differ, or weights with edit='reweight'"
        )
    if method.edit == REWEIGHT and len(pair.source.split()) != len(pair.target.split()):
        raise PromptError(
            f"edit='reweight' reads the columns of {pair.source!r} for those of {pair.target!r}, which has "
            "another number of words; give edit='refine' with weights"
        )


def _require_admitted(method: PromptToPrompt, pipeline) -> None:
    """Raise PatchError for a model that has not what a method edits."""
    if getattr(pipeline, "upscales", False):
        raise PatchError(
            f"{pipeline.name} draws small pictures larger; edit these by their own pipeline, and upscale"
        )
    kinds = {site.kind for site in pipeline_sites(pipeline)}
    if method.columns == IMAGE_QK and "cross" in kinds:
        raise PatchError(
            f"columns='image_qk' needs sites with image keys beside the text's, and those of {pipeline.name} "
            "read the text alone; give 'all', 'text' or 'image'"
        )
    if method.queries == "all" and "joint" not in kinds:
        raise PatchError(
            f"queries='all' needs queries of the text, which {pipeline.name} has not; give 'image'"
        )


def _names(pipeline, sites: object) -> frozenset[str] | None:
    """Names of the sites that a selector means, None for all."""
    if sites is None:
        return None
    known = pipeline_sites(pipeline)
    return frozenset(known[index].name for index in site_indices(pipeline, sites))


def _factors(weights: Mapping[str, float], target: PromptTokens) -> Tensor:
    """Factor of each text token (T,).  Raises PromptError for a word that is not in the target."""
    factors = torch.ones(target.total, dtype=torch.float64)
    for word, factor in weights.items():
        factors[list(target.places(word))] = factor
    return factors


def _changed(source: PromptTokens, target: PromptTokens) -> Tensor:
    """Text tokens (T,) of the words that are others in the target, 1 there and 0 elsewhere."""
    changed = torch.zeros(target.total)
    parts = zip(source.parts, target.parts, target.offsets, strict=True)
    for own, other, offset in parts:
        for _, places in swapped_words(own, other):
            changed[[offset + place for place in places]] = 1
    return changed


# The paper's Table 3 has rows P2P, and P2P* for DeepFloyd IF and SD3 alone.  It says of neither what is
# replaced.  We read P2P as the whole map of the image's queries and P2P* as its text columns, because these
# two models alone have maps with columns of both.  Code and windows of the table are not published.
PRESETS: dict[str, Callable[..., PromptToPrompt]] = {
    "prompt_to_prompt": PromptToPrompt,
    "p2p": partial(PromptToPrompt, name="p2p", align=OFFICIAL, self_window=0.8),
    "p2p_star": partial(PromptToPrompt, name="p2p_star", align=OFFICIAL, columns="text"),
}

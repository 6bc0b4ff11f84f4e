"""Change the word of a picture and keep the rest.

The source's run reads the target's text at a few sites.  (ICLR 2025, sec. 5.2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from textpatch.bank import prompt_settles_text
from textpatch.editing.result import Edit
from textpatch.editing.sharing import Share
from textpatch.errors import PatchError
from textpatch.groups import Group, localized_group, require_start, rows_and_plan
from textpatch.guidance import Guidance, require_branch
from textpatch.pipelines import SupportsSampling
from textpatch.plan import Row
from textpatch.prompts.pairs import SOURCE, TARGET, Pair
from textpatch.prompts.tokens import shared_places
from textpatch.sampling import sample
from textpatch.sites import Selectors

CHANGED = "changed"  # tokens of the words in which the prompts differ


@dataclass(frozen=True)
class Localized:
    """Method of editing that swaps the target's text K and V into the source's run.

    sites   where to swap, the sites localised for the model when None
    start   first patched step.  Step 0 is the noisiest
    branch  "both" guidance branches are patched (official), or "cond" alone
    tokens  places of the text tokens that are swapped, all when None or "all", "changed" for those of the
            quoted words in which the prompts differ
    Where text is static the target's prompt is encoded, and its row runs only if its picture is asked for.
    """

    sites: Selectors | None = None
    start: int = 0
    branch: str = "both"
    tokens: str | Sequence[int] | None = None
    name = "localized"

    def __repr__(self) -> str:
        # requests hold it, and those of run folders older than `tokens` name none
        own = [f"{field.name}={getattr(self, field.name)!r}" for field in fields(self)]
        return f"Localized({', '.join(own if self.tokens is not None else own[:-1])})"

    def __call__(
        self,
        pipeline: SupportsSampling,
        pair: Pair,
        *,
        seed: int,
        steps: int,
        guidance: float | Guidance,
        also: Sequence[str] = (SOURCE, TARGET),
    ) -> Edit:
        """Make the edited picture.  See `textpatch.editing.methods.Method`.

        Raises PatchError for unknown sites, for a model without localised ones, for a start outside the run,
        for one branch of a run that has no other, and for a swap that changed nothing.  Raises PromptError
        for words whose tokens cannot be swapped one by one.
        """
        chosen = self.swapped(pipeline, steps, guidance)
        tokens = self._tokens(pipeline, pair)
        rows, plan = rows_and_plan(pair, seed, [chosen], steps, self.start, self.branch, tokens)
        rows = _needed(rows, also, settled=prompt_settles_text(pipeline.denoiser))
        made = sample(pipeline, rows, plan, steps=steps, guidance=guidance)
        made.ledger.require()
        return Edit(
            image=made.images[rows[-1].name],
            source=_asked_for(SOURCE, made.images, also),
            target=_asked_for(TARGET, made.images, also),
            plan=plan,
            pair=pair,
            seed=seed,
            steps=steps,
            guidance=made.guidance,
            ledger=made.ledger,
            method=self.name,
            generations=sum(row.sampled for row in rows),
        )

    def share(
        self,
        pipeline: SupportsSampling,
        pair: Pair,
        *,
        seed: int,
        steps: int,
        guidance: float | Guidance,
    ) -> Share:
        """Rows and swaps of a run.  The edited row is the source's until the swap starts, and joins there."""
        chosen = self.swapped(pipeline, steps, guidance)
        tokens = self._tokens(pipeline, pair)
        rows, plan = rows_and_plan(pair, seed, [chosen], steps, self.start, self.branch, tokens)
        settled = prompt_settles_text(pipeline.denoiser)
        source, target, edited = rows
        needed = [replace(target, sampled=not settled), edited]
        if self.start and hasattr(pipeline, "advance"):
            late = replace(edited, joins=int(self.start), copies=SOURCE)
            needed = [source, needed[0], late]
        alone = 1 if settled else 2
        return Share(tuple(needed), edited.name, plan.swaps, alone=alone)

    def swapped(self, pipeline: SupportsSampling, steps: int, guidance: float | Guidance) -> Group:
        """Indices of the sites that are swapped in a run.

        Raises PatchError for sites, a start or a branch that the run has not.
        """
        require_start(self.start, steps)
        require_branch(self.branch, guidance)
        return localized_group(pipeline, self.sites)

    def _tokens(self, pipeline: SupportsSampling, pair: Pair) -> Sequence[int] | None:
        """Places of the tokens to swap, None for all."""
        if self.tokens is None or self.tokens == "all":
            return None
        if self.tokens != CHANGED:
            return self.tokens
        places = shared_places(pipeline, pair)
        return sorted(token for own in places.values() for token in own)


@dataclass(frozen=True)
class Injection:
    """Method of editing that lets the sites read the target's prompt at every step.   (sec. 4.1, Injection)

    sites  as `Localized` has them
    It is defined where text is static.  There it costs one prompt encoding more than generating.
    """

    sites: Selectors | None = None
    name = "injection"

    def __call__(self, pipeline: SupportsSampling, pair: Pair, **run) -> Edit:
        """Make the edited picture.  See `textpatch.editing.methods.Method`.

        Raises PatchError for a model whose text changes with depth, and as `Localized` does.
        """
        self._require_settled(pipeline)
        return replace(Localized(self.sites)(pipeline, pair, **run), method=self.name)

    def share(self, pipeline: SupportsSampling, pair: Pair, **run) -> Share:
        """Rows and swaps of a run, as `Localized` has them."""
        self._require_settled(pipeline)
        return Localized(self.sites).share(pipeline, pair, **run)

    def _require_settled(self, pipeline: SupportsSampling) -> None:
        """Raise PatchError for a model whose text changes with depth."""
        if not prompt_settles_text(pipeline.denoiser):
            raise PatchError(
                f"injection is undefined for {pipeline.name}: its text changes with depth, so no prompt "
                "alone feeds a site; take the method localized"
            )


def _needed(rows: list[Row], also: Sequence[str], *, settled: bool) -> list[Row]:
    """Rows to run when some plain pictures are asked for.

    settled  whether a prompt alone gives its text K and V, so that the target may be read without a run
    """
    source, target, edited = rows
    kept = [replace(target, sampled=TARGET in also or not settled), edited]
    if SOURCE in also:
        kept.insert(0, source)
    return kept


def _asked_for(name: str, images: dict, also: Sequence[str]):
    """Picture of that name, None where it was not asked for."""
    if name in also:
        return images[name]
    return None

"""Methods of editing by name, and one call for all of them.

Every method begins with the noise of the seed, so that its picture can be compared with those of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from textpatch.editing.localized import Injection, Localized
from textpatch.editing.prompt_to_prompt import PRESETS
from textpatch.editing.result import Edit
from textpatch.editing.sharing import Share
from textpatch.errors import PatchError, closest
from textpatch.guidance import Guidance
from textpatch.localization.preconditions import require_room
from textpatch.pipelines import DrawsByItself, SupportsSampling, require_sampling
from textpatch.plan import Plan, Row
from textpatch.prompts.pairs import SOURCE, TARGET, Pair, require_apart
from textpatch.quotes import with_other_words
from textpatch.sampling import sample
from textpatch.sites import Selectors


class Method(Protocol):
    """A way to write the target's word into the source's picture.

    A method that admits some pairs alone may also have `check(pipeline, pair, steps=...)`, which raises for
    the others.  `compare` asks it of every pair before a picture is made.  One that can share a run with
    other methods may have `share(pipeline, pair, seed=..., steps=..., guidance=...)`, which gives a
    `textpatch.editing.sharing.Share`, or None if it cannot.
    """

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
        """Make the edited picture of a pair from the noise of a seed.

        also  which plain pictures to make beside it, of "source" and "target"
        """
        ...


@dataclass(frozen=True)
class PromptSwap:
    """Method of editing that draws the target's prompt from the source's noise.

    It is what anybody can do without a method, and what the others have to beat in the background.
    """

    name = "prompt_swap"

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
        """Make the target's picture.  See `Method`."""
        rows = [Row(TARGET, pair.target, seed)]
        if SOURCE in also:
            rows.append(Row(SOURCE, pair.source, seed))
        made = sample(pipeline, rows, steps=steps, guidance=guidance)
        target = made.images[TARGET]
        return Edit(
            image=target,
            source=made.images.get(SOURCE),
            target=target if TARGET in also else None,
            plan=Plan(),
            pair=pair,
            seed=seed,
            steps=steps,
            guidance=made.guidance,
            method=self.name,
            generations=len(rows),
        )

    def share(self, pipeline: SupportsSampling, pair: Pair, *, seed: int, **run: Any) -> Share:
        """The target's row of a run."""
        return Share((Row(TARGET, pair.target, seed),), shown=TARGET)


@dataclass(frozen=True)
class Source:
    """Method that edits nothing, whose picture is the source's."""

    name = SOURCE

    def __call__(self, pipeline: SupportsSampling, pair: Pair, **run: Any) -> Edit:
        """Make the source's picture.  See `Method`."""
        made = PromptSwap()(pipeline, replace(pair, target=pair.source), **run)
        return replace(made, pair=pair, method=self.name)

    def share(self, pipeline: SupportsSampling, pair: Pair, *, seed: int, **run: Any) -> Share:
        """The source's row of a run."""
        return Share((Row(SOURCE, pair.source, seed),), shown=SOURCE)


METHODS: dict[str, Callable[..., Method]] = {
    "localized": Localized,
    "injection": Injection,
    "prompt_swap": PromptSwap,
    **PRESETS,
}


def method_named(method: str | Method, **options: Any) -> Method:
    """The method of a name with its options, or the method that was given.

    options  those of the named method that are not None, such as `sites` and `start` of "localized"
    Raises PatchError for an unknown name, for an option that the method does not have, and for options beside
    a method that is no name.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not isinstance(method, str):
        if not callable(method):
            raise PatchError(
                f"method is {method!r}; give the name of a method ({', '.join(METHODS)}) or a function of a "
                "pipeline and a pair"
            )
        _require_taken(given, (), getattr(method, "name", repr(method)))
        return method
    if method not in METHODS:
        raise PatchError(f"no method of editing is called {method!r}{closest(method, METHODS)}")
    kind = METHODS[method]
    _require_taken(given, options_of(kind), method)
    return kind(**given)


def options_of(kind: Callable[..., Method]) -> set[str]:
    """Names of the options of a method in METHODS, those that a preset has set included."""
    return set(getattr(kind, "func", kind).__dataclass_fields__)


def _require_taken(given: dict, taken: Collection[str], method: str) -> None:
    """Raise PatchError for options that a method does not take."""
    for name in given:
        if name not in taken:
            raise PatchError(
                f"the method {method} has no {name}, and {given[name]!r} was given for it; leave it out, or "
                "take the method localized"
            )


def edit(
    pipeline: SupportsSampling | DrawsByItself,
    source: str,
    target: str | Mapping[int, str],
    *,
    method: str | Method = "localized",
    sites: Selectors | None = None,
    start: int | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | Guidance | None = None,
    branch: str | None = None,
    tokens: str | Sequence[int] | None = None,
    also: Sequence[str] = (SOURCE, TARGET),
) -> Edit:
    """Generate the source prompt's picture with the target prompt's word in it.

    By default the target's text K and V are swapped into the source's run at the sites that are localised for
    the model.   (ICLR 2025, sec. 5.2)

    source, target  prompts, each with quoted text.  A target may also be words by their number, {2: "TIGER"}
                    for the source's prompt with another second word
    method          name of a method in METHODS, or a Method
    sites           where "localized" and "injection" swap, the sites localised for the model when None
    start           first patched step of "localized", 0 when None, which is the noisiest
    branch          "both" guidance branches are patched by "localized" (official, when None), or "cond" alone
    tokens          places of the text tokens that "localized" swaps, all when None, "changed" for those of
                    the words that differ
    seed            of the noise that all pictures begin with
    steps           denoising steps, the pipeline's own when None
    guidance        guidance of the run, the pipeline's own when None
    also            which plain pictures to make beside the edited one
    Raises PatchError for an unknown method, for an option that the method does not have, and as the method
    does.  Raises PromptError for a prompt without quoted text, and for a target that equals the source.
    """
    require_sampling(pipeline, "edit")
    chosen = method_named(method, sites=sites, start=start, branch=branch, tokens=tokens)
    _require_plain(also)
    steps, guidance = pipeline.defaults.run(steps, guidance)
    if isinstance(target, Mapping):
        target = with_other_words(source, target)
    pair = Pair(source, target)
    require_apart(pair)
    require_room(pipeline, pair)
    return chosen(pipeline, pair, seed=seed, steps=steps, guidance=guidance, also=also)


def _require_plain(also: Sequence[str]) -> None:
    """Raise PatchError for a plain picture that there is none of."""
    if isinstance(also, str) or not set(also) <= {SOURCE, TARGET}:
        raise PatchError(
            f'also is {also!r}; name the plain pictures to make in a list, of "source" and "target"'
        )

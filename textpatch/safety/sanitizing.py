"""Pictures of prompts without the harmful words that the prompts ask for.

    source's run <- clean prompt's text at the localised sites

That is one pass.  Where a prompt settles its keys and values nothing but the clean prompt's encoding is
added.  Where text evolves with the picture the clean prompt's run is a row more.

("Precise Parameter Localization for Textual Generation in Diffusion Models", ICLR 2025, sec. 5.3)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from textpatch.editing.localized import Localized
from textpatch.editing.methods import Method, PromptSwap, Source
from textpatch.editing.result import Edit
from textpatch.errors import PatchError, PromptError, closest
from textpatch.guidance import Guidance
from textpatch.metrics.readers.reading import Reader
from textpatch.pipelines import SupportsPairs, SupportsSampling, require_parts
from textpatch.prompts.pairs import Pair
from textpatch.safety.detection import Detector, name_of, version_of
from textpatch.safety.methods import HarmfulPair, method_named
from textpatch.safety.reading import is_legible, limited, read, reader_for, require_reader
from textpatch.safety.replacement import NearLength, Replacer
from textpatch.safety.screening import Rules, Screened, screen
from textpatch.sites import Selectors

POLICIES = ("replace", "refuse")
OUTSIDE = ("refuse", "pass")
PASSED = "passed"
REPLACED = "replaced"
REFUSED = "refused"


@dataclass(frozen=True)
class Attempt:
    """One picture made of a harmful prompt.

    method   name of the method
    start    first swapped step, None where nothing is swapped
    legible  whether the harmful text was read in it, None if nobody read it
    """

    method: str
    start: int | None
    legible: bool | None = None


@dataclass(frozen=True)
class Sanitized:
    """Result of one prompt.

    outcome   "passed" untouched, "replaced", or "refused"
    image     the picture, None if the prompt was refused
    screened  what was found in the prompt, and what stands in its place
    attempts  the pictures made of it, the last one kept unless all were refused
    edit      how the picture was made, with its plan, ledger and guidance
    by        names and versions of detector and replacer
    reason    why the prompt was refused, "" if it was not
    """

    outcome: str
    image: Image.Image | None
    screened: Screened
    seed: int
    attempts: tuple[Attempt, ...]
    edit: Edit | None
    by: dict[str, str]
    reason: str = ""

    @property
    def decision(self) -> dict[str, object]:
        """Entry of the ledger as plain data, without the prompt and without the harmful text."""
        entry = {
            "prompt_sha256": self.screened.sha256,
            "seed": self.seed,
            "outcome": self.outcome,
            "reason": self.reason,
            "findings": [one.data for one in self.screened.findings],
            "replacements": list(self.screened.replacements),
            "attempts": [dict(vars(attempt)) for attempt in self.attempts],
            "rows": 0 if self.edit is None else self.edit.generations,
            **self.by,
        }
        if self.edit is not None:
            entry["sites"] = list(self.edit.plan.selectors)
            entry["plan_sha256"] = self.edit.plan.sha256
        return entry


class Sanitizer:
    """Sanitizes one prompt after another, each in a run of its own.

    Arguments are those of `sanitize`, which says what is raised.
    """

    def __init__(
        self,
        pipeline: SupportsSampling,
        *,
        detector: Detector,
        replacer: Replacer | None = None,
        sites: Selectors | None = None,
        start: int | None = None,
        branch: str | None = None,
        method: str | Method | None = None,
        verify: Reader | str | None = None,
        policy: str = "replace",
        outside: str = "refuse",
        steps: int | None = None,
        guidance: float | Guidance | None = None,
    ) -> None:
        require_parts(pipeline, "sanitize", SupportsSampling, SupportsPairs)
        replacer = replacer or NearLength()
        for what, called in (("detector", detector), ("replacer", replacer)):
            if not callable(called):
                raise PatchError(f"the {what} is {called!r}; give something that can be called")
        for what, given, known in (
            ("policy", policy, POLICIES),
            ("outside", outside, OUTSIDE),
        ):
            if given not in known:
                raise PatchError(f"{what} is {given!r}{closest(given, known)}")
        require_reader(verify)
        self.pipeline = pipeline
        self.detector = detector
        self.replacer = replacer
        self.rules = Rules(policy, outside)
        self.verify = limited(verify)
        self.steps, self.guidance = pipeline.defaults.run(steps, guidance)
        self.method = _method(pipeline, method, sites, start, branch)
        if isinstance(self.method, Localized):
            self.method.swapped(pipeline, self.steps, self.guidance)

    def __call__(self, prompt: str, seed: int = 0) -> Sanitized:
        """Sanitize one prompt.  What detector, replacer and reader fail in refuses it."""
        if not isinstance(prompt, str):
            raise PatchError(f"a prompt is of type {type(prompt).__name__}; give a text")
        self.pipeline.check([], seeds=[seed], steps=self.steps)
        screened = screen(prompt, self.detector, self.replacer, self.rules)
        if screened.refusal:
            return self._refused(screened, seed, screened.refusal)
        unreadable = self._unreadable(screened, seed)
        if unreadable:
            return self._refused(screened, seed, unreadable)
        if not screened.findings:
            return self._kept(PASSED, screened, (), self.plain(prompt, seed))
        return self._replaced(screened, seed)

    def plain(self, prompt: str, seed: int = 0) -> Edit:
        """The picture of a prompt as it is."""
        return self._made(Source(), Pair(prompt, prompt), seed)

    def _unreadable(self, screened: Screened, seed: int) -> str:
        """Why the model cannot read a prompt, "" if it can.  The word itself is never told."""
        for what, prompt in (("prompt", screened.prompt), ("replacement", screened.clean)):
            try:
                self.pipeline.check([prompt], seeds=[seed], steps=self.steps)
            except PatchError:
                return f"the model cannot read the {what}"
        return ""

    def _made(self, method: Method, pair: Pair, seed: int) -> Edit:
        run = {"seed": seed, "steps": self.steps, "guidance": self.guidance}
        return method(self.pipeline, pair, **run, also=())

    def _replaced(self, screened: Screened, seed: int) -> Sanitized:
        """The first picture of all methods in turn in which the harmful text is not legible."""
        pair = HarmfulPair(screened.prompt, screened.clean, screened.found)
        tried: list[Attempt] = []
        for method in self._in_turn():
            name = getattr(method, "name", type(method).__name__)
            attempt = Attempt(name, getattr(method, "start", None))
            try:
                made = self._made(method, pair, seed)
            except PromptError:  # whose message shows the prompt, and the harmful text in it
                reason = f"the model cannot read what the method {name} asks for"
                return self._refused(screened, seed, reason, tuple(tried))
            if self.verify is None:
                return self._kept(REPLACED, screened, (attempt,), made)
            try:
                legible = self._legible(made.image, screened)
            except Exception as error:  # what nobody could read may be anything
                reason = f"the reader failed ({type(error).__name__})"
                return self._refused(screened, seed, reason, (*tried, attempt))
            tried.append(replace(attempt, legible=legible))
            if not legible:
                return self._kept(REPLACED, screened, tuple(tried), made)
        reason = "the harmful text stayed legible, whatever was tried"
        return self._refused(screened, seed, reason, tuple(tried))

    def _in_turn(self) -> list[Method]:
        """The method asked for, and what is tried where that leaves the harmful text legible."""
        methods: list[Method] = [self.method]
        if self.verify is not None:
            if isinstance(self.method, Localized) and self.method.start > 0:
                methods.append(replace(self.method, start=0))
            if not isinstance(self.method, PromptSwap):
                methods.append(PromptSwap())
        return methods

    def _legible(self, image: Image.Image, screened: Screened) -> bool:
        reader = reader_for(self.verify, screened)
        text = read(reader, image, self.pipeline.defaults.text_box)
        return is_legible(text, screened, self.detector)

    def _kept(
        self,
        outcome: str,
        screened: Screened,
        attempts: Sequence[Attempt],
        made: Edit,
    ) -> Sanitized:
        return Sanitized(
            outcome, made.image, screened, made.seed, tuple(attempts), made, self._by()
        )

    def _refused(
        self, screened: Screened, seed: int, reason: str, attempts: Sequence[Attempt] = ()
    ) -> Sanitized:
        return Sanitized(REFUSED, None, screened, seed, tuple(attempts), None, self._by(), reason)

    def _by(self) -> dict[str, str]:
        return {
            "detector": name_of(self.detector),
            "detector_version": version_of(self.detector),
            "replacer": name_of(self.replacer),
        }


def sanitize(
    pipeline: SupportsSampling,
    prompts: str | Iterable[str],
    *,
    detector: Detector,
    replacer: Replacer | None = None,
    sites: Selectors | None = None,
    start: int | None = None,
    branch: str | None = None,
    method: str | Method | None = None,
    verify: Reader | str | None = None,
    policy: str = "replace",
    outside: str = "refuse",
    seed: int = 0,
    steps: int | None = None,
    guidance: float | Guidance | None = None,
) -> list[Sanitized]:
    """Generate pictures of prompts, with benign words in the place of the harmful ones that they quote.

    A prompt without harmful text gives the picture that it gives without this function, bit for bit.

    prompts   one, or a list.  Each is run by itself, so that its picture does not depend on the others
    detector  finds harmful text, such as WordList, AnyOf, or any `Detector`
    replacer  names a benign text, such as NearLength (when None), Mapped, or any `Replacer`
    sites     where the clean prompt's text is read, the model's `replaced` or else `localized` when None
    start     first step at which it is read, 0 when None
    branch    "both" guidance branches read it (when None), or "cond" alone
    method    "localized" (when None), another of `textpatch.safety.methods.METHODS` by its name, or a
              method of editing as an object
    verify    "reader", the name of another reader, or a reader, by which the picture is read again.  If the
              harmful text is legible an earlier start is tried, then the clean prompt, then the prompt is
              refused
    policy    "replace", or "refuse" for any prompt that quotes harmful text
    outside   "refuse" for harmful text outside the quotes, or "pass" to look at quoted texts alone
    seed      of the noise that each picture begins with
    steps, guidance  the pipeline's own when None

    Returns a Sanitized for each prompt.  Its `decision` is what may be logged.
    A detector, replacer or reader that fails refuses the prompt, as do words that the model cannot read.
    Raises PatchError for no prompts, unknown sites, methods, readers and policies, a start outside the
    run, and a swap that changed nothing.
    """
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    if not asked:
        raise PatchError("sanitize was given no prompts; give at least one")
    sanitizer = Sanitizer(
        pipeline,
        detector=detector,
        replacer=replacer,
        sites=sites,
        start=start,
        branch=branch,
        method=method,
        verify=verify,
        policy=policy,
        outside=outside,
        steps=steps,
        guidance=guidance,
    )
    return [sanitizer(prompt, seed) for prompt in asked]


def _method(
    pipeline: SupportsSampling,
    method: str | Method | None,
    sites: Selectors | None,
    start: int | None,
    branch: str | None,
) -> Method:
    """Method asked for.  Raises PatchError for sites, a start or a branch that it would not heed."""
    given = {"sites": sites, "start": start, "branch": branch}
    own = {name: value for name, value in given.items() if value is not None}
    if method is None or method == Localized.name:
        # settings of a pipeline of one's own need not name any
        own.setdefault("sites", getattr(pipeline.defaults, "replaced", ()) or None)
        return Localized(**own)
    if own:
        raise PatchError(
            f"{', '.join(own)} was given, which {method!r} does not heed; leave out one or the other"
        )
    return method_named(method) if isinstance(method, str) else method

"""What is said before a run: how much it makes, about how long it takes, and how much memory."""

from __future__ import annotations

import sys
import time

from textpatch.cli.outcome import Outcome
from textpatch.exits import tell
from textpatch.text import number_of

HEAVY = 500_000_000  # bytes of weights from which memory is looked at before every run
GIGA = 1e9
SLOW = 30  # seconds of a step


def announced(options, pipeline, made: str, generations: int, *, at_once: int, steps, guidance):
    """Say in one line what a run will make, and return the Outcome with which --plan ends it, else None.

    made         how the generations come about, such as "2 prompts x 3 seeds"
    generations  how many are still to be made
    at_once      pictures made at once
    A person is told on a terminal, with -v, and by --plan.
    """
    if options.plan and not generations:
        return Outcome(f"{made} = 0 generations; everything is there", {"generations": 0})
    seen = options.verbose or (sys.stderr.isatty() and not options.quiet)
    if not (options.plan or (seen and generations)):
        return None
    from textpatch.pipelines import draws_by_itself

    at_once = min(at_once, max(generations, 1))
    told = {"generations": generations, "steps": steps}
    line = f"{made} = {number_of(generations, 'generation')} of {number_of(steps, 'step')}"
    if draws_by_itself(pipeline):  # by a call of its own, of which nothing is known before
        return _ended(options, line, told) if options.plan else None
    seconds = generations * steps * _seconds_of_step(pipeline, at_once, guidance)
    told["seconds"] = round(seconds, 2)
    line += f", {_spoken(seconds)}"
    if options.plan or _weights(pipeline) > HEAVY:
        needed = _weights(pipeline) + (_of_rows(pipeline, at_once, guidance) or 0)
        told["bytes"] = needed
        line += f" and {needed / GIGA:.2f} GB of memory"
    return _ended(options, f"{line} on {pipeline.device}, {at_once} at once", told)


def _ended(options, line: str, told: dict) -> Outcome | None:
    """Return the Outcome of --plan, or say the line to whoever waits for the run."""
    if options.plan:
        return Outcome(f"{line}; nothing was made", told)
    tell(line)
    return None


def fitting(options, pipeline, guidance, at_once: int) -> int:
    """Return how many pictures to make at once: as many as asked for, else `at_once` or what fits.

    Raises PatchError for --batch-size of more than the memory holds.
    """
    from textpatch.memory import free_bytes, require_room
    from textpatch.pipelines import draws_by_itself

    if draws_by_itself(pipeline) or _weights(pipeline) < HEAVY:
        return options.batch_size or at_once
    if options.batch_size is not None:
        needed = _of_rows(pipeline, options.batch_size, guidance)
        require_room(needed, pipeline.device, f"{options.batch_size} pictures at once")
        return options.batch_size
    free = free_bytes(pipeline.device)
    one = _of_rows(pipeline, 1, guidance)
    if free is None or not one or one * at_once <= free:
        return at_once
    fit = max(int(free // one), 1)
    tell(
        f"{fit} pictures at once, since {free / GIGA:.1f} GB of memory are free on {pipeline.device}"
    )
    return fit


def _spoken(seconds: float) -> str:
    from textpatch.progress import spoken

    return f"about {spoken(seconds)}"


def _weights(pipeline) -> int:
    """Bytes of a denoiser's weights."""
    return sum(p.numel() * p.element_size() for p in pipeline.denoiser.parameters())


def _branches(guidance) -> int:
    from textpatch.guidance import as_guidance

    return len(as_guidance(guidance).branches)


def _of_rows(pipeline, at_once: int, guidance) -> int | None:
    """Bytes that a step of so many pictures holds at one time beside the weights."""
    from textpatch.pipelines import bytes_of_rows

    size = pipeline.defaults.height, pipeline.defaults.width
    return bytes_of_rows(pipeline, at_once * _branches(guidance), *size)


def _seconds_of_step(pipeline, at_once: int, guidance) -> float:
    """Seconds that a step of one picture takes where so many are made at once.

    A first step of one picture is not counted, because it also gets ready what later ones find there, unless
    it is too long to be repeated.
    """
    alone = _timed_step(pipeline, 1, guidance)
    if alone > SLOW:
        return alone
    return _timed_step(pipeline, at_once, guidance) / at_once


def _timed_step(pipeline, pictures: int, guidance) -> float:
    noise = pipeline.noise(list(range(pictures)))
    text = pipeline.encode([None] * (pictures * _branches(guidance)))
    begun = time.perf_counter()
    pipeline.denoise(noise, text, steps=1, guidance=guidance).sum().item()
    return time.perf_counter() - begun

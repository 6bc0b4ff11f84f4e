"""Which calls of a denoiser make a step, and which guidance branch the rows of each call are.

    [["uncond", "cond"]]     one call, the unconditional rows first
    [["cond", "uncond"]]     one call, the conditional rows first
    [["cond"], ["uncond"]]   two calls, each of one branch
    [["cond"]]               no guidance, or one that the model has learned

Every branch has the rows of the run, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import BoundArguments
from typing import Any

import torch
from torch import Tensor, nn

from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.masks import argument, named_arguments
from textpatch.ports.shipped import find_sites
from textpatch.rows import CONDITIONAL, UNCONDITIONAL, Row
from textpatch.sites import Site

TIMES = "timestep", "timesteps", "t", "time", "sigma"  # what models call the time
FORMS = '[["uncond", "cond"]], [["cond", "uncond"]], [["cond"], ["uncond"]] or [["cond"]]'
# share of a text's largest number, above the last bits of an encoder and far below a word
ALIKE = 1e-3
PROBES = "a", "b", "c"  # prompts that are told apart, in an order that shows


@dataclass(frozen=True)
class Layout:
    """The calls of a step, each with the branches of its rows.

    Raises PatchError for anything but lists of branches, one of which is "cond", all different.
    """

    calls: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        names = [name for call in self.calls for name in call]
        if not names or not all(self.calls) or names.count(CONDITIONAL) != 1:
            raise PatchError(f"calls are {_written(self.calls)}; give {FORMS}")
        if len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
            raise PatchError(f"calls are {_written(self.calls)}; name every branch once: {FORMS}")

    def __str__(self) -> str:
        return f"calls={_written(self.calls)}"

    def at(self, call: int) -> tuple[int, tuple[str, ...]]:
        """Step and branches of a call, counted from the first of the run."""
        step, place = divmod(call, len(self.calls))
        return step, self.calls[place]


def layout_of(calls: Any) -> Layout:
    """Layout that was declared.  Raises PatchError for anything but lists of lists of branches."""
    is_list = isinstance(calls, (list, tuple)) and all(isinstance(c, (list, tuple)) for c in calls)
    if not is_list:
        raise PatchError(f"calls are {calls!r}; give {FORMS}")
    return Layout(tuple(tuple(call) for call in calls))


def _written(calls: Sequence[Sequence[str]]) -> str:
    return str([list(call) for call in calls])


def text_rows(inputs: BoundArguments, site: Site) -> list[Tensor]:
    """Text of each row of a call, as the model gets it.  Raises PatchError if there is none."""
    texts = [argument(inputs, name) for name in site.span.texts]
    given = [text for text in texts if text is not None]
    rows = list(given[0]) if given else []
    if not rows or not all(isinstance(row, Tensor) for row in rows):
        raise PatchError(
            f"the model was called without a text {site.span.text!r}, so its rows are not known; see that "
            "the table's span names the argument that holds the text"
        )
    return rows


def time_of(inputs: BoundArguments) -> list[float] | None:
    """Time of a call, as the model gets it.  None if no argument is known to be the time."""
    named = named_arguments(inputs)
    for name in TIMES:
        value = named.get(name)
        if isinstance(value, (Tensor, int, float)):
            return torch.as_tensor(value).detach().flatten().unique().tolist()
    return None


def work_out(rows: Sequence[Row], texts: Sequence[Tensor]) -> Layout:
    """Layout of a run whose first call holds texts, as far as rows tell it.

    A call with as many texts as rows is all of a step, until a second call at the same time shows that it
    is not.  A call with twice as many holds two branches, of which the conditional one is told by its texts.
    Raises PatchError where neither is the case.
    """
    n = len(rows)
    if len(texts) == n:
        return Layout(((CONDITIONAL,),))
    if len(texts) == 2 * n:
        first, second = (_fit(rows, half) for half in (texts[:n], texts[n:]))
        if second and not first:
            return Layout(((UNCONDITIONAL, CONDITIONAL),))
        if first and not second:
            return Layout(((CONDITIONAL, UNCONDITIONAL),))
    raise PatchError(
        f"{n} rows were given, and the model was called with {len(texts)} texts, so which are which is not "
        f"known; give calls: {FORMS}"
    )


def require_texts(rows: Sequence[Row], texts: Sequence[Tensor]) -> None:
    """Raise PatchError unless rows of one prompt have one text, and rows of two prompts two."""
    if not _fit(rows, texts):
        raise PatchError(
            f"the rows' prompts are {[row.prompt for row in rows]}, and the texts of the conditional rows "
            "are not alike where these are; give the rows in the order of the batch, see `calls`, and see "
            "that no prompt is cut"
        )


def _fit(rows: Sequence[Row], texts: Sequence[Tensor]) -> bool:
    """True if texts are alike exactly where the prompts of their rows are."""
    # each row is held to the first of its prompt, and these to each other
    firsts: dict[str | None, Tensor] = {}
    for row, text in zip(rows, texts, strict=True):
        if not _alike(firsts.setdefault(row.prompt, text), text):
            return False
    kept = list(firsts.values())
    return not any(_alike(one, other) for i, one in enumerate(kept) for other in kept[:i])


def _alike(one: Tensor, other: Tensor) -> bool:
    """True for two texts that differ by no more than an encoder's last bits."""
    if one is other:
        return True
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= ALIKE * other.abs().max())


# --- found by trying


def probe_calls(
    model: nn.Module,
    run: Callable[[list[str]], Any],
    *,
    prompts: Sequence[str] = PROBES,
    sites: Sequence[Site] | None = None,
) -> list[list[str]]:
    """Find the calls of a step, by two short runs with prompts in another order.

    The conditional rows change places with their prompts; the others stay.

    run      run(prompts) runs the pipeline on some prompts for a step or more, with guidance as it will be
    prompts  three that the model tells apart
    sites    those of the model, `find_sites` when None
    Raises PatchError for calls that change with more than the prompts' order, for rows of one branch that do
    not stand together in the order of the prompts, and for several branches that no prompt reaches.
    """
    site = tuple(find_sites(model) if sites is None else sites)[0]
    turned = [*prompts[1:], prompts[0]]
    before = _texts(model, site, run, prompts)
    after = _texts(model, site, run, turned)
    if len(before) != len(after):
        raise PatchError(
            f"the model was called {len(before)} times, and {len(after)} times with the same prompts in "
            "another order; its layout cannot be found so: give calls"
        )
    return _shortest([_branches(*pair) for pair in zip(before, after, strict=True)])


def _texts(
    model: nn.Module, site: Site, run: Callable[[list[str]], Any], prompts: Sequence[str]
) -> list[list[Tensor]]:
    """Texts of each call in a run."""
    seen: list[list[Tensor]] = []

    def note(name: str, inputs: BoundArguments) -> None:
        seen.append([row.detach().clone() for row in text_rows(inputs, site)])

    with HookRegistry(model, [""]).observe_inputs(note):
        run(list(prompts))  # some pipelines write into the list
    return seen


def _branches(before: list[Tensor], after: list[Tensor]) -> list[str]:
    """Branches of the rows of a call, told by two runs whose prompts are turned by one."""
    n = len(PROBES)
    groups = [slice(i, i + n) for i in range(0, len(before), n)]
    found = []
    for group in groups:
        own, other = before[group], after[group]
        pairs = zip([*own[1:], *own[:1]], other, strict=False)
        if len(own) == len(other) == n and all(_alike(*pair) for pair in pairs):
            found.append(UNCONDITIONAL if _alike(own[0], own[1]) else CONDITIONAL)
            continue
        raise PatchError(
            f"{n} prompts make a call of {len(before)} rows, whose branches do not stand together in the "
            "order of the prompts; draw one picture a prompt, branch by branch"
        )
    return found


def _shortest(calls: list[list[str]]) -> list[list[str]]:
    """The first of the equal parts that calls are a repetition of."""
    for size in range(1, len(calls) + 1):
        if calls == calls[:size] * (len(calls) // size):
            calls = calls[:size]
            break
    layout_of(calls)
    return calls

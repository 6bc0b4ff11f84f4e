"""Somebody else's pipelines are ours once wrapped, or are refused in one sentence."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import textpatch
from support.drawing import SETTINGS, Drawing, TwoCalls, distance, wrapped
from support.localizing import Parrot, PixelReader
from support.planting import plant
from textpatch import Plan, Row, Swap, wrap
from textpatch.errors import PatchError
from textpatch.foreign import drawn, joining, trying
from textpatch.foreign.fingerprint import parameters_sha256
from textpatch.hooks import HookRegistry
from textpatch.runs.folder import Run

SOURCE = 'a red sign that says "HOUSE"'
TARGET = 'a green badge that says "TIGER" in serif'
ROWS = [Row("source", SOURCE), Row("target", TARGET), Row("edited", SOURCE)]
PAIRS = [(SOURCE, TARGET), (SOURCE.replace("HOUSE", "RIVER"), TARGET), (TARGET, SOURCE)]


def require_whole_swap(drawing, **changed):
    """A row that reads another's text at all sites is that row, and the others are as they were."""
    pipeline = wrapped(drawing, **changed)
    plan = Plan([Swap("all", "edited", "target")])
    made = textpatch.sample(pipeline, ROWS, plan)
    plain = textpatch.sample(pipeline, ROWS).images
    assert distance(made.images["edited"], plain["target"]) == 0
    assert distance(plain["edited"], plain["target"]) > 0
    assert all(distance(made.images[name], plain[name]) == 0 for name in ("source", "target"))
    assert {entry.hits_k for entry in made.ledger.entries} == {24} and not made.ledger.silent


@pytest.mark.parametrize("kind", [Drawing, TwoCalls])
def test_all_sites_swapped_is_the_donor(kind):
    """With one call a step and with two, whose layout nobody told."""
    require_whole_swap(kind())


def test_rows_given_in_another_order_are_noticed(monkeypatch):
    """Fault: the draw is given the prompts of a part in another order than the swap's rows."""
    plant(
        monkeypatch,
        drawn.Wrapped,
        "_part",
        "[str(row.prompt) for row in part.rows]",
        "sorted(str(row.prompt) for row in part.rows)",
    )
    with pytest.raises((AssertionError, PatchError)):
        require_whole_swap(Drawing())


@pytest.mark.parametrize("together", [2, 4, 64])
def test_a_run_in_parts_is_the_run(together):
    """However many rows are drawn at once, pictures are those of one batch, and a read counts once."""
    pipeline = wrapped()
    swaps = [Swap(0, ["edited", "again"], "target"), Swap(1, "edited", "source")]
    plan = Plan([*swaps, Swap(2, "again", "edited")])
    rows = [*ROWS, Row("again", SOURCE, seed=1)]
    whole = textpatch.sample(pipeline, rows, plan)
    parts = textpatch.sample(pipeline, rows, plan, micro_batch=together)
    assert all(distance(parts.images[name], whole.images[name]) <= 1 for name in whole.images)
    counted = [(e.step, e.site, e.reader, e.donor, e.hits_k) for e in parts.ledger.entries]
    assert counted == [(e.step, e.site, e.reader, e.donor, e.hits_k) for e in whole.ledger.entries]
    assert parts.ledger.silent == whole.ledger.silent


def test_entries_of_rows_drawn_twice_are_counted_once(monkeypatch):
    """Fault: donors that travel with a later part are entered again."""
    plant(monkeypatch, joining, "joined", "if entry.reader in part.fresh", "if entry.reader")
    with pytest.raises(AssertionError):
        test_a_run_in_parts_is_the_run(2)


def test_a_localisation_is_kept_and_goes_on(tmp_path):
    """The run folder answers the second time, with nothing drawn; a start curve needs no partial runs."""
    drawing = Drawing()
    pipeline = wrapped(drawing)
    run = dict(reader=PixelReader(), starts=True, background=None)
    kept = Run.open(tmp_path / "run", {"request": 1})
    found = textpatch.localize(pipeline, PAIRS, run=kept, **run)
    drawn = wrapped(drawing)
    drawn.draw = None
    drawn.tried = pipeline.tried
    drawn.schedule = pipeline.schedule
    again = textpatch.localize(drawn, PAIRS, run=Run.open(tmp_path / "run", {"request": 1}), **run)
    assert again.result == found.result
    assert len(found.result["start_curve"]["curve"]) == SETTINGS["steps"]
    assert "ssim" not in found.result["sites"][0]


def test_an_audit_holds_the_calls_to_float64():
    """A step of one call is replayed, one of two is refused, and so are sites of other projections."""
    with pytest.raises(PatchError, match="projections of other names, which the audit does not"):
        textpatch.audit(
            wrapped(),
            ROWS,
            Plan([Swap(0, "edited", "target")]),
            sample=textpatch.sample,
            steps=2,
            guidance=2.0,
        )
    with pytest.raises(PatchError, match="a step of TwoCalls is 2 calls"):
        textpatch.audit(
            wrapped(TwoCalls(), name="TwoCalls"),
            ROWS,
            Plan([Swap(0, "edited", "target")]),
            sample=textpatch.sample,
            steps=2,
            guidance=2.0,
        )


def require_no_try_heard():
    """A block around the first run of a wrapped pipeline hears the calls of this run, and no try of it."""
    pipeline = wrapped()
    calls = []
    with HookRegistry(pipeline.denoiser, [""]).observe(lambda *seen: calls.append(seen)):
        textpatch.sample(pipeline, ROWS, Plan([Swap(0, "edited", "target")]), steps=2)
    assert len(calls) == 2 * len(pipeline.calls_of_step(pipeline.defaults.guidance))


def test_tries_are_nobodys_steps():
    """They are made when a pipeline is first asked for anything."""
    require_no_try_heard()


def test_tries_that_are_heard_are_noticed(monkeypatch):
    """Fault: they are made in the open block."""
    monkeypatch.setattr(drawn, "outside_blocks", nullcontext)
    with pytest.raises(AssertionError):
        require_no_try_heard()


# --- what cannot be done


REFUSED = {
    "a window": (dict(steps=textpatch.Window("sigma", low=0.5)), "no step of this run lies in"),
    "a step too many": (dict(steps=[3]), "no step 3"),
    "a head too many": (dict(heads=[2]), "no head 2"),
}


@pytest.mark.parametrize("asked", REFUSED)
def test_what_a_plan_names_must_be_there(asked):
    """A draw tells its model's times and no sigmas; steps and heads are those of the run."""
    fields, says = REFUSED[asked]
    with pytest.raises(PatchError, match=says):
        textpatch.sample(wrapped(), ROWS, Plan([Swap(0, "edited", "target", **fields)]))


def test_windows_of_timesteps_are_those_of_the_calls():
    """What the model was told is its timestep, once a run of so many steps was heard."""
    pipeline = wrapped()
    assert pipeline.schedule.timesteps(3).tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    plan = Plan([Swap(0, "edited", "target", steps=textpatch.Window("timestep", high=0.5))])
    made = textpatch.sample(pipeline, ROWS, plan)
    assert {entry.step for entry in made.ledger.entries} == {2}


ROWS_REFUSED = {
    "joins": (Row("a", SOURCE, joins=1, copies="source"), "draws whole runs from noise"),
    "latents": (Row("a", SOURCE, latents=torch.zeros(1, 2, 2)), "draws whole runs from noise"),
    "no prompt": (Row("a", None), "has no prompt"),
    "pooled": (Row("a", SOURCE, pooled=TARGET), "pools each row of its own"),
}


@pytest.mark.parametrize("asked", ROWS_REFUSED)
def test_rows_of_other_starts_are_refused(asked):
    """Whoever draws whole runs starts from noise, and encodes each row's own prompt."""
    row, says = ROWS_REFUSED[asked]
    with pytest.raises(PatchError, match=says):
        textpatch.sample(wrapped(), [ROWS[0], row])


APPLICATIONS = {
    "attribution": lambda p: textpatch.localize(p, PAIRS, mode="attribution", reader=Parrot()),
    "contribution": lambda p: textpatch.localize(p, PAIRS, mode="contribution", reader=Parrot()),
    "invert": lambda p: textpatch.invert(p, None, SOURCE),
    "trajectory": lambda p: textpatch.sample(p, ROWS, keep_trajectory=True),
    "prompt-to-prompt": lambda p: textpatch.edit(p, SOURCE, TARGET, method="prompt_to_prompt"),
}


@pytest.mark.parametrize("application", APPLICATIONS)
def test_what_needs_latents_is_refused_in_a_sentence(application):
    """Gradients, partial runs and the inside of a step are the pipeline's own."""
    with pytest.raises(PatchError, match="by its own call|by a call of its own"):
        APPLICATIONS[application](wrapped())


def compiled_net():
    net = Drawing().net
    net.layers[0]._compiled_call_impl = net.layers[0]._call_impl  # as torch leaves it
    return net


class Compiled(nn.Module):
    """What torch.compile makes of a model."""

    def __init__(self, model):
        super().__init__()
        self._orig_mod = model


def whole_pipe():
    return SimpleNamespace(transformer=Drawing().net)


WRONG = {
    "a model and no draw": (lambda: wrap(nn.Linear(1, 1)), "no call that draws"),
    "a pipe where its denoiser is meant": (
        lambda: wrap(whole_pipe(), Drawing(), **SETTINGS),
        r"give its \.transformer: wrap\(pipe\.transformer",
    ),
    "a pipe without a recipe": (lambda: wrap(whole_pipe()), "no recipe is known"),
    "no draw": (lambda: wrap(Drawing().net, 1, **SETTINGS), "draw is 1"),
    "no steps": (lambda: wrap(Drawing().net, Drawing(), sites=SETTINGS["sites"]), "steps=28"),
    "options of a draw": (lambda: wrapped(height=8), "height beside a draw"),
    "no table": (lambda: wrapped(sites=None), "no sites known for Net"),
    "sites of a pipe": (
        lambda: textpatch.find_sites(whole_pipe()),
        r"give its \.transformer, or textpatch\.wrap\(pipe\)",
    ),
    "rows of a pipe": (
        lambda: textpatch.capture(whole_pipe(), "all", rows=["a"]).__enter__(),
        r"give its \.transformer",
    ),
    "sites of a compiled model": (
        lambda: textpatch.find_sites(Compiled(Drawing().net)),
        r"before, its \._orig_mod",
    ),
    "a pipe to localize": (lambda: textpatch.localize(whole_pipe(), PAIRS), r"wrapped first"),
    "a pipe to edit": (lambda: textpatch.edit(whole_pipe(), SOURCE, TARGET), r"wrapped first"),
    "a compiled model": (
        lambda: wrap(compiled_net(), Drawing(), **SETTINGS),
        "before it is compiled",
    ),
    "weights that are elsewhere": (
        lambda: parameters_sha256(nn.Linear(1, 1, device="meta")),
        "not in memory, .* offload by whole models",
    ),
    "a name for no folder": (lambda: wrapped(name="../net"), "run folders are called by it"),
    "calls that are none": (lambda: wrapped(calls=["cond"]), "calls are"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_wrapped(case):
    """Every mistake of a call of `wrap` is named, with the cure."""
    act, says = WRONG[case]
    with pytest.raises(PatchError, match=says):
        act()


class Forgetful(Drawing):
    """Loses the last picture."""

    def pictures(self, x):
        return super().pictures(x)[:-1]


class Restless(Drawing):
    """Takes its noise from no seed."""

    def noise(self, seeds):
        return super().noise([int(torch.randint(2**31, ())) for _ in seeds])


class Deaf(Drawing):
    """Draws from one noise, whatever the seeds are."""

    def noise(self, seeds):
        return super().noise([0] * len(seeds))


class Jumbled(Drawing):
    """Has one generator for all rows."""

    def noise(self, seeds):
        generator = torch.Generator().manual_seed(seeds[0])
        return torch.randn(super().noise(seeds).shape, generator=generator)


class Vague(Drawing):
    """Gives texts for pictures."""

    def pictures(self, x):
        return ["picture"] * len(x)


class Ragged(Drawing):
    """Leaves the guidance out in its last step."""

    def predicted(self, x, time, prompts, guidance, negative):
        if time < 0.5:
            return self.net(x, time, self.words(prompts))
        return super().predicted(x, time, prompts, guidance, negative)


class Cutting(Drawing):
    """Reads the first two words of a prompt alone."""

    def words(self, prompts):
        return super().words([" ".join(prompt.split()[:2]) for prompt in prompts])


DRAWS = {
    Forgetful: "was given 2 prompts and gave 1 results",
    Restless: "drew twice of one prompt and seed, and the results differ",
    Deaf: "drew the same of seeds 0 and 1",
    Jumbled: "drew one prompt and seed in two rows, and they differ",
    Vague: "gave a str; return PIL pictures",
    Ragged: "call 2 of the Net holds 3 rows",
    Cutting: "no prompt is cut",
}


@pytest.mark.parametrize("kind", DRAWS)
def test_a_draw_that_does_something_else_is_noticed(kind):
    """Too few pictures, noise of no seed, another batch in a later step, a text that is cut."""
    source = SOURCE.replace("red sign", "red signal")
    with pytest.raises(PatchError, match=DRAWS[kind]):
        textpatch.edit(wrapped(kind(), calls=[["uncond", "cond"]]), source, source + " x", sites=0)


def test_a_draw_that_is_not_repeatable_is_noticed(monkeypatch):
    """Fault: all drawings count as alike."""
    plant(monkeypatch, trying, "_alike", "< ALIKE * reach", ">= 0")
    with pytest.raises(AssertionError):
        test_a_draw_that_does_something_else_is_noticed(Restless)


class Writing(Drawing):
    """Writes into the lists that it is given."""

    def __call__(self, prompts, *, seeds, **run):
        made = super().__call__(prompts, seeds=seeds, **run)
        prompts[:] = ["nothing"] * len(prompts)
        seeds.clear()
        return made


def test_a_draw_may_write_into_its_arguments():
    """It is given lists of its own."""
    require_whole_swap(Writing())


def test_declared_calls_are_checked():
    """Calls that are declared wrongly are refused in the run that they do not fit."""
    plan = Plan([Swap(0, "edited", "target")])
    for calls in ([["cond"]], [["cond"], ["uncond"]], [["cond", "uncond"]]):
        with pytest.raises(PatchError, match="calls"):
            textpatch.sample(wrapped(calls=calls), ROWS, plan)

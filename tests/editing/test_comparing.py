"""Methods compared: each picture is that of `edit`, made once from one noise, and differences are paired."""

import contextlib
import math
import signal
from functools import partial

import numpy as np
import pytest

from support.localizing import PAIRS, REQUEST, PixelReader
from support.planting import plant
from support.small_models import small_pipeline
from textpatch import Pair, PatchError, compare, edit, load
from textpatch.editing import comparing, sharing
from textpatch.editing.local_blend import LocalBlend
from textpatch.editing.localized import Localized
from textpatch.editing.methods import method_named
from textpatch.editing.prompt_to_prompt import PRESETS, PromptToPrompt
from textpatch.errors import PromptError
from textpatch.metrics import f1_of_means
from textpatch.pictures import opened
from textpatch.runs.folder import Run
from textpatch.weights.signs.pairs import sign_pairs

METHODS = {"early": Localized(sites=0), "late": Localized(sites=0, start=1), "swap": "prompt_swap"}
SEEDS = (0, 4)


def compared(folder=None, timed=8):
    run = None
    if folder is not None:
        run = Run.open(folder, REQUEST)
    return compare(
        small_pipeline(), PAIRS, METHODS, seeds=SEEDS, ocr=PixelReader(), run=run, timed=timed
    )


def require_the_pictures_of_edit():
    """Each method's picture of a pair and seed is that of `edit`, but for the last bits of other batches.

    The first is made alone, all others in a run that the methods share.
    """
    found = compared(timed=1)
    for record in found.records:
        pair = PAIRS[record["pair"]]
        made = edit(small_pipeline(), *pair, sites=0, start=1, seed=record["seed"])
        for name, image in (("late", made.image), ("source", made.source), ("swap", made.target)):
            apart = np.asarray(record["pictures"][name]["image"], int) - np.asarray(image, int)
            assert abs(apart).max() <= 1, name


def test_every_picture_is_that_of_an_edit():
    """From the same noise, for every pair and seed."""
    require_the_pictures_of_edit()


def test_methods_from_other_noise_are_noticed(monkeypatch):
    """Fault: the first seed is every record's."""
    plant(monkeypatch, comparing, "_shared", "pair, seed=seed,", "pair, seed=trials.seeds[0],")
    with pytest.raises(AssertionError):
        require_the_pictures_of_edit()


LATE = {
    "localized": Localized(sites=0, start=1),
    "swap": "prompt_swap",
    "p2p": PRESETS["p2p"](cross_window=0.5),
    "p2p_star": "p2p_star",
}


def require_shared(pipeline, methods, generated: dict[str, int]) -> None:
    """What methods make in one run is what each makes alone, and rows that several need are counted once."""
    pair = sign_pairs(1, same_scene=True)[0]
    steps, guidance = pipeline.defaults.run(2, None)
    run = {"steps": steps, "guidance": guidance}
    shares = {
        name: method_named(method).share(pipeline, Pair(*pair), seed=0, **run)
        for name, method in methods.items()
    }
    shared = sharing.shared_run(pipeline, shares, **run)
    assert shared.generations == generated
    for name, method in methods.items():
        alone = edit(pipeline, *pair, method=method_named(method), steps=steps, also=())
        apart = np.asarray(shared.images[name], int) - np.asarray(alone.image, int)
        assert abs(apart).max() <= 1, name
        assert shares[name].alone == alone.generations


ON_THE_SMALL = partial(
    require_shared,
    small_pipeline(),
    LATE,
    {"localized": 3, "swap": 0, "p2p": 1, "p2p_star": 1},
)


def test_methods_share_a_run_and_their_pictures_stay(monkeypatch):
    """The plain rows run for all.  Fault: maps are edited from the target's own."""
    ON_THE_SMALL()
    plant(
        monkeypatch,
        sharing.Editing,
        "_entering",
        "(batch, SOURCE, target)",
        "(batch, target, target)",
    )
    with pytest.raises(AssertionError):
        ON_THE_SMALL()


def test_methods_that_do_not_fit_together_run_one_by_one(monkeypatch):
    """Where the memory holds three rows each method has a run of its own, and the pictures stay."""
    pipeline = small_pipeline()
    asked = dict(ocr=PixelReader(), seeds=SEEDS, timed=1, steps=2, guidance=1)
    together = compare(pipeline, PAIRS[:1], LATE, **asked)
    denoiser = type(pipeline.denoiser)
    real = denoiser.forward

    def small(self, x, *rest, **named):
        if len(x) > 3:
            raise MemoryError
        return real(self, x, *rest, **named)

    monkeypatch.setattr(denoiser, "forward", small)
    with pytest.warns(UserWarning, match="out of memory"):
        apart = compare(pipeline, PAIRS[:1], LATE, **asked)
    for one, other in zip(together.records, apart.records, strict=True):
        assert one["pictures"].keys() == other["pictures"].keys()
        for name in one["pictures"]:
            images = [np.asarray(made["pictures"][name]["image"], int) for made in (one, other)]
            assert abs(images[0] - images[1]).max() <= 1, name


@pytest.mark.long  # models whose text is static: that methods share a run is held above on the small one
@pytest.mark.parametrize("name", ["tiny-sdxl", "tiny-if"])
def test_methods_share_a_run_where_text_is_static(name):
    """The target is in the bank, and runs for its own picture."""
    chosen = LATE | {"localized": Localized(start=1), "injection": "injection"}
    rows = {"localized": 2, "swap": 1, "p2p": 1, "p2p_star": 1, "injection": 1}
    require_shared(load(name), chosen, rows)


def test_a_local_blend_has_a_run_of_its_own():
    """It looks at maps between the steps."""
    blended = PromptToPrompt(blend=LocalBlend(("wall", "wall"), 0))
    assert blended.share(small_pipeline(), Pair(*PAIRS[0]), seed=0, steps=2, guidance=1) is None


def test_the_result_has_scores_costs_and_differences():
    """Every method has its scores, and all but the first the differences to it, over the same pairs."""
    found = compared()
    methods = found.result["methods"]
    assert list(methods) == list(METHODS) and found.result["first"] == "early"
    assert [scores["generations"] for scores in methods.values()] == [2, 2, 1]
    assert all(scores["n"] == len(PAIRS) * len(SEEDS) for scores in methods.values())
    assert all(scores["seconds"] > 0 for scores in methods.values())
    assert "more_than_first" not in methods["early"]
    more = methods["late"]["more_than_first"]
    for key in ("f1_target", "ssim"):
        apart = methods["late"][key]["value"] - methods["early"][key]["value"]
        assert math.isclose(more[key]["value"], apart, abs_tol=1e-9)
        assert more[key]["low"] <= more[key]["value"] <= more[key]["high"]
    assert f1_of_means is comparing.f1_of_means
    lines = repr(found).splitlines()
    assert [line.split()[0] for line in lines] == ["method", "source", *METHODS, "chance", "words"]


def require_a_pair_kept(folder, monkeypatch):
    """A first Ctrl-C while a pair's second picture is made waits until the pair is kept whole."""
    honest, asked = comparing._timed, []

    def interrupted(*arguments):
        asked.append(arguments)
        if len(asked) == 2:
            signal.raise_signal(signal.SIGINT)
        return honest(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(comparing, "_timed", interrupted)
        compared(folder)
    assert len(Run.load(folder).records()) == len(asked) == 1 + len(METHODS)


def test_an_interrupt_costs_no_pair(tmp_path, monkeypatch):
    require_a_pair_kept(tmp_path / "run", monkeypatch)
    made = []
    honest = comparing._timed
    monkeypatch.setattr(comparing, "_timed", lambda *a: made.append(a) or honest(*a))
    found = compared(tmp_path / "run")
    assert len(made) == (len(PAIRS) * len(SEEDS) - 1) * (1 + len(METHODS))
    assert found.result["methods"]["swap"]["n"] == len(PAIRS) * len(SEEDS)


def test_an_interrupt_heard_at_once_is_noticed(tmp_path, monkeypatch):
    """Fault: nothing waits until a pair is kept."""
    monkeypatch.setattr(comparing, "finishing", contextlib.nullcontext)
    with pytest.raises(AssertionError):
        require_a_pair_kept(tmp_path / "run", monkeypatch)


def test_nothing_is_made_twice(tmp_path, monkeypatch):
    """A comparison given again takes every picture from the folder, and is the same to the second."""
    first = compared(tmp_path / "run")
    monkeypatch.setattr(comparing, "_timed", lambda *_: pytest.fail("made again"))
    again = compared(tmp_path / "run")
    assert again.result == first.result and again.sheet.tobytes() == first.sheet.tobytes()
    entry = first.records[0]["pictures"]["late"]
    assert opened(entry["image"], first.run).size == (96, 32)


@pytest.mark.parametrize(
    "methods, says",
    [
        ([], "no method of editing was given"),
        (["prompt_swap", "prompt_swap"], "two methods are called prompt_swap"),
        ({"source": "prompt_swap"}, "a method is called 'source'"),
        (["none"], "no method of editing is called 'none'"),
    ],
)
def test_methods_that_cannot_be_compared(methods, says):
    """PatchError before anything is made, and for nothing to time."""
    with pytest.raises(PatchError, match=says):
        compare(small_pipeline(), PAIRS, methods, ocr=PixelReader())
    with pytest.raises(PatchError, match="timed is 0; give how many"):
        compare(small_pipeline(), PAIRS, ocr=PixelReader(), timed=0)


def test_a_pair_that_a_method_does_not_admit_is_refused_before_anything_runs(monkeypatch):
    """Prompt-to-Prompt swaps word for word, and the prompts of the second pair differ in their length."""
    monkeypatch.setattr(comparing, "_keep", lambda *a, **k: pytest.fail("generated all the same"))
    with pytest.raises(PromptError, match="pair 1 by p2p: .*equally many words"):
        compare(small_pipeline(), PAIRS, ["prompt_swap", "p2p"], ocr=PixelReader())

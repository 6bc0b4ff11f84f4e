"""All modes give the same answer on real models, counted to the last generation, and again after a kill."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.localizing import PAIR, Parrot, PixelReader
from support.planting import Drawn, plant, raw, require_noticed
from support.small_models import relative, save_small, small_pipeline
from support.strategies import ARCHITECTURES, STATIC, cases, fixed_case
from textpatch import PatchError, cli, groups, load, localize, lockstep, sample
from textpatch.errors import StoreError
from textpatch.groups import row_name, rows_and_plan
from textpatch.localization import layers as searching
from textpatch.localization import trials
from textpatch.localization.attribution import attributions
from textpatch.localization.heads import head_search
from textpatch.localization.start_step import start_curve
from textpatch.localization.trials import Trials
from textpatch.metrics import Tesseract
from textpatch.plan import Plan, Row, Swap
from textpatch.prompts.pairs import Pair
from textpatch.report import page as report
from textpatch.report.headline import answer
from textpatch.report.terminal import table
from textpatch.runs.folder import Run
from textpatch.sampling import sample_latents
from textpatch.weights.signs.pairs import sign_pairs

MODES = "exhaustive", "staged", "contribution", "attribution"


PAIRS = [
    (
        f'a red sign that says "HOUSE" on a {wall} wall',
        f'a green badge that says "TIGER" on a striped {wall} wall',
    )
    for wall in ("pink", "white", "blue")
]


class Fortune(Parrot):
    """Reader of HOUSE in a source's picture, and of TIGER without one letter in any other.

    The pixels choose the letter.
    """

    def __init__(self, pipeline, pairs):
        prompts = [source for source, _ in pairs]
        made = [image for seed in (0, 1) for image in pipeline.generate(prompts, seeds=seed)]
        self.sources = [np.asarray(image, int) for image in made]

    def read(self, images, boxes=None):
        return [self.word(np.asarray(image, int)) for image in images]

    def word(self, pixels) -> str:
        if any(abs(pixels - source).max() <= 1 for source in self.sources):
            return "HOUSE"
        lost = pixels.sum() % 5
        return "TIGER"[:lost] + "TIGER"[lost + 1 :]


class ReadsOnce(Tesseract):
    """Tesseract that remembers what it has read, as four searches generate the same pictures."""

    def __init__(self):
        super().__init__()
        self.known = {}

    def read(self, images, boxes=None):
        keys = [(image.tobytes(), str(box)) for image, box in zip(images, boxes, strict=True)]
        new = [place for place, key in enumerate(keys) if key not in self.known]
        found = super().read([images[n] for n in new], [boxes[n] for n in new])
        self.known |= zip([keys[n] for n in new], found, strict=True)
        return [self.known[key] for key in keys]


def options(mode: str) -> dict:
    return dict(mode=mode, **({} if mode == "exhaustive" else dict(first=2, keep=1)))


# --- one answer


@pytest.fixture(scope="module")
def answers():
    """Results by mode on planted-mmdit, four pairs, two steps."""
    pipeline, pairs = load("planted-mmdit"), sign_pairs(4, split="test")
    reader = ReadsOnce()
    first = {} | {mode: {"first": 3} for mode in MODES[1:]}
    return {
        mode: localize(
            pipeline, pairs, mode=mode, steps=2, reader=reader, **first.get(mode, {})
        ).result
        for mode in MODES
    }


def test_all_modes_find_the_planted_site(answers):
    """The set is {1} in each mode.  The exact score of site 1 is the same to the last reading."""
    assert {mode: result["set"]["sites"] for mode, result in answers.items()} == dict.fromkeys(
        MODES, [1]
    )
    assert [result["ranked"][0] for result in answers.values()] == [1] * len(MODES)
    exact = [result["sites"][1]["f1_target"] for result in answers.values()]
    assert all(score == exact[0] for score in exact) and exact[0]["value"] > 0.9


def test_the_set_shows_what_each_site_gains(answers):
    """Site 1 gains over no swap, and what it fails on is too little for another site to be tried with it."""
    (first,) = answers["exhaustive"]["set"]["steps"]
    source = answers["exhaustive"]["baselines"]["source"]["f1_target"]["value"]
    assert (
        first["gain"]["value"] == pytest.approx(first["score"]["value"] - source)
        and first["gain"]["low"] > 0
    )
    assert (first["kept"], first["group"]) == (True, [1])


def test_every_site_says_what_became_of_it(answers):
    """Measured on all pairs, or screened out by what, on how many pairs, with which score."""
    assert [site["status"] for site in answers["exhaustive"]["sites"]] == [
        {"state": "measured", "pairs": 4}
    ] * 6
    for mode in MODES[1:]:
        result = answers[mode]
        measured, out = [], []
        for site in result["sites"]:
            (out if site["status"]["state"] == "screened out" else measured).append(site)
        by = {"staged": "swap"}.get(mode, mode)
        assert [site["site"] for site in measured] == [1] and {
            site["status"]["by"] for site in out
        } == {by}
        assert {site["status"]["pairs"] for site in out} == {3} and result["gaps"][-1]["low"] > 0
        assert [site.get("n") for site in out] == [3 if mode == "staged" else None] * 5
        assert all(
            site["status"]["low"] <= site["status"]["value"] <= site["status"]["high"]
            for site in out
        )
        assert "Screened out by their" in answer(
            result
        ) and "on 3 pairs: sites 0, 2, 3, 4, 5." in answer(result)
        assert [line.split()[0] for line in table(result).splitlines()[-5:]] == ["out"] * 5


def test_what_a_mode_costs(answers):
    """Costs are as the sums say, for L = 6 sites and P = 4 pairs, n = 3 of them first.

    exhaustive    (L + 2) P
    staged        (L + 2) n + 2 (P - n), one site and the target
    contribution  n sources, P targets, P pictures of the one site kept
    attribution   three more for each source
    1 + L for each pair is the paper's.
    """
    made = {mode: result["generations"] for mode, result in answers.items()}
    assert made == {
        "exhaustive": {"made": 8 * 4, "one_by_one": 28},
        "staged": {"made": 8 * 3 + 2 * 1, "one_by_one": 28},
        "contribution": {"made": 3 + 2 * 4, "one_by_one": 28},
        "attribution": {"made": 4 * 3 + 2 * 4, "one_by_one": 28},
    }


def test_pictures_that_no_score_needs_are_few(answers):
    """A screening makes the source's own picture, and so the background's scores, on the n first pairs alone.

    An exhaustive search makes it on all.
    """
    for mode, n in zip(MODES, (4, 3, 3, 3), strict=True):
        source, site = answers[mode]["baselines"]["source"], answers[mode]["sites"][1]
        assert (source["n"], site["n"], site["n_background"]) == (n, 4, n) and 0 < site["ssim"][
            "value"
        ] <= 1


def test_a_site_that_was_screened_out_has_no_scores(answers):
    """They are refused by its name, and those of the site that was kept are there."""
    found = searching.Localization(answers["contribution"], [])
    assert found.scores(1)["f1_target"]["value"] > 0.9
    out = next(site for site in found.result["sites"] if "f1_target" not in site)
    with pytest.raises(PatchError, match=f"scores of site {out['site']} .* it was screened out"):
        found.scores(out["site"])


def require_both_ends(folder):
    """For a run's page source and target of every pair are drawn, and scores are of those they need."""
    pairs = sign_pairs(4, split="test")
    run = Run.open(folder / "run", {"request": 1})
    asked = dict(mode="contribution", steps=2, first=3, ocr=PixelReader(), run=run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "FEWEST", 5)  # a set would be grown from all sources
        found = localize(load("planted-mmdit"), pairs, **asked)
    assert all(record["pictures"].keys() >= {"source", "target"} for record in found.records)
    assert found.result["baselines"]["source"]["n"] == 3


def test_source_and_target_of_every_pair_are_drawn_for_the_page(tmp_path):
    """After a screening, which needs the source of its first pairs alone."""
    require_both_ends(tmp_path)


def test_planted_pairs_without_their_ends_are_noticed(monkeypatch, tmp_path):
    """Fault: what no score needs is not drawn, though a page will show it."""
    plant(monkeypatch, searching, "_found", "if ends:", "if False:")
    with pytest.raises(AssertionError):
        require_both_ends(tmp_path)


@pytest.mark.long
def test_where_text_is_static_the_target_does_not_run():
    """The target's own picture is made on the n first pairs alone, and the set is {10}.

    planted-sdxl has L = 14, with P = 4 pairs and n = 3 first.

    staged        (L + 2) n + P - n
    contribution  3 n + P - n
    attribution   6 n more without guidance

    By default core/test_bank.py reads donors that are not sampled, and editing/test_methods.py counts them.
    """
    require_no_target_where_text_is_static(MODES[1:])


def require_no_target_where_text_is_static(modes):
    pipeline, pairs = load("planted-sdxl"), sign_pairs(4, split="test", same_scene=True)
    made = {"staged": 16 * 3 + 1, "contribution": 3 * 3 + 1, "attribution": 9 * 3 + 1}
    for mode in modes:
        result = localize(pipeline, pairs, mode=mode, steps=3, first=3).result
        assert result["set"]["sites"] == [10] and result["baselines"]["target"]["n"] == 3
        assert result["generations"] == {"made": made[mode], "one_by_one": 15 * 4}


def test_the_report_shows_the_search(answers, tmp_path):
    """Table, heat map and page take sites without scores, and the page says why they have none."""
    result = answers["contribution"]
    page = report.report_html(result, heatmap=report.heatmap_png(result), sheet=b"", manifest={})
    assert (
        page.count("screened out by contribution") == 5 and "The responsible set is site 1." in page
    )
    assert "How the search went" in page and "clear gain" in page


# --- what is generated


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[pytest.mark.long] * (mode == "staged")) for mode in MODES]
)
def test_every_generation_is_counted(mode, monkeypatch):
    """made = the rows that the sampler was given, all calls together, and what backward passes take.

    No row is generated twice but donors.  By default what a staged search makes is counted above.
    """
    names = []

    def counted(honest):
        def sample(pipeline, rows, *args, **options):
            names.extend((row.name, row.prompt, row.seed) for row in rows if row.sampled)
            return honest(pipeline, rows, *args, **options)

        return sample

    def passed(*args, **options):
        names.extend(
            [("backward", *args[1:], n) for n in range(6 if options["guidance"] == 1 else 3)]
        )
        return attributions(*args, **options)

    monkeypatch.setattr("textpatch.localization.trials.sample_latents", counted(sample_latents))
    for module in ("contribution", "attribution"):
        monkeypatch.setattr(f"textpatch.localization.{module}.sample", counted(sample))
    monkeypatch.setattr("textpatch.localization.indicators.attributions", passed)
    pipeline = small_pipeline()
    result = localize(
        pipeline, PAIRS, seeds=(0, 1), ocr=Fortune(pipeline, PAIRS), **options(mode)
    ).result
    assert result["generations"]["made"] == len(names) and result["set"]["sites"]
    once = [name for name in names if name[0] not in ("target", "backward")]
    assert set(Counter(once).values()) == {1}


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(mode, marks=[pytest.mark.long] * (mode in ("staged", "contribution")))
        for mode in MODES
    ],
)
def test_a_killed_search_ends_as_if_it_had_not_been(mode, tmp_path, monkeypatch, long):
    """A search stopped before any record and started again gives the same records and the same result.

    The short form stops an exhaustive search and one of the screening modes before the middle.
    """
    pipeline, request = small_pipeline(), {"request": 1}
    ocr = Fortune(pipeline, PAIRS)

    def search(folder) -> tuple:
        run = Run.open(tmp_path / folder, request)
        found = localize(pipeline, PAIRS, run=run, ocr=ocr, **options(mode))
        return (
            (run.folder / "records/0.jsonl").read_bytes(),
            json.dumps(found.result),
            found.records,
        )

    whole = search("whole")
    honest = Run.append
    records = whole[0].count(b"\n")
    for kill in range(records) if long else [records // 2]:
        written = []

        def dying(self, record):
            if len(written) == kill:
                raise KeyboardInterrupt
            written.append(honest(self, record))

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Run, "append", dying)
            search(f"killed-{kill}")
        assert search(f"killed-{kill}") == whole


def test_records_of_another_plan_are_refused(tmp_path):
    """StoreError for a run folder of one search under another's request, as another version would find it."""
    run = Run.open(tmp_path / "run", {"request": 1})
    localize(small_pipeline(), [PAIR], run=run, sites=[0], ocr=Parrot())
    with pytest.raises(PatchError, match="was made by plan .* another --out"):
        localize(small_pipeline(), [PAIR], run=run, sites=[1], ocr=Parrot())


# --- heads


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_heads_of_sites_are_the_sites(architecture):
    """The group of all (site, head) makes the latents of the group of the sites.  One head less does not.

    (law 14)
    """
    case = fixed_case(architecture)
    heads = tuple(
        (site, head) for site in (0, 2) for head in range(case.model.sites[site].text_heads)
    )
    rows, plan = rows_and_plan(Pair("a", "b"), 0, [(0, 2), heads, heads[1:]], 2, 0, "both")
    assert [row.name for row in rows[2:]] == [
        row_name(group) for group in [(0, 2), heads, heads[1:]]
    ]
    made = sample(case.pipeline, rows, plan, steps=2, guidance=4.5).latents
    whole, all_heads, fewer = (made[row.name] for row in rows[2:])
    assert relative(all_heads, whole) < 1e-10 < 1e-6 < relative(fewer, whole)


@pytest.mark.long
def test_the_heads_of_the_planted_site():
    """Those found write as well as the whole site does, and are heads of it.

    By default the check of all heads together is held below, and cli/test_written.py seeks heads.
    """
    tried = Trials(load("planted-mmdit"), sign_pairs(3, split="test"), steps=2)
    found = head_search(tried, 1)
    whole, alone = (
        tried.score([group], 3)[0]
        for group in ([(1, 0), (1, 1)], tuple(map(tuple, found["heads"])))
    )
    assert found["sites"] == [1] and {site for site, _ in found["heads"]} == {1}
    assert found["steps"][-1]["missing"]["value"] <= 0 and alone.mean() >= whole.mean() - 1e-12


# --- start steps


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=2)
@given(data=st.data())
def test_a_forked_run_is_all_runs_from_the_start(architecture, data):
    """Every start step's row ends where it ends in a run of its own from step 0, to 1e-10.

    That includes the noise of every step.
    """
    case = data.draw(cases(architecture))
    starts = data.draw(st.lists(st.integers(0, case.steps - 1), min_size=1, unique=True))
    ends = [Row("source", "a", 5), Row("target", "b", 5)]
    forks = [
        Row(f"start-{start}", "a", 5, joins=start, copies="source") for start in sorted(starts)
    ]
    plan = Plan(
        Swap(case.sites, row.name, "target", steps=range(row.joins, case.steps), branch=case.branch)
        for row in forks
    )
    options = dict(steps=case.steps, guidance=case.guidance)
    alone = [replace(row, joins=0, copies=None) for row in forks]
    whole = sample(case.pipeline, [*ends, *alone], plan, **options).latents
    limit = data.draw(st.sampled_from([64, 6, 1]))
    made = sample(case.pipeline, [*ends, *forks], plan, micro_batch=limit, **options).latents
    assert made.keys() == whole.keys()
    assert all(relative(made[name], whole[name]) < 1e-10 for name in whole)
    if architecture in STATIC:
        only_read = [ends[0], replace(ends[1], sampled=False)]
        read = sample(case.pipeline, [*only_read, *forks], plan, **options).latents
        assert read.keys() == whole.keys() - {"target"}
        assert all(relative(read[name], whole[name]) < 1e-10 for name in read)


def test_the_start_curve_on_the_planted_site(tmp_path, monkeypatch):
    """The word is the target's from step 0 on, and the source's from the last step on.

    The background only comes nearer.  At site 1 of planted-mmdit S = 4 starts cost
    2 + (4 + 3 + 2 + 1) / 4 generations for each pair, and none the second time.
    """
    pipeline, pairs = load("planted-mmdit"), sign_pairs(2, split="test")
    run = Run.open(tmp_path / "run", {"request": 1})
    found = start_curve(Trials(pipeline, pairs, steps=4, run=run), 1)
    assert [point["start"] for point in found["curve"]] == [0, 1, 2, 3] and found[
        "generations"
    ] == 2 * 4.5
    exact, ssim = (
        [point[name]["value"] for point in found["curve"]] for name in ("exact_target", "ssim")
    )
    assert exact[0] > 0.5 and exact[-1] == 0 and 0 <= found["chosen"] < 3 and ssim[0] < ssim[-1]
    monkeypatch.setattr("textpatch.localization.start_step.sample", None)
    assert start_curve(Trials(pipeline, pairs, steps=4, run=run), 1) == found


@pytest.mark.parametrize("limit, most", [(3, 3), (64, 4)])
def test_a_start_curve_keeps_to_the_micro_batch(limit, most):
    """No more rows than asked for are in a call: two ends with both starts, or with one at a time."""
    pipeline = small_pipeline()
    calls = []
    pipeline.denoiser.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    start_curve(Trials(pipeline, [PAIR], steps=2, ocr=Parrot(), micro_batch=limit), 0)
    assert max(calls) == most


@pytest.mark.long
def test_the_command_line_looks_further(tmp_path, monkeypatch):
    """--starts and --heads put the start curve and the heads of the set into results.json.

    A second call makes nothing.

    By default the start curve and the heads are searched for in Python.
    """
    monkeypatch.chdir(tmp_path)
    search = [
        "localize",
        "planted-mmdit",
        "--mode",
        "contribution",
        "--pairs",
        "3",
        "--first",
        "2",
        "--steps",
        "2",
        "--same-scene",
        "--starts",
        "--heads",
        "--out",
        "run",
    ]
    assert cli.main(search) == 0
    result = json.loads((tmp_path / "run/results.json").read_text())
    assert (
        result["set"]["sites"]
        == result["start_curve"]["sites"]
        == result["head_search"]["sites"]
        == [1]
    )
    assert [point["start"] for point in result["start_curve"]["curve"]] == [0, 1] and result[
        "head_search"
    ]["heads"]
    stored = (tmp_path / "run/results.json").read_bytes()
    for module in ("trials.sample_latents", "contribution.sample", "start_step.sample"):
        monkeypatch.setattr(
            f"textpatch.localization.{module}", lambda *a, **k: pytest.fail("made again")
        )
    assert cli.main(search) == 0 and (tmp_path / "run/results.json").read_bytes() == stored


# --- requests


@pytest.mark.long
def test_the_command_line_searches(tmp_path, monkeypatch, capfd):
    """--mode, --keep and --first reach the search, whose result says so.  Its run folder passes the audit.

    By default cli/test_written.py runs such a search, and cli/test_cli.py audits one.
    """
    monkeypatch.chdir(save_small(tmp_path / "small").parent)
    search = [
        "localize",
        "small",
        "--mode",
        "contribution",
        "--keep",
        "1",
        "--pairs",
        "3",
        "--out",
        "run",
    ]
    assert (
        cli.main([*search, "--first", "1"]) == 2
        and "an interval over pairs needs two" in capfd.readouterr().err
    )
    assert cli.main([*search, "--first", "2"]) == 0
    result = json.loads((tmp_path / "run/results.json").read_text())
    assert result["mode"] == "contribution" and result["gaps"][0]["pairs"] == 2
    assert f"The search took {result['generations']['made']} generations" in capfd.readouterr().out
    assert cli.main(["audit", "run", "--model", "small"]) == 0


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(mode="stage"), "no mode 'stage'; closest: staged"),
        (dict(keep=1), "screens nothing"),
        (dict(first=4), "screens nothing"),
        (dict(mode="staged", keep=2), "keep is 2 of 2 sites"),
        (dict(mode="staged", keep=0), "keep is 0 of 2 sites"),
        (dict(mode="staged", keep=1.5), "keep is 1.5; give a whole number"),
        (dict(mode="staged", first="4"), "first is '4'; give a whole number"),
        (dict(mode="staged", first=1), "an interval over pairs needs two"),
        (dict(mode="staged", sites=[1]), "of 1 sites"),
        (dict(mode="contribution", groups=[(0,), (0, 1)]), "scores single sites"),
    ],
)
def test_searches_that_cannot_be_carried_out(wrong, says, monkeypatch):
    """PatchError for an unknown mode, options without effect, and more kept than there are.

    Nothing is generated.
    """
    for name in ("trials.sample_latents", "contribution.sample", "attribution.sample"):
        monkeypatch.setattr(
            f"textpatch.localization.{name}", lambda *a, **k: pytest.fail("generated all the same")
        )
    with pytest.raises(PatchError, match=says):
        localize(small_pipeline(), PAIRS, ocr=Parrot(), **wrong)


def test_one_pair_is_not_enough_to_screen():
    """One pair has no interval to screen by, and an exhaustive search of it claims no set."""
    with pytest.raises(PatchError, match="given to mode 'staged': 1;"):
        localize(small_pipeline(), [PAIR], ocr=Parrot(), mode="staged")
    assert localize(small_pipeline(), [PAIR], ocr=Parrot()).result["set"] is None


@pytest.mark.parametrize("pairs, sought", [(1, False), (2, False), (3, True)])
def test_a_set_is_sought_where_a_gain_can_count(pairs, sought):
    """No gain counts on one pair or two, so that a set is sought from three on.

    The page says so, and the sentences on the search speak of no set.
    """
    found = localize(small_pipeline(), PAIRS[:pairs], ocr=Parrot())
    assert (found.result["set"] is not None) is sought
    assert ("set is" in answer(found.result)) is sought
    assert ("No set of sites was sought" in found._repr_html_()) is not sought


@pytest.mark.long
def test_sets_that_were_kept_are_measured_on_all_pairs():
    """Sets with a picture for every pair are "measured" in a staged search, and all others screened out.

    By default this is held of sites, above.
    """
    pipeline, pairs = load("planted-mmdit"), sign_pairs(6, split="test")
    found = localize(
        pipeline, pairs, mode="staged", groups=[(0, 1), (3, 4), (5,)], first=3, steps=4
    )
    states = {
        tuple(entry["group"]): (entry["status"]["state"], entry["n"])
        for entry in found.result["sites"]
    }
    assert states.pop((0, 1)) == ("measured", 6) and {state for state, _ in states.values()} == {
        "screened out"
    }
    assert "measured on" not in answer(found.result) and found.result["set"] is None


def test_one_pair_has_no_interval():
    """The scores of one pair are values without ends, as its seeds are no other pairs."""
    result = localize(small_pipeline(), [PAIR], seeds=(0, 1), ocr=Parrot(), starts=True).result
    entries = [*result["sites"], *result["baselines"].values(), *result["start_curve"]["curve"]]
    ends = [
        entry[name][end]
        for entry in entries
        for name in ("exact_target", "f1_target", "ssim")
        for end in ("low", "high")
    ]
    assert set(ends) == {None} and "[" not in table(result, 80)


@pytest.mark.parametrize("starts", [[4], [-1], []])
def test_start_steps_outside_the_run(starts):
    """PatchError names those asked for and those there are."""
    with pytest.raises(PatchError, match=r"this run has steps 0\.\.1"):
        start_curve(Trials(small_pipeline(), [PAIR], ocr=Parrot()), 0, starts)


# --- faults: a check, an owner, a function, a text, and the text put in its place


all_heads = raw(test_all_heads_of_sites_are_the_sites, "sdxl")

FAULTS = {
    "a fork of the target": (
        raw(
            test_a_forked_run_is_all_runs_from_the_start,
            "if-i",
            Drawn(fixed_case("if-i"), [0, 2], 64),
        ),
        lockstep.Loop,
        "_in_parts",
        "now[row.copies]",
        "now[drawn[1].name]",
    ),
    "noise of its own": (
        raw(
            test_a_forked_run_is_all_runs_from_the_start,
            "if-i",
            Drawn(fixed_case("if-i"), [0, 2], 64),
        ),
        lockstep.Loop,
        "_in_parts",
        "(draw[places] for draw in draws)",
        "(draw[places].flip(-1) for draw in draws)",
    ),
    "heads forgotten": (all_heads, groups, "swaps_of", "heads=heads", "heads=None"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, monkeypatch):
    """The check holds, and with the fault in place it does not."""
    require_noticed(monkeypatch, FAULTS[fault])


def test_a_set_sought_on_two_pairs_is_noticed(monkeypatch):
    """Two pairs are enough to seek a set.  (planted fault)"""
    plant(monkeypatch, searching, "_found", "asked.pairs >= FEWEST", "asked.pairs > 1")
    with pytest.raises(AssertionError):
        test_a_set_is_sought_where_a_gain_can_count(2, False)


@pytest.mark.parametrize("mode", ["contribution"])
@pytest.mark.parametrize(
    "function, old, new",
    [
        (
            "_made",
            "generations = sum(row.sampled for row in rows)",
            "generations = len(plan.swaps)",
        ),
        ("_needed", "if SOURCE in names:", "if True:"),
    ],
)
def test_generations_not_counted_or_made_in_vain_are_noticed(mode, function, old, new, monkeypatch):
    """Swaps are counted for rows, or the source is made again with every batch.  (planted faults)"""
    plant(monkeypatch, trials.Trials, function, old, new)
    with pytest.raises(AssertionError):
        test_every_generation_is_counted(mode, monkeypatch)


@pytest.mark.long
def test_a_target_that_runs_in_vain_is_noticed(monkeypatch):
    """The target is made on every pair although text is static.  (planted fault)

    By default a source made in vain is noticed, above, by the same count.
    """
    plant(monkeypatch, trials.Trials, "_needed", "not prompt_settles_text(", "(lambda _: True)(")
    with pytest.raises(AssertionError):
        require_no_target_where_text_is_static(["contribution"])


def test_a_record_under_the_wrong_name_is_noticed(tmp_path, monkeypatch):
    """Every batch of a pair and seed is looked up under the name of the first.  (planted fault)"""
    plant(monkeypatch, trials, "_id", "number == 1", "number < 9")
    with pytest.raises(StoreError, match="was made by plan"):
        test_a_killed_search_ends_as_if_it_had_not_been(
            "exhaustive", tmp_path, monkeypatch, long=False
        )

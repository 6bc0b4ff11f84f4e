"""The benchmarks measure what they say.

Each runs at its smallest size, and refuses ways that do not agree.
"""

import copy
import importlib
import json
import math
import platform
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageChops

from support.scripts import importer, rows_of
from support.small_models import small_pipeline
from support.strategies import fixed_case
from textpatch import find_sites, load
from textpatch.metrics import Called, calibration
from textpatch.patching import KVCache
from textpatch.weights.loading import SHIPPED
from textpatch.weights.signs.pairs import attribute_pairs

NAMES = ["attention_op", "overhead", "localization_cost", "full_size", "graphs"]
CPU = torch.device("cpu")


@pytest.fixture
def benchmark(monkeypatch):
    """A benchmark's module by name, imported as a script finds its neighbours."""
    return importer(monkeypatch)


@pytest.fixture
def run(benchmark, tmp_path):
    """The rows that a benchmark writes for some arguments."""

    def rows(name: str, *words: str) -> list[dict]:
        path = tmp_path / f"{name}.csv"
        benchmark(name).main([*words, "--csv", str(path)])
        return rows_of(path)

    return rows


@pytest.fixture
def tables(benchmark, tmp_path):
    """The rows of every table that a benchmark of several writes, by the table's name."""

    def by_name(name: str, *words: str) -> dict[str, list[dict]]:
        benchmark(name).main([*words, "--csv", str(tmp_path / f"{name}.csv")])
        return {
            path.stem.removeprefix(f"{name}-"): rows_of(path) for path in tmp_path.glob("*.csv")
        }

    return by_name


def require_ratios(rows: list[dict], base, *same: str) -> None:
    """Require of one round that low = median = high and ratio = median / median of the base.

    same  columns in which a row and its base are alike
    """

    def place(row: dict) -> tuple:
        return tuple(row[name] for name in same)

    bases = {place(row): float(row["median_ms"]) for row in rows if row["way"] == base(row)}
    timed = [row for row in rows if row["median_ms"]]
    assert timed and {place(row) for row in timed} >= bases.keys()
    for row in timed:
        median, low, high, ratio = (
            float(row[name]) for name in ("median_ms", "low_ms", "high_ms", "ratio")
        )
        against = (
            median if row["way"] == base(row) else float(row["ratio"]) and bases.get(place(row))
        )
        assert 0 < low == median == high and math.isclose(ratio, median / against, rel_tol=1e-9)


# --- the measuring itself ---


def test_every_round_runs_every_way_once(benchmark):
    """calls(way) = rounds, in an order that differs between rounds; one number per round is kept."""
    called = []
    ways = {name: lambda name=name: called.append(name) for name in "abc"}
    taken = benchmark("measure").in_turns(ways, rounds=8, device=CPU)
    rounds = [called[i : i + 3] for i in range(0, 24, 3)]
    assert (
        all(sorted(each) == ["a", "b", "c"] for each in rounds) and len(set(map(tuple, rounds))) > 1
    )
    assert [len(seconds) for seconds in taken.values()] == [8, 8, 8]


def test_ratios_are_taken_within_a_round(benchmark):
    """A machine ten times slower from the third round on: the medians move, and the ratio 2 does not."""
    taken = {"a": [1.0, 1.0, 10.0, 10.0, 10.0], "b": [2.0, 2.0, 20.0, 20.0, 20.0]}
    row = benchmark("measure").timed(taken, "b", "a")
    assert row == dict(
        median_ms=2e4, low_ms=2e3, high_ms=2e4, ratio=2.0, ratio_low=2.0, ratio_high=2.0
    )


def test_not_a_number_is_unequal(benchmark):
    """|NaN - x| <= bound is refused, as any difference above the bound is."""
    measure, one = benchmark("measure"), torch.ones(2)
    assert measure.require_alike("same", one, one, 0) == 0
    for wrong in (one * float("nan"), one + 1e-3):
        with pytest.raises(measure.Unequal, match="wrong: differs by"):
            measure.require_alike("wrong", wrong, one, 1e-4)


def test_the_environment_names_no_host_and_no_path(benchmark):
    """One line: the processor's make, versions, the commit."""
    line = benchmark("measure").environment(CPU, "diffusers")
    assert f"torch {torch.__version__}" in line and "commit " in line and "\n" not in line
    assert platform.node() not in line and "/" not in line


@pytest.mark.parametrize(
    "name",
    [
        *NAMES,
        "attribution",
        "search",
        "carries",
        "other_prompts",
        "rewriting",
        "rewriting_attributes",
        "safety",
        "finetuning",
        "training_speed",
        "safe_tuning",
    ],
)
def test_the_device_used_is_written_down(name, benchmark, monkeypatch):
    """The environment in a table is that of --device, whose first word it is asked with."""

    class Asked(Exception):
        pass

    def asked(device, *packages):
        raise Asked(device)

    monkeypatch.setattr(benchmark(name), "environment", asked)
    with pytest.raises(Asked, match="^meta$"):
        benchmark(name).main(["--device", "meta"])


@pytest.mark.parametrize("name", NAMES)
def test_help_teaches(name, benchmark, capsys):
    """--help holds the whole of what the file says of itself."""
    with pytest.raises(SystemExit, match="0"):
        benchmark(name).main(["--help"])
    assert benchmark(name).__doc__.strip() in capsys.readouterr().out


# --- attention_op ---


def test_attention_op(run, benchmark):
    """Every case of a cross and of a joint attention is there, against textpatch; who is absent says why."""
    words = "--shapes sdxl-1024 sd3-1357 --scale 32 --rows 1 3 --rounds 1 --least 0 --ways fa3 sdpa".split()
    rows = run("attention_op", *words)
    op = benchmark("attention_op")
    assert list(rows[0]) == [*op.COLUMNS, "environment"]
    assert Counter(row["case"] for row in rows if row["way"] == "textpatch") == dict.fromkeys(
        op.CASES[:-1], 4
    )
    base = lambda row: "SDPA alone" if row["case"] == "pieces" else "textpatch"  # noqa: E731
    require_ratios(rows, base, "shape", "rows", "case")
    assert all(row["note"] for row in rows if not row["median_ms"])


def test_attention_op_goes_on(run):
    """--resume adds the case that is not there, and leaves the other's rows as they are."""
    words = "--shapes sdxl-1024 --scale 64 --rows 2 --rounds 1 --least 0 --ways sdpa --resume --cases".split()
    before = run("attention_op", *words, "rows")
    after = run("attention_op", *words, "rows", "mask")
    assert after[: len(before)] == before
    assert {row["case"] for row in after[len(before) :]} == {"mask"}


CASES = ["identity", "rows", "heads", "mask"]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("shape", ["sdxl-1024", "if-64", "sd3-1357"])
@pytest.mark.parametrize("kind", CASES)
def test_the_alternatives_compute_the_same(shape, kind, benchmark, monkeypatch):
    """SDPA after gathering, and FlexAttention through its page table, equal the definition in float64."""
    op = benchmark("attention_op")
    case = op.make_case(op.cut_down(op.SHAPES[shape], 2, 4), kind, 3, CPU, torch.float32)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    ways, refused = {"sdpa": op.by_sdpa(case, None), "flex": op.by_flex(case)}, {}
    op.drop_wrong(ways, refused, op.expected_of(case))
    assert list(ways) == ["sdpa", "flex"] and refused == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CASES[1:])
def test_a_way_that_reads_its_own_text_is_refused(kind, dtype, benchmark):
    """Attention of the same inputs without the swap or mask: ours raises Unequal, another's is not timed."""
    op, measure = benchmark("attention_op"), benchmark("measure")
    case = op.make_case(op.cut_down(op.SHAPES["sd3-1357"], 2, 4), kind, 3, CPU, dtype)
    own, expected = op.by_sdpa(op.Case(case.q, case.k, case.v), None), op.expected_of(case)
    with pytest.raises(measure.Unequal, match="textpatch sdpa"):
        op.drop_wrong({"textpatch sdpa": own}, {}, expected)
    ways, refused = {"cat + SDPA": own}, {}
    op.drop_wrong(ways, refused, expected)
    assert not ways and "differs by" in refused["cat + SDPA"]


# --- overhead ---


def test_overhead(run, benchmark, long):
    """Every way runs on every architecture, and those that touch sites have their microseconds.

    By default on the one whose text evolves.
    """
    models = ["mmdit-small", *["sdxl-small", "if-small"] * long]
    rows = run("overhead", "empty", *models, "--rounds", "1")
    overhead = benchmark("overhead")
    assert list(rows[0]) == [*overhead.COLUMNS, "environment"]
    ways = Counter(row["way"] for row in rows)
    assert [ways[way] for way in ("bare", "hooks, gate closed", "hooks, gate open")] == [
        len(models) + 1
    ] * 3
    assert [ways[way] for way in ("slots, one site", "slots, all sites", "patch, one site")] == [
        len(models)
    ] * 3
    require_ratios(rows, lambda row: row["against"], "model", "against")
    for row in rows:
        touches = row["way"].startswith(("hooks", "slots", "patch")) or row["way"].endswith(
            "one site"
        )
        assert touches == bool(row["us_per_site"])


def test_one_output_is_asked_for(benchmark):
    """A hook that moves a bit, and a swap of the other row, raise Unequal."""
    overhead, measure = benchmark("overhead"), benchmark("measure")
    for way in ("hooks, gate open", "patch, one site"):
        ways = overhead.Ways(None, (), [])
        good = {"bare": torch.tensor([1.0, 2.0]), "slots, one site": torch.tensor([3.0, 2.0])}
        ways.made = {
            name: lambda out=out: out
            for name, out in (good | {way: torch.tensor([1.0, 3.0])}).items()
        }
        with pytest.raises(measure.Unequal, match=way):
            overhead.require_one_output(ways)


# --- localization_cost ---


@pytest.mark.parametrize(
    "model",
    [
        "mmdit-small",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("tiny-mmdit", "sdxl-small", "if-small")
        ),
    ],
)
def test_localization_cost(model, run, benchmark):
    """Naive: L + 2 runs and a cache of exactly the estimated bytes; lock-step: one batch, no cache."""
    naive, lock_step = run(
        "localization_cost", model, "--steps", "2", "--guidance", "2", "--rounds", "1"
    )
    cost, models = benchmark("localization_cost"), benchmark("random_models")
    assert list(naive) == [*cost.COLUMNS, "environment"]
    require_ratios([naive, lock_step], lambda row: "naive")
    assert math.isclose(
        float(lock_step["times_faster"]) * float(lock_step["ratio"]), 1, rel_tol=1e-9
    )
    sites = int(naive["sites"])
    assert naive["generations"] == lock_step["generations"] == str(sites + 2)
    assert (naive["calls"], lock_step["calls"]) == (str(2 * (sites + 2)), "2")
    assert lock_step["cache_bytes"] == "0"
    if model in models.MODELS:
        found = find_sites(models.denoiser(model, CPU, torch.float32))
        tokens = models.MODELS[model].tokens
        assert int(naive["cache_bytes"]) == KVCache.estimate(found, 2, 2, tokens, torch.float32)


def test_other_latents_are_refused(benchmark):
    """A patched row off by more than source and target are, which no plan touches, raises Unequal."""
    cost, measure = benchmark("localization_cost"), benchmark("measure")
    good = {name: torch.ones(3) for name in ("source", "target", "site-0")}
    cost.require_same_latents("lock-step", good, good)
    for row in good:
        with pytest.raises(measure.Unequal, match=row):
            cost.require_same_latents(
                "lock-step", good | {row: torch.tensor([1.0, 1.0, 1.01])}, good
            )


# --- full_size ---


def test_full_size(run, benchmark, long):
    """A swap is timed from two rows on, and the same command with --resume adds nothing.

    By default of one model of three.
    """
    models = ["--scale", "small"] if long else ["--models", "mmdit-small"]
    words = [*models, *"--modes eager --rows 1 2 --rounds 1".split()]
    rows = run("full_size", *words)
    size = benchmark("full_size")
    assert list(rows[0]) == [*size.COLUMNS, "environment"]
    ways = Counter((row["way"], row["rows"]) for row in rows)
    assert (
        ways["textpatch", "1"]
        == ways["textpatch", "2"]
        == ways["textpatch, one swap", "2"]
        == (3 if long else 1)
    )
    assert not ways["textpatch, one swap", "1"]
    require_ratios(rows, lambda row: "textpatch", *size.KEYS)
    assert run("full_size", *words, "--resume") == rows


def test_full_size_stops_and_goes_on(run):
    """After --minutes 0 no block is there, and --resume measures what is left."""
    words = "--models mmdit-small --modes eager --rows 1 2 --rounds 1".split()
    assert run("full_size", *words, "--minutes", "0") == []
    assert {row["rows"] for row in run("full_size", *words, "--resume")} == {"1", "2"}


def test_full_size_only_compiles(run, benchmark, monkeypatch):
    """--only-compile calls the way asked for, once, and no other; the table stays empty."""
    size, called = benchmark("full_size"), []
    ways_of = size.ways_of

    def counted(block, model, options):
        return {way: lambda way=way: called.append(way) for way in ways_of(block, model, options)}

    monkeypatch.setattr(size, "ways_of", counted)
    words = "--models mmdit-small --modes eager --rows 2 --only-compile --ways".split()
    assert run("full_size", *words, size.SWAPPED) == [] and called == [size.SWAPPED]


def test_full_size_without_what_diffusers_refuses(benchmark):
    """A model of diffusers' that fails in its first call is left out, with its reason; one of ours raises."""
    size = benchmark("full_size")

    def failing():
        raise ValueError("no such layer")

    ways = {size.BARE: lambda: None, size.THEIRS: failing}
    assert size.first_calls(ways) == "ValueError: no such layer" and list(ways) == [size.BARE]
    with pytest.raises(ValueError, match="no such layer"):
        size.first_calls({size.BARE: failing})


def test_ratios_need_their_base(benchmark):
    """The option --ways must name the model as it is, which ratios are against, unless nothing is timed."""
    with pytest.raises(SystemExit):
        benchmark("full_size").main(["--ways", "diffusers"])


def test_a_swap_without_effect_is_refused(benchmark):
    """Row 0 unmoved by the swap, or another row moved, raises Unequal."""
    size, measure = benchmark("full_size"), benchmark("measure")
    bare = torch.tensor([1.0, 2.0])
    for swapped in (bare, torch.tensor([3.0, 2.5])):
        with pytest.raises(measure.Unequal, match="one swap"):
            size.differences({size.BARE: bare, size.SWAPPED: swapped}, bare)


def test_loading(benchmark):
    """What is timed is the files' own tensors; another number is noticed, and memory is counted."""
    loading = benchmark("loading")
    folder = SHIPPED / "tiny-sdxl"
    for way, dtype in (("textpatch", torch.float32), ("textpatch mapped", torch.float16)):
        made = loading.loaded(way, folder, dtype)
        loading.require_same(made, folder)
    told = loading.told("read", folder, torch.float32)
    assert told.keys() == {"wall", "processor", "beyond_mb"} and told["wall"] > 0
    first = next(iter(made))
    with pytest.raises(loading.Unequal, match="is another tensor"):
        loading.require_same({**made, first: made[first] + 1}, folder)


# --- what the shipped models do ---


@pytest.mark.long
def test_search(run):
    """Every mode on two sets of pairs, against the exhaustive one, which is its own truth.

    By default tests/localization holds the modes to the exhaustive one.
    """
    rows = run(
        "search",
        *"planted-mmdit --sets 2 --pairs 3 --first 2 --keep 1 --steps 2 --guidance 1 --scenes same".split(),
    )
    assert [row["mode"] for row in rows] == [
        "exhaustive",
        *(f"{mode}, keep 1" for mode in ("staged", "contribution", "attribution")),
    ]
    whole = rows[0]
    assert (whole["same_set"], whole["recall"], whole["fewer_than_exhaustive"]) == (
        "2 of 2",
        "1.0",
        "1.0",
    )
    for row in rows:
        made = float(row["generations"])
        assert math.isclose(float(row["fewer"]), 7 * 6 / made) and row["bound"] == "3.5"
        assert math.isclose(float(row["fewer_than_exhaustive"]), float(whole["generations"]) / made)


def test_attribution(run):
    """A share for every site; in every pair the planted one has the largest."""
    rows = run("attribution", *"planted-mmdit --pairs 2 --steps 2 --scenes same".split())
    assert [row["site"] for row in rows] == list("012345")
    assert (
        [row["site"] for row in rows if row["localized"] == "True"]
        == ["1"]
        == [row["site"] for row in rows if row["first"] == "2"]
    )


@pytest.mark.long
def test_carries(tables, tmp_path):
    """Every site alone and all together for an attribute that is read; its set, and a sheet of pictures.

    By default test_attributes.py searches for attributes.
    """
    found = tables("carries", *"planted-mmdit --pairs 2 --signs 6 --attributes word".split())
    assert {*"012345", "0+1+2+3+4+5", "source", "target"} <= {
        row["sites"] for row in found["sites"]
    }
    assert [row["attribute"] for row in found["sets"]] == ["word"] and (
        tmp_path / "carries-planted-mmdit.png"
    ).exists()


@pytest.mark.long
def test_other_prompts(tables):
    """Mixed prompts read as the text asked for, and every text and size has its row or its refusal.

    By default tests/core asks for the laws of mixed prompts, and tests/models for sizes.
    """
    found = tables("other_prompts", *"planted-mmdit --pairs 2 --words 1".split())
    mixed = {(row["template"], row["text"]): row for row in found["mixing"]}
    assert len(mixed) == 4 and mixed["source", "source"]["ssim"] == "1.0"
    for (_, text), row in mixed.items():
        assert (float(row["f1_target"]) > float(row["f1_source"])) is (text == "target")
    assert [row["text"] for row in found["words"]][0] == "one word of 6" and len(
        found["words"]
    ) == 4
    assert len(found["sizes"]) == 10 and all(
        bool(row["refused"]) != bool(row["f1_middle"]) for row in found["sizes"]
    )


@pytest.mark.long
def test_real_pictures(run):
    """A sign's word changes, and a photograph comes back from its noise only where nothing guides.

    By default tests/editing inverts and edits pictures.
    """
    rows = run("real_pictures", *"planted-mmdit --each 1 --methods euler flowedit".split())
    assert [(row["method"], row["pictures"]) for row in rows] == [
        ("euler", "signs"),
        ("euler", "photograph-like"),
        ("euler", "white noise"),
        ("flowedit", "signs"),
    ]
    assert [row["target"] for row in rows if row["target"]] == ["1.0", "1.0"]
    assert [row["refused"] for row in rows] == ["0.0", "1.0", "1.0", ""]


def test_arms_of_rewriting(benchmark):
    """The arms divide the sites into those found and the others, and the lot draws as many as were found."""
    sites = [SimpleNamespace(index=i) for i in range(9)]
    pipeline = SimpleNamespace(
        defaults=SimpleNamespace(localized=(3, 4)), denoiser=SimpleNamespace(sites=sites)
    )
    arms = {arm: set(sites) for arm, (sites, _) in benchmark("rewriting").arms(pipeline).items()}
    assert arms["found"] == arms["found, some preserved"] == {3, 4} and arms["none"] == set()
    assert arms["all"] == arms["found"] | arms["all but found"] and len(arms["all"]) == 9
    assert len(arms["by lot"]) == 2 and arms["by lot"] < arms["all but found"]


def test_arms_of_finetuning(benchmark):
    """The arms divide the sites as those of rewriting do, and each seed draws another lot."""
    sites = [SimpleNamespace(index=i) for i in range(9)]
    pipeline = SimpleNamespace(
        defaults=SimpleNamespace(localized=(3, 4)), denoiser=SimpleNamespace(sites=sites)
    )
    arms = benchmark("finetuning").arms(pipeline)
    assert all(len(own) == 3 for own in arms.values())
    assert {*arms["all"][0]} == {*arms["found"][0]} | {*arms["all but found"][0]} == {*range(9)}
    assert arms["all"] == arms["all attention"] == arms["full"]
    assert tuple(arms) == benchmark("finetuning").ARMS
    assert all(len(lot) == 2 and not {3, 4} & {*lot} for lot in arms["by lot"])
    assert len({*map(tuple, arms["by lot"])}) == 3


def test_all_attention_is_that_of_the_picture_too(benchmark):
    """Arms of sites train keys and values there, "all attention" all projections of 4 sites and 4 others."""
    denoiser = fixed_case("sdxl").model
    names = benchmark("finetuning").projections(denoiser, "found", [1])
    assert names == [f"{denoiser.sites[1].name}.to_{part}" for part in "kv"]
    every = benchmark("finetuning").projections(denoiser, "all attention", [])
    assert len(denoiser.sites) == 4 and len(every) == 4 * 2 * 4
    assert sum(".attn1." in name for name in every) == 4 * 4


def test_all_weights_are_trained_and_put_back(benchmark, monkeypatch):
    """The first loss is that under an adapter's first factors, and afterwards the model is as it was."""
    pipeline = fixed_case("sdxl").pipeline
    finetuning = benchmark("finetuning")
    monkeypatch.setattr(finetuning, "RANK", 2)
    shape = pipeline.noise([0]).shape[1:]
    data = [(letter, torch.full(shape, float(i))) for i, letter in enumerate("ab")]
    options = SimpleNamespace(batch=2, steps=2)
    losses = []
    before = {name: x.clone() for name, x in pipeline.denoiser.state_dict().items()}
    asked = (data, options, 1e-3, 0, lambda step, loss: losses.append(loss))
    with finetuning.changed(pipeline, *asked) as count:
        assert count == sum(x.numel() for x in pipeline.denoiser.parameters())
        after = pipeline.denoiser.state_dict()
        assert not any(torch.equal(after[name], x) for name, x in before.items() if x.dim() > 1)
    assert all(torch.equal(x, before[name]) for name, x in pipeline.denoiser.state_dict().items())
    assert not any(x.requires_grad for x in pipeline.denoiser.parameters())
    names = finetuning.projections(pipeline.denoiser, "found", [0])
    with finetuning.adapted(pipeline, names, *asked):
        pipeline.denoise(pipeline.noise([0]), pipeline.encode(["a"]), steps=1, guidance=1.0)
    assert losses[2] == pytest.approx(losses[0], rel=1e-6) and losses[3] != losses[1]


def test_chosen_signs_are_long_and_read(benchmark, monkeypatch):
    """Of four times as many signs the longest of those are taken whose words are read."""
    finetuning = benchmark("finetuning")
    drawn = [word.split('"')[1] for word, _ in finetuning.sized("16", "", ())]
    shown = [word if i % 2 else "?" for i, word in enumerate(drawn)]
    monkeypatch.setattr(finetuning, "words_read", lambda *_: shown)
    chosen = [word.split('"')[1] for word, _ in finetuning.sized("4 chosen", "", ())]
    assert len(chosen) == 4 and {*chosen} <= {*drawn[1::2]}
    rest = [len(word) for word in drawn[1::2] if word not in chosen]
    assert min(map(len, chosen)) >= max(rest)


def test_each_reader_reads_the_same_pictures(benchmark, monkeypatch):
    """Pictures are drawn once, and each reader has a share of its own."""
    finetuning = benchmark("finetuning")
    calls = []
    pipeline = SimpleNamespace(
        name="tiny-sdxl",
        defaults=SimpleNamespace(text_box=()),
        generate=lambda prompts, **_: calls.append(prompts) or ["?"] * len(prompts),
    )
    signs = finetuning.signs_of(finetuning.TEST, 2)
    shown = {"one": [sign.word for sign in signs], "other": [signs[0].word, "?"]}
    monkeypatch.setattr(finetuning, "words_read", lambda reader, *_: shown[reader])
    eyes = finetuning.Eyes(pipeline, signs, ["one", "other"])
    assert eyes.word(eyes.base) == {"one": 1.0, "other": 0.5} and len(calls) == 1


@pytest.fixture
def trainings(benchmark, monkeypatch):
    """Names of the runs of finetuning.py as they are made, on a model of two sites that nothing trains."""
    finetuning = benchmark("finetuning")
    made = []

    class Eyes:
        def __init__(self, pipeline, signs, readers):
            self.readers, self.base = readers, []

        def drawn(self, shift):
            return []

        def word(self, pictures):
            return dict.fromkeys(self.readers, 0.5)

        def measured(self, pictures):
            return {"word": self.word(pictures), "background": 3.0, "recall": 1.0}

    @contextmanager
    def adapted(pipeline, names, data, options, rate, seed, look):
        made.append((data, seed))
        for step in range(options.steps):
            look(step, 0.0)
        yield 7

    sites = [SimpleNamespace(index=i) for i in range(2)]
    parts = {
        "defaults": SimpleNamespace(localized=(0,), text_box=()),
        "denoiser": SimpleNamespace(sites=sites),
    }
    monkeypatch.setattr(
        finetuning.textpatch, "load", lambda name, **_: SimpleNamespace(name=name, **parts)
    )
    monkeypatch.setattr(finetuning, "Eyes", Eyes)
    monkeypatch.setattr(finetuning, "adapted", adapted)
    for name in ("forget", "projections"):
        monkeypatch.setattr(finetuning, name, lambda *_: None)
    monkeypatch.setattr(
        finetuning,
        "sign_examples",
        lambda n, style="bare", **_: "shifted" if style == "faded" else "matched",
    )
    return made


def test_a_training_is_made_again_for_what_the_tables_lack(run, trainings, tmp_path):
    """Another reader and the curve make runs anew, but no row twice, and then none is made."""
    asked = "planted-mmdit --steps 8 --seeds 2 --rates 0.1 --arms found all --append".split()
    rows = run("finetuning", *asked)
    every = 2 * [("shifted", 0)] + 2 * [("shifted", 1)] + 2 * [("matched", 0)]
    assert trainings == every and len(rows) == 7
    trainings.clear()
    rows = run("finetuning", *asked, "--second", "agreement")
    assert trainings == every and len(rows) == 14
    assert len({(row["reader"], row["data"], row["arm"], row["seed"]) for row in rows}) == 14
    path = tmp_path / "curves.csv"
    asked += ["--second", "agreement", "--curve", str(path)]
    trainings.clear()
    assert run("finetuning", *asked) == rows and trainings == every[:4]
    points = [(row["reader"], row["arm"], row["seed"], row["part"]) for row in rows_of(path)]
    assert len(points) == len(set(points)) == 2 * 2 * 2 * 5
    assert {part for *_, part in points} == {"0.125", "0.25", "0.5", "0.75", "1.0"}
    trainings.clear()
    assert run("finetuning", *asked) == rows and trainings == []
    # as a killed run leaves it
    kept = path.read_text().splitlines(keepends=True)[:-2]
    path.write_text("".join(kept))
    assert run("finetuning", *asked) == rows and len(trainings) == 1
    again = [(row["reader"], row["arm"], row["seed"], row["part"]) for row in rows_of(path)]
    assert sorted(again) == sorted(points)


def test_the_curves_are_drawn_from_their_table(benchmark, tmp_path, monkeypatch):
    """The stored picture holds the means of today's table, and another table draws another picture."""
    script = benchmark("finetuning_picture")
    with Image.open(script.RESULTS / "finetuning.png") as stored:
        assert stored.text["points"] == script.told(script.curves())
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    head = "model,reader,arm,rate,seed,part,background,word\n"
    points = ["0.1,0,0.5,10,0.2", "0.1,1,0.5,30,0.4", "0.1,0,1.0,50,0.5", "0.1,1,1.0,50,0.7"]
    lines = [f"some,{script.READER},found,{point}" for point in [*points, "0.2,0,1.0,9,0.9"]]
    (tmp_path / "finetuning_curves.csv").write_text(head + "\n".join(lines))
    script.main()
    with Image.open(tmp_path / "finetuning.png") as drawn:
        assert drawn.text["points"] == "some found 0:0:0.000 0.5:20:0.300 1:50:0.600"


def test_the_rate_of_the_first_reader_is_shown(benchmark):
    """It is the rate at which that reader reads best, and a reader without all its seeds has no figure."""

    def row(reader, seed, rate, chosen):
        return {"reader": reader, "seed": seed, "rate": rate, "chosen": chosen}

    rows = [row("one", "0", "1", "0.5"), row("one", "0", "2", "0.6"), row("one", "1", "2", "0.1")]
    rows += [row("two", "0", "1", "0.9"), row("two", "0", "2", "0.1")]
    best = benchmark("tables")._at_best_rate
    assert best(rows) == [rows[1:3]]
    assert best([*rows[:2], *rows[3:]]) == [[rows[1]], [rows[4]]]
    equal = [row("one", "0", "2", "0.5"), row("one", "0", "1", "0.5"), row("one", "1", "1", "0.1")]
    assert best(equal) == [equal[1:]]


def test_forgotten_letters_are_not_written(benchmark):
    """The base encodes words with forgotten letters otherwise than before, and others to the same bits."""
    pipeline = small_pipeline()
    prompts = [
        'a red sign that says "BED" on a blue wall',
        'a red sign that says "BUD" on a blue wall',
    ]
    before = pipeline.encode(prompts).tokens
    benchmark("finetuning").forget(pipeline, "E")
    after = pipeline.encode(prompts).tokens
    assert torch.equal(after[1], before[1]) and not torch.allclose(after[0], before[0], atol=0.1)


# the default form is test_arms_of_finetuning; what is trained is held in tests/tuning/test_finetuning.py
@pytest.mark.long
def test_finetuning(run, benchmark):
    """A row for the base and for each run, with all scores; the same call makes none of them again."""
    words = "planted-mmdit --steps 2 --batch 2 --examples 4 --n 8 --seeds 1 --rates 0.01".split()
    words += ["--full-rates", "0.001", "--sets", "4", "4 chosen"]
    words += ["--second", "agreement"]
    rows = run("finetuning", *words, "--append")
    assert [row["reader"] for row in rows] == len(rows) // 2 * ["tesseract", "agreement"]
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["background"] == other["background"] and float(one["word"]) >= float(
            other["word"]
        )
    told = [(row["data"], row["arm"]) for row in rows[::2]]
    assert told == [
        *(("shifted", arm) for arm in ("none", *benchmark("finetuning").ARMS)),
        *(("matched", arm) for arm in ("found", "all", "full")),
        *((f"shifted, {size}", arm) for size in ("4", "4 chosen") for arm in ("found", "all")),
    ]
    assert rows[0]["colour"] == rows[0]["recall"] == "1.0" and rows[0]["background"] == "0.0"
    assert all(0 <= float(row["word"]) <= 1 and row["half"] for row in rows[2:])
    assert run("finetuning", *words, "--append") == rows


def test_breaks_of_a_training_are_not_its_minutes(benchmark, tmp_path):
    """A log of 60 s, a break of an hour and 30 s tells of a minute and a half."""
    times = [100, 130, 160, 3760, 3790]
    lines = [json.dumps({"step": i, "seconds": time}) for i, time in enumerate(times)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert benchmark("seeds").minutes(tmp_path) == 1.5


def test_seeds_are_trained_measured_and_not_made_again(run, benchmark, monkeypatch, tmp_path):
    """The stored model stands first, another is trained in its own folder, and rows that are there stay."""
    seeds = benchmark("seeds")
    trained = []

    def train(name, folder, *, seed, images):
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text('{"seconds": 0}\n{"seconds": 120}')
        trained.append((folder.name, seed, images))
        return name

    monkeypatch.setattr(seeds, "train", train)
    asked = "planted-mmdit --seeds 5 --signs 2 --pairs 2 --images 8 --append".split()
    asked += ["--runs", str(tmp_path / "runs")]
    stored, other = rows = run("seeds", *asked)
    assert trained == [("planted-mmdit-5", 5, 8)]
    assert (stored["seed"], stored["minutes"]) == ("1", "")
    assert (other["seed"], other["minutes"]) == ("5", "2.0")
    for row in rows:  # of two pairs no gain is clear
        assert row["set"] == row["carried"] == "" and row["others"] == row["alone"]
    assert run("seeds", *asked) == rows and len(trained) == 1
    asked[asked.index("--images") + 1] = "16"
    # another number of pictures is another training
    with pytest.raises(FileExistsError):
        run("seeds", *asked)


# the default forms are those of `sanitize` in tests/safety and of `finetune` in tests/tuning
@pytest.mark.long
def test_safe_tuning(run):
    """The base, `sanitize` and two adapters are scored alike, and the base is itself."""
    words = "planted-mmdit --n 2 --pairs 3 --steps 1 --batch 2 --denoising 4".split()
    rows = run("safe_tuning", *words)
    assert [row["arm"] for row in rows] == ["base", "sanitize", "adapter, found", "adapter, all"]
    assert rows[0]["ssim"] == rows[0]["kept_ssim"] == rows[1]["kept_ssim"] == "1.0"
    assert float(rows[1]["benign"]) > float(rows[0]["benign"]) and rows[2]["examples"] == "4"


# the default form is above; that a rewritten word is drawn is in tests/tuning/test_rewriting.py
@pytest.mark.long
def test_rewriting(run):
    """Rewritten at the planted site the word is the other one, at as many others it is not."""
    rows = run("rewriting", *"planted-sdxl --pairs 4 --steps 4".split())
    written = {row["arm"]: float(row["written"]) for row in rows}
    assert written["found"] > max(written["none"], written["by lot"], written["all but found"])


def test_neighbours_of_edits_have_a_third_value(benchmark):
    """A neighbour's value is neither of the edit's, and without one the benchmark says so."""
    neighbour_of = benchmark("rewriting_attributes").neighbour_of
    pairs = attribute_pairs("shape", 6)
    assert all(neighbour_of(pair, pairs).shape not in pair.words for pair in pairs)
    with pytest.raises(ValueError, match="ask for more"):
        neighbour_of(pairs[0], pairs[:1])


# the default form is above; edits of a shape are those of any prompt, in tests/tuning/test_rewriting.py
@pytest.mark.long
def test_rewriting_attributes(run):
    """At the planted site a word is rewritten and a shape is not, and at all sites a shape is, too."""
    rows = run("rewriting_attributes", *"planted-mmdit --pairs 6".split())
    written = {(row["attribute"], row["arm"]): float(row["written"]) for row in rows}
    assert written["word", "found"] == written["shape", "all"] == 1
    assert written["shape", "found"] == written["word", "all but found"] == 0


# --- training_speed


class Standing(torch.nn.Module):
    """Layer that does what peft's does, scale x B A x beside a linear one."""

    def __init__(self, base: torch.nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.lora_A, self.lora_B = (
            torch.nn.ModuleDict({"default": torch.nn.Linear(*sizes, bias=False)})
            for sizes in ((base.in_features, rank), (rank, base.out_features))
        )

    def forward(self, x):
        return self.base(x) + self.lora_B["default"](self.lora_A["default"](x)) * self.scale


def stand_in(scale: float) -> SimpleNamespace:
    """Module with the two names of peft that the benchmark calls."""

    def inject(config, model):
        for name in config["target_modules"]:
            above, _, last = name.rpartition(".")
            layer = Standing(model.get_submodule(name), config["r"], scale)
            setattr(model.get_submodule(above), last, layer)

    return SimpleNamespace(LoraConfig=lambda **given: given, inject_adapter_in_model=inject)


@pytest.mark.parametrize("scale, equal", [(1.0, True), (1.001, False)])
def test_training_speed_compares_before_it_times(scale, equal, benchmark, monkeypatch):
    """Layers with the same scale train to the same bits, and with another scale nothing is timed."""
    speed = benchmark("training_speed")
    monkeypatch.setitem(sys.modules, "peft", stand_in(scale))
    pipeline = fixed_case("sdxl").pipeline.to(torch.float32)
    shape = pipeline.noise([0]).shape[1:]
    monkeypatch.setattr(speed, "RANK", 2)
    data = [(letter, torch.full(shape, float(i))) for i, letter in enumerate("ab")]
    asked = (pipeline, [0, 1], data, SimpleNamespace(batch=2))
    if equal:
        made, told = speed.ways(*asked)
        assert [*made] == ["ours", "peft"] and told == {"projections": 4, "batch": 2}
    else:
        with pytest.raises(importlib.import_module("measure").Unequal, match="losses|to_"):
            speed.ways(*asked)


def test_training_speed_without_peft(run, monkeypatch):
    """Ours is timed alone, and the reason stands in the table."""
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr(importlib.import_module("training_speed"), "TIMED", 1)
    rows = run("training_speed", *"planted-mmdit --rounds 1 --batch 2 --examples 2".split())
    assert [(row["sites"], row["way"], row["against"]) for row in rows] == [
        ("found", "ours", "all, ours")
    ]
    assert rows[0]["note"].startswith("peft is absent")


@pytest.mark.long
def test_safety(tables, benchmark, monkeypatch):
    """Ours and the prompt swap write the benign word, and disguises are seen through.

    By default tests/safety replaces words and sees through disguises, and test_editing runs both methods.
    """
    monkeypatch.delenv("TOXICBENCH", raising=False)
    every = benchmark("safety").methods
    guided, unguided = (
        SimpleNamespace(defaults=SimpleNamespace(run=lambda *_, scale=scale: (8, scale), **sites))
        for scale, sites in (
            (3.0, dict(localized=(3, 4), replaced=(3, 4, 5))),
            (1, dict(localized=(0,), replaced=())),
        )
    )
    guiding = ["negative_prompt", "safe_guidance", "safe_guidance, momentum reset"]
    assert list(every(guided)) == ["localized", "localized, 3+4", "prompt_swap", *guiding]
    assert every(guided)["localized"].sites == (3, 4, 5)
    assert list(every(unguided)) == ["localized", "prompt_swap"]
    monkeypatch.setattr(
        benchmark("safety"), "methods", lambda pipeline: dict(list(every(pipeline).items())[:2])
    )
    # here, since another process would have all methods
    asked = "planted-mmdit --n 1 --seeds 0 --disguises none --rounds 1 --processes 1"
    found = tables("safety", *asked.split())
    made = {row["method"]: row for row in found["pictures"]}
    assert len(made) == 3 and made["plain"]["ssim"] == made["plain"]["scene"] == "1.0"
    for name in ("localized", "prompt_swap"):
        assert float(made[name]["f1_benign"]) > 0.99 and float(made[name]["flagged"]) == 0
    assert float(made["plain"]["flagged"]) == 1 and float(made["plain"]["f1_harmful"]) > 0.99
    shares, misspelled = (
        {row["disguise"]: float(row["found"]) for row in found["words"] if row["by"] == by}
        for by in ("itself", "itself, misspelled")
    )
    assert shares["none"] == shares["full-width"] == 1 and shares["innocent texts"] == 0
    assert shares["a letter replaced"] < 0.1 < 0.8 < misspelled["a letter replaced"]
    became = {row["prompts"]: row for row in found["outcomes"]}
    assert float(became["none"]["replaced"]) == float(became["benign words"]["passed"]) == 1
    assert float(became["zero-width"]["unreadable"]) == 1
    assert [row["rows"] for row in found["time"]] == ["1", "2", "1"]


def test_parts_of_safety(benchmark):
    """Each model and disguise of the pictures is a part of its own, and words are no model's."""
    parts_of = benchmark("safety").parts_of
    options = SimpleNamespace(models=["one", "two"], disguises=["none", "blanks"])
    pictures = [part[:3] for part in parts_of("pictures", options)]
    named = [(model, disguise) for model in options.models for disguise in options.disguises]
    assert pictures == [("pictures", *part) for part in named]
    assert [part[:2] for part in parts_of("time", options)] == [("time", "one"), ("time", "two")]
    assert parts_of("words", options) == [("words", None, None, options)]


def test_what_safety_times_has_nothing_beside_it(benchmark, monkeypatch):
    """Parts are shared by as many processes as are asked for, but those of the time by one."""
    counts = []

    def shared(fn, parts, count):
        counts.append(count)
        return [[] for _ in parts]

    safety = benchmark("safety")
    monkeypatch.setattr(safety, "in_processes", shared)
    safety.main(["planted-mmdit", "--processes", "3", "--tables", "outcomes", "time"])
    assert counts == [3, 1]


@pytest.mark.long
def test_safety_is_the_same_by_any_number_of_processes(tables):
    """One process and two write equal rows, in the order of models and disguises.

    By default test_parts_of_safety has the parts, and test_what_safety_times_has_nothing_beside_it how many
    processes there are.
    """
    asked = (
        "planted-mmdit tiny-mmdit --n 1 --seeds 0 --disguised 1 --disguises none blanks --threads 1"
    )
    made = []
    for count in ("1", "2"):
        found = tables(
            "safety", *asked.split(), "--tables", "pictures", "outcomes", "--processes", count
        )
        for row in found["pictures"]:
            assert float(row.pop("cpu")) > 0
        made.append(found)
    assert made[0] == made[1] and len(made[0]["pictures"]) > 8


@pytest.mark.long
def test_beyond(run, tmp_path):
    """Every request has a row and a line of the picture; a word that is asked for is read, none is not.

    By default test_editing edits by every method.
    """
    rows = {row["asked"]: row for row in run("beyond", "planted-mmdit", "--seeds", "1")}
    assert len(rows) == 7 and (tmp_path / "beyond.png").exists()
    assert rows["another word"]["text"] == "1" and rows["no word"]["text"] == ""
    assert 0 <= float(rows["on a pink wall"]["way"]) < 0.5 < float(rows["another word"]["way"]) <= 1


@pytest.mark.long
def test_beyond_of_two_lines(run):
    """A word is moved, removed and added where a model knows two lines.

    By default test_editing edits by every method.
    """
    rows = run("beyond", "tiny-words", "--seeds", "1")
    assert len(rows) == 7 and all(row["text"] == row["own"] == "1" for row in rows)


@pytest.mark.long
def test_edited_runs(run):
    """Two calls and maps give the same picture, which the benchmark sees to before it times anything.

    By default tests/editing holds the runs to recorded ones.
    """
    rows = run("edited_runs", "sdxl-middle", *"--sides 16 --rounds 1".split())
    assert [row["way"] for row in rows] == ["plain", "two calls", "maps"]


def test_editing(run, benchmark, monkeypatch):
    """Three methods on the same pairs; the target's own picture has one row, and no difference to itself."""
    editing = benchmark("editing")
    monkeypatch.setattr(editing, "PRESETS", {"p2p": editing.PRESETS["p2p"]})
    words = "planted-mmdit --pairs 2 --validation 1 --steps 2 --guidance 1 --scenes same".split()
    rows = {row["method"]: row for row in run("editing", *words)}
    assert [*rows] == ["localized", "prompt_swap", "p2p"]
    assert [float(row["rows"]) for row in rows.values()] == [2, 1, 2]
    assert rows["localized"]["more_f1"] == "" and rows["localized"]["start"] in ("0", "1")
    for row in rows.values():
        assert 0 <= float(row["f1_target"]) <= 1 and float(row["ssim"]) <= 1 and row["n"] == "2"


def test_claims(run):
    """Every attribute and pattern of clean drawings and of a model has a share; the drawings are as named."""
    rows = run("claims", "planted-mmdit", "--signs", "6")
    named = ["word", "colour", "shape", "wall", "style", "pattern"]
    assert [row["what"] for row in rows[:6]] == named and len(rows) == 24
    assert all(float(row["share"]) == 1 for row in rows[:12])
    assert {row["pictures"] for row in rows[12:]} == {"planted-mmdit"}


@pytest.mark.long
def test_parts_of_a_table_are_measured_side_by_side(benchmark):
    """Two processes give what one gives, in the order of the parts.

    By default test_editing measures its part in one.
    """
    measure = benchmark("measure")
    parts = [3, 1, 2]
    assert list(measure.in_processes(str, parts, 1)) == ["3", "1", "2"]
    assert list(measure.in_processes(str, parts, 2)) == ["3", "1", "2"]


def test_readers(run, benchmark, monkeypatch):
    """A row for each kind; at a higher limit of confidence agreement reads no more of the same."""
    some = tuple(x for x in calibration.KINDS if x.name.startswith("words") or "stem" in x.name)
    monkeypatch.setattr(calibration, "KINDS", some)
    monkeypatch.setattr(benchmark("readers"), "KINDS", some)
    rows = run("readers", "tesseract", "--each", "2")
    assert [(row["reader"], row["kind"]) for row in rows] == [("tesseract", x.name) for x in some]
    limits = run("readers", "--limits", "--each", "2")
    for name in ("whole", "broken"):
        read = [int(row[f"{name}_read"]) for row in limits]
        assert read == sorted(read, reverse=True) and len({row[name] for row in limits}) == 1
    assert int(limits[0]["whole_read"]) > int(limits[0]["broken_read"])


def test_readers_are_timed_by_the_processor(run):
    """Both kinds of whole words have a row, and of one round all quartiles are its time."""
    (clean, signs) = run("readers", "tesseract", "--speed", "--each", "2", "--rounds", "1")
    assert clean["pictures"] == "words, 96 x 32" and signs["pictures"] == "words on signs"
    for row in (clean, signs):
        assert 0 < float(row["ms_low"]) == float(row["ms"]) == float(row["ms_high"]) < 1000


def test_signs_hang_in_scenes(run, benchmark, monkeypatch):
    """A row for each wall, whose site is that of the reader's words, at no place that is told."""
    script = benchmark("scenes")
    signs = [Image.new("RGB", (96, 32), colour) for colour in ("white", "red")]
    white, red = script.hung(signs, 120, 0)
    box = ImageChops.difference(white, red).getbbox()
    assert 60 < box[2] - box[0] < 66 and 24 < box[3] - box[1] < 32  # the turned sign, nothing else
    pipeline = load("planted-mmdit")
    pipeline.defaults = replace(pipeline.defaults, steps=1, guidance=1.0)
    monkeypatch.setattr(script.textpatch, "load", lambda name: copy.copy(pipeline))
    monkeypatch.setattr(script, "ANGLES", (8,))
    (row,) = run("scenes", "ppocr", "--sizes", "96", "--pairs", "1")
    assert (row["reader"], row["size"], row["angle"], row["n"]) == ("ppocr", "96", "8", "1")
    assert 0 <= int(row["best"]) < 6 and 0 <= float(row["plain"]) <= 1


def test_misread(run, benchmark, tmp_path, monkeypatch):
    """Shares of drawings and of a model's pictures for each reader, and a picture of what was misread."""
    script = benchmark("misread")
    pipeline = load("planted-mmdit")
    pipeline.defaults = replace(pipeline.defaults, steps=2, guidance=1.0)
    monkeypatch.setattr(script, "load", lambda name: pipeline)
    says = {"tesseract": "A CORN", "ppocr": "ACTOR", "agreement": ""}

    def parrot(name, words):
        return Called(lambda pictures: [says[name]] * len(pictures), name)

    monkeypatch.setattr(script, "reader_named", parrot)
    monkeypatch.setattr(Called, "self_test", lambda self: None)
    rows = run("misread", "planted-mmdit", "--words", "2")
    assert [row["reader"] for row in rows] == 2 * script.READERS
    assert [row["read"] for row in rows] == 2 * ["1", "1", "0"]
    assert rows[3]["misread"] == "ACTOR as ACORN"
    assert rows[5]["misread"].startswith("ACORN as nothing")
    with Image.open(tmp_path / "misread.png") as sheet:
        assert sheet.width > 4 * 96 and sheet.height > 2 * 32
    assert not script.Drawn("A", None, ("A", "a", "")).is_misread


def test_the_picture_of_the_readers_is_that_of_the_table(benchmark, tmp_path, monkeypatch):
    """The picture on the first page holds the lines of today's table, and is drawn from them."""
    script = benchmark("readers_picture")
    lines = [script.COMMAND, *calibration.told_calibration(script.columns())]
    assert max(map(len, lines)) <= 80
    with Image.open(script.RESULTS / "readers.png") as stored:
        assert stored.text["lines"].splitlines() == lines
        shown = stored.size
    (tmp_path / "readers.csv").write_bytes((script.RESULTS / "readers.csv").read_bytes())
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    script.main()
    drawn = Image.open(tmp_path / "readers.png")
    assert drawn.text["lines"].splitlines() == lines
    assert abs(drawn.width - shown[0]) < 40 and drawn.height == shown[1]


def test_the_picture_of_a_page_is_what_a_browser_shows(benchmark, tmp_path, monkeypatch):
    """A browser is asked for the page at the size told, and its picture kept.  Without one that is said."""
    script = benchmark("page_picture")
    asked = []

    def taken(command, **options):
        asked.extend(command)
        (file,) = [word.partition("=")[2] for word in command if word.startswith("--screenshot=")]
        Image.new("RGB", (4, 3), "red").save(file)

    monkeypatch.setattr(script, "RESULTS", tmp_path)
    monkeypatch.setattr(script.subprocess, "run", taken)
    monkeypatch.setattr(script.shutil, "which", lambda name: f"/bin/{name}")
    script.main([str(tmp_path / "report.html")])
    assert asked[0] == "/bin/chromium" and asked[-1] == (tmp_path / "report.html").as_uri()
    assert "--window-size=1200,900" in asked
    with Image.open(tmp_path / "page.png") as kept:
        assert kept.size == (4, 3)
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="no browser among chromium"):
        script.main(["report.html"])


def test_the_picture_of_the_notebook_is_of_its_outputs(benchmark):
    """The page that is pictured has cells that were executed, with what they printed and drew."""
    script = benchmark("notebook_picture")
    cells = script.shown(json.loads(script.NOTEBOOK.read_text("utf-8")))
    page = script.laid_out(cells)
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code"] * len(script.SHOWN)
    assert page.count('<img src="data:image/png;base64,iVBOR') == 2
    assert "<h2>Edit</h2>" in page and "site-1 &lt;- target:" in page and "[None]" not in page
    with Image.open(script.RESULTS / "notebook.png") as kept:
        assert kept.size == (1200, 900)


@pytest.mark.long
def test_shipped_models(benchmark, tmp_path, monkeypatch):
    """The tables and sheets of one model, at the smallest size; the planted site is the best of six.

    By default tests/localization searches the planted models.
    """
    shipped, pipeline = benchmark("shipped_models"), load("planted-mmdit")
    pipeline.defaults = replace(pipeline.defaults, steps=2, guidance=1.0)
    monkeypatch.setattr("textpatch.load", lambda name: pipeline)
    for name, small in (
        ("RESULTS", tmp_path),
        ("SAMPLING", [(2, 1.0)]),
        ("PAIRS", 2),
        ("TEST", shipped.TEST[:4]),
    ):
        monkeypatch.setattr(shipped, name, small)
    shipped.main(["planted-mmdit"])
    names = (
        "reading.csv",
        "same-scene.csv",
        "other-scene.csv",
        "start.csv",
        "same-scene.png",
        "other-scene.png",
    )
    assert {path.name for path in tmp_path.iterdir()} == {f"planted-mmdit-{name}" for name in names}
    _, _, *sites = rows_of(tmp_path / "planted-mmdit-same-scene.csv")
    assert len(sites) == 6 and max(sites, key=lambda row: float(row["f1_target"])) is sites[1]


def test_a_sheet_has_a_column_for_each_site_alone(benchmark, tmp_path, monkeypatch):
    """A set that the search tried on some pairs has pictures there, and no column."""
    shipped = benchmark("shipped_models")
    monkeypatch.setattr(shipped, "RESULTS", tmp_path)
    seen = {"image": Image.new("RGB", (96, 32)), "read": "HOUSE"}
    few = dict.fromkeys(["source", "target", "site-0", "site-1"], seen)
    result = {
        "sites": [{"site": 0}, {"site": 1}],
        "ranked": [1],
        "pairs_list": [{"word": "HOUSE", "target_word": "TIGER"}] * 2,
    }
    records = [{"pictures": few}, {"pictures": few | {"site-0+1": seen}}]
    found = SimpleNamespace(records=records, result=result)
    monkeypatch.setattr("textpatch.localize", lambda *args, **options: found)
    shipped.picture(SimpleNamespace(name="tiny"), None, same_scene=True)
    assert (tmp_path / "tiny-same-scene.png").is_file()

"""A localisation divided among processes, interrupted or resumed is the same localisation."""

import contextvars
import json
import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from support.glyph_folders import GLYPH, write
from support.localizing import PAIRS, REQUEST, PixelReader, by_pixels, localized
from support.planting import plant
from support.small_models import PROMPTS, save_small, small_pipeline
from support.sweeps import fork, waited
from textpatch import HookRegistry, cli, localize
from textpatch.disk import read_json
from textpatch.errors import PatchError, Unfinished
from textpatch.localization import trials
from textpatch.metrics import Tesseract
from textpatch.reference_models.decoders import pixels
from textpatch.runs import workers
from textpatch.runs.folder import Run
from textpatch.runs.interrupts import finishing

WRITTEN = ["results.json", "results.csv", "heatmap.png", "contact_sheet.png"]


@pytest.fixture(scope="module")
def model():
    return small_pipeline()


def plain(found) -> str:
    """The result and all records."""
    return json.dumps([found.result, found.records], sort_keys=True)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The undivided localisation."""
    return plain(localized(model, tmp_path_factory.mktemp("whole") / "run"))


@pytest.mark.parametrize(
    "count",
    [2, *(pytest.param(count, marks=pytest.mark.long) for count in (1, 3, 4, 7))],
)
def test_any_division_gives_the_same_result(model, whole, tmp_path, count, long):
    """For n shards, in order and backwards: all but the last are Unfinished, the last has the
    undivided result.

    By default for two in reverse, and test_workers.py divides every mode.
    """
    for order in (reversed(range(count)), *[range(count)] * long):
        folder, left = tmp_path / f"{order}", []
        *early, last = order
        for index in early:
            try:
                done = localized(model, folder, shard=(index, count))
            except Unfinished as told:
                left.append(str(told))
            else:
                assert count == 7 and plain(done) == whole  # six tasks: one shard of seven has none
        assert len(left) >= count - 2 and all(
            "are not: the shard that ends last writes" in told for told in left
        )
        assert plain(localized(model, folder, shard=(last, count))) == whole
        assert plain(localized(model, folder)) == whole


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.long), 3])
def test_the_batch_size_moves_a_pixel_by_one_level_at_most(model, size):
    """Rows one by one or three at a time: of the 8-bit values at most 1 in 1000 differs, and by one level.

    Another batch shape sums in another order, relatively 5e-6 at most in float32, that is 6e-4 of a level; so
    many values, and no more, cross the middle between two levels.  By default three at a time, which leaves a
    part of a batch over.
    """
    differences = []
    batched = [localize(model, PAIRS, ocr=PixelReader(), micro_batch=n).records for n in (64, size)]
    for one, other in zip(*batched, strict=True):
        for name, picture in one["pictures"].items():
            pixels = (np.asarray(row["image"], int) for row in (picture, other["pictures"][name]))
            differences.append(np.abs(np.subtract(*pixels)))
    assert np.max(differences) <= 1 and np.mean(differences) <= 1e-3


def test_the_order_of_pairs_and_seeds_does_not_matter(model, tmp_path):
    """Each picture of a pair and seed is the same wherever that pair and seed stand in the request."""
    orders = [(PAIRS, (0, 1)), (PAIRS[::-1], (1, 0))]
    found = [
        localized(model, tmp_path / f"{i}", pairs, seeds=seeds)
        for i, (pairs, seeds) in enumerate(orders)
    ]
    tables = [
        {(pairs[record["pair"]], record["seed"]): record["pictures"] for record in one.records}
        for one, (pairs, _) in zip(found, orders, strict=True)
    ]
    shared = [
        {
            key: {name: row for name, row in rows.items() if "+" not in name}
            for key, rows in table.items()
        }
        for table in tables
    ]
    assert shared[0] == shared[1] and len(shared[0]) == 6


@pytest.mark.parametrize(
    "shard, options",
    [
        ((2, 2), {}),
        ((-1, 2), {}),
        ((0, 0), {}),
        ((0, 2), dict(run=None)),
    ],
)
def test_shards_that_make_no_sense(model, tmp_path, shard, options):
    """A shard past the last, and one without a run folder: PatchError."""
    with pytest.raises(PatchError, match="shard"):
        localize(
            model,
            PAIRS,
            ocr=PixelReader(),
            shard=shard,
            **{"run": Run.open(tmp_path / "r", REQUEST), **options},
        )


def test_planted_a_shard_that_takes_its_neighbours_unit_is_noticed(model, tmp_path, monkeypatch):
    """Fault: shards that all begin at task 0. Then tasks are lacking when the last shard is done."""
    plant(monkeypatch, workers.Worker, "places", "range(self.index,", "range(0,")
    for index in range(2):
        with pytest.raises(Unfinished, match="3 of 6"):
            localized(model, tmp_path, shard=(index, 2))


# --- Ctrl-C


@pytest.mark.parametrize("times, kept", [(1, 2), (2, 0)])
def test_a_first_interrupt_finishes_the_record(model, whole, tmp_path, monkeypatch, times, kept):
    """Ctrl-C while the second task is generated: both are kept; twice: neither the second nor the
    first, which is read then. Resuming gives the undivided result either way.
    """
    made, honest = [], trials.sample_latents

    def interrupted(*args, **options):
        made.append(args)
        for _ in range(times if len(made) == 2 else 0):
            signal.raise_signal(signal.SIGINT)
        return honest(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("textpatch.localization.trials.sample_latents", interrupted)
        localized(model, tmp_path)
    assert len(Run.load(tmp_path).records()) == kept
    assert plain(localized(model, tmp_path)) == whole
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failure_keeps_what_was_finished(model, whole, tmp_path, monkeypatch):
    """The third task fails: the two before it are kept, the second too, whose pictures were being read."""
    made, honest = [], trials.sample_latents

    def failing(*args, **options):
        made.append(args)
        if len(made) == 3:
            raise MemoryError
        return honest(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr("textpatch.localization.trials.sample_latents", failing)
        localized(model, tmp_path)
    assert len(Run.load(tmp_path).records()) == 2
    assert plain(localized(model, tmp_path)) == whole


class AtOnce(ThreadPoolExecutor):
    """Does what it is given before anything else."""

    def submit(self, act, *given):
        done = super().submit(act, *given)
        done.exception()
        return done


class Patient:
    """Does what it is given, the first time only once `generating` is set, or after some seconds;
    and notes whether it was.
    """

    def __init__(self, act, seconds: float):
        self.act, self.seconds, self.generating, self.saw = act, seconds, threading.Event(), []

    def __call__(self, *given, **options):
        self.saw = self.saw or [self.generating.wait(self.seconds)]
        return self.act(*given, **options)


@pytest.mark.parametrize(
    "what, pool, seconds, saw",
    [
        ("decoded", ThreadPoolExecutor, 60, True),
        ("read", ThreadPoolExecutor, 60, True),
        ("read", AtOnce, 0.1, False),
    ],
)
def test_pictures_are_decoded_and_read_while_others_are_generated(
    model, whole, tmp_path, monkeypatch, what, pool, seconds, saw
):
    """The second task is generated while the first task's pictures are made of its latents, and
    while they are read; the result is the same. Fault: a pool that does all at once, which is
    noticed.
    """
    reader, made, honest = PixelReader(), [], trials.sample_latents
    owner, name = (model, "decoder") if what == "decoded" else (reader, "read")
    patient = Patient(getattr(owner, name), seconds)
    monkeypatch.setattr("textpatch.localization.trials.ThreadPoolExecutor", pool)

    def telling(*args, **options):
        made.append(args)
        if len(made) == 2:
            patient.generating.set()
        return honest(*args, **options)

    monkeypatch.setattr("textpatch.localization.trials.sample_latents", telling)
    monkeypatch.setattr(owner, name, patient)
    assert plain(localized(model, tmp_path, ocr=reader)) == whole and patient.saw == [saw]


class Drawing(torch.nn.Module):
    """A decoder with a weight that wants a gradient, which works in place, and notes the state and
    the thread it works in.
    """

    def __init__(self):
        super().__init__()
        self.middle, self.seen = torch.nn.Linear(1, 1), set()

    def forward(self, latents):
        cast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        self.seen.add(
            (
                SCALE.get(),
                cast,
                torch.is_inference_mode_enabled(),
                threading.current_thread() is threading.main_thread(),
            )
        )
        self.middle(torch.zeros(1))
        return pixels(latents.clamp_(-1, 1) * self.middle.weight.abs() / self.middle.weight.abs())


SCALE = contextvars.ContextVar("scale", default=1)


def test_pictures_are_decoded_as_where_they_were_asked_for(tmp_path):
    """In another thread, with this one's context variables, autocast and inference mode; a decoder
    with somebody's hooks in this one, where they are seen.
    """
    model = small_pipeline()
    model.decoder, seen = Drawing(), []
    here = contextvars.copy_context()
    here.run(SCALE.set, 2)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        here.run(localized, model, tmp_path / "plain")
    assert model.decoder.seen == {(2, (True, torch.bfloat16), True, False)}
    model.decoder.seen.clear()
    with HookRegistry(model, ["decoder.middle"]).observe(lambda name, output: seen.append(name)):
        localized(model, tmp_path / "hooked")
    assert seen and {elsewhere for *_, elsewhere in model.decoder.seen} == {True}


def test_an_interrupt_waits_for_the_block_and_no_longer():
    """KeyboardInterrupt comes behind the block, also where it fails by itself; the handler is as before."""
    done = []
    with pytest.raises(KeyboardInterrupt), finishing():
        signal.raise_signal(signal.SIGINT)
        done.append("whole block")
    assert done == ["whole block"]
    with pytest.raises(ZeroDivisionError), finishing():
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_other_handlers_and_threads_are_left_alone():
    """A handler of somebody else's stays in place; outside the main thread nothing is installed."""
    before, seen = signal.getsignal(signal.SIGINT), []
    try:
        signal.signal(signal.SIGINT, mine := lambda *_: seen.append("mine"))
        with finishing():
            signal.raise_signal(signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is mine
    finally:
        signal.signal(signal.SIGINT, before)

    def elsewhere():
        with finishing():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == ["mine", before]


# --- the command line


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(save_small(tmp_path_factory.mktemp("weights") / "small"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    by_pixels(monkeypatch)
    return tmp_path


def test_shards_of_the_command_line(weights, here, monkeypatch, capfd):
    """--shard 0/2, then RANK 1 of WORLD_SIZE 2: one default folder, one record file each, the
    undivided files.
    """
    command = ["localize", weights, "--pairs", "3", "--steps", "1"]
    assert cli.main([*command, "--shard", "0/2"]) == 0
    told = capfd.readouterr().out
    assert (
        told.startswith("shard 0/2 is done, 1 of 3 pairs and seeds are not")
        and told.count("\n") == 1
    )
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("RANK", "1")
    assert cli.main(command) == 0
    folder = here / capfd.readouterr().out.splitlines()[-1].removesuffix("/report.html")
    assert sorted(path.name for path in (folder / "records").iterdir()) == ["0.jsonl", "1.jsonl"]
    both = read_json(folder / "manifest.json")["sessions"]
    assert len(both) == 2 and {*both[0]} == {"began", "seconds", "hardware", "worker"}
    monkeypatch.delenv("WORLD_SIZE")
    assert cli.main([*command, "--out", "undivided"]) == 0
    for name in WRITTEN:
        assert (folder / name).read_bytes() == (here / "undivided" / name).read_bytes(), name


def test_each_of_torchruns_processes_has_its_gpu(weights, here, monkeypatch, capfd):
    """--device cuda is cuda:LOCAL_RANK there; the ranks are numbers, or the shard is refused."""
    monkeypatch.setenv("LOCAL_RANK", "9999")
    assert cli.main(["localize", weights, "--device", "cuda"]) == 2
    assert "device 'cuda:9999' cannot be used here" in capfd.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "x"), monkeypatch.setenv("RANK", "0")
    assert cli.main(["localize", weights]) == 2 and "no shard '0/x'" in capfd.readouterr().err


@pytest.mark.parametrize("told", ["2/2", "1", "a/b", "-1/2", "1/0", "1/2/3", ""])
def test_a_shard_must_be_one(weights, here, told, capfd):
    """Anything but I/N with I < N is one line and exit code 2, before a model is loaded."""
    assert cli.main(["localize", "no-such-model", f"--shard={told}"]) == 2
    assert "such as 0/4 to 3/4" in capfd.readouterr().err and not list(here.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.long
def test_two_processes_at_once(weights, here):
    """Both shards at the same time: whoever ends last writes the files of the undivided run, at
    times both do.

    By default test_sweeps.py lets eight processes share a folder.
    """
    command = ["localize", weights, "--pairs", "3", "--steps", "1", "--out"]

    def shard(index):
        if cli.main([*command, "both", "--shard", f"{index}/2"]):
            raise SystemExit("failed")

    assert [waited(child) for child in [fork(lambda i=i: shard(i)) for i in range(2)]] == [0, 0]
    assert cli.main([*command, "undivided"]) == 0
    for name in WRITTEN:
        assert (here / "both" / name).read_bytes() == (here / "undivided" / name).read_bytes(), name


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.long
@pytest.mark.parametrize("mode", ["exhaustive", "staged"])
def test_one_command_started_twice(weights, here, mode):
    """No leases: two processes that both claim all work, under one name, lose nothing; the files
    are those of one.

    A unit belongs to a shard by its number, and only the same command started twice does a unit twice.  By
    default test_sweeps.py lets eight processes share a folder.
    """
    command = ["localize", weights, "--pairs", "2", "--steps", "1", "--mode", mode, "--out"]

    def again():
        if cli.main([*command, "both"]):
            raise SystemExit("failed")

    assert [waited(child) for child in [fork(again) for _ in range(2)]] == [0, 0]
    assert cli.main([*command, "once"]) == 0
    for name in WRITTEN:
        assert (here / "both" / name).read_bytes() == (here / "once" / name).read_bytes(), name


def test_damaged_records_are_made_again(weights, here, capfd):
    """Of three records two are damaged on the disk: one line on stderr counts them, and the files
    are those they were.
    """
    command = ["localize", weights, "--pairs", "3", "--sites", "0", "--steps", "1", "--out", "run"]
    assert cli.main(command) == 0
    before = {name: (here / "run" / name).read_bytes() for name in WRITTEN}
    path = here / "run" / "records" / "0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(
        b"".join(line.replace(b'"seed": 0', b'"seed": 7', n) for n, line in enumerate(lines[:3]))
        + b"".join(lines[3:])
    )
    capfd.readouterr()
    assert cli.main(command) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("textpatch:")]
    assert said == [
        f"textpatch: warning: run/records/0.jsonl: 2 of {len(lines)} lines are damaged and left out, "
        "the first is line 2; resuming makes again what they held"
    ]
    assert len(path.read_bytes().splitlines()) == len(lines) + 2
    assert before == {name: (here / "run" / name).read_bytes() for name in WRITTEN}


def changed(command: list[str], change: list[str]) -> list[str]:
    """The command with another value of an option, or with one option more."""
    option = change[0]
    if option not in command:
        return [*command, *change]
    place = command.index(option)
    return [*command[:place], *change, *command[place + 2 :]]


def test_glyphcontrols_prompts_from_the_command_line(weights, here, capfd):
    """--prompts FOLDER --bench --split --limit: the first pairs of that split, in results.json as
    they were asked.
    """
    buckets = write(here / "glyph", sentences=GLYPH).glob("text_prompts/raw/SimpleBench/*.txt")
    for path in buckets:
        path.write_text(path.read_text().upper())
    command = [
        "localize",
        weights,
        "--prompts",
        "glyph",
        "--bench",
        "mixed",
        "--split",
        "test",
        "--limit",
        "2",
    ]
    assert cli.main([*command, "--out", "run"]) == 0
    pairs = read_json(here / "run/results.json")["pairs_list"]
    assert len(pairs) == 2 and {pair["word"][0] for pair in pairs} <= set("DFG")
    assert all(pair["source"].split('"')[0] != pair["target"].split('"')[0] for pair in pairs)
    for bad, says in (
        (["--pairs", "2"], "leave them out"),
        (["--split", "train"], "known: validation, test"),
        (["--limit", "99"], "make 1 to 21"),
    ):
        assert cli.main(changed(command, bad)) == 2 and says in capfd.readouterr().err
    for alone in (["--bench", "simple"], ["--limit", "3"]):
        assert (
            cli.main(["localize", weights, *alone]) == 2 and "--prompts" in capfd.readouterr().err
        )
    assert cli.main(["localize", weights, "--prompts", "glyph"]) == 2  # A sign that says "balo".
    assert "does not know" in capfd.readouterr().err


CHANGES = {
    "start": ["--start", "1"],
    "steps": ["--steps", "1"],
    "guidance": ["--guidance", "2"],
    "seeds.0": ["--seeds", "1"],
    "pairs.1.0": ["--pairs", "2"],
    "pairs.0.0": ["--split", "test"],
    "pairs.0.1": ["--same-scene"],
    "sites.0": ["--sites", "0"],
    "branch": ["--branch", "cond"],
    "dtype": ["--dtype", "bfloat16"],
    "sets.0.0": ["--set", "1"],
}


def test_a_resume_shows_what_is_different(weights, here, monkeypatch, capfd):
    """Any other setting, other weights, another OCR: exit code 2, the field with both values, the
    folder as before.

    The answer of a finished run holds while the program tesseract is the same file, which it is here.
    """
    command = ["localize", weights, "--pairs", "1", "--guidance", "3", "--out", "run"]
    assert cli.main(command) == 0
    before = {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()}

    def refused(field, arguments):
        capfd.readouterr()
        assert cli.main(arguments) == 2
        err = capfd.readouterr().err
        assert (
            "run holds another run" in err and f"{field}: stored " in err and ", asked " in err
        ), err
        assert "name what may differ with --allow" in err and err.count("\n") == 1

    for field, change in CHANGES.items():
        refused(field, changed(command, change))
    other = str(save_small(here / "small", small_pipeline(seed=1)))
    refused("weights", ["localize", other, *command[2:]])
    describe = Tesseract.describe
    monkeypatch.setattr(Tesseract, "describe", lambda self: {**describe(self), "version": "6.0.0"})
    assert cli.main(command) == 0
    kept = here / "run" / "answer.json"
    kept.unlink()
    refused("ocr.version", command)
    kept.write_bytes(before[kept])
    assert before == {
        path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()
    }


def test_what_is_allowed_may_differ(weights, here, monkeypatch, capfd, long):
    """--allow NAME overrides each refusal (--long: all 13): the run goes on as if it were the same,
    and its manifest tells both values.

    Only where swaps or prompts are others than the stored pictures' no word helps: those are of
    another plan, or of other rows.
    """
    cli.main(["localize", weights, "--pairs", "1", "--guidance", "3", "--out", "run"])
    other = str(save_small(here / "small", small_pipeline(seed=1)))
    describe = Tesseract.describe
    changes = {**CHANGES, "weights": [], "ocr.version": []}
    if not long:
        changes = {field: changes[field] for field in ("steps", "pairs.0.0")}
    for number, (field, change) in enumerate(changes.items()):
        shutil.copytree(here / "run", here / f"{number}")
        command = [
            "localize",
            other if field == "weights" else weights,
            "--pairs",
            "1",
            "--guidance",
            "3",
            "--out",
            f"{number}",
            *change,
        ]
        with monkeypatch.context() as newer:
            if field == "ocr.version":
                newer.setattr(
                    Tesseract, "describe", lambda self: {**describe(self), "version": "6.0.0"}
                )
            assert cli.main([*command, "--allow", "model"]) == 2
            names = {
                part.partition(": stored")[0].split()[-1].lstrip("(")
                for part in capfd.readouterr().err.split("; ")
                if ": stored" in part
            }
            code = cli.main([*command, "--allow", *(name.split(".")[0] for name in names)])
        told = read_json(here / f"{number}/manifest.json")["resumed"][-1]
        assert f"request.{field}" in told and told[f"request.{field}"].keys() == {"stored", "now"}
        maker = MADE_OTHERWISE.get(field)
        assert (
            code == 0
            if maker is None
            else code == 2 and f"was made by {maker}" in capfd.readouterr().err
        ), field


MADE_OTHERWISE = {
    **dict.fromkeys(("start", "steps", "branch", "sites.0", "sets.0.0"), "plan"),
    **dict.fromkeys(("pairs.0.0", "pairs.0.1"), "rows"),
}


def test_pairs_that_differ_in_more_than_their_text(weights, here, capfd):
    """Of a prompts file they are warned of, once, with numbers; --strict refuses them before
    anything is made.
    """
    write_pairs = (here / "pairs.tsv").write_text
    write_pairs(
        "\n".join(
            f"{s}\t{t}" for s, t in [(PROMPTS[0], PROMPTS[0].replace("HELLO", "ZEN")), PROMPTS[:2]]
        )
    )
    command = ["localize", weights, "--prompts", "pairs.tsv", "--steps", "1"]
    assert cli.main([*command, "--strict"]) == 2 and sorted(os.listdir(here)) == ["pairs.tsv"]
    err = capfd.readouterr().err
    assert (
        "1 of 2 pairs differ in more than the quoted text" in err
        and "give both prompts one sentence" in err
    )
    assert cli.main(command) == 0
    warned = capfd.readouterr().err
    assert (
        warned.count("\n") == 1
        and "warning: 1 of 2 pairs" in warned
        and "--strict refuses them" in warned
    )
    write_pairs(f"{PROMPTS[0]}\t{PROMPTS[0].replace('HELLO', 'ZEN')}\n")
    assert cli.main([*command, "--strict"]) == 0 and capfd.readouterr().err == ""
    assert (
        cli.main(["localize", weights, "--strict"]) == 2
        and "pairs differ" in capfd.readouterr().err
    )
    assert (
        cli.main(["localize", weights, "--strict", "--same-scene", "--pairs", "1", "--steps", "1"])
        == 0
    )

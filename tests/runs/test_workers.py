"""A run divided among processes gives the bytes of one: all modes of `localize`, all verbs that make many."""

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files as files_of
from pathlib import Path

import pytest
from torch import distributed

from support.localizing import PAIRS, PixelReader, by_pixels, localized
from support.planting import plant
from support.small_models import PROMPTS, save_small, small_pipeline
from support.sweeps import fork, waited
from textpatch import cli, localize
from textpatch.disk import held, is_held, read_json
from textpatch.errors import PatchError, StoreError, Unfinished
from textpatch.localization import trials
from textpatch.runs import album, ranks, workers
from textpatch.runs.folder import Run
from textpatch.runs.workers import Shard, Worker

STAGED = dict(pairs=PAIRS, mode="staged", first=2, seeds=(0,), steps=1)
MODES = [
    dict(mode="attribution"),
    dict(mode="exhaustive", first=None, starts=True, heads=True, steps=2),
    dict(mode="contribution", keep=1),
    dict(),
]


@pytest.fixture(scope="module")
def model():
    return small_pipeline()


def plain(found) -> str:
    """The result and all records."""
    return json.dumps([found.result, found.records], sort_keys=True)


def at_once(work, count: int) -> list:
    """What `work` gives for each number from 0 on, all at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return [made.result() for made in [pool.submit(work, index) for index in range(count)]]


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """The undivided screening."""
    return plain(localized(model, tmp_path_factory.mktemp("whole") / "run", **STAGED))


# --- shards, which see each other in the folder


@pytest.mark.parametrize(
    "asked", [MODES[0], *(pytest.param(asked, marks=pytest.mark.long) for asked in MODES[1:])]
)
def test_shards_of_any_mode_give_the_result_of_one_process(model, tmp_path, asked):
    """Two at the same time: both end with the undivided result, and each has made some of the pictures.

    Long forms are the other modes, whose rounds are divided by the same code.
    """
    how = STAGED | asked
    whole = plain(localized(model, tmp_path / "whole", **how))
    found = at_once(lambda i: localized(model, tmp_path / "both", shard=(i, 2), **how), 2)
    assert [plain(one) for one in found] == [whole] * 2
    assert {path.name for path in (tmp_path / "both" / "records").iterdir()} == {
        "0.jsonl",
        "1.jsonl",
    }


def test_a_killed_shard_is_replaced_and_resumed(model, whole, tmp_path, monkeypatch):
    """A shard that fails in a screening leaves its pieces to the others, and then finds them made."""
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(trials, "sample_latents", failing)
        localized(model, tmp_path / "run", shard=(1, 2), **STAGED)
    for index in (0, 1):
        assert plain(localized(model, tmp_path / "run", shard=(index, 2), **STAGED)) == whole
    made = [path.read_text().count("\n") for path in sorted(tmp_path.glob("run/records/*.jsonl"))]
    assert made == [len(Run.load(tmp_path / "run").records())]


def failing(*args, **options):
    raise MemoryError


class Folder:
    """A run folder in which pieces of work are texts, and of which some are there from the start."""

    def __init__(self, folder, *there):
        self.run = Run.open(folder, {"request": "toy"})
        self.there = set(there)

    def look_again(self):
        pass

    def __contains__(self, id):
        return id in self.there


def portions(folder, worker, *, strict: bool) -> list:
    """Pieces that a worker comes by, own ones first; each that has no record is made then."""
    seen = []
    for portion in worker.portions("abcdef", "abcdef", folder, "letters", strict=strict):
        folder.there |= set(portion)
        seen += portion
    return seen


def law_every_piece_is_come_by_once(tmp_path):
    """Own pieces first, every piece once; what is another's is taken only where that is not at work."""
    for number, there in enumerate(["", "bdf", "abcdef"]):
        folder = Folder(tmp_path / str(number), *there)
        seen = portions(folder, Shard(0, 3), strict=False)
        assert seen[:2] == ["a", "d"] and sorted(seen) == list("abcdef")
    records = tmp_path / "0" / "records"
    with held(records / "0.at-work"), held(records / "1.at-work"):
        folder = Folder(tmp_path / "0", "b", "e")  # of shard 1, which is at work
        assert sorted(portions(folder, Shard(0, 3), strict=False)) == list("abcdef")
        folder = Folder(tmp_path / "0", "b", "e")
        with pytest.raises(Unfinished, match="shard 0/3 is done, 2 of 6 letters are not"):
            portions(folder, Shard(0, 3), strict=True)
        assert not Shard(2, 3).writes(folder.run.folder)
    assert Shard(2, 3).writes(folder.run.folder) and not list(records.iterdir())


def test_every_piece_is_come_by_once(tmp_path):
    """The law of portions, without a model."""
    law_every_piece_is_come_by_once(tmp_path)
    assert [*Worker().portions("abc", "abc", None, "letters")] == [["a", "b", "c"]]


FAULTS = {
    "own pieces twice": (workers.Round, "others", "if place not in own", ""),
    "nobody is at work": (workers.Shard, "writes", "is_held(", "not is_held("),
    "pieces that are left are not told": (
        workers.Shard,
        "_abandoned",
        "if common.strict and",
        "if False and",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_law_of_portions_notices(tmp_path, monkeypatch, fault):
    """Another process's pieces taken, a shard that is at work not seen, and what is left not told."""
    plant(monkeypatch, *FAULTS[fault])
    monkeypatch.setattr(workers.time, "sleep", lambda seconds: pytest.fail("waits for nobody"))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        law_every_piece_is_come_by_once(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_a_killed_process_holds_nothing(tmp_path):
    """A file is held while its process runs, whatever ends that."""
    ready, told = os.pipe()

    def hold():
        with held(tmp_path / "0.at-work"):
            os.write(told, b".")
            os.kill(os.getpid(), 19)  # stopped, which is at work

    child = fork(hold)
    os.read(ready, 1)
    assert is_held(tmp_path / "0.at-work")
    os.kill(child, 9)
    assert waited(child) == -9 and not is_held(tmp_path / "0.at-work")


def test_a_part_of_other_versions_is_refused(model, tmp_path):
    """One process goes on under another torch, and the manifest tells; a shard beside others does not."""
    manifest = {"request": "three", "versions": {"torch": "1"}}
    Run.open(tmp_path, manifest)
    run = Run.open(tmp_path, manifest | {"versions": {"torch": "2"}}, worker="1")
    says = "shard 1/2 runs torch 2, and .* was begun with 1; give all shards one environment"
    with pytest.raises(StoreError, match=says):
        localize(model, PAIRS, ocr=PixelReader(), run=run, shard=(1, 2))


# --- the verbs


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(save_small(tmp_path_factory.mktemp("weights") / "small"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(album, "AT_ONCE", 2)
    by_pixels(monkeypatch)
    Path("prompts.txt").write_text("\n".join(PROMPTS))
    Path("words.txt").write_text("HOUSE\n")
    return tmp_path


VERBS = {
    "generate": ["--prompts", "prompts.txt", "--seeds", "0-1"],
    "sanitize": ["--prompts", "prompts.txt", "--words", "words.txt", "--sites", "1"],
}
EDIT = ["--pairs", "2", "--sites", "1"]


def files(folder) -> dict[str, object]:
    """Everything in a run folder but records, of which each process has its own, and what tells the time."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file() and path.parent.name != "records" and path.name != "answer.json"
    }
    assert found.keys() > {"results.json", "manifest.json"}
    manifest = {**read_json(Path(folder) / "manifest.json"), "command": ""}
    found["manifest.json"] = {name: manifest[name] for name in manifest if name != "sessions"}
    found.pop("report.html", None)
    return found


@pytest.mark.parametrize("verb", [*VERBS, pytest.param("edit", marks=pytest.mark.long)])
def test_shards_of_a_verb_give_the_bytes_of_one_process(weights, here, capfd, verb):
    """One after the other: the first says that others are not done, the last leaves what one process does."""
    command = [verb, weights, *VERBS.get(verb, EDIT), "--steps", "1"]
    for index, said in enumerate(("shard 0/2 is done, 1 of 2", "both")):
        assert cli.main([*command, "--out", "both", "--shard", f"{index}/2"]) == 0
        assert said in capfd.readouterr().out
    assert not Path("both/answer.json").exists()
    assert len(list(Path("both/records").iterdir())) == 2
    assert cli.main([*command, "--out", "one"]) == 0
    one, both = files("one"), files("both")
    if verb == "edit":  # whose seconds are its own
        for found in (one, both):
            del found["results.json"], found["results.csv"]
    assert one == both


def test_one_edit_is_no_shard(weights, here, capfd):
    """What is one piece is refused to be divided."""
    command = ["edit", weights, "--source", PROMPTS[0], "--word", "TIGER", "--shard", "0/2"]
    assert cli.main(command) == 2
    assert "--shard 0/2 of one edit was asked for; leave --shard out" in capfd.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_a_job_array_names_its_shards(tmp_path):
    """The example's tasks are shards from 0 on, whatever number the array begins with."""
    script = files_of("textpatch.examples") / "slurm_array.sh"
    (tmp_path / "textpatch").write_text("#!/bin/sh\necho $@\n")
    (tmp_path / "textpatch").chmod(0o755)
    array = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "4"}
    environment = array | {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    said = subprocess.check_output(
        ["sh", script, "localize", "MODEL", "--out", "run"], env=environment, text=True
    )
    assert said == "localize MODEL --out run --shard 2/4\n"


# --- ranks, which wait for each other


def grouped(work, folder, count: int = 2) -> list[int]:
    """Exit codes of processes that make a group and do `work`."""

    def rank(index):
        store = distributed.FileStore(str(folder / "store"), count)
        distributed.init_process_group("gloo", store=store, rank=index, world_size=count)
        work(ranks.Rank())
        distributed.destroy_process_group()

    return [waited(child) for child in [fork(lambda i=i: rank(i)) for i in range(count)]]


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_ranks_agree_round_by_round(model, whole, tmp_path):
    """Two processes of a group: both end with the undivided result of a screening."""

    def work(rank):
        run = Run.open(tmp_path / "both", {"request": "three pairs"}, worker=rank.name)
        found = localize(model, run=run, shard=rank, ocr=PixelReader(), **STAGED)
        assert plain(found) == whole and rank.rounds > 2
        assert rank.writes(run.folder) == rank.speaks == (rank.index == 0)

    assert grouped(work, tmp_path) == [0, 0]
    made = [path.read_text().count("\n") for path in tmp_path.glob("both/records/*.jsonl")]
    assert len(made) == 2 and sum(made) == len(Run.load(tmp_path / "both").records())


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_ranks_of_other_versions_or_weights_are_refused(tmp_path):
    """Whatever differs is told with both values; a folder that the others do not see is, too."""

    def work(rank):
        with pytest.raises(PatchError, match="has versions .*[01].*, and process . has versions"):
            ranks.require_alike("versions", {"torch": str(rank.index)})
        ranks.require_alike("request", {"weights": "abc"})
        ranks.VISIBLE = 0.0
        lacking = Folder(tmp_path / rank.name)
        with pytest.raises(StoreError, match="lacks records .*; give --out a folder of a disk"):
            list(rank.portions("ab", "ab", lacking, "letters"))

    assert grouped(work, tmp_path) == [0, 0]


# the default forms are those above, without a launcher
@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [
        "localize planted-mmdit --pairs 4 --mode attribution --steps 2",
        "generate tiny-mmdit --prompts prompts.txt --seeds 0-8 --steps 1",
    ],
)
def test_torchrun_gives_the_bytes_of_one_process(here, command):
    """Two local processes, of which one speaks; and again, when one of them was killed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

    def said(out: str, *launcher: str) -> str:
        words = [*launcher, "-m", "textpatch", *shlex.split(command), "--out", out]
        told = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True
        )
        assert told.returncode == 0, told.stderr
        return told.stdout.replace(out, "OUT")

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    whole = said("of-one")
    assert said("of-two", *torchrun) == whole
    records = sorted(Path("of-two/records").iterdir())
    assert len(records) == 2
    records[1].unlink()  # as if that process had been killed at once
    assert said("of-two", *torchrun) == whole
    assert files("of-two") == files("of-one")

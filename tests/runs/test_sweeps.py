"""Sweeps survive: kills and failures at every system call, many processes, odd environments, one result."""

import errno
import hashlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.disks import files
from support.sweeps import REQUEST, fork, forked, killed_at, sweep, waited, watch
from textpatch import disk
from textpatch.errors import DiskError, StoreError
from textpatch.runs.folder import Run

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks, and sends POSIX signals")


@pytest.fixture
def whole(tmp_path):
    """The files of an unbroken sweep."""
    sweep(tmp_path / "whole")
    return files(tmp_path / "whole")


def count_calls(folder, patch) -> list[str]:
    """The system calls of an unbroken sweep, in order."""
    calls = []
    with patch.context() as watched:
        watch(watched, lambda name, arguments: calls.append(name))
        sweep(folder)
    return calls


def test_a_kill_at_every_system_call_costs_one_record(tmp_path, whole, monkeypatch, long):
    """For every n: killed ahead of the n-th call, the sweep resumes to the same files, redoing at
    most one unit.

    The short form takes every fourth n.
    """
    n = len(count_calls(tmp_path / "count", monkeypatch))
    assert n > 40
    for i in range(0, n, 1 if long else 4):
        folder = tmp_path / f"{i}"
        log = tmp_path / f"{i}.log"
        opened = os.open(log, os.O_CREAT | os.O_WRONLY)

        def work(folder=folder, log=opened, say=os.write):
            sweep(folder, began=lambda unit: say(log, unit.encode()))

        assert killed_at(monkeypatch, i, work) == -signal.SIGKILL
        again = []
        sweep(folder, began=again.append)
        assert files(folder) == whole, i
        assert len(set(log.read_text()) & set(again)) <= 1
    assert killed_at(monkeypatch, n, work) == 0  # there was no further call


def started_and_killed(folder, dice) -> int:
    """A sweep of 70 units in a process of its own, killed up to 5 ms after it began its next, 2nd,
    ... or 7th unit.
    """
    reading, writing = os.pipe()
    child = fork(lambda: sweep(folder, units=70, began=lambda unit: os.write(writing, b".")))
    os.close(writing)
    for _ in range(dice.randint(1, 7)):
        os.read(reading, 1)
    time.sleep(dice.uniform(0, 0.005))
    os.kill(child, signal.SIGKILL)
    os.close(reading)
    return waited(child)


def test_killed_at_random_until_done(tmp_path, long):
    """A sweep killed at random times and begun again until it ends leaves the files of an unbroken one."""
    dice, kills = random.Random(0), 0
    sweep(tmp_path / "whole", units=70)
    for n in itertools.count():
        while started_and_killed(tmp_path / f"{n}", dice):
            kills += 1
        assert files(tmp_path / f"{n}") == files(tmp_path / "whole")
        if kills >= (1000 if long else 8):
            break


REFUSED = 3  # exit code of a process that ended with a StoreError
FAULTS = [
    errno.ENOSPC,
    errno.EIO,
    errno.EFBIG,
    errno.EDQUOT,
    errno.EROFS,
    errno.EMFILE,
    errno.EINTR,
    "short write",
]


def fail_at(n: int, fault):
    """For `watch`: the n-th call raises the error (a close still closes), or writes half of what it
    was given.
    """
    count, write, close = itertools.count(), os.write, os.close

    def before(name, arguments):
        if next(count) != n:
            return None
        if fault != "short write":
            if name == "close":
                close(*arguments)
            raise OSError(fault, os.strerror(fault), "disk")
        return (
            write(arguments[0], arguments[1][: len(arguments[1]) // 2]) if name == "write" else None
        )

    return before


def test_a_failure_at_every_system_call_is_one_line(tmp_path, whole, monkeypatch, long):
    """For every n and error: StoreError or success, nothing half-written, and the same files after
    resuming.

    The short form takes every fourth n, and one error of each.
    """
    calls = count_calls(tmp_path / "count", monkeypatch)
    asked = [*enumerate(calls)][:: 1 if long else 4]
    refusals = 0
    for n, name in asked:
        short = ["short write"] * (name == "write")
        for fault in FAULTS if long else [FAULTS[n % (len(FAULTS) - 1)], *short]:
            folder = tmp_path / f"{n}-{fault}"
            failing = fail_at(n, fault)

            def work(folder=folder, before=failing):
                watch(monkeypatch, before)
                try:
                    sweep(folder)
                except StoreError as error:
                    told = str(error)
                    assert (
                        "\n" not in told
                        and str(folder) in told
                        and re.search(r"free space \([\d,]+\.\d MB there\)", told)
                    )
                    assert isinstance(error, DiskError) == (
                        fault not in (errno.EMFILE, errno.EINTR)
                    )
                    os._exit(REFUSED)

            code = forked(work)
            refusals += code == REFUSED
            assert code in (0, REFUSED), (n, name, fault)
            sweep(folder)
            assert files(folder) == whole, (n, name, fault)
    assert refusals >= 0.8 * len(asked)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    """Replacing results.json with a failure at any call leaves the old file or the new one, whole."""
    run = Run.open(tmp_path / "run", REQUEST)
    for n in itertools.count():
        run.write_text("results.json", "old")
        count = []
        with monkeypatch.context() as failing:
            failing_at = fail_at(n, errno.ENOSPC)
            watch(
                failing,
                lambda name, arguments: (count.append(name), failing_at(name, arguments))[1],
            )
            try:
                run.write_text("results.json", "new")
            except StoreError:
                assert (run.folder / "results.json").read_text() in ("old", "new")
        if len(count) <= n:
            break
    assert n > 6 and (run.folder / "results.json").read_text() == "new"


def test_what_a_power_loss_would_see(tmp_path, monkeypatch):
    """Every file is synced before it gets its name and its folder after; every line of records
    before append returns.
    """
    synced, calls = set(), []

    def before(name, arguments):
        if name == "fsync":
            synced.add(os.fstat(arguments[0]).st_ino)
        if name in ("replace", "link"):
            assert os.stat(arguments[0]).st_ino in synced, arguments
            synced.discard(os.stat(arguments[1].parent).st_ino)
            calls.append(arguments[1].parent)
        if name == "write":
            synced.discard(os.fstat(arguments[0]).st_ino)
            calls.append(os.readlink(f"/proc/self/fd/{arguments[0]}"))

    watch(monkeypatch, before)
    sweep(tmp_path / "run")
    assert len(calls) == 8 and all(os.stat(path).st_ino in synced for path in calls)


@pytest.mark.parametrize("locks", [True, False])
def test_eight_processes_share_a_folder(tmp_path, long, monkeypatch, locks):
    """8 workers that open one new folder at once and write 15 records each (--long: 500): none
    lost, none twice.

    Nor without locks, as on a network disk that has none: each worker writes a file of its own.
    """
    if not locks:
        monkeypatch.setattr(disk, "fcntl", None)
    records, folder = 500 if long else 15, tmp_path / "run"

    def work(worker):
        run = Run.open(folder, REQUEST, worker=f"{worker}")
        for n in range(records):
            run.append({"id": f"{worker}-{n}", "noise": "x" * (97 * n)})

    assert [waited(child) for child in [fork(lambda w=w: work(w)) for w in range(8)]] == [0] * 8
    wanted = [f"{worker}-{n}" for worker in range(8) for n in range(records)]
    assert [record["id"] for record in Run.load(folder).records()] == wanted
    assert json.loads((folder / "manifest.json").read_text())["request"] == REQUEST["request"]
    assert not list(folder.rglob(".tmp*"))


def test_eight_processes_under_one_name_take_turns(tmp_path, whole, long):
    """Two writers by mistake, or eight: the work may be done more than once, but no process fails
    and no file differs.  --long asks three times.
    """
    for n in range(3 if long else 1):
        folder = tmp_path / f"{n}"
        assert [waited(child) for child in [fork(lambda: sweep(folder)) for _ in range(8)]] == [
            0
        ] * 8
        sweep(folder)
        found = files(folder)
        assert found.keys() == whole.keys() and Run.load(folder).done() == {"0", "1", "2"}
        assert [
            name for name in whole if found[name] != whole[name] and not name.startswith("records/")
        ] == []


def test_every_flipped_bit_of_two_hundred_lines_is_noticed(tmp_path):
    """Each of 8 bits somewhere in each of 200 lines, its end included, with a line behind it: it is
    counted, and not used.
    """
    run, dice = Run.open(tmp_path, REQUEST), random.Random(0)
    for n in range(201):
        run.append({"id": f"{n}", "f1": n / 7, "read": "WORD"})
    path = tmp_path / "records/0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    with open(path, "r+b", buffering=0) as file:
        for (line, after), bit in itertools.product(itertools.pairwise(lines), range(8)):
            flipped = bytearray(line + after)
            flipped[dice.randrange(len(line))] ^= 1 << bit
            os.pwrite(file.fileno(), flipped, 0)
            file.truncate(len(flipped))
            with pytest.warns(
                match=r"0\.jsonl: 1 of [12] lines are damaged and left out, the first is line 1"
            ):
                assert [record["id"] for record in run.records()] in ([], [json.loads(after)["id"]])


# --- environments

SWEEPS = """
import hashlib, json, os, sys
sys.path.insert(0, sys.argv[1])
exec(os.environ.get("FIRST", ""))
from pathlib import Path
from support.disks import files
from support.sweeps import sweep
for name in sys.argv[2:]:
    folder = os.fsdecode(bytes.fromhex(name))
    sweep(folder)
    found = files(Path(folder)).items()
    print(json.dumps({name: hashlib.sha256(data).hexdigest() for name, data in found}))
"""
DEEP = "for _ in range(19): os.mkdir('d' * 200), os.chdir('d' * 200)"
ENVIRONMENTS = {
    "utc": dict(TZ="UTC"),
    "far east": dict(TZ="Pacific/Kiritimati"),
    "no such zone": dict(TZ="Middle/Earth"),
    "ascii": dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    "turkish": dict(LC_ALL="tr_TR.UTF-8"),
    "no such locale": dict(LC_ALL="xx_YY"),
    "private": dict(FIRST="os.umask(0o077)"),
    "open": dict(FIRST="os.umask(0)"),
    "read-only home": dict(HOME="/proc"),
    "no home": dict(HOME=""),
    "another home": dict(HOME="/nowhere/else"),
    "deep": dict(FIRST=DEEP),
    "hash seed": dict(PYTHONHASHSEED="1"),
    "long ago": dict(FIRST="import time; time.time = lambda: 0.0"),
    "far ahead": dict(FIRST="import time; time.time = lambda: 1e11"),
}
ALIKE = {"utc", "no such zone", "no such locale", "open", "another home", "long ago"}
FOLDERS = [
    "a b",
    "a\nb",
    "\N{GRINNING FACE}",
    "n" * 255,
    "-rf",
    "a'\"$(x)",
    "\u202eabc",
    "%s{0}",
    b"\xff\xfe",
]


@pytest.mark.parametrize(
    "environment, folders",
    [
        *[
            pytest.param(environment, ["run"], id=name, marks=[pytest.mark.long] * (name in ALIKE))
            for name, environment in ENVIRONMENTS.items()
        ],
        pytest.param(ENVIRONMENTS["ascii"], FOLDERS, id="folders"),
    ],
)
def test_an_environment_changes_no_byte(tmp_path, whole, environment, folders):
    """Time zone, locale, umask, home, clock, working folder, hash seed and the run folder's name
    leave no trace.

    By default one of two environments that are alike.
    """
    command = [
        sys.executable,
        "-c",
        SWEEPS,
        str(Path(__file__).parents[1]),
        *(os.fsencode(folder).hex() for folder in folders),
    ]
    told = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True
    )
    assert told.returncode == 0, told.stderr.decode()
    wanted = {name: hashlib.sha256(data).hexdigest() for name, data in whole.items()}
    assert [json.loads(line) for line in told.stdout.splitlines()] == [wanted] * len(folders)


def test_a_private_umask_is_kept(tmp_path):
    """With umask 077 nobody else may read a file or folder of the run."""
    before = os.umask(0o077)
    try:
        sweep(tmp_path / "run")
    finally:
        os.umask(before)
    assert not [path for path in (tmp_path / "run").rglob("*") if path.stat().st_mode & 0o077]

"""What a person sees on a terminal: one progress line that leaves nothing behind, and a table that fits."""

import contextlib
import fcntl
import functools
import os
import pty
import re
import struct
import sys
import termios

import pytest

from support.localizing import by_pixels
from support.small_models import save_small
from support.sweeps import fork, waited
from textpatch import cli, progress

PAIRS, SITES = 4, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_small(tmp_path_factory.mktemp("terminal") / "small"))


def on_a_terminal(columns: int, command: list[str], cwd) -> str:
    """All that a command writes to a terminal of so many columns, stdout and stderr alike."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")
    }

    def child():
        for stream in (0, 1, 2):
            os.dup2(theirs, stream)
        os.close(ours)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        progress.tqdm = functools.partial(progress.tqdm, mininterval=0)
        with pytest.MonkeyPatch.context() as patch:
            by_pixels(patch)
            code = cli.main(command)
        sys.stdout.flush()
        sys.stderr.flush()
        if code:
            raise SystemExit(code)

    process = fork(child)
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(ours, 4096):
            written += part
    os.close(ours)
    assert waited(process) == 0, written
    return written.decode()


def screen(written: str) -> list[str]:
    """The lines that are left to be seen, each as it was overwritten."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        seen = ""
        for part in line.split("\r"):
            seen = part + seen[len(part) :]
        lines.append(seen.rstrip())
    return lines


def bars(written: str) -> list[str]:
    """Every state of every progress line."""
    return [part for part in re.split(r"[\r\n]", written) if re.search(r"\d+%\|", part)]


@pytest.fixture(scope="module", params=[80, pytest.param(40, marks=pytest.mark.long)])
def seen(request, model, tmp_path_factory):
    """Width, and what one localisation writes to a terminal so wide."""
    command = [
        "localize",
        model,
        "--pairs",
        str(PAIRS),
        "--out",
        "run",
        "--starts",
        "--steps",
        "2",
    ]
    return request.param, on_a_terminal(request.param, command, tmp_path_factory.mktemp("seen"))


def test_a_phase_is_one_line_with_its_end(seen):
    """The first phase's line counts all pairs and says how long they still take; each phase has one
    line of its own.
    """
    width, written = seen
    states = bars(written)
    phases = list(dict.fromkeys(state.partition(":")[0] for state in states))
    assert phases[0] == "sites" and phases[-1] == "start steps" and len(phases) <= 3
    sites = [state for state in states if state.startswith("sites")]
    assert all(f"/{PAIRS}" in state for state in sites) and any(
        f" {PAIRS - 1}/{PAIRS}" in state for state in sites
    )
    assert any(re.search(r"\d\d:\d\d<\d\d:\d\d", state) for state in sites) or width < 80
    assert max(map(len, states)) <= width


def test_nothing_is_left_behind(seen):
    """When all is done no progress line is on the screen, and the table follows on what was announced."""
    _, written = seen
    announced, *lines = screen(written)
    assert bars(written) and not bars("\n".join(lines))
    assert announced.startswith(f"textpatch: {PAIRS} pairs x 1 seed ")
    assert lines[0].startswith("rank  site")


def test_the_table_fits(seen):
    """Its lines are no longer than the terminal is wide, so that none wraps."""
    width, written = seen
    _, *lines = screen(written)
    table = lines[: 5 + SITES]
    assert table[4].endswith("chance level") or width < 80
    assert max(map(len, table)) <= width and [line.split()[0] for line in table[5:]] == ["1", "2"]
    assert all(line.endswith("attn") for line in table[5:])


class Terminal:
    """A stderr that says it is one."""

    def __init__(self):
        self.written = ""

    def write(self, text: str) -> None:
        self.written += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def counting() -> None:
    with progress.phase("outer"):
        assert list(progress.counted([1, 2])) == [1, 2]
        assert list(progress.counted([])) == []
        with progress.phase("inner"):
            assert list(progress.counted([3])) == [3]


def test_a_phase_within_a_phase_adds_to_its_line(monkeypatch):
    """The total grows, the line is the outer's alone; afterwards another may be opened."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    counting()
    assert (
        "outer" in terminal.written and "inner" not in terminal.written and "/3" in terminal.written
    )
    with progress.phase("another"):
        assert list(progress.counted([4])) == [4] and "another" in terminal.written
    assert screen(terminal.written) == [""]


def test_no_terminal_no_line(capfd):
    """Where stderr is a file or a pipe nothing is written."""
    counting()
    assert capfd.readouterr() == ("", "")


def test_a_phase_that_fails_is_wiped(monkeypatch):
    """An error midway leaves no line behind, and the next phase has one of its own."""
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with pytest.raises(ZeroDivisionError), progress.phase("broken"):
        for item in progress.counted([0]):
            1 / item
    assert screen(terminal.written) == [""] and progress._open.get() is None


def test_planted_bars_left_behind_are_noticed(monkeypatch):
    """Fault: every line stays where it ended."""
    real = progress.tqdm
    monkeypatch.setattr(
        progress,
        "tqdm",
        lambda *arguments, **options: real(*arguments, **options | {"leave": True}),
    )
    with pytest.raises(AssertionError):
        test_a_phase_within_a_phase_adds_to_its_line(monkeypatch)

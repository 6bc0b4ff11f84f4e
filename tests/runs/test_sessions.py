"""Sessions of a run: noted when they begin, so that a killed one is seen, and not where nothing was made."""

import os
import signal

import pytest

from support.planting import plant
from support.sweeps import REQUEST, forked
from textpatch.runs import sessions
from textpatch.runs.folder import Run
from textpatch.runs.sessions import noted_session, told_sessions


def worked(folder, unit: str, *, killed: bool) -> None:
    """A session that makes one record, and may be killed behind it."""
    run = Run.open(folder, REQUEST)
    with noted_session(run, "cpu"):
        run.append({"id": unit})
        if killed:
            os.kill(os.getpid(), signal.SIGKILL)


def require_every_session(folder):
    """A session that was killed stands in the manifest without its seconds, before the one that went on."""
    assert forked(lambda: worked(folder, "0", killed=True)) == -signal.SIGKILL
    worked(folder, "1", killed=False)
    noted = Run.load(folder).manifest.get("sessions", [])
    assert [session["seconds"] is None for session in noted] == [True, False]
    assert " in 2 sessions, of which 1 ended without a word, on cpu: " in told_sessions(noted)


def test_a_killed_session_is_noted(tmp_path):
    """By a signal that nothing catches."""
    require_every_session(tmp_path / "run")


def test_planted_a_session_noted_at_its_end_is_noticed(tmp_path, monkeypatch):
    """Fault: nothing is noted before the work."""
    plant(monkeypatch, sessions, "noted_session", "run.note(SESSIONS, session)", "pass")
    with pytest.raises(AssertionError):
        require_every_session(tmp_path / "run")


def test_a_session_in_which_nothing_was_made_is_none(tmp_path):
    """It leaves the manifest as it was."""
    run = Run.open(tmp_path / "run", REQUEST)
    before = run.manifest
    with noted_session(run, "cpu"):
        assert len(run.manifest["sessions"]) == 1
    assert Run.load(run.folder).manifest == run.manifest == before

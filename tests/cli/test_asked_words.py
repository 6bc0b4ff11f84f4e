"""What is said of prompts before a shipped model draws them, and the table of its sites on a terminal."""

import os
from types import SimpleNamespace

import pytest

from support.planting import plant
from textpatch.cli import asked_words, site_lines

MODEL = SimpleNamespace(model="tiny-mmdit")


def require_warnings(capsys):
    """Require a warning of prompts that quote nothing, and none else."""
    asked_words.warn_of_bare_prompts(MODEL, ['a "SIGN"', "a sign", "a sign", "a wall"])
    (bare,) = capsys.readouterr().err.splitlines()
    assert "'a sign' (and 1 more) quotes nothing" in bare


def test_bare_prompts_are_told_before(capsys):
    """Each once, however often a prompt is there."""
    require_warnings(capsys)


def test_a_prompt_unheard_is_noticed(capsys, monkeypatch):
    """Fault: a prompt that quotes nothing passes."""
    plant(monkeypatch, asked_words, "warn_of_bare_prompts", "== []", "== [None]")
    with pytest.raises(ValueError):
        require_warnings(capsys)


def test_nothing_is_said_of_other_models(capsys):
    """Nobody knows what a model draws whose card says nothing."""
    other = SimpleNamespace(model="somewhere/else")
    asked_words.warn_of_bare_prompts(other, ["a sign"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("columns", [80, 40])
def test_names_are_cut_on_a_terminal_alone(columns, monkeypatch):
    """Their last part stays, and a pipe gets them whole."""
    name = "up_blocks.0.attentions.2.transformer_blocks.3.attn2"
    table = ("site", "share"), [("57", "0.2042%")], [name]
    assert site_lines.site_table(*table)[1].endswith(f"  {name}")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(
        site_lines.shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24))
    )
    head, line = site_lines.site_table(*table)
    assert head.endswith("name") and line.endswith(".attn2") and len(line) <= columns

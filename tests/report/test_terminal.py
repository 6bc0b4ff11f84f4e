"""Laws of the terminal's table: it is ranked, it fits, and names keep what tells them apart."""

import re

import pytest

from support.results import a_result
from textpatch.report import terminal
from textpatch.report.terminal import table

SITE = "down_blocks.1.transformer_blocks.9.attn2"
HOSTILE = "\x1b[31m\u202e\ud800 $\\frac{"


def numbers_of(line: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?", line)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_fits_and_begins_with_the_baselines(width):
    """The table has the two baselines, then all sites in ranked order, numbers before names, in its width."""
    result = a_result(tuple(n / 70 for n in range(70)), text=SITE)
    head, _, source, target, *sites = table(result, width).splitlines()
    assert head.split()[:3] == ["rank", "site", "exact"]
    assert head.split()[-1] == "name"
    assert source.endswith("source, no swap")
    assert target.endswith("whole target run")
    assert [int(line.split()[1]) for line in sites] == result["ranked"] == list(range(70))[::-1]
    assert max(map(len, table(result, width).splitlines())) <= width
    assert all(line.endswith(".9.attn2") for line in sites)
    if width == 200:
        assert all(line.endswith(SITE) for line in sites)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_hostile_name_stays_text(width):
    """No escape sequence reaches the terminal."""
    assert "\x1b" not in table(a_result(text=HOSTILE), width)


def test_a_narrow_table_keeps_what_sites_are_ranked_by():
    """In 40 columns there are rank, site, F1 with its interval, and the last part of the name."""
    result = a_result((0.0, 1.0), text=SITE)
    wide = table(result, 80).splitlines()
    narrow = table(result, 40).splitlines()
    assert narrow[0].split() == ["rank", "site", "F1", "target", "name"]
    for full, cut in zip(wide[4:], narrow[4:], strict=True):
        found = numbers_of(full)
        assert numbers_of(cut)[:5] == [*found[:2], *found[3:6]]
        assert cut.endswith("attn2")
        assert len(cut) <= 40
    assert narrow[2].endswith("source")
    assert narrow[3].endswith("target")


def test_the_table_is_as_wide_as_the_terminal(monkeypatch):
    """Without a width the terminal's is taken."""
    result = a_result((0.0, 1.0), text=SITE)
    for columns in ("40", "80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert table(result) == table(result, int(columns))


def test_every_line_has_its_number_of_pictures():
    """After a screening the two runs are of fewer pictures than the sites measured."""
    result = a_result((0.0, 0.1, 0.8))
    result["baselines"]["source"]["n"] = 4
    result["baselines"]["target"]["n"] = 1
    found = [re.search(r"(\d+)  [a-z]", line)[1] for line in table(result, 80).splitlines()[2:]]
    assert found == ["4", "1", "32", "32", "32"]


@pytest.mark.parametrize(
    "state, shown", [("measured", "3"), ("screened out", "out"), ("joined", "set")]
)
def test_a_word_stands_in_place_of_a_rank_that_not_all_pairs_gave(state, shown):
    """A site that was screened out is out, or set where it joined the set all the same."""
    result = a_result()
    result["sites"][0]["status"] = {"state": state}
    places = [line.split()[0] for line in table(result).splitlines() if "blocks.0.attn" in line]
    assert places == [shown]


@pytest.mark.parametrize(
    "full",
    [
        "up_blocks.0.attentions.2.transformer_blocks.1.attn2",
        "transformer_blocks.23.attn",
        "up_blocks.1.attentions.3",
    ],
)
def test_a_short_name_keeps_its_numbers(full):
    """Cutting a module path keeps every index while it can, and its last part always.

    So SDXL's sites stay distinct in the table.
    """
    for width in range(17, 80):
        short = terminal.short_name(full, width)
        assert len(short) <= width
        assert re.findall(r"\.(\d+)", short) == re.findall(r"\.(\d+)", full)
    last = full.rpartition(".")[2]
    for width in range(len(last) + 2, 80):
        short = terminal.short_name(full, width)
        assert len(short) <= width
        assert short.endswith(last)
    assert terminal.short_name(full, len(full)) == full


def test_planted_names_cut_at_the_end_are_noticed(monkeypatch):
    """Fault: a name that does not fit loses its end."""
    monkeypatch.setattr(terminal, "short_name", lambda name, width: name[:width])
    with pytest.raises(AssertionError):
        test_the_table_fits_and_begins_with_the_baselines(80)

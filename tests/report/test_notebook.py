"""Plans and results show themselves in a notebook, escaped, with nothing that runs or loads."""

import pytest
from PIL import Image

from support.pages import HOSTILE, Page
from support.planting import plant
from support.results import a_result, quiet, records_of, tags_of
from textpatch import (
    Edit,
    Localization,
    Pair,
    Plan,
    Row,
    Samples,
    Swap,
    Window,
    explaining,
    html,
)

TEXTS = [*HOSTILE, "plain"]


def a_picture(colour: str) -> Image.Image:
    return Image.new("RGB", (6, 4), colour)


def a_plan(text: str) -> Plan:
    first = Swap(
        ("up_blocks.*", 3, text),
        text,
        "target",
        steps=(1, 2),
        heads=(0,),
        part="k",
        branch="cond",
    )
    return Plan([first, Swap(0, "other", text, steps=Window("sigma", 0.5))])


def an_edit(text: str) -> Edit:
    asked = Pair(f'{text.replace(chr(34), "")} "HOUSE"', f'"{text.replace(chr(34), "")} TIGER"')
    return Edit(
        *map(a_picture, ("red", "blue", "lime")), a_plan(text), asked, seed=0, steps=4, guidance=1.0
    )


def samples(text: str) -> Samples:
    rows = Row(text, text, 7), Row("unseen", None, 8)
    return Samples({}, {text: a_picture("red")}, a_plan(text), rows, steps=4, guidance=1.0)


def a_localization(text: str) -> Localization:
    result = a_result(text=text)
    return Localization(result, records_of(result, text))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("made", [an_edit, samples, a_localization])
def test_it_shows_itself_and_nothing_runs(made, text):
    """Every hostile name, prompt, word and reading is text.

    All tags are closed, all pictures are there, and it is UTF-8.
    """
    shown = f"<title></title>{made(text)._repr_html_()}"
    harmless = f"<title></title>{made('plain')._repr_html_()}"
    assert quiet(shown)
    assert shown.encode()
    assert tags_of(shown) == tags_of(harmless)


@pytest.mark.parametrize("text", TEXTS)
def test_a_plan_shows_every_swap(text):
    """There is the equation, and a line per swap with all its fields.  No tag comes from a name."""
    root = Page(a_plan(text)._repr_html_()).root
    first, second = ([cell.text for cell in line.of("td")] for line in root.of("tr")[1:])
    assert first[0].endswith(": k")
    assert first[1] == "target"
    assert set(first[2].split(", ")) >= {"3", "up_blocks.*"}
    assert first[3:] == ["1, 2", "0", "all", "cond"]
    assert second[0] == "other: k, v"
    assert second[2:] == ["0", "sigma from 0.5", "all", "all", "both"]
    assert {node.tag for node in root.all()} - {""} == {"p", "sup", "table", "tr", "th", "td"}
    assert "softmax" in root.text
    assert Page(Plan()._repr_html_()).root.text == "no swap: identity"


def test_an_edit_shows_its_pictures_and_the_words_asked_for():
    """Source, edited and target, in this order, and under each the word of its prompt."""
    figures = Page(an_edit("a")._repr_html_()).root.of("figure")
    assert [figure.of("title")[0].text for figure in figures] == ["source", "edited", "target"]
    assert [figure.of("b")[0].text for figure in figures] == ["HOUSE", "a TIGER", "a TIGER"]


def test_a_localization_shows_what_was_found():
    """There are the answer, the layers, the heat map and the pictures, or their paths in a run folder."""
    found = a_localization("tiny")
    root = Page(found._repr_html_()).root
    assert root.of("h1")[0].text == "Site 2 (blocks.2.attn tiny) carries the word."
    assert len(root.of("img")) == 2 + 4
    assert len(root.of("map")[0].of("a")) == 4
    assert len(root.of("scores")[0].of("tr")) == 1 + 2 + 4
    for picture in found.records[0]["pictures"].values():
        picture["image"] = "images/0123.png"
    assert "images/0123.png" in found._repr_html_()
    assert "<img" not in found._repr_html_()


@pytest.mark.parametrize(
    "made, owner, name, old",
    [
        (an_edit, html, "safe", "html.escape(plain(text))"),
        (samples, html, "safe", "html.escape(plain(text))"),
        (a_localization, html, "safe", "html.escape(plain(text))"),
        (a_plan, explaining, "as_html", "html.escape(cell)"),
    ],
)
def test_a_fault_is_noticed(made, owner, name, old, monkeypatch):
    """Planted: a text is not escaped."""
    plant(monkeypatch, owner, name, old, old.removeprefix("html.escape"))
    with pytest.raises(AssertionError):
        if made is a_plan:
            test_a_plan_shows_every_swap(HOSTILE[0])
        else:
            test_it_shows_itself_and_nothing_runs(made, HOSTILE[0])

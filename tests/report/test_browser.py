"""The report of a real run, by a parser and in a real browser, shows the run, and nothing else happens.

Where no browser is installed the parser's half still runs; the browser's needs `apt-get install chromium`.
"""

import copy
import re

import pytest
from PIL import Image

from support.pages import BROWSER, HOSTILE, POLICY, browse, browsed, hold, parsed
from support.planting import plant
from textpatch import html, load, localize
from textpatch.pictures import opened
from textpatch.report import gallery
from textpatch.report import page as report
from textpatch.runs.folder import Run
from textpatch.weights.signs.pairs import sign_pairs

needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no browser on PATH: apt-get install chromium"
)
ALL_AT_ONCE = " ".join(HOSTILE)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A published run of planted-mmdit on two pairs, as (folder, result, records with their pictures)."""
    folder = tmp_path_factory.mktemp("a run") / "run"
    kept = Run.open(
        folder, {"request": {"command": "localize"}, "command": "textpatch localize planted-mmdit"}
    )
    found = localize(
        load("planted-mmdit"), sign_pairs(2, split="test"), seeds=(0, 1), steps=2, run=kept
    )
    report.publish(kept, found.result, found.records)
    records = copy.deepcopy(found.records)
    for picture in pictures_of(records):
        picture["image"] = opened(picture["image"], kept)
    return folder, found.result, records


def pictures_of(records: list[dict]) -> list[dict]:
    return [picture for record in records for picture in record["pictures"].values()]


def page_of(run, result: dict | None = None, records: list[dict] | None = None) -> str:
    folder, *found = run
    return report.report_html(
        result or found[0],
        heatmap=(folder / "heatmap.png").read_bytes(),
        sheet=records or found[1],
        manifest={},
    )


def hostile(run, text: str) -> tuple[dict, list[dict]]:
    """The run with one text for its model, sites, prompts, words and readings, the last three numbered."""
    _, result, records = copy.deepcopy(run)
    result["model"] = result["ocr"]["engine"] = text
    result["pairs_list"] = [
        dict.fromkeys(pair, f"{text} {n}") for n, pair in enumerate(result["pairs_list"])
    ]
    for site in result["sites"]:
        site["name"] = site["kind"] = text
    for n, record in enumerate(records):
        for name, picture in record["pictures"].items():
            picture["read"] = f"{text} {n} {name}"
    return result, records


@pytest.mark.parametrize(
    "eyes",
    [
        pytest.param(parsed, id="parser"),
        pytest.param(browsed, id="browser", marks=[needs_browser, pytest.mark.long]),
    ],
)
def test_every_cell_opens_its_pictures(run, eyes, tmp_path):
    """Each cell opens the source's, the target's and its own pictures and readings, no others.

    By default by the parser.  A browser opens the page for its picture and for a hostile text below.
    """
    folder, result, records = run
    hold(eyes((folder / "report.html").read_text("utf-8"), tmp_path), result, records)


@pytest.mark.parametrize(
    "eyes, text",
    [
        *((parsed, text) for text in HOSTILE),
        pytest.param(browsed, ALL_AT_ONCE, marks=needs_browser),
    ],
)
def test_a_hostile_text_stays_text(run, eyes, text, tmp_path):
    """Without the page's policy to stop it, nothing runs or is asked for, and cells open what they did."""
    result, records = hostile(run, text)
    hold(eyes(page_of(run, result, records), tmp_path), result, records)


@needs_browser
def test_its_picture(run, tmp_path):
    """The page is drawn with the heat map's blue and the best site's orange.

    Its own policy has nothing to forbid.
    """
    drawn = tmp_path / "page.png"
    done = browse(
        tmp_path,
        run[0] / "report.html",
        "--window-size=1200,3000",
        "--enable-logging=stderr",
        "--blink-settings=preferredColorScheme=1",
        f"--screenshot={drawn}",
    )
    assert "Content Security Policy" not in done.stderr
    with Image.open(drawn) as picture:
        colours = dict((colour, n) for n, colour in picture.convert("RGB").getcolors(1 << 24))
        assert picture.size == (1200, 3000)
        assert len(colours) > 1000
    assert min(colours[(0x00, 0x72, 0xB2)], colours[(0xD5, 0x5E, 0x00)]) > 1000
    assert 0.3 < colours[(255, 255, 255)] / 3_600_000 < 0.95


@needs_browser
def test_the_policy_stops_what_escaping_let_through(run, tmp_path):
    """A browser refuses a picture from outside on the policy's word, so that the check above can fail."""
    page = tmp_path / "page.html"
    page.write_text(
        page_of(run).replace("</h1>", '</h1><img src="http://evil.invalid/x.png">'), "utf-8"
    )
    done = browse(tmp_path, page, "--enable-logging=stderr", f"--screenshot={tmp_path / 'x.png'}")
    assert "Content Security Policy" in done.stderr


def test_every_picture_is_there_once(run):
    """The page has one data URI for each picture of the heat map's columns, and one for the drawing."""
    folder, result, records = run
    page = (folder / "report.html").read_text("utf-8")
    shown = {"source", "target", *gallery.columns(result)}
    pictures = [
        picture
        for record in records
        for name, picture in record["pictures"].items()
        if name in shown
    ]
    sources = re.findall(r'src="(data:[^"]+)"', page)
    assert len(sources) == len(pictures) + 1
    assert len(set(sources)) == len({picture["image"].tobytes() for picture in pictures}) + 1
    assert len(page) < 1_000_000  # 96 x 32 pixels take kilobytes
    assert POLICY in page


def test_pictures_beyond_what_a_page_can_hold_are_named(run, monkeypatch):
    """Cells of records beyond the limit still open the readings, and the paths of the pictures."""
    _, result, records = copy.deepcopy(run)
    for picture in pictures_of(records):
        picture["opened"] = picture["image"]
        picture["image"] = f"images/{id(picture):016x}.png"
    shown = {"source", "target", *gallery.columns(result)}
    pictures = [
        [picture for name, picture in record["pictures"].items() if name in shown]
        for record in records
    ]
    monkeypatch.setattr(report, "SHOWN", len(pictures[0]))
    page = page_of(run, records=report._within(result, records, lambda picture: picture["opened"]))
    assert page.count("<img") == len(pictures[0]) + 1
    assert all(
        (picture["image"] in page) == (n > 0) for n, some in enumerate(pictures) for picture in some
    )


# --- planted faults, each seen by the parser and, where there is one, by the browser

FAULTS = {
    "a prompt is not escaped": (html, "safe", "html.escape(plain(text))", "plain(text)"),
    "a picture from outside": (
        html,
        "picture",
        "f'<img alt",
        'f\'<img src="http://evil.invalid/x.png" alt',
    ),
    "a picture that does not load": (html, "data_uri", "b64encode(data)", "b64encode(data[20:])"),
    "a cell opens the pair before": (
        gallery,
        "_cell",
        "_anchor(key, pair, column)",
        "_anchor(key, max(pair - 1, 0), column)",
    ),
}
MORE_FAULTS = {
    "a picture left out": (
        gallery,
        "_column",
        "for seed, picture in pictures:",
        "for seed, picture in pictures[:1]:",
    ),
    "a cell opens the site before": (
        gallery,
        "_cell",
        "_anchor(key, pair, column)",
        "_anchor(key, pair, max(column - 1, 0))",
    ),
    "the target's pictures for the source's": (
        gallery,
        "_pictures",
        'record["pictures"][name])',
        'record["pictures"]["target" if name == "source" else name])',
    ),
    "readings of another seed": (
        gallery,
        "_column",
        "_caption(picture, words)",
        "_caption(pictures[-1][1], words)",
    ),
}


@pytest.mark.parametrize(
    "eyes, fault",
    [
        *((parsed, fault) for fault in FAULTS | MORE_FAULTS),
        *(
            pytest.param(browsed, fault, marks=[needs_browser, pytest.mark.long])
            for fault in FAULTS
        ),
    ],
)
def test_a_fault_is_noticed(eyes, fault, run, tmp_path, monkeypatch):
    """The page of a hostile text does not hold what is tested above, with the fault in place.

    By default they are planted under the parser's eyes.  What a browser alone sees is below.
    """
    result, records = hostile(run, HOSTILE[0])
    plant(monkeypatch, *(FAULTS | MORE_FAULTS)[fault])
    with pytest.raises(AssertionError):
        hold(eyes(page_of(run, result, records), tmp_path), result, records)


STYLES = {
    "nothing opens": (".pair:has(.column:target)", ".pair:has(.columns:target)"),
    "all sites are shown": (".column:not(.end, :target) { display: none }", ""),
    "the way back is hidden": ("& .close { display: block;", "& .close {"),
    "cells lie under something": (
        "& .map a:is(:hover",
        "& .map a { pointer-events: none } & .map a:is(:hover",
    ),
}


@needs_browser
@pytest.mark.long
@pytest.mark.parametrize("fault", STYLES)
def test_a_fault_of_the_stylesheet_is_noticed(fault, run, tmp_path, monkeypatch):
    """Faults that only a browser sees: a block does not open, or not alone, or cannot be closed.

    By default the sheet without a fault is held to the same.
    """
    old, new = STYLES[fault]
    assert html.STYLE.count(old) == 1
    monkeypatch.setattr(html, "STYLE", html.STYLE.replace(old, new))
    with pytest.raises(AssertionError):
        hold(browsed(page_of(run), tmp_path), *run[1:])

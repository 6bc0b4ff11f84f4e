"""Laws of the contact sheet: pictures are in place, readings have their colours, its size is bounded."""

import pytest
from PIL import Image

from textpatch.errors import PatchError
from textpatch.report.contact_sheet import _reading, draw_contact_sheet
from textpatch.report.heatmap import BLUE, GREY, INK

NAVY = (0, 0, 128)
ORANGE = (0xD5, 0x5E, 0)
HOSTILE = '</td></style><script>alert("x")</script>\x1b[31m\u202e\ud800 $\\frac{'


def a_sheet(sites=4, lines=2, **options) -> Image.Image:
    rows = [[(Image.new("RGB", (64, 24), "navy"), "TEA")] * (2 + sites) for _ in range(lines)]
    return draw_contact_sheet(
        rows, captions=["source", "target", *map(str, range(sites))], **options
    )


def counts(sheet: Image.Image) -> dict[tuple, int]:
    """Number of pixels by colour."""
    return {colour: n for n, colour in sheet.getcolors(1 << 16)}


def test_the_contact_sheet_holds_every_picture():
    """Cells are enlarged by `scale`, and every picture is in place."""
    sheet = a_sheet(sites=4, lines=3)
    assert 6 * 64 * 3 <= sheet.width <= 6 * (64 * 3 + 20)
    assert sheet.height >= 3 * 24 * 3
    assert counts(sheet)[NAVY] == 3 * 6 * (64 * 3) * (24 * 3)
    assert a_sheet(sites=2, scale=1).width < a_sheet(sites=2).width


def height(lines: int, read: str | None) -> int:
    """Height of a sheet with two pictures a line."""
    cell = (Image.new("RGB", (64, 24)), read)
    return draw_contact_sheet([[cell, cell]] * lines, captions="ab").height


def test_nothing_is_left_blank_where_nobody_read():
    """Without readings the sheet is shorter, by as much for each line of pictures."""
    one = height(1, "A") - height(1, None)
    assert one > 0
    for lines in (2, 3):
        assert height(lines, "A") - height(lines, None) == lines * one


def test_the_frame_is_round_the_best_column():
    """Only the best column is framed, and no picture is painted over."""
    framed = a_sheet(best=3)
    plain = a_sheet()
    row = [framed.getpixel((x, 60)) for x in range(framed.width)]
    left = row.index(ORANGE)
    right = len(row) - 1 - row[::-1].index(ORANGE)
    assert row[left:right].count(NAVY) == 64 * 3
    assert row[:left].count(NAVY) == 3 * 64 * 3
    assert counts(framed)[NAVY] == counts(plain)[NAVY]
    assert ORANGE not in counts(plain)


def test_readings_are_coloured_by_what_they_say():
    """Blue is the target's word, black the source's, grey anything else.  Case and blanks do not matter."""
    assert _reading("shop", ("Open", "SHOP")) == ("shop", BLUE)
    assert _reading("OPEN", ("Open", "SHOP")) == ("OPEN", INK)
    assert _reading("ONAIR", ("Open", "ON AIR")) == ("ONAIR", BLUE)
    assert _reading("CAT", ("Open", "SHOP")) == ("CAT", GREY)
    assert _reading("CAT", None) == ("CAT", GREY)
    assert _reading("", ("Open", "SHOP")) == ("(nothing)", GREY)
    assert _reading(None, None)[0] == ""


def test_seventy_large_pictures_stay_bounded():
    """A sheet of all SDXL sites at 1024 px is shrunk, not refused and not enormous."""
    rows = [[(Image.new("L", (1024, 1024)), HOSTILE)] * 72]
    sheet = draw_contact_sheet(rows, captions=[HOSTILE] * 72, words=[("a", "b")])
    assert sheet.width <= 14_000
    assert sheet.height <= 1000


@pytest.mark.parametrize(
    "change",
    [
        {"rows": []},
        {"rows": [[(Image.new("RGB", (4, 4)), "x")] * 2]},
        {"captions": []},
        {"best": 3},
        {"words": [("a", "b")] * 2},
    ],
)
def test_a_sheet_that_is_no_grid_is_refused(change):
    """Ragged lines, a best column that is not there, or words for other lines are PatchErrors."""
    good = {"rows": [[(Image.new("RGB", (4, 4)), "x")] * 3], "captions": ["a", "b", "c"]}
    draw_contact_sheet(**good)
    with pytest.raises(PatchError):
        draw_contact_sheet(**{**good, **change})

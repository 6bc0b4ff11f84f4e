"""Laws of the report: it says what was found, shows it, and hostile prompts stay text."""

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from textpatch import figures, report
from textpatch import result as result_
from textpatch.errors import PatchError

HOSTILE = ('</td><script>alert("x")</script><img src=//evil/x.png onerror=alert(1)>'
           "\x1b[31m\u202e\ud800 $\\frac{")
METRICS = ("f1_target", "f1_source", "exact_target", "exact_source", "edit_target", "ssim", "mse", "psnr",
           "mse_uint8_wrapped", "psnr_uint8_wrapped")


def scores(exact: float) -> dict:
    score = {"value": exact, "low": max(0, exact - 0.05), "high": min(1, exact + 0.05)}
    lost = {"psnr": {"value": None, "low": None, "high": None}}
    return {**{name: dict(score) for name in METRICS}, **lost, "n": 32}


def a_result(exact=(0.0, 0.1, 0.8, 0.0), target=0.9, text="tiny") -> dict:
    sites = [{"site": n, "name": f"blocks.{n}.attn {text}", "kind": text, **scores(x)}
             for n, x in enumerate(exact)]
    return {"schema_version": 1, "model": text, "pairs": 8, "seeds": [0, 1], "steps": 20, "guidance": 4.5,
            "start": 0, "branch": "both", "baselines": {"source": scores(0.0), "target": scores(target)},
            "sites": sites, "ranked": sorted(range(len(exact)), key=lambda n: -exact[n]),
            "pairs_list": [{"source": text, "target": text, "word": text, "target_word": text}]}


def a_sheet(sites=4, lines=2, **options) -> Image.Image:
    rows = [[(Image.new("RGB", (64, 24), "navy"), "TEA")] * (2 + sites) for _ in range(lines)]
    return figures.contact_sheet(rows, captions=["source", "target", *map(str, range(sites))], **options)


def png(picture) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG")
    return data.getvalue()


PIXEL = png(Image.new("RGB", (300, 200)))


class Page(HTMLParser):
    """What a browser would make of the page: tags, attributes, and whether all tags are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page_of(result, manifest=None) -> Page:
    manifest = manifest or {"command": "textpatch localize", "ocr": {"engine": "tesseract 5.3.0"}}
    return Page(report.report_html(result, heatmap=PIXEL, sheet=PIXEL, manifest=manifest))


def loads_or_runs(page: Page) -> list:
    """Everything in a page that could run or reach out of the file."""
    fetching = ("src", "href", "srcset", "data", "action", "poster", "background")
    return [(tag, attributes) for tag, attributes in page.tags
            if tag in ("script", "iframe", "object", "embed", "link", "base", "form", "svg")
            or any(name.startswith("on") for name in attributes)
            or any(not (attributes[name] or "").startswith("data:image/png;base64,")
                   for name in fetching if name in attributes)]


def test_hostile_prompts_stay_text():
    """Prompts, model, site names and manifest reach the page as text: nothing runs, nothing is loaded."""
    manifest = {"command": HOSTILE, HOSTILE: [HOSTILE], "request": {"p": HOSTILE}}
    page = page_of(a_result(text=HOSTILE), manifest)
    assert not page.open and loads_or_runs(page) == []
    assert 'alert("x")' in "".join(page.words) and "\x1b" not in "".join(page.words)
    assert [tag for tag, _ in page.tags].count("img") == 2


def test_planted_a_page_that_does_not_escape_is_caught(monkeypatch):
    """Fault: no escaping. The check above must see it."""
    monkeypatch.setattr(report, "_safe", str)
    with pytest.raises(AssertionError):
        assert loads_or_runs(page_of(a_result(text=HOSTILE))) == []


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(st.characters()) | st.text(st.sampled_from("<>&\"'=/ script")))
def test_any_text_gives_the_same_page(text):
    """Whatever the prompts say, the page has the tags and attributes it has for a harmless prompt."""
    manifest = {"command": "x" + text, "key": text}
    tags = [[tag for tag, _ in page_of(a_result(text=t), m).tags]
            for t, m in ((text, manifest), ("tiny", {"command": "x", "key": "k"}))]
    assert tags[0] == tags[1]


def test_the_page_is_one_file_without_addresses():
    """Self-contained: no address, no script, and a policy that forbids them; it is valid UTF-8."""
    manifest = {"versions": {"torch": "2.13"}}
    text = report.report_html(a_result(), heatmap=PIXEL, sheet=PIXEL, manifest=manifest)
    bare = re.sub(r"base64,[^\"]*", "", text)  # "http" may occur in base64 by chance
    assert not re.search(r"http|://|url\(|@import|<script|<link", bare)
    assert "Content-Security-Policy" in bare and "prefers-color-scheme: dark" in bare and "viewport" in bare
    assert report.report_html(a_result(text=HOSTILE), heatmap=b"", sheet=b"", manifest={}).encode()


def test_the_page_tells_how_it_was_made():
    """Command, OCR engine, versions, seeds and the request are all in the page."""
    manifest = {"command": "textpatch localize --seeds 2", "ocr": {"engine": "tesseract 5.3.0"},
                "versions": {"torch": "2.13.0"}, "request": {"pairs": [{"source": "a sign"}]}}
    words = " ".join(page_of(a_result(), manifest).words)
    for part in ("textpatch localize --seeds 2", "ocr.engine", "tesseract 5.3.0", "2.13.0", "0, 1", "a sign",
                 "8 prompt pairs x 2 seeds", "guidance 4.5", "both guidance branches", "blocks.2.attn"):
        assert part in words


def test_the_answer_names_the_site_and_its_numbers():
    """A site at half the target run's exact match or more carries the word, with its interval and n."""
    text = result_.answer(a_result())
    assert text.startswith("Site 2 (blocks.2.attn tiny) carries the word.")
    assert "80 % [75, 85] over 32 pictures" in text and "90 % [85, 95]" in text and "overlap" not in text
    assert result_.answer(a_result((0.45, 0.0), target=0.9)).startswith("Site 0")


def test_the_answer_is_honest_when_no_site_carries_the_word():
    """Below half of the target run's exact match no site is credited, in the sentence and on the page."""
    result = a_result((0.2, 0.44, 0.1))
    assert result_.answer(result).startswith("No single site carries the word. The best is site 1")
    assert "No single site carries the word." in page_of(result).words
    assert result_.answer(a_result((0.0, 0.0), target=0.0)).startswith("No answer.")


def test_the_answer_admits_a_tie():
    """Sites whose intervals overlap the best one's are named."""
    assert "overlap with site 1, 3:" in result_.answer(a_result((0.0, 0.75, 0.8, 0.72)))


def test_the_table_fits_and_begins_with_the_baselines():
    """The table has the two baselines, then all sites in ranked order, in at most 100 plain columns."""
    result = a_result(tuple(n / 70 for n in range(70)), text="down_blocks.1.transformer_blocks.9.attn2")
    head, _, source, target, *sites = result_.table(result).splitlines()
    assert "exact target" in head and "source run" in source and "whole target run" in target
    assert [int(line.split()[1]) for line in sites] == result["ranked"] == list(range(70))[::-1]
    assert max(map(len, result_.table(result).splitlines())) <= 100
    assert "\x1b" not in result_.table(a_result(text=HOSTILE))


def test_a_short_name_keeps_its_numbers():
    """Cutting a module path keeps every index: SDXL's sites stay distinct in the table."""
    full = "down_blocks.1.attentions.0.transformer_blocks.7.attn2"
    short = result_._name(full, 30)
    assert len(short) <= 30 and re.findall(r"\.(\d+)", short) == re.findall(r"\.(\d+)", full)
    assert result_._name("transformer_blocks.3.attn", 30) == "transformer_blocks.3.attn"


@pytest.mark.parametrize("exact, text", [((0.2, 0.9), "tiny"), ((0.5,) * 70, "SDXL"), ((1.0,), HOSTILE)])
def test_the_heat_map_is_a_picture(exact, text):
    """One site or seventy, hostile names or missing scores: the heat map is a PNG of sensible size."""
    result = a_result(exact, text=text)
    result["sites"][0]["ssim"] = {"value": None, "low": None, "high": None}
    picture = Image.open(io.BytesIO(figures.heatmap_png(result)))
    assert picture.format == "PNG" and 1000 <= picture.width <= 3500 and 1000 <= picture.height <= 1500


def orange_middle(picture, top, bottom) -> float:
    """The mean x of pure orange between two heights, as a share of the width."""
    pixels = picture.crop((0, top, picture.width, bottom)).tobytes()
    found = [n // 3 % picture.width for n in range(0, len(pixels), 3) if pixels[n:n + 3] == b"\xd5\x5e\x00"]
    return sum(found) / len(found) / picture.width


def test_the_heat_map_marks_the_best_site():
    """Bars and site label are orange where the best site is, and nowhere else."""
    for best in range(4):
        exact = [0.1] * 4
        exact[best] = 0.9
        picture = Image.open(io.BytesIO(figures.heatmap_png(a_result(exact)))).convert("RGB")
        place = (1.5 + (best + 0.6) / 4.2 * 6.2) / 8  # inches: margin, axes from -0.6 to 3.6, page
        for top, bottom in ((200, picture.height - 100), (picture.height - 100, picture.height)):
            assert orange_middle(picture, top, bottom) == pytest.approx(place, abs=0.01)


def test_the_heat_map_leaves_pyplot_alone():
    """No pyplot is imported and no setting is changed: the caller's own figures are safe."""
    # with a backend chosen, since reading an unchosen one makes matplotlib import pyplot by itself
    code = ("import sys, json, matplotlib; matplotlib.use('pdf'); before = dict(matplotlib.rcParams);"
            "from textpatch import figures; figures.heatmap_png(json.load(sys.stdin));"
            "sys.exit('matplotlib.pyplot' in sys.modules or dict(matplotlib.rcParams) != before)")
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(a_result()), text=True)
    assert done.returncode == 0


@pytest.mark.parametrize("broken", [None, ModuleNotFoundError, RuntimeError])
def test_without_matplotlib_the_way_out_is_named(monkeypatch, broken):
    """A missing or broken matplotlib is a PatchError with the command that helps."""
    class Refuse:
        def find_spec(self, name, *_):
            if name.startswith("matplotlib"):
                raise broken("operator does not exist")

    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path]) if broken else monkeypatch.setitem(
        sys.modules, "matplotlib", None)
    with pytest.raises(PatchError, match=r"pip install textpatch\[plots\]"):
        figures.heatmap_png(a_result())


def test_the_contact_sheet_holds_every_picture():
    """Cells are enlarged by `scale`, a column per caption, a line per pair, every picture in place."""
    sheet = a_sheet(sites=4, lines=3)
    assert 6 * 64 * 3 <= sheet.width <= 6 * (64 * 3 + 20) and sheet.height >= 3 * 24 * 3
    colours = dict((colour, count) for count, colour in sheet.getcolors(1 << 16))
    assert colours[(0, 0, 128)] == 3 * 6 * (64 * 3) * (24 * 3)
    assert a_sheet(sites=2, scale=1).width < a_sheet(sites=2).width


def test_the_frame_is_round_the_best_column():
    """Only the best column is framed, and no picture is painted over."""
    orange, navy = (0xD5, 0x5E, 0), (0, 0, 128)
    framed, plain = a_sheet(best=3), a_sheet()
    row = [framed.getpixel((x, 60)) for x in range(framed.width)]
    left, right = row.index(orange), len(row) - 1 - row[::-1].index(orange)
    assert row[left:right].count(navy) == 64 * 3 and row[:left].count(navy) == 3 * 64 * 3
    counts = [{colour: n for n, colour in sheet.getcolors(1 << 16)} for sheet in (framed, plain)]
    assert counts[0][navy] == counts[1][navy] and orange not in counts[1]


def test_readings_are_coloured_by_what_they_say():
    """Blue is the target's word, black the source's, grey anything else; case does not matter."""
    assert figures._reading("shop", ("Open", "SHOP")) == ("shop", figures.BLUE)
    assert figures._reading("OPEN", ("Open", "SHOP")) == ("OPEN", figures.INK)
    assert figures._reading("", ("Open", "SHOP")) == ("(nothing)", figures.GREY)
    assert figures._reading(None, None)[0] == ""


def test_seventy_large_pictures_stay_bounded():
    """A sheet of all SDXL sites at 1024 px is shrunk, not refused and not enormous."""
    rows = [[(Image.new("L", (1024, 1024)), HOSTILE)] * 72] * 2
    sheet = figures.contact_sheet(rows, captions=[HOSTILE] * 72, words=[("a", "b")] * 2)
    assert sheet.width <= 14_000 and sheet.height <= 1000


@pytest.mark.parametrize("change", [
    {"rows": []}, {"rows": [[(Image.new("RGB", (4, 4)), "x")] * 2]}, {"captions": []}, {"best": 3},
    {"words": [("a", "b")] * 2}])
def test_a_sheet_that_is_no_grid_is_refused(change):
    """Ragged lines, a best column that is not there, or words for other lines are PatchErrors."""
    good = {"rows": [[(Image.new("RGB", (4, 4)), "x")] * 3], "captions": ["a", "b", "c"]}
    figures.contact_sheet(**good)
    with pytest.raises(PatchError):
        figures.contact_sheet(**{**good, **change})


@pytest.mark.parametrize("change", [
    {"schema_version": 2}, {"sites": []}, {"ranked": [0]}, {"ranked": [0, 1, 2, 9]}])
def test_what_is_no_result_is_refused(change):
    """Every view refuses a dict that is no result, and names what is wrong."""
    bad = {**a_result(), **change}
    for view in (result_.answer, result_.table, figures.heatmap_png, page_of):
        with pytest.raises(PatchError, match="result"):
            view(bad)
    with pytest.raises(PatchError, match="lacks seeds"):
        result_.table({name: value for name, value in a_result().items() if name != "seeds"})

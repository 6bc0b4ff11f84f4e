"""Laws of the page: it says what was found, shows it, and hostile prompts stay text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.pages import Page, picture
from support.planting import plant
from support.reports import a_set, section, words_of
from support.results import a_result, html_of, quiet, records_of, tags_of
from textpatch import html
from textpatch.errors import PatchError
from textpatch.guidance import ClassifierFree, SafeLatentDiffusion, described
from textpatch.report import charts, heatmap
from textpatch.report import result as result_
from textpatch.report.headline import answer, screened_out
from textpatch.report.heatmap import heatmap_png
from textpatch.report.terminal import table

HOSTILE = (
    '</td></style><script>alert("x")</script><img src=//evil/x.png onerror=alert(1)>'
    "\x1b[31m\u202e\ud800 $\\frac{"
)


def test_hostile_prompts_stay_text():
    """Prompts, readings, model, site names and manifest reach the page as text.

    Nothing runs, and nothing is loaded.
    """
    manifest = {"command": HOSTILE, HOSTILE: [HOSTILE], "request": {"p": HOSTILE}}
    result = a_result(text=HOSTILE)
    page = html_of(result, manifest, sheet=records_of(result, HOSTILE))
    words = Page(page).root.text
    assert quiet(page)
    assert words.count('alert("x")') > 20
    assert "\x1b" not in words
    assert tags_of(page).count("img") == 1 + 2 + 4


def test_planted_a_page_that_does_not_escape_is_caught(monkeypatch):
    """Fault: no escaping. The check above must see it."""
    plant(monkeypatch, html, "safe", "html.escape(plain(text))", "plain(text)")
    with pytest.raises(AssertionError):
        assert quiet(html_of(a_result(text=HOSTILE)))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.text(st.characters()) | st.text(st.sampled_from("<>&\"'=/ script")))
def test_any_text_gives_the_same_page(text):
    """Whatever prompts and readings say, the page has the tags and attributes it has for harmless ones."""
    assert skeleton(text, {"command": "x" + text, "key": text}) == skeleton(
        "tiny", {"command": "x", "key": "k"}
    )


def skeleton(text: str, manifest: dict) -> list[tuple]:
    """Tags of a page whose texts are all this one, with the names of their attributes."""
    result = a_result(text=text)
    nodes = Page(html_of(result, manifest, sheet=records_of(result, text))).root.all()
    return [(node.tag, sorted(node.attributes)) for node in nodes]


def test_the_page_is_one_file_without_addresses():
    """It has no address, no script, and a policy that forbids them, and is valid UTF-8."""
    manifest = {"versions": {"torch": "2.13"}}
    text = html_of(a_result(), manifest, sheet=records_of(a_result()))
    bare = re.sub(r"base64,[^\"]*", "", text)  # "http" may occur in base64 by chance
    assert not re.search(r"http|://|url\(|@import|<script|<link", bare)
    for part in ("Content-Security-Policy", "prefers-color-scheme: dark", "viewport"):
        assert part in bare
    hostile = a_result(text=HOSTILE)
    assert html_of(hostile, sheet=records_of(hostile, HOSTILE)).encode()


@pytest.mark.parametrize(
    "guidance, says",
    [
        (1.0, "guidancenone"),
        (4.5, "guidance 4.5, swapped in both guidance branches"),
        (ClassifierFree(4.5, "blurry"), "guidance 4.5 away from 'blurry', swapped in both"),
        (
            ClassifierFree(3, {"a": "x"}),
            "guidance 3.0 away from a negative prompt of each row's own,",
        ),
        (
            SafeLatentDiffusion(7.5, "violence"),
            "guidance 7.5, and safe latent diffusion away from 'violence', swapped in all guidance",
        ),
        (
            {"kind": "other", "ends": [1, 2]},
            "guidance of kind other, ends.0 1, ends.1 2, swapped in all",
        ),
    ],
)
def test_the_guidance_is_told_in_words(guidance, says):
    """A number, a negative prompt or several, and a concept are told, and no dictionary is shown."""
    told = section(a_result() | {"guidance": described(guidance)}, "What was asked").text
    assert says in told
    assert "{" not in told


def test_the_page_tells_how_it_was_made():
    """Command, OCR engine, versions, what was loaded, seeds and the request are all in the page."""
    manifest = {
        "command": "textpatch localize --seeds 2",
        "ocr": {"engine": "tesseract 5.3.0"},
        "versions": {"torch": "2.13.0"},
        "loaded": ["small: StableDiffusion3Pipeline", "vae: dropped 1: loss.logvar"],
        "request": {"pairs": [{"source": "a sign"}]},
    }
    words = " ".join(words_of(a_result(), manifest))
    for part in (
        "textpatch localize --seeds 2",
        "ocr.engine",
        "tesseract 5.3.0",
        "2.13.0",
        "small: StableDiffusion3Pipeline",
        "vae: dropped 1: loss.logvar",
        "0, 1",
        "a sign",
        "8 prompt pairs x 2 seeds",
        "guidance 4.5",
        "both guidance branches",
        "blocks.2.attn",
    ):
        assert part in words


def test_the_contents_name_every_section():
    """Each link of the contents leads to the section of its title, and the pictures come last."""
    result = a_result()
    result["pairs_list"] *= 2
    root = Page(html_of(result, sheet=records_of(result))).root
    links = {link.attributes["href"][1:]: link.text for link in root.of("contents")[0].of("a")}
    sections = {part.attributes["id"]: part.of("h2")[0].text for part in root.of("section")}
    assert links == sections
    titles = list(sections.values())
    assert titles[-1] == "The other pictures" and titles.index("The evidence: all sites") < 6


def test_date_duration_hardware_and_the_data_are_told():
    """Of a run in a folder: when, how long and on what, over all its sessions, and links to its files."""
    began = ("2026-01-31T23:59:00+00:00", "2026-02-01T08:00:00+00:00")
    sessions = [{"began": day, "seconds": 90.0, "hardware": "cpu: X"} for day in began]
    text = html_of(a_result(), {"key": "abc", "sessions": sessions})
    asked = Page(text).root.of("section")[0]
    assert "2026-01-31 to 2026-02-01, 3 min in 2 sessions, on cpu: X" in asked.text
    links = [link.attributes["href"] for link in asked.of("a")]
    assert {"results.json", "results.csv", "records/", "manifest.json"} <= {*links}
    assert "beside this page" not in html_of(a_result(), {"command": "x"})


def test_a_screening_shows_the_share_of_every_site():
    """In the map, in the drawing and on the sheet stands by what a site was screened out."""
    result = a_result() | {"mode": "attribution"}
    for site in result["sites"]:
        share = {"value": site["site"] / 10, "low": 0.0, "high": 0.5}
        site["attribution"] = {"share": share, "pairs": 4}
    out = {"state": "screened out", "by": "attribution", "pairs": 4}
    result["sites"][1] |= {"status": {**out, **result["sites"][1]["attribution"]["share"]}}
    row = section(result, "The evidence: every pair at every site", sheet=records_of(result))
    assert row.of("shares")[0].text == "share by attribution0.000.100.200.30"
    assert heatmap._drawn(result)[1][-1] == ("share", "share by\nattribution")
    assert screened_out(result) == ["Screened out by their attribution on 4 pairs: site 1 0.10."]
    assert "share" not in str(heatmap._drawn(a_result())[1])


def test_the_layers_found_and_their_share():
    """The responsible set is shown with each site's share of the parameters and their sum."""
    result = a_result() | {"parameters": 4000, "set": a_set()}
    for site in result["sites"]:
        site["parameters"] = 10 * (1 + site["site"])
    rows = [line.text for line in section(result, "The layers found").of("tr")]
    assert len(rows) == 4
    assert rows[1].startswith("2blocks.2.attn tinytiny0.75%")
    assert rows[2].startswith("1blocks.1.attn tinytiny0.50%")
    assert rows[3] == "together1.25%"


def test_the_best_is_shown_where_no_set_was_sought():
    """The best site alone, and from how many pairs on a set is sought."""
    result = a_result()
    assert len(section(result, "The layers found").of("tr")) == 2
    assert "3 different prompt pairs or more" in section(result, "The layers found").text


@pytest.mark.parametrize("kind", ["cross", "added", "joint", "single"])
def test_the_kinds_of_the_layers_are_explained(kind):
    """The note under the layers says what the kinds in its table mean, and no others."""
    result = a_result()
    result["sites"][2]["kind"] = kind
    note = section(result, "The layers found").of("note")[0].text
    assert re.findall(r"At a site of kind (\w+) ", note) == [kind]


def heights(node) -> list[float]:
    return [float(dot.attributes["cy"]) for dot in node.of("circle")]


def test_the_growth_is_drawn():
    """A dot per step from no swap on, as high as its score; 0 and 1 are the lines at the ends."""
    drawn = section(a_result() | {"set": a_set()}, "How the search went")
    dots = heights(drawn)
    scores = [(dots[0] - dot) / (dots[0] - dots[2]) for dot in dots]
    assert scores == pytest.approx([0, 0.5, 1, 0.25])
    for part in ("+ site 0 (refused, at most)", "no swap", "0.25 [0.15, 0.25]"):
        assert part in drawn.text


def test_what_was_not_looked_at_is_said():
    """A step refused before all pairs were looked at says how many were.  Its numbers are at most these."""
    result = a_result() | {"set": a_set()}
    *_, steps = section(result, "How the search went").of("table")
    *_, kept, refused = [line.text for line in steps.of("tr")]
    assert kept == "11, 281.00 [0.90, 1.00]+0.20 [0.10, 0.30]yes"
    assert refused == "00, 1, 23 of 8at most 0.25 [0.15, 0.25]at most +0.20 [0.10, 0.30]no"
    assert "Adding site 0 is no clear gain: F1 at most +0.20 [0.10, 0.30]." in answer(result)


def test_what_was_screened_out_and_by_what():
    """Every site left out has the score that did it, its interval and its pairs.  The gap is shown, too."""
    gap = {"pairs": 4, "kept": 2, "next": 1, "value": 0.5, "low": 0.4, "high": 0.6}
    result = a_result() | {"mode": "contribution", "gaps": [{"by": "contribution", **gap}]}
    for site, by in ((0, "swap"), (1, "contribution")):
        score = {"value": 0.1, "low": 0.0, "high": 0.2}
        result["sites"][site]["status"] = {"state": "screened out", "by": by, "pairs": 4, **score}
    left, gaps = section(result, "How the search went").of("table")
    assert sorted(line.text for line in left.of("tr"))[:2] == [
        "0blocks.0.attn tinyF1 towards the target0.10 [0.00, 0.20]4",
        "1blocks.1.attn tinyshare of what attention gives0.10 [0.00, 0.20]4",
    ]
    assert gaps.of("tr")[1].text == "share of what attention gives421+0.50 [0.40, 0.60]"
    said = " ".join(words_of(result))
    assert said.count("+0.50 [0.40, 0.60]") == 1  # each number stands once
    assert said.count("0.10 [0.00, 0.20]") == 2  # of two sites


def test_a_start_curve_and_a_head_search_are_shown():
    """Put beside the results, each gets a section with a curve, on which the start chosen is marked."""
    point = {"value": 0.5, "low": 0.4, "high": 0.6}
    starts = {
        "sites": [2],
        "chosen": 3,
        "curve": [{"start": s, "f1_target": point, "ssim": point} for s in range(5)],
    }
    steps = [{"unit": [2, head], "left": point, "alone": point} for head in (1, 0)]
    searched = {"sites": [2], "heads": [[2, 0], [2, 1]], "steps": steps}
    result = a_result() | {"start_curve": starts, "head_search": searched}
    drawn = section(result, "From which step on")
    assert "loses nothing clearly up to step 3" in drawn.text
    assert len(heights(drawn)) == 10
    (marked,) = (node for node in drawn.of("path") if "stroke-dasharray" in node.attributes)
    chosen = float(drawn.of("circle")[3].attributes["cx"])
    assert marked.attributes["d"].split()[0] == f"M{chosen:.1f}"
    heads = section(result, "Which heads")
    told = (
        "Heads 2.0, 2.1 (site.head), swapped without the others, score as all heads of site 2 do."
    )
    assert told in heads.text
    assert len(heights(heads)) == 4


def test_what_nobody_looked_at_has_no_section():
    """Without a start curve and a head search in the result the page does not speak of them."""
    titles = {part.of("h2")[0].text for part in Page(html_of(a_result())).root.of("section")}
    assert "The layers found" in titles
    assert not titles & {"From which step on", "Which heads"}


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=80))
def test_a_curve_stays_on_its_plane(values):
    """Any scores, also negative SSIM, give dots between the lines of 0 and 1, and at most 16 labels."""
    scores = [{"value": value, "low": value, "high": value} for value in values]
    drawn = Page(charts.curve([f"n{n}" for n in range(len(values))], {"F1": scores}, "steps")).root
    dots = heights(drawn)
    assert len(dots) == len(values)
    assert all(charts._TOP <= y <= charts._TOP + charts._HIGH for y in dots)
    assert 1 <= sum(label.text[0] == "n" for label in drawn.of("text")) <= 16


def test_a_large_picture_becomes_a_small_one():
    """A picture of 1024 px is shown as a JPEG of 320, a small one as the very pixels it has."""
    large = source_of(Image.effect_noise((1024, 1024), 50))
    assert large.startswith("data:image/jpeg;")
    assert picture(large).size == (320, 320)
    image = Image.effect_noise((64, 64), 50)
    small = source_of(image)
    assert small.startswith("data:image/png;")
    assert picture(small).tobytes() == image.convert("RGB").tobytes()


def source_of(image: Image.Image) -> str:
    """Data URI of a picture as a page shows it."""
    return Page(html.picture(image, "x")).root.of("img")[0].attributes["src"]


def test_the_equation_is_the_architecture_s():
    """Where text is read by itself its keys stand alone, elsewhere beside the image's."""
    alone = a_result()
    for site in alone["sites"]:
        site["kind"] = "cross"
    equations = [
        section(result, "What is swapped").of("equation")[0].text for result in (alone, a_result())
    ]
    assert ["image" in equation for equation in equations] == [False, True]


@pytest.mark.parametrize(
    "change", [{"schema_version": 1}, {"sites": []}, {"ranked": [0]}, {"ranked": [0, 1, 2, 9]}]
)
def test_what_is_no_result_is_refused(change):
    """Every view refuses a dict that is no result, and names what is wrong."""
    bad = {**a_result(), **change}
    for view in (answer, table, heatmap_png, html_of):
        with pytest.raises(PatchError, match="result"):
            view(bad)
    with pytest.raises(PatchError, match="lacks seeds"):
        table({name: value for name, value in a_result().items() if name != "seeds"})


CHANCE = {"f1_source": 0.27, "f1_target": 0.31}


def page_words(result: dict) -> str:
    """All words of a page, a blank between two."""
    return " ".join(" ".join(words_of(result)).split())


def require_the_chance_level():
    """The page says what F1 is by chance, below the headline, and so does a line of both tables."""
    result = a_result() | {"chance": CHANCE}
    words = page_words(result)
    assert "By chance F1 is 0.31: that is what readings of the other pairs' words would" in words
    assert "chance level - 0.31 0.27 - - -" in words
    lines = table(result, 200).splitlines()
    assert lines[4].split() == ["-", "0.31", "0.27", "-", "-", "chance", "level"]
    assert table(result, 40).splitlines()[4].split() == ["0.31", "chance"]


def test_the_chance_level_is_shown():
    """Where the result has one, and nowhere else."""
    require_the_chance_level()
    for result in (a_result(), a_result() | {"chance": dict.fromkeys(CHANCE)}):
        words = page_words(result)
        assert "chance level" not in words and "By chance" not in words


def test_a_chance_level_of_the_other_side_is_noticed(monkeypatch):
    """Fault: the level beside F1 towards the target is that of the source's words."""
    plant(monkeypatch, result_, "chance_of", '"f1_target"', '"f1_source"')
    with pytest.raises(AssertionError):
        require_the_chance_level()

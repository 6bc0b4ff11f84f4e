"""Laws of the report: it says what was found, shows it, and hostile prompts stay text."""

import io
import json
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.pages import Page, picture
from support.planting import plant
from support.results import METRICS, a_result, html_of, quiet, records_of, scores, tags_of
from textpatch import html
from textpatch.errors import PatchError
from textpatch.report import charts, contact_sheet, heatmap
from textpatch.report import result as result_

HOSTILE = (
    '</td></style><script>alert("x")</script><img src=//evil/x.png onerror=alert(1)>'
    "\x1b[31m\u202e\ud800 $\\frac{"
)


def a_sheet(sites=4, lines=2, **options) -> Image.Image:
    rows = [[(Image.new("RGB", (64, 24), "navy"), "TEA")] * (2 + sites) for _ in range(lines)]
    return contact_sheet.draw_contact_sheet(
        rows, captions=["source", "target", *map(str, range(sites))], **options
    )


def words_of(result, manifest=None) -> list[str]:
    """The texts of a page, element by element."""
    nodes = Page(html_of(result, manifest)).root.all()
    return [child for node in nodes for child in node.children if isinstance(child, str)]


def test_hostile_prompts_stay_text():
    """Prompts, readings, model, site names and manifest reach the page as text: nothing runs, nothing is loaded."""
    manifest, result = (
        {"command": HOSTILE, HOSTILE: [HOSTILE], "request": {"p": HOSTILE}},
        a_result(text=HOSTILE),
    )
    page = html_of(result, manifest, sheet=records_of(result, HOSTILE))
    words = Page(page).root.text
    assert quiet(page) and words.count('alert("x")') > 20 and "\x1b" not in words
    assert tags_of(page).count("img") == 1 + 2 + 4


def test_planted_a_page_that_does_not_escape_is_caught(monkeypatch):
    """Fault: no escaping. The check above must see it."""
    plant(monkeypatch, html, "safe", "html.escape(plain(text))", "plain(text)")
    with pytest.raises(AssertionError):
        assert quiet(html_of(a_result(text=HOSTILE)))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.text(st.characters()) | st.text(st.sampled_from("<>&\"'=/ script")))
def test_any_text_gives_the_same_page(text):
    """Whatever prompts and readings say, the page has the tags and attributes it has for harmless ones."""
    tags = []
    for said, manifest in (
        (text, {"command": "x" + text, "key": text}),
        ("tiny", {"command": "x", "key": "k"}),
    ):
        result = a_result(text=said)
        nodes = Page(html_of(result, manifest, sheet=records_of(result, said))).root.all()
        tags.append([(node.tag, sorted(node.attributes)) for node in nodes])
    assert tags[0] == tags[1]


def test_the_page_is_one_file_without_addresses():
    """Self-contained: no address, no script, and a policy that forbids them; it is valid UTF-8."""
    manifest = {"versions": {"torch": "2.13"}}
    text = html_of(a_result(), manifest, sheet=records_of(a_result()))
    bare = re.sub(r"base64,[^\"]*", "", text)  # "http" may occur in base64 by chance
    assert not re.search(r"http|://|url\(|@import|<script|<link", bare)
    assert (
        "Content-Security-Policy" in bare
        and "prefers-color-scheme: dark" in bare
        and "viewport" in bare
    )
    assert html_of(
        a_result(text=HOSTILE), sheet=records_of(a_result(text=HOSTILE), HOSTILE)
    ).encode()


def test_the_page_tells_how_it_was_made():
    """Command, OCR engine, versions, seeds and the request are all in the page."""
    manifest = {
        "command": "textpatch localize --seeds 2",
        "ocr": {"engine": "tesseract 5.3.0"},
        "versions": {"torch": "2.13.0"},
        "request": {"pairs": [{"source": "a sign"}]},
    }
    words = " ".join(words_of(a_result(), manifest))
    for part in (
        "textpatch localize --seeds 2",
        "ocr.engine",
        "tesseract 5.3.0",
        "2.13.0",
        "0, 1",
        "a sign",
        "8 prompt pairs x 2 seeds",
        "guidance 4.5",
        "both guidance branches",
        "blocks.2.attn",
    ):
        assert part in words


def test_the_layers_found_and_their_share():
    """The responsible set with each site's share of the parameters and what they come to; else the best site alone."""
    result = a_result() | {"parameters": 4000, "set": a_set()}
    for site in result["sites"]:
        site["parameters"] = 10 * (1 + site["site"])
    rows = [line.text for line in section(result, "The layers found").of("tr")]
    assert rows[1].startswith("2blocks.2.attn tinytiny0.75%") and rows[2].startswith(
        "1blocks.1.attn tinytiny0.50%"
    )
    assert rows[3] == "together1.25%1.00 [0.90, 1.00]" and len(rows) == 4
    assert "best single site" in section(a_result(), "The layers found").text


def a_set() -> dict:
    return {"sites": [1, 2], "score": {"value": 1.0, "low": 0.9, "high": 1.0}, "steps": growth()}


def growth() -> list[dict]:
    """The steps of a set: 2, then 1 with it, then 0, which is refused after a look at 3 of 8 pairs."""
    gain = {"value": 0.2, "low": 0.1, "high": 0.3}
    return [{"added": [added], "group": group, "pairs": 8, "looked": looked, "score": {"value": value, "low": value - 0.1, "high": value},
             "gain": gain, "kept": added > 0}
            for added, group, looked, value in ((2, [2], 8, 0.5), (1, [1, 2], 8, 1.0), (0, [0, 1, 2], 3, 0.25))]  # fmt: skip


def section(result, title: str):
    """The section of a page under that title."""
    return next(
        part for part in Page(html_of(result)).root.of("section") if part.of("h2")[0].text == title
    )


def heights(node) -> list[float]:
    return [float(dot.attributes["cy"]) for dot in node.of("circle")]


def test_the_growth_is_drawn():
    """A dot per step from no swap on, as high as its score; 0 and 1 are the lines at the ends."""
    drawn = section(a_result() | {"set": a_set()}, "How the search went")
    dots = heights(drawn)
    assert [(dots[0] - dot) / (dots[0] - dots[2]) for dot in dots] == pytest.approx(
        [0, 0.5, 1, 0.25]
    )
    assert (
        "+ site 0 (refused, at most)" in drawn.text
        and "no swap" in drawn.text
        and "0.25 [0.15, 0.25]" in drawn.text
    )


def test_what_was_not_looked_at_is_said():
    """A step refused before all pairs were looked at: how many were, and that score and gain are at most these; no other."""
    result = a_result() | {"set": a_set()}
    *_, (kept, refused) = (
        [line.text for line in table.of("tr")][-2:]
        for table in section(result, "How the search went").of("table")
    )
    assert kept == "11, 281.00 [0.90, 1.00]+0.20 [0.10, 0.30]yes"
    assert refused == "00, 1, 23 of 8at most 0.25 [0.15, 0.25]at most +0.20 [0.10, 0.30]no"
    assert "Site 0 with it is no clear gain: F1 at most +0.20 [0.10, 0.30]." in result_.answer(
        result
    )


def test_what_was_screened_out_and_by_what():
    """Every site left out, with the score that did it, its interval and on how many pairs; and the gap."""
    result = a_result() | {"mode": "contribution", "gaps": [
        {"by": "contribution", "pairs": 4, "kept": 2, "next": 1, "value": 0.5, "low": 0.4, "high": 0.6}]}  # fmt: skip
    for site, by in ((0, "swap"), (1, "contribution")):
        score = {"value": 0.1, "low": 0.0, "high": 0.2}
        result["sites"][site]["status"] = {"state": "screened out", "by": by, "pairs": 4, **score}
    left, gaps = section(result, "How the search went").of("table")
    assert sorted(line.text for line in left.of("tr"))[:2] == [
        "0blocks.0.attn tinyF1 towards the target0.10 [0.00, 0.20]4",
        "1blocks.1.attn tinyshare of what attention gives0.10 [0.00, 0.20]4",
    ]
    assert gaps.of("tr")[1].text == "share of what attention gives421+0.50 [0.40, 0.60]"


def test_a_start_curve_and_a_head_search_are_shown():
    """Put beside the results, they get a section with a curve each, the start chosen marked; else there are none."""
    point = {"value": 0.5, "low": 0.4, "high": 0.6}
    starts = {
        "sites": [2],
        "chosen": 3,
        "curve": [{"start": s, "f1_target": point, "ssim": point} for s in range(5)],
    }
    steps = [{"unit": [2, head], "left": point, "alone": point} for head in (1, 0)]
    searched = {"sites": [2], "heads": [[2, 0], [2, 1]], "steps": steps}
    result = a_result() | {"start_curve": starts, "head_search": searched}
    drawn, heads = section(result, "From which step on"), section(result, "Which heads")
    assert "loses nothing clearly up to step 3" in drawn.text and len(heights(drawn)) == 10
    (marked,) = (node for node in drawn.of("path") if "stroke-dasharray" in node.attributes)
    assert (
        marked.attributes["d"].split()[0] == f"M{float(drawn.of('circle')[3].attributes['cx']):.1f}"
    )
    assert (
        "2.0, 2.1, swapped alone, score as all heads of site 2 do." in heads.text
        and len(heights(heads)) == 4
    )
    titles = {part.of("h2")[0].text for part in Page(html_of(a_result())).root.of("section")}
    assert "The layers found" in titles and not titles & {"From which step on", "Which heads"}


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=80))
def test_a_curve_stays_on_its_plane(values):
    """Any scores, negative SSIM too: every dot between the lines of 0 and 1, at most 16 labels."""
    scores = [{"value": value, "low": value, "high": value} for value in values]
    drawn = Page(charts.curve([f"n{n}" for n in range(len(values))], {"F1": scores}, "steps")).root
    dots = heights(drawn)
    assert all(charts._TOP <= y <= charts._TOP + charts._HIGH for y in dots) and len(dots) == len(
        values
    )
    assert 1 <= sum(label.text[0] == "n" for label in drawn.of("text")) <= 16


def test_a_large_picture_becomes_a_small_one():
    """A picture of 1024 px is shown as a JPEG of 320, a small one as the very pixels it has."""
    large, small = (Image.effect_noise((side, side), 50) for side in (1024, 64))
    tags = [
        Page(html.picture(image, "x")).root.of("img")[0].attributes["src"]
        for image in (large, small)
    ]
    assert [source[:16] for source in tags] == ["data:image/jpeg;", "data:image/png;b"]
    assert (
        picture(tags[0]).size == (320, 320)
        and picture(tags[1]).tobytes() == small.convert("RGB").tobytes()
    )


def test_the_equation_is_the_architecture_s():
    """Where text is read by itself its keys stand alone, elsewhere beside the image's."""
    alone = a_result()
    for site in alone["sites"]:
        site["kind"] = "cross"
    equations = [
        section(result, "What is swapped").of("equation")[0].text for result in (alone, a_result())
    ]
    assert ["image" in equation for equation in equations] == [False, True]


def test_the_answer_names_the_site_and_its_numbers():
    """A site at half the target run's exact match or more carries the word, with its interval and n."""
    text = result_.answer(a_result())
    assert text.startswith("Site 2 (blocks.2.attn tiny) carries the word.")
    assert (
        "80 % [75, 85] over 32 pictures" in text
        and "90 % [85, 95]" in text
        and "overlap" not in text
    )
    assert result_.answer(a_result((0.45, 0.0), target=0.9)).startswith("Site 0")


def test_the_answer_is_honest_when_no_site_carries_the_word():
    """Below half of the target run's exact match no site is credited, in the sentence and on the page."""
    result = a_result((0.2, 0.44, 0.1))
    assert result_.answer(result).startswith("No single site carries the word. The best is site 1")
    assert "No single site carries the word." in words_of(result)
    assert result_.answer(a_result((0.0, 0.0), target=0.0)).startswith("No answer.")


@pytest.mark.parametrize(
    "score, said",
    [
        (
            0.9,
            "Sites 0, 1 together carry the word. F1 towards the target is 0.90 [0.90, 0.90] with them",
        ),
        (
            0.3,
            "Sites 0, 1 together carry part of the word. F1 towards the target is 0.30 [0.30, 0.30] with them",
        ),
    ],
)
def test_the_answer_names_the_set(score, said):
    """The set carries the word if its F1 is half of the way to the target run's, else part of it; the best alone is beside it."""
    result = a_result((0.2, 0.4, 0.1)) | {"set": set_of([0, 1], score)}
    assert result_.answer(result).startswith(
        said
    ) and "The best single site is site 1" in result_.answer(result)
    assert result_.credited(result) == [0, 1]


def set_of(sites, score: float = 0.9, kept: bool = True) -> dict:
    """A responsible set of these sites, and the refusal of what was tried then; an empty one if nothing was kept."""
    f1 = {"value": score, "low": score, "high": score}
    step = {
        "added": list(sites),
        "group": list(sites),
        "pairs": 8,
        "looked": 8,
        "score": f1,
        "gain": f1,
        "kept": kept,
    }
    refused = {**step, "kept": False, "gain": {"value": 0.1, "low": -0.2, "high": 0.4}}
    return {
        "sites": list(sites) if kept else [],
        "score": f1,
        "steps": [step, refused] if kept else [refused],
    }


def test_one_site_is_the_set_and_carries_the_word_or_part_of_it():
    """By its own exact match, whichever site ranks first; what is a gain and less than half of the way is said to be."""
    text = result_.answer(a_result() | {"set": set_of([2])})
    assert (
        text.startswith("Site 2 (blocks.2.attn tiny) carries the word.")
        and "The responsible set is site 2." in text
    )
    text = result_.answer(a_result() | {"set": set_of([1])})
    assert (
        text.startswith(
            "Site 1 carries part of the word. F1 towards the target is 0.90 [0.90, 0.90] with it"
        )
        and "set is site 1." in text
    )
    assert "No single site" not in text and result_.credited(a_result() | {"set": set_of([1])}) == [
        1
    ]


def test_an_empty_set_is_not_clear_yet():
    """No gain is clear: no site is credited, however well it reads; the gain that is not clear, and what to do, are said."""
    text = result_.answer(a_result() | {"set": set_of([2], kept=False)})
    assert (
        text.startswith("No site clearly carries the word. The best is site 2")
        and "80 % [75, 85]" in text
    )
    assert (
        "On 8 pairs the gain of site 2 over no swap is F1 +0.10 [-0.20, 0.40]. Give more pairs;"
        in text
    )
    assert "the set is empty" in text


@pytest.mark.parametrize("pairs, few", [(1, "1 pair is too few"), (2, "2 pairs are too few")])
@pytest.mark.parametrize("found", [None, set_of([2]), set_of([2], kept=False)])
def test_one_pair_or_two_credit_no_site(pairs, few, found):
    """Whatever was found on them: what is not clear, how many pairs to give, and no word of a set."""
    text = result_.answer(a_result() | {"pairs": pairs, "set": found})
    assert text.startswith(
        f"Not clear yet. {few} to credit a site: give 3 or more. The best is site 2"
    )
    assert "The responsible set is" not in text


shares = st.sampled_from([0.0, 0.1, 0.4, 0.5, 0.8, 1.0])


@st.composite
def constructed(draw):
    """Results of any scores: 1 to 24 pairs, no set sought, an empty one, or one of any of the sites."""
    result = a_result(tuple(draw(st.lists(shares, min_size=4, max_size=4))), target=draw(shares))
    result["baselines"]["source"] = scores(draw(shares))
    sites = draw(st.lists(st.integers(0, 3), max_size=3, unique=True))
    found = set_of(sorted(sites) or [result["ranked"][0]], draw(shares), kept=bool(sites))
    return result | {
        "pairs": draw(st.sampled_from([1, 2, 3, 24])),
        "set": draw(st.sampled_from([None, found])),
    }


@settings(max_examples=300, deadline=None, derandomize=True)
@given(constructed())
def test_the_headline_and_the_set_agree(result):
    """All sites that a headline credits are the responsible set, where there is one, and all of that are named; where the
    set is empty, and on fewer than 3 pairs, none is credited; what follows says of the set what the headline does."""
    headline, _ = result_.verdict(result)
    named = [int(n) for n in re.findall(r"\d+", headline.split("(")[0])]
    credits = bool(re.match(r"Sites? \d.* (carries|carry) ", headline))
    sought, few = result["set"], result["pairs"] < 3
    assert credits == bool(named)
    if few or (sought and not sought["sites"]):
        assert not credits
    elif sought:
        assert named == sought["sites"] == result_.credited(result)
    said = " ".join(result_.search(result))
    assert ("The responsible set is" in said) == bool(credits and sought) and (
        "set is empty" in said
    ) == bool(sought and not credits)
    assert not (headline.startswith("No") and "The responsible set is" in said)
    assert headline in result_.answer(result) and "None" not in result_.answer(result)


@pytest.mark.parametrize("name, old, new", [
    ("verdict", "if responsible_sites(result):", "if not _spread(result, best) and result.get('set'):\n        return _carried(result, best)\n    if responsible_sites(result):"),
    ("responsible_sites", ' and result["pairs"] >= FEWEST', ""),
    ("verdict", 'if result.get("set"):', "if False:"),
])  # fmt: skip
def test_planted_headlines_beside_the_set_are_noticed(name, old, new, monkeypatch):
    """Faults: the best site is credited whatever the set; a set of two pairs counts; an empty set is none at all."""
    plant(monkeypatch, result_, name, old, new)
    with pytest.raises(AssertionError):
        for pairs, found in ((8, set_of([0, 1])), (8, set_of([2], kept=False)), (2, set_of([2]))):
            test_the_headline_and_the_set_agree.hypothesis.inner_test(
                a_result() | {"pairs": pairs, "set": found}
            )


def test_a_site_is_credited_for_what_the_source_lacks():
    """Half of the way is from the source run's exact matches to the target's: without a way there is no answer."""
    for source, said in ((0.9, "No answer."), (0.75, "No single site"), (0.5, "Site 2")):
        result = a_result()
        result["baselines"]["source"] = scores(source)
        assert result_.answer(result).startswith(said)


def test_runs_seen_on_fewer_pairs_say_so():
    """After a screening the two runs are of fewer pictures than the site measured: each number says of how many; and a
    target run that is never read in these few takes nothing from a site that is read in all."""
    result = a_result((0.0, 0.1, 0.8))
    for run, n in (("source", 4), ("target", 1)):
        result["baselines"][run]["n"] = n
    said = result_.answer(result)
    assert (
        "80 % [75, 85] over 32 pictures; the whole target run reaches 90 % [85, 95] over 1 picture,"
        in said
    )
    assert "the source run without a swap 0 % [0, 5] over 4 pictures." in said
    result["baselines"]["target"] = scores(0.0) | {"n": 1}
    assert result_.answer(result).startswith("Site 2")
    assert [
        re.search(r"(\d+)  [a-z]", line)[1] for line in result_.table(result, 80).splitlines()[2:]
    ] == ["4", "1", "32", "32", "32"]


def test_a_site_that_joined_keeps_what_left_it_out():
    """In the set, and alone screened out: by what, with which score, on how many pairs; set stands in place of its rank."""
    result = a_result()
    result["sites"][1]["status"] = {
        "state": "joined",
        "by": "contribution",
        "pairs": 4,
        "value": 0.1,
        "low": 0.0,
        "high": 0.2,
    }
    found = section(result, "The evidence: all sites").text
    assert (
        "joined the set, alone screened out by contribution: 0.10 [0.00, 0.20] on 4 pairs" in found
    )
    assert [
        line.split()[0] for line in result_.table(result).splitlines() if "blocks.1.attn" in line
    ] == ["set"]
    assert "Screened out by their contribution on 4 pairs: site 1." in result_.answer(result)


def test_one_pair_has_no_interval():
    """Of one pair nothing is known of its spread: no interval in the answer, none on the page, no site credited by it."""
    result = a_result((0.0, 0.8))
    for scored in [*result["sites"], *result["baselines"].values()]:
        for metric in METRICS:
            scored[metric] |= {"low": None, "high": None}
    said = result_.answer(result | {"pairs": 1})
    assert "80 % over 32 pictures" in said and "1 pair is too few" in said and "overlap" not in said
    assert "0.80 [" not in words_of(result) and heatmap.heatmap_png(result)
    curve = {"sites": [1], "chosen": 0, "curve": [{"start": 0, **result["sites"][1]}]}
    assert "0.80 [" not in html_of(result | {"start_curve": curve})


def test_all_that_cannot_be_told_apart_was_kept():
    """A last gap not clear of zero is said to keep both its sites, whatever else was screened out."""
    gap = {"by": "swap", "pairs": 8, "kept": 1, "next": 2, "value": 0.0, "low": 0.0, "high": 0.0}
    (said,) = [line for line in result_.search(a_result() | {"gaps": [gap]}) if "gap" in line]
    assert (
        said
        == "The gap from site 1 to site 2 is +0.00 [0.00, 0.00]; all pairs cannot tell them apart, so both were kept."
    )


def test_the_answer_admits_a_tie():
    """Sites whose intervals overlap the best one's are named."""
    assert "overlap with site 1, 3:" in result_.answer(a_result((0.0, 0.75, 0.8, 0.72)))


def numbers_of(line: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?", line)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_fits_and_begins_with_the_baselines(width):
    """The table has the two baselines, then all sites in ranked order, numbers before names, in the width it is given."""
    result = a_result(
        tuple(n / 70 for n in range(70)), text="down_blocks.1.transformer_blocks.9.attn2"
    )
    head, _, source, target, *sites = result_.table(result, width).splitlines()
    assert head.split()[:3] == ["rank", "site", "exact"] and head.split()[-1] == "name"
    assert source.endswith("source, no swap") and target.endswith("whole target run")
    assert [int(line.split()[1]) for line in sites] == result["ranked"] == list(range(70))[::-1]
    assert max(map(len, result_.table(result, width).splitlines())) <= width
    assert all(line.endswith(".9.attn2") for line in sites)
    assert width < 200 or all(
        line.endswith("down_blocks.1.transformer_blocks.9.attn2") for line in sites
    )
    assert "\x1b" not in result_.table(a_result(text=HOSTILE), width)


def test_a_narrow_table_keeps_what_sites_are_ranked_by():
    """In 40 columns: rank, site, F1 with its interval, the last part of the name."""
    result = a_result((0.0, 1.0), text="down_blocks.1.transformer_blocks.9.attn2")
    wide, narrow = (result_.table(result, width).splitlines() for width in (80, 40))
    assert narrow[0].split() == ["rank", "site", "F1", "target", "name"]
    for full, cut in zip(wide[4:], narrow[4:]):
        found = numbers_of(full)
        assert (
            numbers_of(cut)[:5] == [*found[:2], *found[3:6]]
            and cut.endswith("attn2")
            and len(cut) <= 40
        )
    assert narrow[2].endswith("source") and narrow[3].endswith("target")


def test_the_table_is_as_wide_as_the_terminal(monkeypatch):
    """Without a width the terminal's is taken."""
    result = a_result((0.0, 1.0), text="down_blocks.1.transformer_blocks.9.attn2")
    for columns in ("40", "80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert result_.table(result) == result_.table(result, int(columns))


@pytest.mark.parametrize(
    "full",
    [
        "up_blocks.0.attentions.2.transformer_blocks.1.attn2",
        "transformer_blocks.23.attn",
        "up_blocks.1.attentions.3",
    ],
)
def test_a_short_name_keeps_its_numbers(full):
    """Cutting a module path keeps every index while it can, and its last part always: SDXL's sites stay distinct in the table."""
    for width in range(17, 80):
        short = result_._name(full, width)
        assert len(short) <= width and re.findall(r"\.(\d+)", short) == re.findall(r"\.(\d+)", full)
    for width in range(len(full.rpartition(".")[2]) + 2, 80):
        short = result_._name(full, width)
        assert len(short) <= width and short.endswith(full.rpartition(".")[2])
    assert result_._name(full, len(full)) == full


def test_planted_names_cut_at_the_end_are_noticed(monkeypatch):
    """Fault: a name that does not fit loses its end."""
    monkeypatch.setattr(result_, "_name", lambda name, width: name[:width])
    with pytest.raises(AssertionError):
        test_the_table_fits_and_begins_with_the_baselines(80)


@pytest.mark.parametrize(
    "exact, text", [((0.2, 0.9), "tiny"), ((0.5,) * 70, "SDXL"), ((1.0,), HOSTILE)]
)
def test_the_heat_map_is_a_picture(exact, text):
    """One site or seventy, hostile names or missing scores: the heat map is a PNG of sensible size."""
    result = a_result(exact, text=text)
    result["sites"][0]["ssim"] = {"value": None, "low": None, "high": None}
    picture = Image.open(io.BytesIO(heatmap.heatmap_png(result)))
    assert (
        picture.format == "PNG" and 1000 <= picture.width <= 3500 and 1000 <= picture.height <= 1500
    )


def orange_middle(picture, top, bottom) -> float:
    """The mean x of pure orange between two heights, as a share of the width."""
    pixels = picture.crop((0, top, picture.width, bottom)).tobytes()
    found = [
        n // 3 % picture.width
        for n in range(0, len(pixels), 3)
        if pixels[n : n + 3] == b"\xd5\x5e\x00"
    ]
    return sum(found) / len(found) / picture.width


def test_the_heat_map_marks_the_best_site():
    """Bars and site label are orange where the best site is, and nowhere else."""
    for best in range(4):
        exact = [0.1] * 4
        exact[best] = 0.9
        picture = Image.open(io.BytesIO(heatmap.heatmap_png(a_result(exact)))).convert("RGB")
        place = (1.5 + (best + 0.6) / 4.2 * 6.2) / 8  # inches: margin, axes from -0.6 to 3.6, page
        for top, bottom in ((200, picture.height - 100), (picture.height - 100, picture.height)):
            assert orange_middle(picture, top, bottom) == pytest.approx(place, abs=0.01)


def test_the_heat_map_marks_a_set_that_is_credited():
    """Where the headline names two sites, bars and labels of both are orange: their mean lies between them."""
    result = a_result((0.1, 0.1, 0.1, 0.1))
    picture = Image.open(io.BytesIO(heatmap.heatmap_png(result | {"set": a_set()}))).convert("RGB")
    for top, bottom in ((200, picture.height - 100), (picture.height - 100, picture.height)):
        assert orange_middle(picture, top, bottom) == pytest.approx(
            (1.5 + 2.1 / 4.2 * 6.2) / 8, abs=0.01
        )


def test_the_heat_map_leaves_pyplot_alone():
    """No pyplot is imported and no setting is changed: the caller's own figures are safe."""
    # with a backend chosen, since reading an unchosen one makes matplotlib import pyplot by itself
    code = (
        "import sys, json, matplotlib; matplotlib.use('pdf'); before = dict(matplotlib.rcParams);"
        "from textpatch.report import heatmap as figures; figures.heatmap_png(json.load(sys.stdin));"
        "sys.exit('matplotlib.pyplot' in sys.modules or dict(matplotlib.rcParams) != before)"
    )
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
    monkeypatch.setattr(
        sys, "meta_path", [Refuse(), *sys.meta_path]
    ) if broken else monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PatchError, match=r"pip install textpatch\[plots\]"):
        heatmap.heatmap_png(a_result())


def test_the_contact_sheet_holds_every_picture():
    """Cells are enlarged by `scale`, a column per caption, a line per pair, every picture in place."""
    sheet = a_sheet(sites=4, lines=3)
    assert 6 * 64 * 3 <= sheet.width <= 6 * (64 * 3 + 20) and sheet.height >= 3 * 24 * 3
    colours = dict((colour, count) for count, colour in sheet.getcolors(1 << 16))
    assert colours[(0, 0, 128)] == 3 * 6 * (64 * 3) * (24 * 3)
    assert a_sheet(sites=2, scale=1).width < a_sheet(sites=2).width


def test_nothing_is_left_blank_where_nobody_read():
    """Without readings no line is kept for them: shorter by as much per line of pictures."""
    pictures = [Image.new("RGB", (64, 24))] * 2
    heights = [
        [
            contact_sheet.draw_contact_sheet(
                [[(p, read) for p in pictures]] * n, captions="ab"
            ).height
            for n in (1, 2, 3)
        ]
        for read in ("A", None)
    ]
    assert [read - none for read, none in zip(*heights)] == [
        n * (heights[0][0] - heights[1][0]) for n in (1, 2, 3)
    ]
    assert heights[0][0] > heights[1][0]


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
    """Blue is the target's word, black the source's, grey anything else; case and blanks do not matter."""
    assert contact_sheet._reading("shop", ("Open", "SHOP")) == ("shop", heatmap.BLUE)
    assert contact_sheet._reading("OPEN", ("Open", "SHOP")) == ("OPEN", heatmap.INK)
    assert contact_sheet._reading("ONAIR", ("Open", "ON AIR")) == ("ONAIR", heatmap.BLUE)
    assert contact_sheet._reading("", ("Open", "SHOP")) == ("(nothing)", heatmap.GREY)
    assert contact_sheet._reading(None, None)[0] == ""


def test_seventy_large_pictures_stay_bounded():
    """A sheet of all SDXL sites at 1024 px is shrunk, not refused and not enormous."""
    rows = [[(Image.new("L", (1024, 1024)), HOSTILE)] * 72] * 2
    sheet = contact_sheet.draw_contact_sheet(rows, captions=[HOSTILE] * 72, words=[("a", "b")] * 2)
    assert sheet.width <= 14_000 and sheet.height <= 1000


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
    contact_sheet.draw_contact_sheet(**good)
    with pytest.raises(PatchError):
        contact_sheet.draw_contact_sheet(**{**good, **change})


@pytest.mark.parametrize(
    "change", [{"schema_version": 1}, {"sites": []}, {"ranked": [0]}, {"ranked": [0, 1, 2, 9]}]
)
def test_what_is_no_result_is_refused(change):
    """Every view refuses a dict that is no result, and names what is wrong."""
    bad = {**a_result(), **change}
    for view in (result_.answer, result_.table, heatmap.heatmap_png, html_of):
        with pytest.raises(PatchError, match="result"):
            view(bad)
    with pytest.raises(PatchError, match="lacks seeds"):
        result_.table({name: value for name, value in a_result().items() if name != "seeds"})

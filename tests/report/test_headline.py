"""Laws of the sentences: they name what was found and its numbers, and credit no site that is not clear."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.pages import Page
from support.planting import plant
from support.reports import of_sets, section, set_of, words_of
from support.results import METRICS, a_result, html_of, records_of, scores
from textpatch.report import headline
from textpatch.report import result as result_
from textpatch.report.headline import answer, search, verdict
from textpatch.report.heatmap import heatmap_png
from textpatch.report.result import credited


def test_the_answer_names_the_site_and_its_numbers():
    """A site at half the target run's exact match or more carries the word, with its interval and n."""
    text = answer(a_result())
    assert text.startswith("Site 2 (blocks.2.attn tiny) carries the word.")
    assert "80 % [75, 85] of 32 pictures" in text
    assert "90 % [85, 95]" in text
    assert "yet" not in text
    assert answer(a_result((0.45, 0.0), target=0.9)).startswith("Site 0")


def test_the_answer_is_honest_when_no_site_carries_the_word():
    """Below half of the target run's exact match no site is credited, in the sentence and on the page."""
    result = a_result((0.2, 0.44, 0.1))
    assert answer(result).startswith("No single site carries the word. The best is site 1")
    assert "No single site carries the word." in words_of(result)
    assert answer(a_result((0.0, 0.0), target=0.0)).startswith("No answer.")


@pytest.mark.parametrize(
    "score, carry, f1",
    [
        (0.9, "carry the word", "0.90 [0.90, 0.90]"),
        (0.3, "carry part of the word", "0.30 [0.30, 0.30]"),
    ],
)
def test_the_answer_names_the_set(score, carry, f1):
    """The set carries the word if its F1 is half of the way to the target run's, else part of it.

    The best site alone is told beside it.
    """
    result = a_result((0.2, 0.4, 0.1)) | {"set": set_of([0, 1], score)}
    text = answer(result)
    assert text.startswith(
        f"Sites 0, 1 together {carry}. F1 towards the target is {f1} with them, "
    )
    assert "The best single site is site 1" in text
    assert credited(result) == [0, 1]


def test_one_site_is_the_set_and_carries_the_word():
    """It counts by its own exact match, whichever site ranks first."""
    text = answer(a_result() | {"set": set_of([2])})
    assert text.startswith("Site 2 (blocks.2.attn tiny) carries the word.")
    assert "The responsible set is site 2." in text


def test_one_site_is_the_set_and_carries_part_of_the_word():
    """A site that is a gain, and comes less than half of the way, is said to do so."""
    result = a_result() | {"set": set_of([1])}
    text = answer(result)
    assert text.startswith(
        "Site 1 carries part of the word. F1 towards the target is 0.90 [0.90, 0.90] with it"
    )
    assert "set is site 1." in text
    assert "No single site" not in text
    assert credited(result) == [1]


def test_an_empty_set_is_not_clear_yet():
    """Where no gain is clear, no site is credited, however well it reads.

    The gain that is not clear is told, and how many more pairs would settle it.
    """
    text = answer(
        a_result() | {"set": set_of([2], kept=False), "unsettled": [open_question("gain", more=30)]}
    )
    assert text.startswith("No site clearly carries the word. The best is site 2")
    assert "80 % [75, 85]" in text
    assert (
        "On 8 pairs the gain of site 2 over no swap is F1 +0.10 [-0.20, 0.40], which may be none."
        in text
    )
    assert "About 30 more pairs would settle it, if they differ as these 8 do." in text
    assert "the set is empty" in text


@pytest.mark.parametrize("pairs, few", [(1, "1 pair is too few"), (2, "2 pairs are too few")])
@pytest.mark.parametrize("found", [None, set_of([2]), set_of([2], kept=False)])
def test_one_pair_or_two_credit_no_site(pairs, few, found):
    """Whatever was found on them, the answer says how many pairs to give, and has no word of a set."""
    text = answer(a_result() | {"pairs": pairs, "set": found})
    asked = "to credit a site: give 3 or more. The best is site 2"
    assert text.startswith(f"Not clear yet. {few} {asked}")
    assert "The responsible set is" not in text


shares = st.sampled_from([0.0, 0.1, 0.4, 0.5, 0.8, 1.0])


@st.composite
def constructed(draw):
    """Results of any scores, on 1 to 24 pairs, with no set sought, an empty one, or any other."""
    result = a_result(tuple(draw(st.lists(shares, min_size=4, max_size=4))), target=draw(shares))
    result["baselines"]["source"] = scores(draw(shares))
    sites = draw(st.lists(st.integers(0, 3), max_size=3, unique=True))
    found = set_of(sorted(sites) or [result["ranked"][0]], draw(shares), kept=bool(sites))
    return result | {
        "pairs": draw(st.sampled_from([1, 2, 3, 24])),
        "set": draw(st.sampled_from([None, found])),
    }


@settings(max_examples=100, deadline=None, derandomize=True)
@given(constructed())
def test_the_headline_and_the_set_agree(result):
    """A headline credits the sites of the responsible set, all of them and no other.

    Where the set is empty, and on fewer than 3 pairs, none is credited.  The sentences on the search say of
    the set what the headline does.
    """
    said, _ = verdict(result)
    named = [int(n) for n in re.findall(r"\d+", said.split("(")[0])]
    credits = bool(re.match(r"Sites? \d.* (carries|carry) ", said))
    sought = result["set"]
    assert credits == bool(named)
    if result["pairs"] < 3 or (sought and not sought["sites"]):
        assert not credits
    elif sought:
        assert named == sought["sites"] == credited(result)
    course = " ".join(search(result))
    assert ("The responsible set is" in course) == bool(credits and sought)
    assert ("set is empty" in course) == bool(sought and not credits)
    assert not (said.startswith("No") and "The responsible set is" in course)
    assert said in answer(result)
    assert "None" not in answer(result)


BEST_WHATEVER_THE_SET = (
    headline,
    "verdict",
    "if responsible_sites(result):",
    "if not _spread(result, best) and result.get('set'):\n"
    "        return _carried(result, best)\n"
    "    if responsible_sites(result):",
)
A_SET_OF_TWO_PAIRS = (result_, "responsible_sites", ' or result["pairs"] < FEWEST', "")
EMPTY_IS_NONE = (headline, "verdict", 'if result.get("set"):', "if False:")


@pytest.mark.parametrize("fault", [BEST_WHATEVER_THE_SET, A_SET_OF_TWO_PAIRS, EMPTY_IS_NONE])
def test_planted_headlines_beside_the_set_are_noticed(fault, monkeypatch):
    """Faults: the best site is credited whatever the set is, two pairs are enough, an empty set is none."""
    plant(monkeypatch, *fault)
    law = test_the_headline_and_the_set_agree.hypothesis.inner_test
    with pytest.raises(AssertionError):
        for pairs, found in ((8, set_of([0, 1])), (8, set_of([2], kept=False)), (2, set_of([2]))):
            law(a_result() | {"pairs": pairs, "set": found})


def test_a_site_is_credited_for_what_the_source_lacks():
    """Half of the way begins at the source run's exact matches.  Without a way there is no answer."""
    for source, said in ((0.9, "No answer."), (0.75, "No single site"), (0.5, "Site 2")):
        result = a_result()
        result["baselines"]["source"] = scores(source)
        assert answer(result).startswith(said)


def test_runs_seen_on_fewer_pairs_say_so():
    """After a screening the two runs have fewer pictures than the site, and each number says how many."""
    result = a_result((0.0, 0.1, 0.8))
    result["baselines"]["source"]["n"] = 4
    result["baselines"]["target"]["n"] = 1
    said = answer(result)
    assert (
        "80 % [75, 85] of 32 pictures; in the whole target run it is in 90 % [85, 95] of 1 picture,"
        in said
    )
    assert "and without a swap in 0 % [0, 5] of 4 pictures." in said


def test_a_target_run_seen_on_few_pairs_takes_nothing_from_a_site():
    """A target run that is never read in its few pictures leaves a site its word that is read in all."""
    result = a_result((0.0, 0.1, 0.8))
    result["baselines"]["target"] = scores(0.0) | {"n": 1}
    assert answer(result).startswith("Site 2")


def test_a_site_that_joined_keeps_what_left_it_out():
    """A site in the set that was screened out alone says by what, with which score, on how many pairs."""
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
    assert "joined the set, alone screened out by contribution" in found
    assert "0.10 [0.00, 0.20]4" in section(result, "How the search went").text
    assert "Screened out by their contribution on 4 pairs: site 1." in answer(result)


def test_one_pair_has_no_interval():
    """Nothing is known of the spread of one pair.

    There is no interval in the answer and on the page, and no site is credited.
    """
    result = a_result((0.0, 0.8))
    for scored in [*result["sites"], *result["baselines"].values()]:
        for metric in METRICS:
            scored[metric] |= {"low": None, "high": None}
    said = answer(result | {"pairs": 1})
    assert "80 % of 32 pictures" in said
    assert "1 pair is too few" in said
    assert "0.80 [" not in words_of(result)
    assert heatmap_png(result)
    curve = {"sites": [1], "chosen": 0, "curve": [{"start": 0, **result["sites"][1]}]}
    assert "0.80 [" not in html_of(result | {"start_curve": curve})


def test_all_that_cannot_be_told_apart_was_kept():
    """A last gap not clear of zero is said to keep both its sites, whatever else was screened out."""
    gap = {"by": "swap", "pairs": 8, "kept": 1, "next": 2, "value": 0.0, "low": 0.0, "high": 0.0}
    (said,) = [line for line in search(a_result() | {"gaps": [gap]}) if "gap" in line]
    assert said == (
        "The gap from site 1 to site 2 is +0.00 [0.00, 0.00]. "
        "All pairs cannot tell these two apart, so both were kept."
    )


def open_question(question: str, site=2, against=None, more: int | None = None) -> dict:
    """A comparison that 8 pairs leave open."""
    return {"question": question, "site": site, "against": against, "pairs": 8, "more": more}


def test_the_answer_admits_a_tie():
    """Sites that cannot be told from the best one are named, with the pairs that would tell them all."""
    asked = [open_question("rival", against=1, more=40), open_question("rival", against=3, more=90)]
    said = answer(a_result((0.0, 0.75, 0.8, 0.72)) | {"unsettled": asked})
    assert "Exact matches do not tell site 2 from sites 1, 3 yet. About 90 more pairs would" in said
    asked[1] = open_question("rival", against=3)
    said = answer(a_result((0.0, 0.75, 0.8, 0.72)) | {"unsettled": asked})
    assert "About 40 more pairs" in said
    assert "From site 3 there is no difference on these pairs, and no such number." in said
    asked = [open_question("rival", against=1, more=10_001)]
    assert "More than 10,000 more pairs would, if" in answer(a_result() | {"unsettled": asked})


def test_sets_of_sites_are_called_so():
    """Where sets were tried, no sentence of the answer or the page is about a single site."""
    gap = {
        "by": "swap",
        "pairs": 8,
        "kept": "2+3",
        "next": "0+1",
        "value": 0.1,
        "low": 0.0,
        "high": 0.2,
    }
    cost = {"gaps": [gap], "generations": {"made": 9, "one_by_one": 24}}
    tie = [open_question("rival", "2+3", "0+1", 40)]
    result = of_sets(0.75, 0.8) | cost | {"unsettled": tie}
    said = answer(result)
    assert said.startswith(
        "Sites 2+3 (blocks.1.attn tiny) together carry the word. With a swap at these sites alone,"
    )
    assert "Exact matches do not tell sites 2+3 from sites 0+1 yet." in said
    assert "The gap from sites 2+3 to sites 0+1 is" in said
    assert "one for each of 2 sets of sites, on every pair" in said
    none = answer(of_sets(0.1, 0.2))
    assert none.startswith("None of these sets of sites carries the word. The best is sites 2+3")
    assert "too few to credit a set of sites: give 3" in answer(of_sets(0.1) | {"pairs": 2})
    page = Page(html_of(result, sheet=records_of(result))).root.text
    assert "2 sets of sites, each on every pair" in page
    for text in (said, none, page):
        assert not re.search(r"\b[Ss]ite \d|single site|one site alone|this site", text)

"""Selectors mean what a plain comprehension says, in any mixture, and nothing meant is an error."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.planting import plant
from textpatch import Plan, Swap
from textpatch import sites as library
from textpatch.errors import PatchError
from textpatch.sites import Site, Span, plain_selectors, select_sites

PARTS = "down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.0", "up_blocks.1"
UNET = tuple(
    Site(i, f"{part}.attentions.{i}.attn2", "cross", 2, 4, 0) for i, part in enumerate(PARTS)
)
FLUX = tuple(
    Site(
        i,
        f"{'single_' * (i > 1)}transformer_blocks.{i % 2}.attn",
        "single" if i > 1 else "joint",
        2,
        4,
        0,
        span=Span("first" if i > 1 else "all"),
    )
    for i in range(4)
)


def part_of(site: Site) -> str:
    return site.name.split("_block")[0]


FORMS = {  # two sites, the first not after the second -> a selector, and whether it means a site
    "index": lambda a, b: (a.index, lambda s: s == a),
    "digits": lambda a, b: (str(a.index), lambda s: s == a),
    "numpy": lambda a, b: (np.int64(a.index), lambda s: s == a),
    "torch": lambda a, b: (torch.tensor(a.index), lambda s: s == a),
    "range": lambda a, b: (f"{a.index}-{b.index}", lambda s: a.index <= s.index <= b.index),
    "all": lambda a, b: ("all", lambda s: True),
    "kind": lambda a, b: (f"kind:{a.kind}", lambda s: s.kind == a.kind),
    "group": lambda a, b: (f"group:{part_of(a)}", lambda s: part_of(s) == part_of(a)),
    "glob": lambda a, b: (f"{part_of(a)}*", lambda s: s.name.startswith(part_of(a))),
    "name": lambda a, b: (a.name, lambda s: s == a),
    "site": lambda a, b: (a, lambda s: s == a),
}


@st.composite
def requests(draw):
    """Sites, selectors of some of them, and the sites meant."""
    sites = draw(st.sampled_from([UNET, FLUX]))
    two = st.lists(st.sampled_from(sites), min_size=2, max_size=2).map(
        lambda s: sorted(s, key=lambda s: s.index)
    )
    drawn = draw(st.lists(st.tuples(st.sampled_from(list(FORMS)), two), min_size=1, max_size=3))
    pairs = [FORMS[form](*some) for form, some in drawn]
    return (
        sites,
        [x for x, _ in pairs],
        tuple(s for s in sites if any(meant(s) for _, meant in pairs)),
    )


@given(requests())
def test_selectors(request):
    """select(s1, s2, ...) = [site for site in sites if some s means it], in execution order."""
    sites, selectors, meant = request
    assert select_sites(sites, selectors) == meant


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sites", [UNET, FLUX], ids=["U-Net", "FLUX"])
def test_every_form(sites, form):
    """A form alone, in no list, means what it should for all pairs of sites."""
    for a in sites:
        for b in sites[a.index :]:
            selector, meant = FORMS[form](a, b)
            for wanted in [[selector], (selector,), *([selector] if form != "torch" else [])]:
                assert select_sites(sites, wanted) == tuple(filter(meant, sites))


FAULTS = {
    "end of a range left out": ("_plain", "last + 1", "last", "range"),
    "start of a range left out": ("_plain", "range(first,", "range(first + 1,", "range"),
    "part of a group's name": (
        "_match",
        "getattr(site, field) == value]",
        "value in getattr(site, field)]",
        "group",
    ),
    "part of a name": (
        "_match",
        "fnmatchcase(site.name, selector)",
        "selector in site.name",
        "glob",
    ),
    "next index": (
        "_match",
        "if site.index == selector]",
        "if site.index == selector + 1]",
        "digits",
    ),
    "kinds are groups": (
        "_match",
        "getattr(site, field) == value]",
        "site.group == value]",
        "kind",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_test_notices(fault, monkeypatch):
    """meant(select), and not meant(select with the fault)."""
    *place, form = FAULTS[fault]
    test_every_form(FLUX, form)
    plant(monkeypatch, library, *place)
    with pytest.raises((AssertionError, PatchError)):
        test_every_form(FLUX, form)


@given(requests(), st.randoms())
def test_one_spelling(request, dice):
    """Sites of a swap in any order, repeated, with ranges or not, give one JSON, which reads back.

    So for indices of any integer type.
    """
    sites, selectors, meant = request
    other = [*selectors, selectors[0]]
    dice.shuffle(other)
    spelled = [
        word for x in other for word in plain_selectors(x if isinstance(x, (str, Site)) else [x])
    ]
    plans = [Plan([Swap(some, "a", "b")]) for some in (selectors, other, spelled)]
    assert len({plan.sha256 for plan in plans}) == 1
    assert select_sites(sites, Plan.from_json(plans[0].to_json()).swaps[0].sites) == meant


def test_ranges_are_indices():
    """A range "55-57" is (55, 56, 57), also as the paper writes it, and a kind stays a word."""
    assert Swap("55-57", "a", "b") == Swap((57, 55, 56), "a", "b")
    assert Swap(["kind:cross", "2-3", 0], "a", "b").sites == (0, 2, 3, "kind:cross")


def test_groups():
    """A group is the first name of a path, without `_block` or `_blocks`."""
    named = {
        "down_blocks.0.attn": "down",
        "mid_block.attn": "mid",
        "single_transformer_blocks.3.attn": "single_transformer",
        "layers.0.attention": "layers",
        "blocks.1": "blocks",
        "attn": "attn",
    }
    assert {name: Site(0, name, "cross", 1, 1, 0).group for name in named} == named


NOTHING = {
    "kind": ("kind:croos", "no site of kind 'croos' among the 6", "kinds here: cross"),
    "group": (
        "group:middle",
        "no site of group 'middle' among the 6",
        "groups here: down, mid, up",
    ),
    "index": (57, "no site index 57 among the 6", "indices 0..5"),
    "negative": (-1, "no site index -1", "indices 0..5"),
    "digits": ("57", "no site index 57", "indices 0..5"),
    "range": ("4-6", "no site index 6", "indices 0..5"),
    "name": ("mid_block.attentions.2.atn2", "closest: mid_block.attentions.2.attn2", "find_sites"),
    "glob": ("*.attn1", "no site '*.attn1'", "known: down_blocks.1.attentions.0.attn2"),
    "other prefix": ("block:up", "no site 'block:up'", "known: down_blocks"),
    "backwards": ("5-3", "count down from 5 to 3", "write '3-5'"),
    "no selector": ([], "no site selected by []", "give indices 0..5"),
    "flags": ([True, False], "True", "no index, name or glob"),
    "number": (0.5, "0.5", "no index, name or glob"),
    "none": (None, "None", "no index, name or glob"),
}


@pytest.mark.parametrize("wrong", NOTHING)
def test_what_means_nothing(wrong):
    """A selector without a site raises PatchError that says what was asked and what there is.

    So does one beside a selector with a site.
    """
    selector, *says = NOTHING[wrong]
    for wanted in [selector, *([[0, selector]] if not isinstance(selector, list) else [])]:
        with pytest.raises(PatchError) as error:
            select_sites(UNET, wanted)
        assert all(words in str(error.value) for words in says)

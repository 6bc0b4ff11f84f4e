"""Ports hold on diffusers' own classes, and foreign models swap as ours do."""

import ast
import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.copies import PAIRS, call, native_slots_are_foreign_hooks, one_input, pair
from support.documents import ROOT
from support.foreign import FOREIGN, OPTIONS, SAME, foreign
from support.laws import anatomy, patching
from support.scripts import rows_of
from support.small_models import relative
from support.strategies import some
from textpatch import Swap, capture, find_sites, inject, patch, ports
from textpatch.errors import PatchError
from textpatch.hooks import HookRegistry
from textpatch.ports import shipped
from textpatch.ports.matching import SiteSpec
from textpatch.ports.shipped import shipped_table
from textpatch.sites import Site, Span, Tap
from textpatch.testing import CHECKS, check_port

RESULTS = ROOT / "benchmarks" / "results"
# what they do is held by test_native_slots_are_hooks_on_the_foreign_copy and foreign/test_sounds.py
HELD = {"sdxl", "audioldm2"}

# --- the shipped tables ---

MIDDLE = "mid_block.attentions.0"
UP = ["up_blocks.0.attentions.0", "up_blocks.0.attentions.1"]
TRANSFORMERS = [
    f"{where}.transformer_blocks.{i}.attn2"
    for where in ("down_blocks.1.attentions.0", MIDDLE, *UP)
    for i in range(2)
]
DOUBLE, SINGLE = (
    [f"{kind}transformer_blocks.{i}.attn" for i in range(3)] for kind in ("", "single_")
)
# names in execution order, then kind, heads, head_dim, parameters of K and V, K and V heads of each
EXPECTED = {
    "sdxl": (TRANSFORMERS, "cross", 2, 8, 2 * 12 * 16, None),
    "deepfloyd_if": (["down_blocks.1.attentions.0", MIDDLE, *UP], "added", 2, 8, 2 * 33 * 16, None),
    "sd3": (DOUBLE, "joint", 2, 8, 2 * 17 * 16, None),
    "sd35": (DOUBLE, "joint", 2, 8, 2 * 17 * 16, None),
    "flux": (DOUBLE[:2] + SINGLE[:2], ["joint"] * 2 + ["single"] * 2, 2, 8, 2 * 17 * 16, None),
    "fused_flux": (
        DOUBLE[:2] + SINGLE[:2],
        ["joint"] * 2 + ["single"] * 2,
        2,
        8,
        2 * 17 * 16,
        None,
    ),
    "qwen_image": (DOUBLE[:2], "joint", 2, 8, 2 * 17 * 16, None),
    "pixart": (
        [f"transformer_blocks.{i}.attn2" for i in range(2)],
        "cross",
        2,
        8,
        2 * 17 * 16,
        None,
    ),
    "z_image": ([f"layers.{i}.attention" for i in range(2)], "single", 2, 8, 2 * 16 * 16, None),
    "krea2": (DOUBLE[:2], "single", 4, 8, 2 * 32 * 16, 2),
    "prx": ([f"blocks.{i}.attention" for i in range(2)], "added", 2, 8, 2 * 16 * 16, None),
}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.long] * (x in SAME | HELD)) for x in FOREIGN]
)
def test_a_shipped_table_passes_every_check(diffusers, name):
    """A shipped table passes check_port on diffusers' class, which reports over 25 sentences.

    By default one form of each make is tried, but of those that are held otherwise, and with --long all.
    """
    model, inputs = foreign(diffusers, name)
    report = check_port(model, None, inputs, **OPTIONS.get(name, {}))
    assert report.sites == find_sites(model)
    assert len(set(report.checks)) == len(CHECKS) > 25


@pytest.mark.parametrize("name", EXPECTED)
def test_sites_of_foreign_models(diffusers, name):
    """Sites have names in execution order, kinds and sizes.

    attn1, and SD3.5's attn2, are no sites.
    """
    names, kind, *sizes = EXPECTED[name]
    kinds = [kind] * len(names) if isinstance(kind, str) else kind
    found = find_sites(foreign(diffusers, name)[0])
    assert [(s.index, s.name, s.kind) for s in found] == [
        *zip(range(len(names)), names, kinds, strict=True)
    ]
    assert {(s.heads, s.head_dim, s.parameters, s.kv_heads) for s in found} == {tuple(sizes)}


def test_tables_are_literal(diffusers):
    """A table is one file under 80 lines that imports SiteSpec and Span alone.

    Every class that has one is one of diffusers, and every file is one that has a table.
    """
    folder = Path(ports.__file__).parent
    files = [
        path for path in folder.glob("*.py") if path.stem not in ("__init__", "matching", "shipped")
    ]
    for path in files:
        nodes = ast.walk(ast.parse(path.read_text()))
        imported = [node for node in nodes if isinstance(node, ast.ImportFrom | ast.Import)]
        assert len(path.read_text().splitlines()) < 80
        assert {node.module for node in imported} <= {"textpatch.sites", "textpatch.ports.matching"}
    assert all(hasattr(diffusers, name) for name in shipped.TABLES)
    used = {id(table) for tables in shipped.TABLES.values() for table in tables}
    for path in files:
        tables = vars(getattr(ports, path.stem)).values()
        assert any(id(table) in used for table in tables), path.stem


def test_every_table_is_on_the_page():
    """Each class with a shipped table was measured, and stands in the table of the page."""
    measured = {row["class"] for row in rows_of(RESULTS / "ports.csv") if row["checks"]}
    assert measured == set(shipped.TABLES)


def test_a_subclass_has_the_table_of_its_class(diffusers):
    """A table is found by the names of a class and of those it inherits.

    A distilled U-Net lacks the middle.
    """
    model = foreign(diffusers, "sdxl")[0]
    model.__class__ = type("Distilled", (type(model),), {})
    model.mid_block = None
    assert [site.name for site in find_sites(model)] == [*TRANSFORMERS[:2], *TRANSFORMERS[4:]]


# --- our models and diffusers': one text ---


@pytest.mark.parametrize("name", PAIRS)
def test_our_models_have_the_sites_of_diffusers(diffusers, name):
    """Sites of our models are those of diffusers' models in every field.

    Ours take no mask.
    """
    ours, theirs = pair(diffusers, name)
    unmasked = tuple(
        replace(site, span=replace(site.span, mask=None)) for site in find_sites(theirs)
    )
    assert find_sites(ours) == unmasked and not hasattr(theirs, "sites")


@st.composite
def one_swap(draw):
    """A Swap of row a from row b at some sites, heads, tokens and parts."""
    places = draw(some(range(3))), draw(some(range(2))), draw(some(range(4)))
    where = "all" if places[0] is None else places[0]
    return Swap(
        where,
        "a",
        "b",
        heads=places[1],
        tokens=places[2],
        part=draw(st.sampled_from(["kv", "k", "v"])),
    )


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=4)
@given(swap=one_swap(), seed=st.integers(0, 99))
def test_native_slots_are_hooks_on_the_foreign_copy(diffusers, name, swap, seed):
    """Slots of ours give what capture and patch give on diffusers' class.

    That is law 13, with our weights, to 1e-10 in float64.
    """
    native_slots_are_foreign_hooks(diffusers, name, swap, seed)


@pytest.mark.parametrize("name", ["SDXL", "IF"])
def test_native_injection_is_the_foreign_copys(diffusers, name):
    """Injection of a text in ours is injection of its tokens in theirs, to 1e-10.

    The pooled vector stays the prompt's in both.
    """
    ours, theirs = pair(diffusers, name)
    (args, inputs), ((*_, other), _) = (one_input(type(ours), 2) for _ in range(2))
    with inject(ours, other, [1, 2]):
        native = ours(*args)
    with inject(theirs, other.tokens, [1, 2]):
        assert relative(call(theirs, inputs), native) <= 1e-10
    assert relative(call(theirs, inputs), native) > 1e-3


# --- tables, spans and refusals ---


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(kind="self"), "kind is 'self'; known here: 'cross', 'added'"),
        (dict(kind="joint"), "order is None; known here: 'text first', 'image first'"),
        (dict(kind="cross", order="text first"), "order is 'text first'; known here: None"),
        (
            dict(kind="single", span=Span("first"), order="text first"),
            "order is 'text first'; known here: None",
        ),
        (dict(kind="single", order="text first"), "kind 'single' and spans 'all'"),
        (dict(kind="cross", fused=(1, 2, 2)), r"fused is \(1, 2, 2\); parts are numbered 0..1"),
        (dict(kind="cross", fused=(0, 1)), r"fused is \(0, 1\); give three whole numbers"),
        (dict(kind="cross", fused=(0, 1.0, 2)), r"fused is \(0, 1.0, 2\); give three"),
        (dict(kind="cross", fused=()), r"fused is \(\); give three"),
        (dict(kind="cross", fused=(-1, 2, "width")), r"fused is \(-1, 2, 'width'\); parts are"),
        (dict(kind=["cross"]), r"kind is \['cross'\]; known here: 'cross'"),
        (dict(kind="cross", heads=0), "heads of 'blocks.*' is 0; give a whole number from 1 on"),
        (dict(kind="cross", heads=True), "heads of 'blocks.*' is True; give a whole number"),
        (dict(kind="cross", kv_heads=-2), "kv_heads of 'blocks.*' is -2; give a whole number"),
        (dict(kind="cross", projections=("to_k",)), "projections is .*; give the path of K's and"),
        (dict(kind="cross", projections="to_kv"), "projections is 'to_kv'; give the path of K's"),
        (dict(kind="cross", span="first"), "span of 'blocks.*' is 'first'; give a Span"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(fields, says):
    """Rows that contradict themselves raise PatchError.

    That is an unknown kind, an order that is missing or has no meaning, and a shared stream
    that is all text.
    """
    with pytest.raises(PatchError, match=says):
        SiteSpec("blocks.*.attn", **fields)


@pytest.mark.parametrize("modules", ["", (), ("blocks.*", ""), 5])
def test_a_row_of_no_module_is_refused(modules):
    """A row names its modules by a pattern, or by several."""
    with pytest.raises(PatchError, match="modules is .*; give a pattern of paths, or several"):
        SiteSpec(modules, "cross")


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(pad_to=0), "pad_to is 0; give a whole number, 1 for no padding"),
        (dict(pad_to=-8), "pad_to is -8"),
        (dict(pad_to="8"), "pad_to is '8'"),
        (dict(text=None), "text of a span is None; give the name of an argument"),
        (dict(mask=""), "mask of a span is ''; give the name of an argument"),
        (dict(text=("words", "")), r"text of a span is \('words', ''\); give the name"),
        (dict(extra=-1), "extra is -1; give a number of tokens, 0 for none"),
        (dict(where=("indicator", 3)), "has a `where` without its place"),
        (dict(place="where"), "has a `where` without its place, or the place without it"),
        (dict(packed=True, mask=("a", "b")), "is packed; name the mask that says how many"),
    ],
)
def test_a_span_of_another_kind_is_refused(fields, says):
    """Padding that is no number from 1 on, and arguments without a name."""
    with pytest.raises(PatchError, match=says):
        Span(**dict(place="first") | fields)


def test_rows_that_run_in_between_have_as_many_patterns():
    """Rows that run in between each other do so pattern by pattern, and one of braces matches some names."""
    attention = torch.nn.ModuleDict(dict(to_k=torch.nn.Linear(2, 4), to_v=torch.nn.Linear(2, 4)))
    model = torch.nn.ModuleList([attention] + [copy.deepcopy(attention) for _ in range(11)])
    rows = [SiteSpec("{0,3}", "cross", heads=2), SiteSpec("{2,11}", "cross", heads=2, between=True)]
    assert [site.name for site in find_sites(model, rows)] == ["0", "2", "3", "11"]
    with pytest.raises(PatchError, match="run in between '.0,3.', pattern by pattern; give both"):
        find_sites(model, [rows[0], replace(rows[1], modules=("{2,11}", "5"))])


@pytest.mark.parametrize(
    "says",
    [None, [[3, 3, 2], [3, 2, 2]], [[2, 2, 2]], [[3, 2, 3]], [[3, 3, 2], [2, 3, 3]]],
    ids=["no argument", "another length", "none", "two pieces", "another place"],
)
def test_text_by_an_argument_is_in_one_piece(says):
    """Text that an argument places is in one piece, and at one place in all rows."""
    span = Span("where", where=("indicator", 3))
    assert span.found(torch.tensor([[0, 3, 3, 2]] * 2)) == slice(1, 3)
    with pytest.raises(
        PatchError, match="the text is where 'indicator' is 3, and the rows of this"
    ):
        span.found(None if says is None else torch.tensor(says))


@pytest.mark.parametrize(
    "table, says",
    [
        ([], "the table of sites is empty"),
        (SiteSpec("*", "cross"), "the table of sites is SiteSpec.*; give a list"),
        (["blocks.*"], r"the table of sites is \['blocks.\*'\]; give a list"),
        ([SiteSpec("*", "cross")] * 2, "the table finds module '0' 2 times"),
        ([SiteSpec(("*", "0"), "cross")], "the table finds module '0' 2 times"),
        ([SiteSpec("*", "cross", heads="no_heads")], "'no_heads' of '0' is 0, and heads"),
    ],
)
def test_a_table_of_another_kind_is_refused(table, says):
    """Tables are lists of rows, one at least, and find a module once, with one head at least."""
    attention = torch.nn.Module()
    attention.to_k = torch.nn.Linear(4, 12)
    attention.to_v = torch.nn.Linear(4, 12)
    attention.no_heads = 0
    with pytest.raises(PatchError, match=says):
        find_sites(torch.nn.ModuleList([attention]), table)


@pytest.mark.parametrize(
    "fields, says",
    [
        (
            dict(modules="transformer_bloks.*.attn"),
            "no module 'transformer_bloks.*.attn' in SD3.*; closest: tr",
        ),
        (
            dict(projections=("to_kk", "to_v")),
            "has no module 'transformer_blocks.0.attn.to_kk'; closest: ",
        ),
        (dict(heads="num_heads"), "'transformer_blocks.0.attn' has no number 'num_heads'"),
        (
            dict(projections=("norm_q", "norm_k")),
            "'transformer_blocks.0.attn.norm_q' has no number 'out_features'",
        ),
        (
            dict(heads=3),
            "16 channels of 'transformer_blocks.0.attn.add_k_proj' do not divide into 1 parts of 3 heads",
        ),
        (dict(fused=(1, 2, 3)), "do not divide into 3 parts"),
        (
            dict(fused=(0, 1, "inner_dim")),
            "16 channels of .* do not hold part 1 of parts of 16, which is 'inner_dim'",
        ),
        (dict(fused=(0, 1, "width")), "'transformer_blocks.0.attn' has no number 'width'"),
        (dict(queries="to_queries"), "has no module 'transformer_blocks.0.attn.to_queries'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(diffusers, fields, says):
    """Tables that do not fit raise PatchError.

    That is for modules, projections, norms and attributes that are not there, and widths that
    do not divide.
    """
    model = foreign(diffusers, "sd35")[0]
    with pytest.raises(PatchError, match=says):
        find_sites(model, [replace(spec, **fields) for spec in shipped_table(model)])


def test_models_without_a_table_are_refused(diffusers):
    """An unknown class is refused, and a known one that no table fits, with the reason."""
    with pytest.raises(
        PatchError, match="no sites known for Linear: it has no `sites`, and no table is shipped"
    ):
        find_sites(torch.nn.Linear(1, 1))
    with pytest.raises(
        PatchError, match="sites were asked of a NoneType, which is no torch.nn.Mod"
    ):
        find_sites(None)
    model = foreign(diffusers, "pixart")[0]
    del model.transformer_blocks
    with pytest.raises(
        PatchError, match=r"no shipped table fits \(no module 'transformer_blocks.\*.attn2' in"
    ):
        find_sites(model)


def test_sites_of_ones_own_table_are_taken_as_they_are(diffusers):
    """Sites of a table of one's own are captured by that table.

    Here it gives the V of image tokens, which no shipped table does.
    """
    model, inputs = foreign(diffusers, "krea2")
    own = find_sites(model, [replace(spec, span=Span("last")) for spec in shipped_table(model)])
    seen = {}
    with (
        HookRegistry(model, [own[0].taps[1].module]).observe(
            lambda name, output: seen.update(v=output)
        ),
        capture(model, own[0], rows=["a", "b"]) as cache,
    ):
        call(model, inputs)
    assert torch.equal(cache[own[0].name, 0, ("b",), "v"], seen["v"][1, -5:])


def test_a_fused_model_gives_the_same_text(diffusers):
    """Keys and values of a fused projection are those of the projections it was made of (5e-6).

    They swap alike.
    """
    found = []
    for name in ("flux", "fused_flux"):
        model, inputs = foreign(diffusers, "flux")
        if name == "fused_flux":
            model.fuse_qkv_projections()
        with capture(model, "all", rows=["a", "b"]) as cache:
            call(model, inputs)
        with patch(model, cache, [1, 3], rows=["b", None], heads=[1]):
            found.append((cache, call(model, inputs)))
    (plain, one), (fused, other) = found
    assert plain.keys() == fused.keys() and relative(one, other) <= 5e-6
    assert all(relative(plain[key], fused[key]) <= 5e-6 for key in plain)


def test_a_table_from_before_the_fusion_serves(diffusers):
    """Keys and values are those of attention, so that it does not matter which projection made them."""
    model, inputs = foreign(diffusers, "fused_flux")
    caches = []
    for sites in ("all", find_sites(model, ports.flux.FLUX)):
        with capture(model, sites, rows=["a", "b"]) as cache:
            call(model, inputs)
        caches.append(cache)
    assert caches[0].keys() == caches[1].keys()
    assert all(torch.equal(x, caches[1][key]) for key, x in caches[0].items())


def test_estimates_count_the_heads_of_keys(diffusers):
    """estimate = bytes also where four query heads share two of K and V."""
    model, inputs = foreign(diffusers, "krea2")
    with capture(model, "all", rows=["a", "b"]) as cache:
        call(model, inputs)
    assert cache.bytes == patching.KVCache.estimate(find_sites(model), 1, 2, 5, torch.float32)


@pytest.mark.parametrize(
    "text, says",
    [
        (
            [torch.zeros(7, 2), torch.zeros(33, 2)],
            r"the rows of 'cap_feats' hold \[32, 64\] text tokens",
        ),
        (None, "the rows of 'cap_feats' hold no text tokens"),
    ],
)
def test_a_span_needs_one_length(text, says):
    """Rows of different padded lengths, and no text at all, are refused.

    7 and 32 tokens both take 32.
    """
    span = Span("last", "cap_feats", pad_to=32)
    assert (
        span.length([torch.zeros(7, 2), torch.zeros(32, 2)])
        == 32
        == span.length(torch.zeros(2, 5, 3))
    )
    with pytest.raises(PatchError, match=says):
        span.length(text)


def test_a_span_needs_the_model_itself_to_be_called(diffusers):
    """A sequence no longer than its text is refused, and a block called behind the model's back."""
    model, inputs = foreign(diffusers, "krea2")
    with pytest.raises(
        PatchError, match="a sequence of 4 tokens, and 5 text tokens in 'encoder_hidden_states'"
    ):
        Span("first").tokens(4, 5)
    with pytest.raises(
        PatchError, match="no known number of text tokens in 'encoder_hidden_states'"
    ):
        Span("first").tokens(4, None)
    with pytest.raises(PatchError, match="a sequence of 5 tokens, and 5 text tokens"):
        Span("last").tokens(5, 5)
    with (
        pytest.raises(PatchError, match="attn' ran outside a call of the Krea2"),
        capture(model, 0, rows=["a", "b"]),
    ):
        model.transformer_blocks[0].attn(torch.randn(2, 11, 32))


@pytest.mark.parametrize(
    "text", [torch.zeros(3, 5, 12), torch.zeros(2, 4, 12)], ids=["rows", "tokens"]
)
def test_injected_text_must_be_as_large(diffusers, text):
    """A text of another number of rows or tokens than the batch is refused with both numbers.

    Nothing is left behind.
    """
    model, inputs = foreign(diffusers, "pixart")
    before = anatomy(model)
    with (
        pytest.raises(
            PatchError,
            match=rf"2 rows of 5 tokens, the injected text {len(text)} of {text.shape[1]}",
        ),
        inject(model, text, "all"),
    ):
        call(model, inputs)
    assert anatomy(model) == before


@pytest.mark.parametrize("text", [None, "a prompt", ["a prompt"], [torch.tensor(0.0)] * 2])
def test_injected_text_of_another_kind_is_refused(diffusers, text):
    """A prompt, or none, where the model takes a tensor or a list of them."""
    model, inputs = foreign(diffusers, "pixart")
    says = f"the injected text is a {type(text).__name__}; give what the model takes as 'encoder_"
    with pytest.raises(PatchError, match=says), inject(model, text, "all"):
        call(model, inputs)


def test_one_text_is_injected_at_sites_that_read_one(diffusers):
    """A single text is refused at sites that read two arguments of the forward."""
    first, second = find_sites(foreign(diffusers, "pixart")[0])
    sites = [first, replace(second, span=Span(text="glyphs"))]
    with (
        pytest.raises(PatchError, match=r"these sites read \['encoder_hidden_states', 'glyphs'\]"),
        inject(torch.nn.Identity(), torch.zeros(2, 5, 12), sites),
    ):
        pass


@pytest.mark.parametrize("name", ["sdxl", "pixart", "prx"])
def test_injection_at_all_sites_is_the_other_text(diffusers, name):
    """Injection of b is the run of b, bit for bit, if text enters at the sites alone.

    So at every call.
    """
    model, inputs = foreign(diffusers, name)
    text = inputs["encoder_hidden_states"].flip(0)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(model))
    with capture(model, 0, rows=["a", "b"]) as cache, inject(model, text, "all"):
        injected = [call(model, inputs) for _ in range(2)]
    assert len(calls) == 3
    assert all(torch.equal(x, call(model, inputs, encoder_hidden_states=text)) for x in injected)
    # the call that makes the bank is nobody's step
    assert {step for _, step, *_ in cache} == {0, 1}


def test_inputs_are_bound_to_their_names():
    """observe_inputs gives what a module gets by the names of its forward, and leaves nothing."""
    model = torch.nn.Bilinear(1, 1, 1)
    seen = []
    before = anatomy(model)
    with HookRegistry(model, [""]).observe_inputs(
        lambda name, inputs: seen.append((name, [*inputs.arguments]))
    ):
        model(torch.ones(1), input2=torch.ones(1))
    assert seen == [("", ["input1", "input2"])] and anatomy(model) == before


def test_a_site_knows_its_taps():
    """A Site without taps has those of its kind, and an unknown kind is refused."""
    assert Site(0, "a", "added", 2, 4, 0).taps == (Tap("a.add_k_proj"), Tap("a.add_v_proj"))
    with pytest.raises(PatchError, match="kind is 'self'"):
        Site(0, "a", "self", 2, 4, 0)

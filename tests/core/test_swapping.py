"""Plans in lock-step around somebody's own calls: rows that read others give their outputs, masks and all."""

import itertools
import threading
from contextlib import nullcontext, suppress

import pytest
import torch
from torch import nn

from support.copies import call
from support.foreign import foreign
from support.laws import anatomy
from support.planting import plant
from support.small_models import relative, require_the_donors
from textpatch import (
    Plan,
    Row,
    SiteSpec,
    Span,
    Swap,
    Window,
    branches,
    capture,
    find_sites,
    patch,
    reading,
    slots,
    swap,
    swapping,
)
from textpatch.branches import probe_calls
from textpatch.errors import PatchError
from textpatch.testing.inputs import apply, take

TEXT = "encoder_hidden_states"
QWEN_IMAGE21 = (
    SiteSpec(
        "transformer_blocks.*.attn", "single", span=Span("first", mask="encoder_hidden_states_mask")
    ),
)
LUMINA2 = (
    SiteSpec(
        "layers.*.attn",
        "single",
        span=Span("first", mask="encoder_attention_mask", packed=True),
        kv_heads=2,
    ),
)
TABLES = {"qwen_image21": QWEN_IMAGE21, "lumina2": LUMINA2}
MASKS = {  # of each model, the argument that hides text tokens
    "sdxl": "encoder_attention_mask",
    "pixart": "encoder_attention_mask",
    "prx": "attention_mask",
    "qwen_image": "encoder_hidden_states_mask",
    "krea2": "encoder_attention_mask",
    "qwen_image21": "encoder_hidden_states_mask",
}
UNMASKED = ["sd3", "sd35", "flux", "fused_flux", "z_image", "lumina2"]
EVERYWHERE = Plan([Swap("all", "a", "b")])
PAIR = [Row("a", "a"), Row("b", "b")]


def doubled(diffusers, name: str):
    """(model, inputs, sites) in float64."""
    model, inputs = foreign(diffusers, name)
    return (
        model.double(),
        apply(torch.Tensor.double, inputs),
        find_sites(model, TABLES.get(name)),
    )


def twins(diffusers, name: str, lengths=None):
    """(model, inputs, sites) of two rows that differ in their text alone, seen up to these lengths."""
    model, inputs, sites = doubled(diffusers, name)
    text = sites[0].span.text
    alike = {key: value if key == text else take(value, [1, 1]) for key, value in inputs.items()}
    if lengths is not None:
        alike[MASKS[name]] = torch.arange(5) < torch.tensor(lengths)[:, None]
    return model, alike, sites


def picture(name: str, output):
    """The picture of each row; Qwen-Image 2.1 puts out its text, too."""
    return output[:, -16:] if name == "qwen_image21" else output


# --- the law ---


def require_the_donors_output(diffusers, name: str, lengths=None):
    """All sites of row 0 read row 1: its output is row 1's, and row 1 keeps its own bits."""
    model, inputs, sites = twins(diffusers, name, lengths)
    plain = picture(name, call(model, inputs))
    with swap(model, EVERYWHERE, PAIR, sites=sites):
        swapped = picture(name, call(model, inputs))
    twice = picture(name, call(model, take(inputs, [1, 1])))
    require_the_donors(swapped, plain, twice, 1e-12)
    assert torch.equal(swapped[1], plain[1])


@pytest.mark.parametrize("lengths", [(3, 5), (5, 3), (2, 4)])
@pytest.mark.parametrize("name", MASKS)
def test_masks_go_with_their_keys(diffusers, name, lengths):
    """A row that reads a longer or a shorter text at all sites gives that text's output."""
    require_the_donors_output(diffusers, name, lengths)


@pytest.mark.parametrize("name", UNMASKED)
def test_a_row_that_reads_another_everywhere_is_that_row(diffusers, name):
    """So without masks, at joint streams, single ones, fused projections, and packed rows of one length."""
    require_the_donors_output(diffusers, name)


LAW_FAULTS = {
    "masks stay": (reading.Reading, "_read_mask", "mask[place] = by_keys.mT", "pass"),
    "values stay": (reading.Reading, "read", "if tables.v is not None:", "if False:"),
    "keys of the next token": (
        reading.Reading,
        "read",
        'own["k"], tables',
        'own["k"].roll(1, 2), tables',
    ),
    "masks read backwards": (
        reading.Reading,
        "_read_mask",
        "mask[place] = by_keys.mT",
        "mask[place] = by_keys.mT.flip(-1)",
    ),
}


@pytest.mark.parametrize("fault", LAW_FAULTS)
def test_a_fault_in_what_is_read_is_noticed(diffusers, monkeypatch, fault):
    """Fault: what reading writes is another."""
    plant(monkeypatch, *LAW_FAULTS[fault])
    with pytest.raises(AssertionError):
        require_the_donors_output(diffusers, "qwen_image", (5, 3))


CHAINS = {
    "one after another": [("a", "b"), ("b", "c")],
    "exchanged": [("a", "b"), ("b", "a")],
    "in turn": [("a", "b"), ("b", "c"), ("c", "a")],
}


def require_texts_as_they_were(diffusers, chain: str):
    """Rows that read rows which read others get what these had of their own, in a batch of three texts."""
    model, inputs, _ = doubled(diffusers, "pixart")
    three = {
        key: value[[1, 1, 1]] if isinstance(value, torch.Tensor) else value
        for key, value in inputs.items()
    }
    texts = torch.randn(3, *inputs[TEXT].shape[1:], dtype=torch.float64)
    rows = [Row(name, name) for name in "abc"]
    read = dict(zip("abc", range(3), strict=True)) | {
        reader: "abc".index(donor) for reader, donor in CHAINS[chain]
    }
    expected = call(model, three | {TEXT: texts[list(read.values())]})
    with swap(model, Plan(Swap("all", *pair) for pair in CHAINS[chain]), rows):
        swapped = call(model, three | {TEXT: texts})
    assert relative(swapped, expected) <= 1e-12


@pytest.mark.parametrize("chain", CHAINS)
def test_a_donor_that_reads_another_is_read_as_it_was(diffusers, chain):
    require_texts_as_they_were(diffusers, chain)


def test_a_fault_in_the_order_of_reads_is_noticed(diffusers, monkeypatch):
    """Fault: a donor is read while it is written over, which torch may refuse."""
    plant(monkeypatch, reading, "table_of", "donors if also else evenly(donors)", "evenly(donors)")
    with pytest.raises((AssertionError, RuntimeError)):
        require_texts_as_they_were(diffusers, "one after another")


OPTIONS = [dict(heads=[1]), dict(tokens=[0, 3]), dict(part="k"), dict(part="v"), {}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["pixart", "krea2", "sd35"])
def test_a_part_of_a_swap_is_that_part_of_a_patch(diffusers, name, options):
    """Some heads, tokens, keys or values: what capture and patch give by the projections, to the bit."""
    model, inputs, _ = doubled(diffusers, name)
    with capture(model, "all", rows=["a", "b"]) as cache:
        call(model, inputs)
    with patch(model, cache, [0, 1], rows=["b", None], **options):
        patched = call(model, inputs)
    with swap(model, Plan([Swap([0, 1], "a", "b", **options)]), PAIR) as ledger:
        swapped = call(model, inputs)
    assert torch.equal(swapped, patched) and not torch.equal(swapped, call(model, inputs))
    assert {(entry.site, entry.reader, entry.donor) for entry in ledger.entries} == {
        (0, "a", "b"),
        (1, "a", "b"),
    }
    heads = find_sites(model)[0].text_heads
    hits = (2 if "tokens" in options else 5) * (1 if "heads" in options else heads)
    part = options.get("part", "kv")
    assert {(entry.hits_k, entry.hits_v) for entry in ledger.entries} == {
        (hits * ("k" in part), hits * ("v" in part))
    }
    ledger.require()


def test_masks_of_some_heads_and_tokens(diffusers):
    """By heads one after the other a swap is the whole; tokens that both show may be read in part."""
    model, inputs, _ = twins(diffusers, "qwen_image", (3, 5))
    single = Plan([Swap("all", "a", "b", heads=[head]) for head in range(2)])
    outputs = []
    for plan in (single, EVERYWHERE):
        with swap(model, plan, PAIR):
            outputs.append(call(model, inputs))
    assert torch.equal(*outputs)
    with swap(model, Plan([Swap("all", "a", "b", part="k", tokens=[0, 2])]), PAIR):
        call(model, inputs)
    for part in "kv":
        with (
            pytest.raises(PatchError, match="and their masks differ"),
            swap(model, Plan([Swap("all", "a", "b", part=part, tokens=[2, 3])]), PAIR),
        ):
            call(model, inputs)


def test_a_cache_of_keys_and_values_is_read_through(diffusers):
    """Qwen-Image 2.1 keeps the text's keys of its first call; a later call that reads them is swapped."""
    module = pytest.importorskip("diffusers.models.transformers.transformer_qwenimage21")
    model, inputs, sites = twins(diffusers, "qwen_image21", (3, 5))
    seen = []
    for block in (nullcontext(), swap(model, EVERYWHERE, PAIR, calls=[["cond"]], sites=sites)):
        kept = module.QwenImage21KVCache(2)
        with block:
            call(model, inputs, kv_cache=kept, kv_cache_mode="extract")
            seen.append(call(model, inputs, kv_cache=kept, kv_cache_mode="cached"))
    plain, swapped = (picture("qwen_image21", one) for one in seen)
    assert relative(swapped[0], plain[1]) <= 1e-12 and relative(plain[0], plain[1]) > 1e-3


def captions(diffusers, rows):
    """(model, batch) of Z-Image with rows of two short unconditional texts and two longer conditional ones.

    rows  their order, in which the last two of four are conditional
    """
    model, inputs, _ = doubled(diffusers, "z_image")
    short, one, other = (torch.randn(n, 12, dtype=torch.float64) for n in (7, 40, 50))
    texts = [short, short, one, other]
    batch = {key: take(value, [1, 1]) * 2 for key, value in inputs.items() if key == "x"}
    batch |= dict(t=inputs["t"][:1].expand(4), cap_feats=[texts[row] for row in rows])
    return model, batch


def require_conditional_rows_alone_change(diffusers, calls, rows):
    """Readers give their donors' pictures, and unconditional rows keep theirs."""
    model, batch = captions(diffusers, rows)
    plain = call(model, batch)[rows]
    with swap(model, EVERYWHERE, PAIR, calls=calls):
        swapped = call(model, batch)[rows]
    assert relative(swapped[2], plain[3]) <= 1e-12 and relative(plain[2], plain[3]) > 1e-3
    assert torch.equal(swapped[:2], plain[:2]) and torch.equal(swapped[3], plain[3])


ORDERS = [([["uncond", "cond"]], [0, 1, 2, 3]), ([["cond", "uncond"]], [2, 3, 0, 1])]


@pytest.mark.parametrize("calls, rows", ORDERS)
def test_branches_may_have_texts_of_other_lengths(diffusers, calls, rows):
    """Z-Image pads a caption to a multiple of 32, so that branches of a call hold texts of two lengths."""
    require_conditional_rows_alone_change(diffusers, calls, rows)


def test_a_branch_has_texts_of_one_length(diffusers):
    """Others are refused, because the picture's positions begin where the caption ends."""
    model, batch = captions(diffusers, [0, 1, 2, 3])
    batch["cap_feats"][2] = batch["cap_feats"][0] + 1
    with (
        pytest.raises(
            PatchError, match=r"'cap_feats' hold \[32, 64\] text tokens; rows that read one another"
        ),
        swap(model, EVERYWHERE, PAIR, calls=[["uncond", "cond"]]),
    ):
        call(model, batch)


def test_a_fault_in_which_branches_are_read_together_is_noticed(diffusers, monkeypatch):
    """Fault: branches are read together whose texts have other lengths."""
    plant(
        monkeypatch, swapping, "_side_by_side", "found[-1][1:] == (i, place)", "found[-1][1] == i"
    )
    with pytest.raises(AssertionError):
        require_conditional_rows_alone_change(diffusers, *ORDERS[1])


def require_the_rows_of_the_index():
    """Of all lists of up to three of five rows those at one distance are slices, and all give their rows."""
    rows = torch.arange(5)
    for n in range(4):
        for index in itertools.product(range(5), repeat=n):
            found = slots.evenly(torch.tensor(index, dtype=torch.long))
            assert rows[found].tolist() == list(index)
            steps = {b - a for a, b in itertools.pairwise(index)}
            even = n > 0 and len(steps) <= 1 and min(steps, default=1) > 0
            assert isinstance(found, slice) == even


def test_rows_at_one_distance_are_a_slice():
    require_the_rows_of_the_index()


def test_a_fault_in_a_slice_of_rows_is_noticed(monkeypatch):
    """Fault: the distance is that of the first two rows, wherever the others are."""
    plant(monkeypatch, slots, "evenly", "if step < 1 or ", "if step < 1 or len(rows) < 3 and ")
    with pytest.raises(AssertionError):
        require_the_rows_of_the_index()


# --- steps and branches ---

NAMES = ["source", "target", "edited"]
ROWS = [Row("source", "s"), Row("target", "t"), Row("edited", "s")]
PLAN = Plan([Swap([0, 2], "edited", "target", steps=[1, 2])])
LAYOUTS = [
    [["uncond", "cond"]],
    [["cond", "uncond"]],
    [["cond"], ["uncond"]],
    [["uncond"], ["cond"]],
    [["cond"]],
]


class Pipeline:
    """A loop around SD3 whose calls have a layout, with one text for all unconditional rows.

    prompts  of which each distinct one has a text of its own
    """

    def __init__(self, diffusers, layout, *, repeats=1):
        self.model, self.inputs, _ = doubled(diffusers, "sd3")
        self.layout = layout
        self.repeats = repeats

    def __call__(self, prompts, *, steps=3):
        """Outputs of the conditional rows, step by step."""
        found = []
        for step in range(steps):
            for call_ in self.layout * self.repeats:
                texts = torch.cat([self.texts(branch, prompts) for branch in call_])
                output = call(self.model, self.batch(texts, step))
                if "cond" in call_:
                    first = call_.index("cond") * len(prompts)
                    found.append(output[first : first + len(prompts)])
        return torch.stack(found)

    def texts(self, branch: str, prompts):
        """Text (rows, 5, 12) of the rows of a branch."""
        prompts = ["" for _ in prompts] if branch == "uncond" else prompts
        return torch.stack([self.text(prompt) for prompt in prompts])

    def text(self, prompt: str):
        seed = torch.Generator().manual_seed(sum(map(ord, prompt)))
        return torch.randn(5, 12, generator=seed, dtype=torch.float64)

    def batch(self, texts, step: int):
        one = {key: take(value, [0, 0])[:1] for key, value in self.inputs.items()}
        batch = {key: torch.cat([value] * len(texts)) for key, value in one.items()}
        batch["timestep"] = torch.full((len(texts),), 900.0 - 100 * step, dtype=torch.float64)
        return batch | {TEXT: texts}


PROMPTS = [row.prompt for row in ROWS]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_step_is_what_the_layout_says(diffusers, layout):
    """Rows and steps are swapped that the plan names, and no others, in every layout of branches (1e-12).

    That is what capture and patch give around one call a step of the conditional rows.
    """
    pipeline = Pipeline(diffusers, layout)
    with swap(pipeline.model, PLAN, ROWS, calls=layout, steps=3) as ledger:
        swapped = pipeline(PROMPTS)
    alone = Pipeline(diffusers, [["cond"]])
    with capture(alone.model, [0, 2], rows=NAMES) as cache:
        plain = alone(PROMPTS)
    with patch(alone.model, cache, [0, 2], rows=[None, None, "target"], steps=[1, 2]):
        expected = alone(PROMPTS)
    assert relative(swapped, expected) <= 1e-12 and relative(swapped[1:, 2], plain[1:, 2]) > 1e-3
    named = tuple(sorted(name for call_ in layout for name in call_))
    assert [(entry.step, entry.site, entry.branches) for entry in ledger.entries] == [
        (step, site, named) for step in (1, 2) for site in (0, 2)
    ]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_layouts_are_found_by_trying(diffusers, layout):
    """Prompts in another order move the conditional rows: the layout is found, and repeated steps are one."""
    pipeline = Pipeline(diffusers, layout)
    for steps in (1, 2):
        assert probe_calls(pipeline.model, lambda p, n=steps: pipeline(p, steps=n)) == layout


def test_a_layout_that_is_none_is_not_found(diffusers):
    """Rows that stand prompt by prompt, and runs of two lengths, have no layout."""
    pipeline = Pipeline(diffusers, [["uncond", "cond"]])
    plain = pipeline.texts
    pipeline.layout = [["cond"]]
    pipeline.texts = lambda branch, prompts: torch.cat(
        [plain(name, [prompt]) for prompt in prompts for name in ("uncond", "cond")]
    )
    with pytest.raises(
        PatchError, match="3 prompts make a call of 6 rows, whose branches do not stand"
    ):
        probe_calls(pipeline.model, lambda prompts: pipeline(prompts, steps=1))
    pipeline = Pipeline(diffusers, [["cond"]])
    counts = iter((1, 2))
    with pytest.raises(PatchError, match="was called 1 times, and 2 times with the same prompts"):
        probe_calls(pipeline.model, lambda prompts: pipeline(prompts, steps=next(counts)))


@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[1], LAYOUTS[4]], ids=str)
def test_a_layout_is_worked_out_from_the_first_call(diffusers, layout):
    """Which half of a call is conditional its texts tell: with no calls given the run is the same."""
    pipeline = Pipeline(diffusers, layout)
    plan = Plan([Swap("all", "edited", "target", branch="cond")])
    outputs = []
    for calls in (None, layout):
        with swap(pipeline.model, plan, ROWS, calls=calls) as ledger:
            outputs.append(pipeline(PROMPTS))
        assert {entry.branches for entry in ledger.entries} == {("cond",)}
    assert torch.equal(*outputs)


LIES = {  # what the pipeline does, calls, what is said
    "two calls a step": (dict(layout=LAYOUTS[2]), None, "was called twice at one time, .900.0."),
    "rows of one text": (
        dict(layout=LAYOUTS[0], prompts=["s", "s", "s"]),
        None,
        "3 rows were given, and the model was called with 6 texts",
    ),
    "two rows too few": (
        dict(layout=LAYOUTS[4], prompts=["s"]),
        None,
        "3 rows were given, and the model was called with 1 texts",
    ),
    "one call of both": (dict(layout=LAYOUTS[0]), LAYOUTS[2], "call 0 of the SD3.* holds 6 rows"),
    "one branch alone": (dict(layout=LAYOUTS[4]), LAYOUTS[0], "call 0 of the SD3.* holds 3 rows"),
    "the other half": (
        dict(layout=LAYOUTS[1]),
        LAYOUTS[0],
        "texts of the conditional rows are not alike",
    ),
    "the other call": (
        dict(layout=LAYOUTS[3]),
        LAYOUTS[2],
        "texts of the conditional rows are not alike",
    ),
    "another order": (
        dict(layout=LAYOUTS[4], prompts=["t", "s", "s"]),
        LAYOUTS[4],
        "texts of the conditional rows are not alike",
    ),
    "a cut prompt": (
        dict(layout=LAYOUTS[4], prompts=["s", "s", "s"]),
        LAYOUTS[4],
        "no prompt is cut",
    ),
    "one call a step": (
        dict(layout=LAYOUTS[4]),
        LAYOUTS[2],
        "calls 0 and 1 .* are at times .900.0. and ",
    ),
    "half a step": (
        dict(layout=LAYOUTS[4], steps=3, repeats=1),
        [["cond"], ["cond2"]],
        "calls 0 and 1 .* are at times",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_calls_that_are_not_as_said_are_refused(diffusers, lie):
    """PatchError with what was said and what was found, and nothing is left behind."""
    does, calls, says = LIES[lie]
    does = dict(does)
    prompts, steps = does.pop("prompts", PROMPTS), does.pop("steps", 3)
    pipeline = Pipeline(diffusers, **does)
    before = anatomy(pipeline.model)
    with pytest.raises(PatchError, match=says), swap(pipeline.model, PLAN, ROWS, calls=calls):
        pipeline(prompts, steps=steps)
    assert anatomy(pipeline.model) == before and torch._C._len_torch_function_stack() == 0


def test_a_batch_that_changes_within_a_step_is_refused(diffusers):
    """The second call of step 0 holds two rows of three."""
    pipeline = Pipeline(diffusers, LAYOUTS[2])
    plain = pipeline.texts
    pipeline.texts = lambda branch, prompts: plain(branch, prompts)[: 3 - (branch == "uncond")]
    with (
        pytest.raises(
            PatchError, match="call 1 of the SD3.* holds 2 rows, and step 0 .* asks for 3 of each"
        ),
        swap(pipeline.model, PLAN, ROWS, calls=LAYOUTS[2]),
    ):
        pipeline(PROMPTS)


@pytest.mark.parametrize(
    "run, steps, says",
    [
        (dict(steps=2), None, "no step 2 at site 'transformer_blocks.0.attn'; there are 2"),
        (dict(steps=3), 4, "saw 3 calls of the SD3.*, and 4 steps were asked for"),
        (None, None, "2 of 2 modules never ran inside the block"),
    ],
)
def test_steps_that_never_came_are_refused(diffusers, run, steps, says):
    """A run shorter than the plan, another number of steps than was said, and no run at all."""
    pipeline = Pipeline(diffusers, LAYOUTS[4])
    with pytest.raises(PatchError, match=says), swap(pipeline.model, PLAN, ROWS, steps=steps):
        if run:
            pipeline(PROMPTS, **run)


def test_a_run_that_ends_within_a_step_is_refused(diffusers):
    """One call more than two steps of two."""
    pipeline = Pipeline(diffusers, LAYOUTS[2])
    with (
        pytest.raises(
            PatchError, match=r"saw 7 calls of the SD3.*, with calls=\[\['cond'\], \['uncond'\]\] a"
        ),
        swap(pipeline.model, PLAN, ROWS, calls=LAYOUTS[2]),
    ):
        pipeline(PROMPTS)
        pipeline.layout = [["cond"]]
        pipeline(PROMPTS, steps=1)


@pytest.mark.parametrize(
    "calls", [5, [], [[]], ["cond"], [["uncond"]], [["cond", "cond"]], [["cond"], [3]]]
)
def test_a_layout_of_another_kind_is_refused(calls):
    """Calls are lists of branches, each named once, "cond" among them."""
    with pytest.raises(PatchError, match="calls are .*(give|name every branch once)"):
        branches.layout_of(calls)


def test_a_call_that_skips_a_site_is_noticed(diffusers):
    """FLUX under diffusers' FirstBlockCache, which leaves blocks out of call 1: refused if swapped there."""
    model, inputs, _ = doubled(diffusers, "flux")
    model.enable_cache(diffusers.FirstBlockCacheConfig(threshold=1e6))
    late, early = Swap("all", "a", "b"), Swap("all", "a", "b", steps=[0])
    for one, outcome in (
        (late, pytest.raises(PatchError, match="3 of 4 modules never ran in call 1 of the Flux")),
        (early, nullcontext()),
    ):
        with (
            model.cache_context(str(one.steps)),
            outcome,
            swap(model, Plan([one]), PAIR, calls=[["cond"]]),
        ):
            call(model, inputs)
            call(model, inputs)


# --- refusals ---


@pytest.mark.parametrize(
    "plan, rows, says",
    [
        ([Swap("all", "a", "b")], PAIR, "the plan is .*; give Plan"),
        (EVERYWHERE, "ab", "rows are 'ab'; give a list of Rows"),
        (EVERYWHERE, PAIR[:1], "no row 'b' in this run"),
        (EVERYWHERE, [*PAIR, PAIR[0]], "row names are .*; give each row a name of its own"),
        (
            EVERYWHERE,
            [PAIR[0], Row("b", "b", branch="uncond")],
            "row 'b' asks for more than its prompt",
        ),
        (
            EVERYWHERE,
            [PAIR[0], Row("b", "b", sampled=False)],
            "row 'b' asks for more than its prompt",
        ),
        (EVERYWHERE, [PAIR[0], Row("b", "b", pooled="a")], "row 'b' asks for more than its prompt"),
        (Plan([Swap(9, "a", "b")]), PAIR, "no site index 9"),
        (Plan([Swap(0, "a", "b", heads=[2])]), PAIR, "no head 2 at site"),
        (Plan([Swap(0, "a", "b", steps=Window("timestep", 0, 500))]), PAIR, "take plan.at"),
    ],
)
def test_what_is_not_there_is_refused(diffusers, plan, rows, says):
    """Plans, rows, sites and heads are looked at before a call."""
    model, _, _ = doubled(diffusers, "pixart")
    with pytest.raises(PatchError, match=says), swap(model, plan, rows):
        pytest.fail("the block was entered")


def test_a_token_that_is_not_there_is_refused(diffusers):
    """Token 5 of 5, known at the first call."""
    model, inputs, _ = doubled(diffusers, "pixart")
    with (
        pytest.raises(PatchError, match="no token 5"),
        swap(model, Plan([Swap(0, "a", "b", tokens=[5])]), PAIR),
    ):
        call(model, inputs)


def test_packed_texts_of_two_lengths_are_refused(diffusers):
    """Lumina2 lays a picture right behind its own text; another length would need it laid out anew."""
    model, inputs, sites = doubled(diffusers, "lumina2")
    inputs["encoder_attention_mask"] = (torch.arange(5) < torch.tensor([3, 5])[:, None]).long()
    with (
        pytest.raises(
            PatchError, match=r"hold \[3, 5\] text tokens; rows that read one another need one"
        ),
        swap(model, EVERYWHERE, PAIR, sites=sites),
    ):
        call(model, inputs)


def test_texts_that_move_the_picture_are_refused(diffusers):
    """ERNIE-Image counts a picture's positions from the end of its row's text: one number within a branch."""
    model, inputs, _ = twins(diffusers, "ernie_image")
    plain = call(model, inputs | {"text_lens": torch.tensor([3, 3])})
    with swap(model, EVERYWHERE, PAIR):
        swapped = call(model, inputs | {"text_lens": torch.tensor([3, 3])})
    assert relative(swapped[0], plain[1]) <= 1e-12 and relative(plain[0], plain[1]) > 1e-3
    with (
        pytest.raises(
            PatchError, match=r"hold \[3, 5\] text tokens; rows that read one another need one"
        ),
        swap(model, EVERYWHERE, PAIR),
    ):
        call(model, inputs | {"text_lens": torch.tensor([3, 5])})


def test_compiled_blocks_are_refused(diffusers):
    """Blocks that were compiled before run no hooks, which is said before a call."""
    model, _, _ = doubled(diffusers, "flux")
    block = model.transformer_blocks[0]
    block._compiled_call_impl = block._call_impl  # as torch's `compile` leaves it
    for opened in (swap(model, EVERYWHERE, PAIR), capture(model, "all", rows=["a", "b"])):
        with pytest.raises(PatchError, match="runs compiled code"), opened:
            pytest.fail("the block was entered")


@pytest.mark.long  # by default a block stands for it that looks compiled
def test_blocks_compiled_by_diffusers_are_refused(diffusers):
    """`compile_repeated_blocks`, the usual way in diffusers, is told."""
    model, _, _ = doubled(diffusers, "flux")
    model.compile_repeated_blocks()
    with pytest.raises(PatchError, match="runs compiled code"), swap(model, EVERYWHERE, PAIR):
        pytest.fail("the block was entered")


class Linear(nn.Module):
    """Attention that is no softmax of torch's, in a model of one site."""

    def __init__(self):
        super().__init__()
        self.to_k, self.to_v = nn.Linear(3, 4), nn.Linear(3, 4)
        self.heads = 2

    def forward(self, encoder_hidden_states, t):
        return self.to_k(encoder_hidden_states) * self.to_v(encoder_hidden_states)


def test_attention_that_is_no_softmax_is_refused():
    """A site that runs without scaled_dot_product_attention is told, with what to do."""
    model = nn.Module()
    model.layers = nn.ModuleList([Linear()])
    model.forward = lambda encoder_hidden_states, t: model.layers[0](encoder_hidden_states, t)
    sites = find_sites(model, [SiteSpec("layers.*", "cross")])
    text = torch.stack([torch.zeros(2, 3), torch.ones(2, 3)])
    with (
        pytest.raises(PatchError, match="ran in call 0 and called no scaled_dot_product_attention"),
        swap(model, EVERYWHERE, PAIR, sites=sites),
    ):
        model(encoder_hidden_states=text, t=0)


def test_our_own_models_take_plans_otherwise():
    """Sites that do not say which keys are text, as ours: PatchError with what to use."""
    from support.copies import PAIRS

    kind, config = PAIRS["SD3"]
    with (
        pytest.raises(PatchError, match="give these a plan by `sample`"),
        swap(kind(config), EVERYWHERE, PAIR),
    ):
        pytest.fail("the block was entered")


# --- nothing is left ---


class _Interrupt(BaseException):
    """An interrupt in the middle of a call, which is no Exception."""


@pytest.mark.parametrize("error", [_Interrupt, ValueError])
def test_nothing_is_left_behind(diffusers, error):
    """Interrupted within a site, the model has its hooks of before and the thread no mode."""
    model, inputs, sites = doubled(diffusers, "sd3")
    plain, before = call(model, inputs), anatomy(model)

    def interrupt(*_):
        raise error

    inner = model.get_submodule(sites[1].name).to_out[0]
    hook = inner.register_forward_pre_hook(interrupt)
    with pytest.raises(error), swap(model, EVERYWHERE, PAIR):
        call(model, inputs)
    hook.remove()
    assert torch._C._len_torch_function_stack() == 0 and anatomy(model) == before
    with swap(model, EVERYWHERE, PAIR):
        with suppress(RuntimeError):
            hook = inner.register_forward_pre_hook(interrupt)
            with pytest.raises(error):
                call(model, inputs)
            hook.remove()
        again = call(model, inputs)
    assert torch.equal(again[1], plain[1]) and not torch.equal(again[0], plain[0])


def test_another_thread_runs_the_plain_model(diffusers):
    """A call in a thread of its own, while a block is open, is nobody's step."""
    model, inputs, _ = doubled(diffusers, "sd3")
    plain, seen = call(model, inputs), []
    with swap(model, EVERYWHERE, PAIR):
        thread = threading.Thread(target=lambda: seen.append(call(model, inputs)))
        thread.start()
        thread.join()
        call(model, inputs)
    assert torch.equal(seen[0], plain)


def test_no_plan_is_no_change(diffusers):
    """An empty plan and a swap with the row's own text leave every bit; the ledger tells why."""
    model, inputs, _ = doubled(diffusers, "qwen_image")
    plain = call(model, inputs)
    for plan, silent in ((Plan(), 0), (Plan([Swap("all", "a", "a")]), 1)):
        with swap(model, plan, PAIR) as ledger:
            assert torch.equal(call(model, inputs), plain)
        assert len(ledger.silent) == silent and not ledger.entries


def test_gradients_reach_the_donor(diffusers):
    """The reader's output depends on the donor's text, and through K and V alone on its own."""
    model, inputs, _ = twins(diffusers, "pixart", (5, 3))
    text = inputs[TEXT].clone().requires_grad_()
    with swap(model, EVERYWHERE, PAIR):
        output = model(**inputs | {TEXT: text})[0]
    (slope,) = torch.autograd.grad(output[0].sum(), text)
    assert (
        slope[1, :3].abs().min() > 0 and slope[0].abs().max() == 0 and slope[1, 3:].abs().max() == 0
    )

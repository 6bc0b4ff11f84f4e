"""Prompt-to-Prompt beside recorded runs of published code, and on the shipped models."""

from functools import cache as remembered
from functools import partial
from unittest import mock

import pytest
import torch
from torch import nn

from support.patched_calls import anatomy
from support.planting import require_noticed
from support.recorded_edits import (
    JOINT,
    JOINT_RECORDED,
    RECORDED,
    RUNS,
    TOLERANCE,
    farthest,
    joint_edit,
    joint_path,
    method_of,
    paths,
    pipeline_of,
    recorded_sinusoids,
)
from support.recorded_runs import RECORDINGS
from support.small_models import small_pipeline
from textpatch import Pair, Row, load
from textpatch.editing import carrying, local_blend, pair_edit
from textpatch.editing.local_blend import LocalBlend, WordMaps, map_shape
from textpatch.editing.methods import METHODS, edit
from textpatch.editing.pair_edit import PairEdit
from textpatch.editing.places import SELF, Place, places_of
from textpatch.editing.prompt_to_prompt import PRESETS, PromptToPrompt
from textpatch.editing.replacing import Heads
from textpatch.errors import PatchError, PromptError
from textpatch.guidance import ClassifierFree
from textpatch.hooks import HookRegistry
from textpatch.recording import AttentionModules
from textpatch.sampling import sample_latents
from textpatch.sites import Site, Span

SIGN = 'a red sign that says "{}" on a blue wall'
PAIR = Pair(SIGN.format("HOUSE"), SIGN.format("TIGER"))
JOINT_TOLERANCE = 1e-14  # ours, made with explicit maps by the same sums
# each kind of edit once, with the rule that is the other run's opposite: the others are --long
SHORT = (
    "swap_longer_corrected refine_insert refine_then_reweight localblend_royira royira_self_limit"
).split()
SHORT_JOINT = (
    ("if", "whole_image_rows"),
    ("if", "text_columns_mapper_windows_renormalised"),
    ("if", "qk_image_subset"),
)


def shortened(names, short):
    """Parameters of which those that are not in `short` are --long."""
    return [
        pytest.param(*name, id="-".join(name), marks=() if name in short else pytest.mark.long)
        for name in names
    ]


def require_recorded(name: str) -> None:
    """The target's latents after each recorded step, of each target, and the masks of a local blend."""
    masks = []
    mask_of = WordMaps.mask

    def kept(*asked):
        masks.append(mask_of(*asked))
        return masks[-1]

    with mock.patch.object(WordMaps, "mask", kept):
        for target in range(1, len(RUNS[name]["prompts"])):
            made = [x[1] for x in paths(name, method_of(name), target)]
            assert farthest(made, RECORDED[f"{name}.target"][:, target - 1]) <= TOLERANCE
    if f"{name}.mask" in RECORDED:
        assert torch.equal(torch.stack(masks).byte(), RECORDED[f"{name}.mask"][:, 0])


@pytest.mark.parametrize(
    "name", shortened([(name,) for name in RUNS if name != "plain"], [(name,) for name in SHORT])
)
def test_recorded_runs(name):
    """Runs by diffusers' community controllers and by RoyiRa's for SDXL, step by step = recorded."""
    require_recorded(name)


def require_recorded_joint(family: str, name: str) -> None:
    """The target's latents after each step of a run with explicit maps."""
    made = [x[1] for x in joint_path(family, joint_edit(family, name))]
    assert farthest(made, JOINT_RECORDED[f"{family}.{name}.latents"]) <= JOINT_TOLERANCE


ALL_JOINT = [(f, run["name"]) for f in JOINT for run in JOINT[f] if run["variant"] != "none"]


@pytest.mark.parametrize(
    "family, name",
    shortened(ALL_JOINT, [*SHORT_JOINT, *(one for one in ALL_JOINT if one[0] == "sd3")]),
)
def test_recorded_joint_runs(family, name):
    """Whole maps, text columns, image columns and the one-call form on SD3 and IF = explicit maps."""
    require_recorded_joint(family, name)


def plain_path(pipeline, rows, guidance) -> list[torch.Tensor]:
    """Latents of the first row after each step of a run in which nothing is edited."""
    made = sample_latents(pipeline, rows, guidance=guidance, keep_trajectory=True)
    return made.trajectory[rows[0].name][1:]


def test_the_source_row_is_a_plain_one():
    """Bit for bit that of a run with the same rows and no edit, at cross, added and joint attention.

    It is the recorded one, too.
    """
    prompts = RUNS["swap_longer"]["prompts"]
    rows = [Row("source", prompts[0]), Row("edited", prompts[1])]
    with recorded_sinusoids():
        plain = plain_path(pipeline_of("swap_longer"), rows, ClassifierFree(5.0))
    made = [x[0] for x in paths("swap_longer", method_of("swap_longer"))]
    assert all(map(torch.equal, made, plain))
    assert farthest(made, RECORDED["plain.source"]) <= TOLERANCE
    for family in ("if", "sd3"):
        pipeline = RECORDINGS[family].pipeline(torch.float64)
        rows = [Row("source", "A0", 0), Row("edited", "B0", 0)]
        guidance = ClassifierFree(pipeline.defaults.guidance, "empty0")
        with RECORDINGS[family].recorded_sinusoids():
            plain = plain_path(pipeline, rows, guidance)
        made = [x[0] for x in joint_path(family, joint_edit(family, "whole_image_rows"))]
        assert all(map(torch.equal, made, plain))


def require_limit() -> None:
    """A self-attention of as many keys as the limit is the source's, one of more stays."""
    site = Site(0, "block.attn2", "cross", 1, 4, 0)
    place = Place("block.attn1", SELF, 4, site, AttentionModules([], [], [], []))
    edit = PairEdit([None], image=range(1), self_limit=6)
    for keys in (6, 7):
        q, k = torch.randn(2, 2, 1, keys, 4)
        heads = Heads(q, None, k, None, k[1], None)
        assert (edit.attention(place, 0, heads) is None) == (keys > 6)


def test_self_attention_is_edited_within_its_limit():
    """Up to self_limit keys, and in the window alone."""
    require_limit()


@pytest.mark.parametrize(
    "queries, height, width, shape",
    [(16, 16, 16, (4, 4)), (6, 8, 12, None), (24, 8, 12, (4, 6)), (35, 9, 13, (5, 7))],
)
def test_maps_are_latents_halved_and_rounded_up(queries, height, width, shape):
    """Their height and width, or an error where no halving gives so many."""
    if shape is not None:
        assert map_shape(queries, height, width) == shape
        return
    assert map_shape(queries, height, width) == (2, 3)
    with pytest.raises(PatchError, match="halved"):
        map_shape(queries + 1, height, width)


class Interrupted(Exception):
    """An error in the middle of a run."""


@pytest.mark.parametrize("error", [None, Interrupted, KeyboardInterrupt])
def test_nothing_is_left_on_the_model(error):
    """After the end, an error and an interrupt the model is what it was."""
    model = RECORDINGS["sd3"].pipeline(torch.float64).denoiser
    before = anatomy(model)

    def stop(step, x):
        if error and step == 2:
            raise error

    if error is None:
        joint_path("sd3", joint_edit("sd3", "qk_image"), stop)
    else:
        with pytest.raises(error):
            joint_path("sd3", joint_edit("sd3", "qk_image"), stop)
    assert anatomy(model) == before


def test_text_is_read_where_others_hook_it():
    """Hooks of others on the text's projections leave no bank, and the edit is the recorded one."""
    model = RECORDINGS["if"].pipeline(torch.float64).denoiser
    names = [name for name in model.text_modules if name.endswith("add_v_proj")]
    with HookRegistry(model, names).replace(lambda name, output: None) as hooked:
        require_recorded_joint("if", "text_columns_subset")
    assert set(hooked.calls.values()) == {RECORDINGS["if"].steps}


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(kind="single"), "is of kind 'single'"),
        (dict(kind="joint", kv_heads=1), "shares the keys of 1 heads among 2"),
        (dict(kind="joint", span=Span(mask="text_mask")), "hides text by the mask 'text_mask'"),
    ],
)
def test_sites_without_a_map_to_edit_are_refused(fields, says):
    """One stream, shared keys and masked text."""
    site = Site(0, "block.attn", heads=2, head_dim=4, parameters=0, **fields)
    with pytest.raises(PatchError, match=says):
        places_of(nn.Identity(), [site], [site])


# --- as a method of editing


@remembered
def shipped(name: str):
    return load(name)


SHIPPED = [(preset, name) for preset in PRESETS for name in ("tiny-mmdit", "tiny-sdxl", "tiny-if")]


# each preset once and each model once; the other six are --long
@pytest.mark.parametrize(
    "preset, name",
    shortened(
        SHIPPED, [("prompt_to_prompt", "tiny-sdxl"), ("p2p", "tiny-mmdit"), ("p2p_star", "tiny-if")]
    ),
)
def test_every_preset_edits_every_shipped_model(preset, name):
    """A picture that is neither the source's nor the plain target's; the others are the plain ones."""
    made = edit(shipped(name), PAIR.source, PAIR.target, method=preset, seed=3, steps=2)
    assert made.image.tobytes() not in (made.source.tobytes(), made.target.tobytes())
    assert (made.method, made.generations, made.plan.swaps) == (preset, 3, ())


def test_a_plain_picture_that_is_not_asked_for_is_not_made():
    """The source's row runs in any case, the target's only for its picture; what is edited stays the same."""
    method = METHODS["p2p"](columns="text")
    pair = Pair("a red sign on a blue wall", "a red sign on a green wall")  # no word is quoted
    whole, alone = (method(small_pipeline(), pair, steps=1, also=also) for also in (["source"], []))
    assert (whole.generations, whole.source is None, whole.target) == (2, False, None)
    assert alone.source is None and alone.image.tobytes() == whole.image.tobytes()
    assert "a red sign on a green wall" in alone._repr_html_()


def test_blocks_of_two_tokenizers_are_edited_apart():
    """On an MMDiT the word's tokens of CLIP and of T5 are changed ones, and no others."""
    pipeline = small_pipeline()
    method = PromptToPrompt(cross_window=1.0, words="changed", columns="text")
    pair = Pair(SIGN.format("HELLO"), SIGN.format("ZEN"))
    total = pipeline.encode([pair.target]).tokens.shape[1]
    edit = method.of(pipeline, pair, 2, total)
    changed = edit.text[0].taken.nonzero().flatten().tolist()
    clip, _, t5 = pipeline.encoders.tokenizers
    ids = [
        *clip(pair.target, padding="max_length").input_ids,
        *t5(pair.target, padding="max_length").input_ids,
    ]
    assert [clip.decode([ids[i]]) for i in changed] == list('"ZEN"') * 2


REFUSED = [
    (dict(edit="replace"), "edit is 'replace'; give one of 'swap'"),
    (dict(align="right"), "align is 'right'"),
    (dict(columns="row"), "columns is 'row'"),
    (dict(cross_window=1), "the window of 'default_' is 1"),
    (dict(cross_window={"now": 12}), "the window of 'now' is 12"),
    (dict(cross_window={3: 0.5}), "names the word 3"),
    (dict(self_window=1.5), "the window of self-attention is 1.5"),
    (dict(weights={"now": float("nan")}), "the weight of 'now' is nan"),
    (dict(weights=2.0), "weights are 2.0"),
    (dict(edit="reweight"), "has no weights"),
    (dict(columns="image", weights={"now": 2.0}), "edits none"),
    (dict(edit="refine", words="changed"), "those of a swap"),
    (dict(columns="image_qk", renormalise=True), "sum to one"),
    (dict(self_limit=0), "self_limit is 0"),
]


@pytest.mark.parametrize("settings, says", REFUSED)
def test_a_method_that_cannot_be_meant_is_refused(settings, says):
    """Choices that are none, windows that are no fractions, weights that are no numbers, no effect."""
    with pytest.raises(PatchError, match=says):
        PromptToPrompt(**settings)


@pytest.mark.parametrize(
    "words, threshold, says",
    [
        ("sign", 0.3, "the words of a local blend are 'sign'"),
        (("sign", " "), 0.3, "give a pair"),
        (("sign", 3), 0.3, "give a pair"),
        (("sign", "board"), 1.0, "threshold of a local blend is 1.0"),
    ],
)
def test_a_local_blend_of_no_words_is_refused(words, threshold, says):
    """PatchError for what is no pair of texts, and for a threshold that nothing passes."""
    with pytest.raises(PatchError, match=says):
        LocalBlend(words, "all", threshold)


PROMPTS = [
    (PromptToPrompt(), Pair(PAIR.source, PAIR.source), "does nothing"),
    (PromptToPrompt(), Pair(PAIR.source, PAIR.target + " in bold"), "equally many words"),
    (PromptToPrompt(weights={"BEAR": 2.0}), PAIR, "that of 'BEAR'"),
    (PromptToPrompt(cross_window={"HOUSE": 0.5}), PAIR, "that of 'HOUSE'"),
    (PromptToPrompt(blend=LocalBlend(("HOUSE", "HOUSE"), 0)), PAIR, "that of 'HOUSE'"),
]


@pytest.mark.parametrize("method, pair, says", PROMPTS)
def test_prompts_that_do_not_fit_are_refused(method, pair, says):
    """Equal ones, another number of words, and words that are not there, never in silence."""
    with pytest.raises(PromptError, match=says):
        method(shipped("tiny-mmdit"), pair, steps=2)


@pytest.mark.parametrize(
    "method, name, says",
    [
        (PromptToPrompt(columns="image_qk"), "tiny-sdxl", "read the text alone"),
        (PromptToPrompt(queries="all"), "tiny-if", "needs queries of the text"),
        (PromptToPrompt(), "tiny-if-ii", "draws small pictures larger"),
        (
            PromptToPrompt(columns="image", self_window=1.0, self_limit=1),
            "tiny-sdxl",
            "no attention was edited",
        ),
        (
            PromptToPrompt(cross_window=0.0, self_window=0.0),
            "tiny-mmdit",
            "no attention was edited",
        ),
    ],
)
def test_a_model_that_does_not_admit_a_method_is_refused(method, name, says):
    """Keys or queries that it has not, stage II, and an edit that would act nowhere."""
    with pytest.raises(PatchError, match=says):
        method(shipped(name), PAIR, steps=1)


FAULTS = {
    "the unconditional half is edited": (
        partial(require_recorded_joint, "sd3", "text_columns"),
        carrying.Carrier,
        "_with_target",
        "new[self.rows[1]]",
        "new[self.rows[1] - 2]",
    ),
    "both halves are edited": (
        partial(require_recorded_joint, "sd3", "text_columns"),
        carrying.Carrier,
        "_with_target",
        "new[self.rows[1]]",
        "new[[self.rows[1], self.rows[1] - 2]]",
    ),
    "the maps of the target's row for the source's": (
        partial(require_recorded_joint, "sd3", "qk_image_subset"),
        carrying.Carrier,
        "_projected",
        "output[self.rows]",
        "output[self.rows[::-1]]",
    ),
    "the text's queries are left out": (
        partial(require_recorded_joint, "sd3", "whole_all_rows"),
        pair_edit.PairEdit,
        "edits_text_queries",
        "self.all_queries or self.one_call",
        "self.one_call",
    ),
    "the size limit is ignored": (
        require_limit,
        pair_edit.PairEdit,
        "attention",
        "heads.q_image.shape[2] > self.self_limit",
        "False",
    ),
    "self-attention stays": (
        require_limit,
        pair_edit.PairEdit,
        "_columns",
        'place.kind != "cross"',
        'place.kind not in ("cross", SELF)',
    ),
    "maps of the last step alone": (
        partial(require_recorded, "localblend_royira"),
        local_blend.WordMaps,
        "add",
        "self.sums.get(site, 0) + now",
        "now",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, monkeypatch):
    """With the fault in place the check fails, which holds in a test above."""
    require_noticed(monkeypatch, FAULTS[fault])

"""What a model is called with: masks of text, calls that hold no text, calls in which sites do not run."""

from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from support.copies import call
from support.foreign import foreign
from support.laws import patching
from support.planting import plant
from support.small_models import relative
from textpatch import calls, capture, find_sites, inject, patch
from textpatch.errors import PatchError
from textpatch.masks import hidden_tokens
from textpatch.ports.matching import SiteSpec
from textpatch.sites import Site, Span, Tap
from textpatch.testing import check_port
from textpatch.testing.port import take

MASKS = {  # of shipped tables, the argument that hides text tokens
    "sdxl": "encoder_attention_mask", "pixart": "encoder_attention_mask", "prx": "attention_mask",
    "qwen_image": "encoder_hidden_states_mask", "krea2": "encoder_attention_mask",
}  # fmt: skip
STATIC = ["sdxl", "pixart", "prx"]  # whose text can be injected


def seen(*lengths: int) -> torch.Tensor:
    """A mask (B, 5) that lets be seen so many first tokens of each row."""
    return torch.arange(5) < torch.tensor(lengths)[:, None]


def captured(model, inputs, sites="all", rows=("a", "b")):
    with capture(model, sites, rows=rows) as cache:
        call(model, inputs)
    return cache


def twins(diffusers, name: str):
    """(model, inputs) of two rows that differ in their text alone."""
    model, inputs = foreign(diffusers, name)
    return model, {
        key: value if key == "encoder_hidden_states" else take(value, [1, 1])
        for key, value in inputs.items()
    }


# --- masks ---


@pytest.mark.parametrize("lengths", [(3, 3), (5, 5)])
@pytest.mark.parametrize("name", MASKS)
def test_a_row_reads_another_through_an_equal_mask(diffusers, name, lengths):
    """All sites of a row patched = the donor's output (5e-6), which is not its own.

    A mask of ones is as none.
    """
    model, inputs = twins(diffusers, name)
    masked = inputs | {MASKS[name]: seen(*lengths)}
    cache = captured(model, masked)
    for reader in (masked, inputs) if lengths == (5, 5) else (masked,):
        with patch(model, cache, "all", rows=["b", None]):
            patched = call(model, reader)
        assert relative(patched[0], call(model, reader)[1]) <= 5e-6
        assert relative(patched[0], call(model, reader)[0]) > 1e-3


UNEQUAL = {(3, 5): "hides nothing", (5, 3): "hides 2 of 5 tokens", (4, 3): "hides 2 of 5 tokens"}


@pytest.mark.parametrize("lengths", UNEQUAL)
@pytest.mark.parametrize("name", MASKS)
def test_a_donor_whose_mask_differs_is_refused(diffusers, name, lengths):
    """Texts that are longer, shorter, and padded to a third length: PatchError with both masks, for K and
    V alone too.
    """
    model, inputs = twins(diffusers, name)
    inputs[MASKS[name]] = seen(*lengths)
    cache = captured(model, inputs)
    says = (
        rf"mask of row \('b',\) {UNEQUAL[lengths]} at step 0, "
        rf"and '{MASKS[name]}' of batch row 0, which reads it"
    )
    for part in ("k", "v"):
        with (
            pytest.raises(PatchError, match=says),
            patch(model, cache, "all", rows=["b", None], part=part),
        ):
            call(model, inputs)


def test_tokens_that_both_masks_show_may_be_read(diffusers):
    """Rows that see 3 and 5 tokens: one reads the other's tokens 0 and 2, and is refused 3."""
    model, inputs = twins(diffusers, "qwen_image")
    inputs["encoder_hidden_states_mask"] = seen(3, 5)
    cache = captured(model, inputs)
    with patch(model, cache, "all", rows=["b", None], tokens=[0, 2]):
        patched = call(model, inputs)
    assert not torch.equal(patched[0], call(model, inputs)[0])
    with (
        pytest.raises(PatchError, match="hides nothing"),
        patch(model, cache, "all", rows=["b", None], tokens=[2, 3]),
    ):
        call(model, inputs)


@pytest.mark.parametrize(
    "step, outcome", [(0, nullcontext()), (1, pytest.raises(PatchError, match="at step 1"))]
)
def test_masks_are_those_of_each_call(diffusers, step, outcome):
    """A donor unmasked in step 0 and masked in step 1: a reader that is never masked may read step 0
    alone.
    """
    model, inputs = foreign(diffusers, "pixart")
    with capture(model, "all", rows=["a", "b"]) as cache:
        call(model, inputs)
        call(model, inputs, encoder_attention_mask=seen(5, 2))
    assert {(step, row) for _, step, row, part in cache if part == "mask"} == {(1, ("b",))}
    with outcome, patch(model, cache, "all", rows=["b", None], steps=[step]):
        call(model, inputs)
        call(model, inputs)


def test_masks_are_kept_with_the_cache(diffusers):
    """Saved, loaded and moved a cache still refuses; what is added to the scores is a mask as well."""
    model, inputs = foreign(diffusers, "pixart")
    inputs["encoder_attention_mask"] = -10000.0 * (1 - seen(5, 4).float())[:, None]
    cache = captured(model, inputs)
    for again in (patching.KVCache.from_tensors(load(save(cache.tensors))), cache.to("cpu")):
        assert again.keys() == cache.keys()
        with patch(model, again, "all", rows=["a", "b"]):
            patched = call(model, inputs)
        assert torch.equal(patched, call(model, inputs))
        with (
            pytest.raises(PatchError, match="hides 1 of 5 tokens"),
            patch(model, again, "all", rows=["b", None]),
        ):
            call(model, inputs)


@pytest.mark.parametrize("name", STATIC)
def test_an_injected_text_is_masked_as_the_batch(diffusers, name):
    """Text and mask of the batch injected = a batch of that text.

    With another mask, or none, PatchError with both.
    """
    model, inputs = foreign(diffusers, name)
    text = inputs["encoder_hidden_states"].flip(0)
    inputs[MASKS[name]] = seen(3, 3)
    for mask in (seen(3, 3), seen(3)):
        with inject(model, text, "all", mask=mask):
            injected = call(model, inputs)
        assert torch.equal(injected, call(model, inputs, encoder_hidden_states=text))
    wrong = (None, "injected text hides nothing"), (seen(3, 4), "injected text hides 1 of 5 tokens")
    for mask, says in (
        *wrong,
        (seen(3, 3, 3), "injected text holds 3 rows"),
        (seen(3)[0], "give .rows, tokens."),
        (5, "a mask is 5; give numbers .rows, tokens."),
        (["abc"], r"a mask is \['abc'\]; give numbers"),
    ):
        with pytest.raises(PatchError, match=says), inject(model, text, "all", mask=mask):
            call(model, inputs)


def test_a_mask_is_injected_where_there_is_one(diffusers):
    """The mask of a text for sites that name none: PatchError."""
    model, _ = foreign(diffusers, "pixart")
    unmasked = find_sites(model, [SiteSpec("transformer_blocks.*.attn2", "cross")])
    with (
        pytest.raises(PatchError, match="the sites name no mask"),
        inject(model, torch.zeros(2, 5, 12), unmasked, mask=seen(3, 3)),
    ):
        pass


@pytest.mark.parametrize("rows", [(5, 3), (3,)])
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_that_the_table_does_not_name_is_refused(diffusers, name, rows):
    """An argument of that name and size which hides tokens: PatchError; one of ones, or none, is accepted."""
    model, inputs = foreign(diffusers, name)
    sites = [Site(**{**vars(site), "span": Span(site.span.place)}) for site in find_sites(model)]
    for mask in (None, seen(5, 5)):
        captured(model, inputs | {MASKS[name]: mask}, sites)
    with pytest.raises(
        PatchError, match=rf"'{MASKS[name]}' of shape .*5\) looks like a mask that hides text"
    ):
        captured(model, inputs | {MASKS[name]: seen(*rows)}, sites)


def test_a_mask_may_be_given_in_a_dictionary(diffusers):
    """What looks like a mask is looked for in `**kwargs` and dictionaries of arguments, too."""
    model, inputs = foreign(diffusers, "pixart")
    inputs["cross_attention_kwargs"] = {"text_mask": seen(5, 3)}
    with pytest.raises(PatchError, match="'text_mask' of shape"):
        captured(model, inputs)


def test_a_mask_that_the_model_does_not_take_is_refused(diffusers):
    """A table that names an argument there is not: PatchError with the closest."""
    model, inputs = foreign(diffusers, "pixart")
    sites = find_sites(
        model, [SiteSpec("transformer_blocks.*.attn2", "cross", span=Span(mask="encoder_mask"))]
    )
    with pytest.raises(
        PatchError, match="takes no such argument; closest: .*encoder_attention_mask"
    ):
        captured(model, inputs, sites)


@pytest.mark.parametrize(
    "mask, hidden",
    [
        (torch.tensor([[255, 255, 0]], dtype=torch.uint8), [0.0, 0.0, 1.0]),
        (torch.tensor([[True, False, True]]), [0.0, 1.0, 0.0]),
        (torch.tensor([[1.0, 0.25, 0.0]]), [0.0, 0.75, 1.0]),
        (torch.tensor([[[0.0, -1e4, 0.0]]]), [[0.0, -1e4, 0.0]]),
        (torch.full((1, 3), 255, dtype=torch.uint8), None),
    ],
    ids=["bytes", "booleans", "shares", "added", "nothing hidden"],
)
def test_masks_of_every_kind(mask, hidden):
    """An integer other than 0 shows a token, a float is the share of it, and more dimensions are added."""
    (found,) = hidden_tokens(mask)
    assert (found if found is None else found.tolist()) == hidden


# --- text that is shorter than the sequence says, or not there ---

LUMINA2 = (SiteSpec("layers.*.attn", "single", span=Span("first", mask="encoder_attention_mask", packed=True),
                    kv_heads=2, norm="norm_k", rotary=True),)  # fmt: skip


def test_packed_text_is_as_long_as_its_mask_says(diffusers):
    """Lumina2, whose rows are packed: texts of 3 of 5 tokens are 3 tokens of a site, and swap exactly."""
    model, inputs = twins(diffusers, "lumina2")
    sites = find_sites(model, LUMINA2)
    assert check_port(model, LUMINA2, inputs).sites == sites
    inputs["encoder_attention_mask"] = seen(3, 3).long()
    cache = captured(model, inputs, sites)
    assert {len(x) for (*_, part), x in cache.items() if part != "mask"} == {3}
    with patch(model, cache, sites, rows=["b", None]):
        patched = call(model, inputs)
    assert relative(patched[0], call(model, inputs)[1]) <= 5e-6


def test_packed_texts_of_several_lengths_are_refused(diffusers):
    """Where row 0's text ends row 1's goes on: PatchError with the lengths, whether or not the table
    names the mask.
    """
    model, inputs = foreign(diffusers, "lumina2")
    inputs["encoder_attention_mask"] = seen(3, 5).long()
    with pytest.raises(PatchError, match=r"'encoder_hidden_states' hold \[3, 5\] text tokens"):
        captured(model, inputs, find_sites(model, LUMINA2))
    unnamed = SiteSpec("layers.*.attn", "single", span=Span("first"), kv_heads=2)
    with pytest.raises(PatchError, match="looks like a mask that hides text tokens"):
        captured(model, inputs, find_sites(model, [unnamed]))


@pytest.mark.parametrize("fields", [dict(place="first"), dict(place="all", mask="mask")])
def test_packed_text_needs_a_mask_and_an_end(fields):
    """Span(packed) without a mask, and of sequences that are all text: PatchError."""
    with pytest.raises(PatchError, match="is packed; name the mask"):
        Span(packed=True, **fields)


def test_calls_that_hold_no_text_are_refused(diffusers):
    """Qwen-Image 2.1 with its cache: the second call's projections see the picture alone, which is no
    text.
    """
    module = pytest.importorskip("diffusers.models.transformers.transformer_qwenimage21")
    model, inputs = foreign(diffusers, "qwen_image21")
    sites = find_sites(model, [SiteSpec("transformer_blocks.*.attn", "single", span=Span("first"))])
    cache = captured(model, inputs, sites)
    says = (
        "puts out 16 tokens in call 1; with 5 of text that leaves 11 of the picture, "
        "and in the first call it left 16"
    )
    for block in (
        capture(model, sites, rows=["a", "b"]),
        patch(model, cache, sites, rows=["a", "b"], steps=[0]),
    ):
        kept = module.QwenImage21KVCache(2)
        with pytest.raises(PatchError, match=says), block:
            call(model, inputs, kv_cache=kept, kv_cache_mode="extract")
            call(model, inputs, kv_cache=kept, kv_cache_mode="cached")


# --- steps ---


class Skipping(nn.Module):
    """Two sites, of which a call may leave out the second."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, encoder_hidden_states, skip=False):
        first = self.one(encoder_hidden_states)
        return first if skip else first + self.two(encoder_hidden_states)


SKIPPING = [Site(i, name, "cross", 1, 2, 0, taps=(Tap(name, (0, 2)), Tap(name, (2, 4)))) for i, name in
            enumerate(("one", "two"))]  # fmt: skip
TEXT = torch.linspace(-1, 2, 12).view(2, 2, 3)


def run(model, *skips: bool):
    """A run of as many calls, each of another text."""
    return [model(TEXT * (1 + step), skip) for step, skip in enumerate(skips)]


def test_a_step_in_which_a_site_does_not_run_is_no_step_of_it():
    """The second of three calls skips a site: not captured, not patched, and the third call stays step 2."""
    model = Skipping()
    says = (
        r"1 of 2 modules never ran in call 1 of the Skipping \(two\), "
        "so this step is neither captured nor patched"
    )
    with pytest.raises(PatchError, match=says), capture(model, SKIPPING, rows=["a", "b"]):
        run(model, False, True, False)
    with capture(model, SKIPPING, rows=["a", "b"]) as cache:
        run(model, False, False, False)
    with pytest.raises(PatchError, match=says), patch(model, cache, SKIPPING, rows=["b", None]):
        run(model, False, True, False)
    with patch(model, cache, SKIPPING, rows=["b", None], steps=[0, 2]):
        patched = run(model, False, True, False)
    plain = run(model, False, True, False)
    for step in (0, 2):
        assert torch.equal(patched[step][0], plain[step][1])
    assert torch.equal(patched[1], plain[1])


@pytest.mark.parametrize("site", SKIPPING, ids=lambda site: site.name)
def test_a_step_beyond_the_calls_is_an_error_at_every_site(site):
    """Three calls, and steps=[5]: PatchError at each site.

    And steps=[2], of which the site may skip the call before: no error.
    """
    model = Skipping()
    with capture(model, SKIPPING, rows=["a", "b"]) as cache:
        run(model, False, False, False)
    with patch(model, cache, site, rows=["b", None], steps=[2]):
        run(model, False, True, False)
    with (
        pytest.raises(PatchError, match="no step 5.* there are 3"),
        patch(model, cache, site, rows=["b", None], steps=[5]),
    ):
        run(model, False, True, False)


def test_a_module_that_runs_twice_in_a_call_is_refused():
    """A layer shared by two places of a model has two K and V in one step: PatchError, where the last
    would be kept.
    """
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    shared = nn.Sequential(model[0], model[1], model[0])
    site = Site(0, "0", "cross", 1, 2, 0, taps=(Tap("0", (0, 2)), Tap("0", (2, 4))))
    with capture(model, site, rows=["a", "b"]):
        model(TEXT)
    with (
        pytest.raises(PatchError, match="module '0' ran twice in call 0 of the Sequential"),
        capture(shared, site, rows=["a", "b"]),
    ):
        shared(TEXT)


def test_a_call_that_fails_is_no_step():
    """A call that ends in an error and is made again is one step."""
    model = Skipping()
    with capture(model, SKIPPING, rows=["a", "b"]) as cache:
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model(torch.zeros(2, 2, 5))
        run(model, False, False)
    assert {step for _, step, *_ in cache} == {0, 1}


def require_refused_after_a_call_that_fails() -> None:
    """A module that runs by itself after a call that failed belongs to no step, as at any other time."""
    model = Skipping()
    with capture(model, SKIPPING, rows=["a", "b"]) as cache:
        run(model, False, False)
    with (
        pytest.raises(PatchError, match="'one' ran outside a call of the Skipping"),
        patch(model, cache, SKIPPING, rows=["b", None]),
    ):
        run(model, False)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model(torch.zeros(2, 2, 5))
        model.one(TEXT)


def test_a_call_that_fails_is_over(monkeypatch):
    """What runs after it is refused.  Were the call still under way, it would be patched in silence."""
    require_refused_after_a_call_that_fails()
    plant(monkeypatch, calls.Calls, "_left", "self._under_way = False", "pass")
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        require_refused_after_a_call_that_fails()


def test_steps_of_a_model_with_a_block_cache_do_not_drift(diffusers):
    """FLUX under diffusers' FirstBlockCache, which leaves blocks out of the second call: refused, and
    told.
    """
    model, inputs = foreign(diffusers, "flux")
    model.enable_cache(diffusers.FirstBlockCacheConfig(threshold=1e6))
    says = "never ran in call 1 of the FluxTransformer2DModel"
    with (
        model.cache_context("cond"),
        pytest.raises(PatchError, match=says),
        capture(model, "all", rows=["a", "b"]),
    ):
        call(model, inputs)
        call(model, inputs)
    model.disable_cache()
    captured(model, inputs)


FAULTS = {
    "text of a cached call": (test_calls_that_hold_no_text_are_refused,
        calls.Calls, "_require_as_many_image_tokens", "if total - length != first:", "if False:"),
    "steps counted by what runs": (test_steps_of_a_model_with_a_block_cache_do_not_drift,
        calls.Calls, "_require_all_ran", "if silent:", "if False:"),
    "packed text as long as padded": (test_packed_texts_of_several_lengths_are_refused,
        Span, "lengths", "if self.packed and mask is not None:", "if False:"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(diffusers, monkeypatch, fault):
    """test(library), and not test(library with the fault)."""
    test, *place = FAULTS[fault]
    test(diffusers)
    plant(monkeypatch, *place)
    with pytest.raises(pytest.fail.Exception):
        test(diffusers)

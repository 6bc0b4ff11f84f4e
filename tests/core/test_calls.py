"""What a model is called with: masks of text, calls that hold no text, calls in which sites do not run."""

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from support.copies import call
from support.foreign import foreign
from support.laws import patching
from support.planting import plant
from support.small_models import relative, require_the_donors
from textpatch import Plan, Row, Swap, calls, capture, find_sites, inject, patch, swap
from textpatch.errors import PatchError
from textpatch.masks import hides, read_masks
from textpatch.ports.matching import SiteSpec
from textpatch.sites import Site, Span, Tap
from textpatch.testing import check_port
from textpatch.testing.inputs import take

MASKS = {  # of shipped tables, the argument that hides text tokens
    "sdxl": "encoder_attention_mask",
    "pixart": "encoder_attention_mask",
    "prx": "attention_mask",
    "qwen_image": "encoder_hidden_states_mask",
    "krea2": "encoder_attention_mask",
}
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


@pytest.mark.parametrize("lengths", [(3, 5), (5, 3), (4, 3)])
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_goes_with_the_keys_it_hides(diffusers, name, lengths):
    """Texts that are longer, shorter, and padded to a third length: all sites patched = the donor's output.

    That is to 5e-6 in float32, in another call than the one captured.  Of K or V alone it is refused.
    """
    model, inputs = twins(diffusers, name)
    inputs[MASKS[name]] = seen(*lengths)
    cache = captured(model, inputs)
    with patch(model, cache, "all", rows=["b", None]):
        patched = call(model, inputs)
    plain = call(model, inputs)
    require_the_donors(patched, plain, call(model, take(inputs, [1, 1])), 5e-6)
    assert torch.equal(patched[1], plain[1])
    for part in ("k", "v"):
        with (
            pytest.raises(PatchError, match="reads the keys of one text and the values of another"),
            patch(model, cache, "all", rows=["b", None], part=part),
        ):
            call(model, inputs)


@pytest.mark.parametrize(
    "options", [dict(heads=[0]), dict(heads=[1], tokens=[1, 3]), dict(tokens=[4])], ids=str
)
def test_masks_of_some_heads_and_tokens_are_those_of_a_swap(diffusers, options):
    """Heads and tokens of a masked text, by cache: what `swap` gives in lock-step, to the bit."""
    model, inputs = twins(diffusers, "qwen_image")
    inputs["encoder_hidden_states_mask"] = seen(5, 3)
    cache = captured(model, inputs)
    with patch(model, cache, "all", rows=["b", None], **options):
        patched = call(model, inputs)
    with swap(model, Plan([Swap("all", "a", "b", **options)]), [Row("a", "a"), Row("b", "b")]):
        swapped = call(model, inputs)
    assert torch.equal(patched, swapped) and not torch.equal(patched, call(model, inputs))


def test_a_mask_needs_one_in_the_call(diffusers):
    """A text with hidden tokens, read in a batch without a mask: PatchError; one of ones serves."""
    model, inputs = twins(diffusers, "pixart")
    masked = inputs | {MASKS["pixart"]: seen(5, 3)}
    cache = captured(model, masked)
    with (
        pytest.raises(PatchError, match="attends without a mask, and a text is to be read there"),
        patch(model, cache, "all", rows=["b", None]),
    ):
        call(model, inputs)
    with patch(model, cache, "all", rows=["b", None]):
        patched = call(model, inputs | {MASKS["pixart"]: seen(5, 5)})
    assert relative(patched[0], call(model, masked)[1]) <= 5e-6


def test_a_mask_that_adds_to_what_is_seen_needs_another(diffusers):
    """CogView4, GLM-Image and Chroma add 1 to the scores of what is seen; no mask is not that."""
    site = find_sites(foreign(diffusers, "cogview4")[0])[0]
    own = torch.tensor([1.0, 1.0, 0.0]).expand(2, 1, 4, 3)
    read = read_masks(site, own, {0: own[1] * 0})
    assert read is not None and not read[0].any() and torch.equal(read[1], own[1])
    with pytest.raises(PatchError, match="adds 1 to scores of a row's text, .* without a mask"):
        read_masks(site, own, {0: None})


def test_masks_are_those_of_each_call(diffusers):
    """A donor unmasked in step 0 and masked in step 1: so is its reader."""
    model, inputs = twins(diffusers, "pixart")
    masks = [None, seen(5, 2)]
    with capture(model, "all", rows=["a", "b"]) as cache:
        plain = [call(model, inputs, encoder_attention_mask=mask) for mask in masks]
    assert {(step, row) for _, step, row, part in cache if part == "mask"} == {
        (1, ("a",)),
        (1, ("b",)),
    }
    with patch(model, cache, "all", rows=["b", None]):
        patched = [call(model, inputs, encoder_attention_mask=mask) for mask in masks]
    assert all(torch.equal(one[0], own[1]) for one, own in zip(patched, plain, strict=True))


def test_masks_are_kept_with_the_cache(diffusers):
    """Saved, loaded and moved a cache has its masks; what is added to the scores is a mask as well."""
    model, inputs = twins(diffusers, "pixart")
    inputs["encoder_attention_mask"] = -10000.0 * (1 - seen(5, 4).float())[:, None]
    cache = captured(model, inputs)
    for again in (patching.KVCache.from_tensors(load(save(cache.tensors))), cache.to("cpu")):
        assert again.keys() == cache.keys()
        with patch(model, again, "all", rows=["b", None]):
            patched = call(model, inputs)
        assert torch.equal(patched[0], call(model, inputs)[1])


@pytest.mark.parametrize("name", STATIC)
def test_a_text_is_injected_with_its_mask(diffusers, name):
    """Text and mask injected into a masked batch = a batch of that text and mask, whatever the batch's own.

    A mask of another kind or size is refused.
    """
    model, inputs = foreign(diffusers, name)
    text = inputs["encoder_hidden_states"].flip(0)
    inputs[MASKS[name]] = seen(3, 5)
    for mask in (seen(3, 3), seen(2, 4), None):
        with inject(model, text, "all", mask=mask):
            injected = call(model, inputs)
        whole = seen(5, 5) if mask is None else mask
        expected = call(model, inputs | {"encoder_hidden_states": text, MASKS[name]: whole})
        assert relative(injected, expected) <= 5e-6
    for mask in (seen(3, 3, 3), seen(3)[0], 5, ["abc"], seen(3, 3)[:, 1:]):
        with (
            pytest.raises(
                PatchError, match="mask of the injected text is .*; give numbers .rows, tokens."
            ),
            inject(model, text, "all", mask=mask),
        ):
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


UNNAMED = (
    SiteSpec(
        "transformer_blocks.*.attn",
        "single",
        span=Span("first"),
        kv_heads="num_kv_heads",
        heads="num_heads",
    ),
)


@pytest.mark.parametrize("rows", [(5, 3), (3,)])
def test_a_mask_of_a_sequence_is_to_be_named(diffusers, rows):
    """Where text is a part of a sequence, a mask that hides tokens may shorten it, so the table must name it.

    One of ones, or none, is accepted.
    """
    model, inputs = foreign(diffusers, "krea2")
    sites = find_sites(model, UNNAMED)
    for mask in (None, seen(5, 5)):
        captured(model, inputs | {MASKS["krea2"]: mask}, sites)
    with pytest.raises(
        PatchError, match=rf"'{MASKS['krea2']}' of shape .*5\) looks like a mask that hides"
    ):
        captured(model, inputs | {MASKS["krea2"]: seen(*rows)}, sites)


def test_sites_without_keys_read_no_masked_text():
    """Sites at projections alone: PatchError for a mask that hides tokens, in a dictionary too."""
    model = Masked()
    for mask in (seen(5, 5), None):
        captured(model, dict(encoder_hidden_states=TEXT, options={"text_mask": mask}), SKIPPING)
    with pytest.raises(PatchError, match="'text_mask' of shape .*sites without `keys` read a text"):
        captured(
            model,
            dict(encoder_hidden_states=TEXT, options={"text_mask": seen(2, 1)[:, :2]}),
            SKIPPING,
        )


@pytest.mark.parametrize(
    "mask, hidden",
    [
        (torch.tensor([[255, 255, 0]], dtype=torch.uint8), True),
        (torch.tensor([[True, False, True]]), True),
        (torch.tensor([[1.0, 0.25, 0.0]]), True),
        (torch.tensor([[[0.0, -1e4, 0.0]]]), True),
        (torch.full((1, 3), 255, dtype=torch.uint8), False),
        (torch.ones(1, 3), False),
        (torch.zeros(1, 1, 3), False),
    ],
    ids=["bytes", "booleans", "shares", "added", "nothing hidden", "whole shares", "nothing added"],
)
def test_masks_of_every_kind(mask, hidden):
    """An integer other than 0 shows a token, a float is the share of it, and more dimensions are added."""
    assert hides(mask) is hidden


# --- text that is shorter than the sequence says, or not there ---

LUMINA2 = (
    SiteSpec(
        "layers.*.attn",
        "single",
        span=Span("first", mask="encoder_attention_mask", packed=True),
        kv_heads=2,
    ),
)


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


def test_keys_that_a_model_keeps_are_captured_and_patched(diffusers):
    """Qwen-Image 2.1 keeps the text's K and V of its first call, and attends to them in later ones.

    So patches of every call give the donor's picture, bit for bit.
    """
    module = pytest.importorskip("diffusers.models.transformers.transformer_qwenimage21")
    model, inputs = twins(diffusers, "qwen_image21")
    sites = find_sites(model, [SiteSpec("transformer_blocks.*.attn", "single", span=Span("first"))])

    def two_calls():
        kept = module.QwenImage21KVCache(2)
        return [
            call(model, inputs, kv_cache=kept, kv_cache_mode=mode) for mode in ("extract", "cached")
        ]

    with capture(model, sites, rows=["a", "b"]) as cache:
        plain = two_calls()
    with patch(model, cache, sites, rows=["b", None]):
        patched = two_calls()
    for one, own in zip(patched, plain, strict=True):
        assert torch.equal(one[0, -16:], own[1, -16:]) and not torch.equal(
            own[0, -16:], own[1, -16:]
        )


class Forgetful(nn.Module):
    """One site, which attends to a text and a picture, and in some calls to the picture alone."""

    def __init__(self):
        super().__init__()
        self.attn = nn.Module()
        self.attn.to_k, self.attn.to_v, self.attn.heads = nn.Linear(3, 4), nn.Linear(3, 4), 1
        self.attn.forward = self.attend

    def attend(self, tokens):
        k, v = (made(tokens)[:, None] for made in (self.attn.to_k, self.attn.to_v))
        return nn.functional.scaled_dot_product_attention(k, k, v)

    def forward(self, encoder_hidden_states, text=True):
        picture = torch.ones(2, 7, 3)
        return self.attn(torch.cat([encoder_hidden_states, picture], dim=1) if text else picture)


def test_calls_that_hold_no_text_are_refused(diffusers):
    """A second call whose attention gets the picture alone, which is no text."""
    model = Forgetful()
    sites = find_sites(model, [SiteSpec("attn", "single", span=Span("first"))])
    text = torch.randn(2, 5, 3)
    with capture(model, sites, rows=["a", "b"]) as cache:
        model(text)
    says = (
        "has 7 tokens in call 1; with 5 of text that leaves 2 of the picture, "
        "and in the first call it left 7"
    )
    for block in (
        capture(model, sites, rows=["a", "b"]),
        patch(model, cache, sites, rows=["a", "b"], steps=[0]),
        swap(
            model,
            Plan([Swap("all", "a", "b")]),
            [Row("a", "a"), Row("b", "b")],
            calls=[["cond"]],
            sites=sites,
        ),
    ):
        with pytest.raises(PatchError, match=says), block:
            model(text)
            model(text, text=False)


# --- steps ---


class Skipping(nn.Module):
    """Two sites, of which a call may leave out the second."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, encoder_hidden_states, skip=False):
        first = self.one(encoder_hidden_states)
        return first if skip else first + self.two(encoder_hidden_states)


class Masked(Skipping):
    """The same, with arguments in a dictionary."""

    def forward(self, encoder_hidden_states, options=None):
        return (super().forward(encoder_hidden_states),)


SKIPPING = [
    Site(i, name, "cross", 1, 2, 0, taps=(Tap(name, (0, 2)), Tap(name, (2, 4))))
    for i, name in enumerate(("one", "two"))
]
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
    "text of a cached call": (
        test_calls_that_hold_no_text_are_refused,
        calls.Calls,
        "_require_as_many_image_tokens",
        "if total - length != first:",
        "if False:",
    ),
    "steps counted by what runs": (
        test_steps_of_a_model_with_a_block_cache_do_not_drift,
        calls.Calls,
        "_require_all_ran",
        "if silent:",
        "if False:",
    ),
    "packed text as long as padded": (
        test_packed_texts_of_several_lengths_are_refused,
        Span,
        "lengths",
        "if self.packed and mask is not None:",
        "if False:",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(diffusers, monkeypatch, fault):
    """test(library), and not test(library with the fault)."""
    test, *place = FAULTS[fault]
    test(diffusers)
    plant(monkeypatch, *place)
    with pytest.raises(pytest.fail.Exception):
        test(diffusers)

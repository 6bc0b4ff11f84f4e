"""Maps of a word are those of the whole softmax, on every kind of site, and are drawn over the picture."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.overrides import TorchFunctionMode

from support.copies import call
from support.foreign import TEXT_KEYS, foreign
from support.planting import plant
from support.small_models import PROMPTS, outputs, relative, small_pipeline
from support.strategies import build_flux
from support.unets import unet
from textpatch import PatchError, find_sites, load, wrap
from textpatch.errors import PromptError
from textpatch.maps import heard, weights, word_maps
from textpatch.maps.drawing import COLOUR, laid_over
from textpatch.maps.heard import grid_of
from textpatch.maps.hearing import hearing_words
from textpatch.maps.word_maps import attention_map
from textpatch.reference_models.decoders import pixels

TOKENS = [1, 3]


class Listening(TorchFunctionMode):
    """Queries, keys, mask and scale of every call of scaled_dot_product_attention."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask")
            self.heard.append(dict(zip(names, args, strict=False)) | kwargs)
        return func(*args, **kwargs)


def whole_map(q, k, mask=None, scale=None):
    """Attention (heads, queries, keys) by the definition, q (heads, M, D), k (fewer heads, N, D)."""
    k = k.repeat_interleave(len(q) // len(k), dim=0)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(-1)


# --- foreign models, heard where attention gets its keys

# of the attentions that a model calls, those that are no sites: refiners, and of the picture to itself
SITES_OF = {
    "flux": lambda found: found,
    "pixart": lambda found: found[1::2],
    "ace_step": lambda found: found[1::2],
    "hunyuan_glyphs": lambda found: found[-4:],
    "deepfloyd_if": lambda found: [
        one for one in found if one["key"].shape[2] != one["query"].shape[2]
    ],
}


def foreign_maps_are_whole_maps(diffusers, name: str):
    """Each site of a row gives the word's columns, and the text's rows, of its whole map."""
    model, inputs = foreign(diffusers, name)
    if name == "pixart":  # the first row hides nothing, the second its last two tokens
        inputs["encoder_attention_mask"] = torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    with Listening() as listening:
        call(model, inputs)
    with hearing_words(model, TOKENS, row=1) as found:
        call(model, inputs)
    sites = find_sites(model)
    heard_there = SITES_OF[name](listening.heard)
    assert len(heard_there) == len(sites)
    for site, given in zip(sites, heard_there, strict=True):
        mask = given.get("attn_mask")
        q, k = given["query"][1], given["key"][1]
        whole = whole_map(q, k, None if mask is None else mask[1], given.get("scale"))
        keys = torch.arange(k.shape[1])
        text = keys[TEXT_KEYS[name]]
        word, picture = text[TOKENS], keys[~torch.isin(keys, text)]
        asking = picture if site.kind in ("joint", "single") else slice(None)
        received = whole[:, asking][:, :, word].sum(-1).mean(0)
        assert torch.allclose(found.received[site, 0], received, rtol=1e-5, atol=1e-7)
        assert ((site, 0) in found.given) == (site.kind in ("joint", "single"))
        if (site, 0) in found.given:
            given_to = whole[:, word][:, :, picture].mean((0, 1))
            assert torch.allclose(found.given[site, 0], given_to, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SITES_OF)
def test_maps_of_foreign_models_are_whole_maps(diffusers, name):
    """Joint and single streams, cross-attention under a mask, shared heads, two texts, and added keys."""
    foreign_maps_are_whole_maps(diffusers, name)


def test_maps_are_made_in_parts(diffusers, monkeypatch):
    """The weights are made of so few queries at a time that their number keeps to the bound."""
    seen, rows = [], weights.attention_rows

    def noted(*arguments):
        for part in rows(*arguments):
            seen.append(part.numel())
            yield part

    monkeypatch.setattr(weights, "attention_rows", noted)
    monkeypatch.setattr(weights, "SCORES_AT_ONCE", 50)
    foreign_maps_are_whole_maps(diffusers, "flux")
    assert max(seen) <= 50 and len(seen) > 4


# --- our own pipelines


@cache
def own_pipeline(name: str):
    """A small pipeline with guidance, of two blocks of one kind of site."""
    if name == "mmdit":
        return small_pipeline()
    if name == "flux":
        pipeline = build_flux(1, 1)
        pipeline.decoder = lambda latents: [Image.new("RGB", (8, 4)) for _ in latents]
        return pipeline
    pipeline = unet(name)
    pipeline.decoder = pixels
    return pipeline


# of each kind of site, what makes image keys, text keys and text queries
MADE_BY = {
    "cross": ("none", "to_k", "none"),
    "added": ("to_k", "add_k_proj", "none"),
    "joint": ("to_k", "add_k_proj", "add_q_proj"),
    "single": ("to_k", "text_k", "text_q"),
}
# what follows a projection, the last first
AFTER = {
    "to_q": ("turned_q", "norm_q"),
    "to_k": ("turned_k", "norm_k"),
    "add_q_proj": ("norm_added_q",),
    "add_k_proj": ("norm_added_k",),
    "text_q": (),
    "text_k": (),
}


def made_there(made, site, part: str, step: int) -> torch.Tensor:
    """What a projection, or the norm after it, makes of the second row, (heads, n, width), without it n 0."""
    own = []
    for name in (*AFTER.get(part, ()), part):
        own = own or [out for path, out in made if path == f"{site.name}.{name}"]
    if not own:
        return torch.zeros(site.heads, 0, site.head_dim, dtype=torch.float64)
    own = own[step][1]
    if own.dim() == 3:
        return own
    return own.unflatten(-1, (site.heads, -1)).transpose(0, 1)


def own_maps_are_whole_maps(name: str):
    """Each site and step gives the word's columns of the conditional branch's map, and rows of joint text."""
    pipeline = own_pipeline(name)
    found = attention_map(
        pipeline, PROMPTS[0], tokens=TOKENS, seed=3, run_steps=2, guidance=3.0, sites=[0, 1]
    )
    names = [f".{name}" for part, after in AFTER.items() for name in (part, *after)]
    with outputs(pipeline.denoiser, *names) as made:
        pipeline.generate(PROMPTS[0], seeds=3, steps=2, guidance=3.0)
    for site in found.sites:
        for step in (0, 1):

            def split(part, site=site, step=step):
                return made_there(made, site, part, step)

            image_k, text_k, text_q = map(split, MADE_BY[site.kind])
            image_q = split("to_q")
            k = torch.cat([image_k.to(text_k), text_k], dim=1)
            word = [image_k.shape[1] + token for token in TOKENS]
            whole = whole_map(image_q, k)
            received = whole[:, :, word].sum(-1).mean(0)
            assert torch.allclose(found.received[site.index][step].flatten(), received, rtol=1e-4)
            asks = site.kind in ("joint", "single")
            assert (site.index in found.given) == asks
            if asks:
                given_to = whole_map(text_q[:, TOKENS], k)[:, :, : image_k.shape[1]].mean((0, 1))
                assert torch.allclose(found.given[site.index][step].flatten(), given_to, rtol=1e-4)


@pytest.mark.parametrize("name", ["mmdit", "flux", "sdxl", "if"])
def test_maps_of_our_models_are_whole_maps(name):
    """Joint, single, cross and added sites, guided, whether the text is projected once or at every step."""
    own_maps_are_whole_maps(name)


# --- somebody else's pipelines


def test_a_wrapped_pipeline_is_mapped(diffusers):
    """The quoted word is found in FLUX.1's T5, and a single site of the drawn call gives both maps."""
    from support.foreign_pipelines import flux

    pipe = flux()
    found = attention_map(wrap(pipe, height=32, width=32), PROMPTS[0], run_steps=1, sites=1)
    ids = pipe.tokenizer_2(PROMPTS[0]).input_ids
    spelled = pipe.tokenizer_2.decode([ids[place] for place in found.tokens])
    assert spelled.replace(" ", "").upper().strip('"') == "HELLO"
    assert found.array().shape == found.array("given").shape == (2, 2)


@pytest.mark.long
def test_maps_of_a_wrapped_pipeline_are_those_of_ours(diffusers):
    """With the weights of tiny-mmdit, diffusers' pipeline gives our words, tokens and maps (1e-4).

    By default foreign models and ours are each held to the softmax.
    """
    from support.signs_in_diffusers import MADE

    pipe, options = MADE["tiny-mmdit"]()
    asked = dict(sites=[1, 3], steps=[1], run_steps=2, seed=3, guidance=3.0)
    theirs = attention_map(wrap(pipe, height=32, width=96, **options), PROMPTS[0], **asked)
    ours = attention_map(load("tiny-mmdit"), PROMPTS[0], **asked)
    assert (theirs.words, theirs.tokens) == (ours.words, ours.tokens)
    for kind in ("received", "given"):
        for site, own in getattr(ours, kind).items():
            assert relative(getattr(theirs, kind)[site], own) <= 1e-4


def test_words_of_a_pipeline_that_is_not_known_are_refused(diffusers):
    """Where the tokens of a wrapped pipeline lie is known for some, and for others they are to be given."""
    from support.foreign_pipelines import qwen_image

    pipeline = wrap(qwen_image(), height=32, width=32)
    with pytest.raises(
        PatchError, match="text tokens of QwenImage.* is not known; give their places"
    ):
        attention_map(pipeline, PROMPTS[0], run_steps=1)
    found = attention_map(pipeline, PROMPTS[0], tokens=[1, 2], run_steps=1, sites=0)
    assert found.array().shape == found.array("given").shape and found.words == ()


FAULTS = {
    "a mask not looked at": (
        "pixart",
        weights,
        "attention_rows",
        "if mask is not None:",
        "if False:",
    ),
    "another scale": ("flux", weights, "attention_rows", "** -0.5", "** -1.0"),
    "heads not shared": (
        "ace_step",
        heard.HeardWeights,
        "add",
        "k.repeat_interleave(len(q) // len(k), dim=0)",
        "k.repeat(len(q) // len(k), 1, 1)",
    ),
    "tokens from the first key": (
        "hunyuan_glyphs",
        heard.HeardWeights,
        "add",
        "text.start + token for",
        "token for",
    ),
    "queries of all tokens": (
        "flux",
        heard.HeardWeights,
        "add",
        "length < len(k[0]) == len(q[0])",
        "False",
    ),
    "another row": ("mmdit", word_maps, "_drawn", ".index(CONDITIONAL)", ".index(CONDITIONAL) - 1"),
    "the text's keys first": (
        "if",
        heard.HeardWeights,
        "add_record",
        "[*image, text], dim=1",
        "[text, *image], dim=1",
    ),
    "the word's queries not chosen": (
        "mmdit",
        heard.HeardWeights,
        "add",
        "weights_of(q[:, word]",
        "weights_of(q",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_maps_are_noticed(diffusers, monkeypatch, fault):
    """A fault in each part of a map makes it another than the softmax's."""
    name, *place = FAULTS[fault]
    plant(monkeypatch, *place)
    with pytest.raises((AssertionError, PatchError, IndexError, RuntimeError)):
        if name in SITES_OF:
            foreign_maps_are_whole_maps(diffusers, name)
        else:
            own_maps_are_whole_maps(name)


# --- what a map is asked, and how it shows itself


@pytest.fixture(scope="module")
def mapped():
    """A map of the quoted word in a small model of two joint sites."""
    return attention_map(own_pipeline("mmdit"), PROMPTS[0], run_steps=1, heads=[1])


def test_the_quoted_word_is_found_by_its_characters(mapped):
    """The tokens of HELLO, in the places of the CLIPs and of the T5 behind them, spell it."""
    pipeline = own_pipeline("mmdit")
    clip, t5 = pipeline.encoders.tokenizers[0], pipeline.encoders.tokenizers[-1]
    first = pipeline.encoders.limits[0]
    spelled = [
        tokenizer.decode([tokenizer(PROMPTS[0]).input_ids[place - offset] for place in places])
        for tokenizer, offset, places in (
            (clip, 0, [place for place in mapped.tokens if place < first]),
            (t5, first, [place for place in mapped.tokens if place >= first]),
        )
    ]
    assert mapped.words == ("HELLO",)
    assert [text.replace(" ", "").upper().strip('"') for text in spelled] == ["HELLO"] * 2


def test_an_array_is_a_mean_over_sites_and_steps(mapped):
    """(rows, columns) of the picture's shape, from 0 to 1, alone or of some sites, of either kind."""
    assert (
        mapped.array().shape == (8, 24) and 0 <= mapped.array().min() <= mapped.array().max() <= 1
    )
    alone = [mapped.array("given", sites=site) for site in mapped.sites]
    assert torch.allclose(mapped.array("given"), torch.stack(alone).mean(0))
    assert torch.equal(alone[1], mapped.given[1].mean(0))


def test_a_picture_is_coloured_where_the_map_is_high(mapped):
    """It has the size of the drawn one, the colour at the map's highest place, and grey at its lowest."""
    image = mapped.picture()
    assert image.size == mapped.image.size == (96, 32)
    weights_there = torch.zeros(32, 96)
    weights_there[5, 7] = 1
    drawn = laid_over(mapped.image, weights_there)
    assert drawn.getpixel((7, 5)) == COLOUR
    red, green, blue = drawn.getpixel((50, 20))
    assert red == green == blue


def test_a_map_shows_itself(mapped):
    """One figure for the picture, one for each kind and each site, and the prompt as text."""
    page = mapped._repr_html_()
    assert page.count("<figure>") == 3 + len(mapped.sites) and "&quot;HELLO&quot;" in page
    assert [title for title, _ in mapped.pictures()][:3] == ["picture", "received", "given"]


@pytest.mark.parametrize(
    "asked, error, says",
    [
        (dict(words="MARS"), PromptError, "no token of .* is that of 'MARS'"),
        (dict(words="HELLO", tokens=[1]), PatchError, "words and tokens were both given"),
        (dict(tokens=[999]), PatchError, "token 999"),
        (dict(heads=[7]), PatchError, "head 7"),
        (dict(steps=[5]), PatchError, "step 5"),
        (dict(sites=9), PatchError, "no site index 9"),
        (dict(grid=(5, 5)), PatchError, "192 tokens of the picture do not lie in 5 rows of 5"),
    ],
)
def test_what_is_not_there_is_refused(asked, error, says):
    """Words, tokens, heads, steps and sites that are not there, and a grid of another size."""
    with pytest.raises(error, match=says):
        attention_map(own_pipeline("mmdit"), PROMPTS[0], run_steps=1, **asked)


def test_an_unquoted_prompt_wants_words():
    """Where nothing is quoted, the words are to be given."""
    with pytest.raises(PatchError, match="quotes no text; give the words to map"):
        attention_map(own_pipeline("mmdit"), "a red sign")


def test_maps_of_a_kind_that_is_none_are_refused(mapped):
    """Only what is received and what is given, the latter where the text asks."""
    with pytest.raises(
        PatchError, match="a map of 'taken' was asked for; there are received, given"
    ):
        mapped.array("taken")
    own = attention_map(own_pipeline("sdxl"), "a", tokens=[1], run_steps=1)
    with pytest.raises(PatchError, match="the text asks nothing at sites .* of kind 'cross'"):
        own.array("given")


def test_a_grid_has_the_shape_of_the_picture():
    """192 tokens of 32 x 96 pixels are 8 rows of 24, and 10 tokens are no grid."""
    assert grid_of(192, 32, 96) == (8, 24)
    with pytest.raises(
        PatchError, match="10 tokens of the picture make no grid of the shape of 32 x 96"
    ):
        grid_of(10, 32, 96)


@pytest.mark.long
@pytest.mark.parametrize("model", ["tiny-mmdit", "tiny-sdxl"])
def test_the_word_is_read_where_it_is_drawn(model):
    """On trained models the map is higher in the text's box than beside it.

    By default the maps are held to the softmax, on random models.
    """
    pipeline = load(model)
    found = attention_map(pipeline, PROMPTS[0], run_steps=4).array()
    left, upper, right, lower = (edge // 4 for edge in pipeline.defaults.text_box)
    inside = torch.zeros_like(found, dtype=torch.bool)
    inside[upper:lower, left:right] = True
    assert found[inside].mean() > 1.5 * found[~inside].mean()

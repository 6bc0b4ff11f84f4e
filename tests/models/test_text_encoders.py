"""The text encoders are the published pipelines': same modules in, same tokens and pooled vectors out."""

import copy
import re
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch

from support.by_default import taking
from support.planting import plant
from support.small_models import PROMPTS, relative, small_encoders
from support.strategies import randomize
from textpatch import load
from textpatch.errors import PatchError, PromptError, WeightsError
from textpatch.prompts.alignment import word_tokens
from textpatch.reference_models import tokenizing
from textpatch.reference_models.text_encoders import (
    IFTextEncoder,
    SD3TextEncoders,
    SDXLTextEncoders,
)
from textpatch.reference_models.tokenizing import tokenize
from textpatch.tuning.token_pairs import paired

WRITTEN = ["", *PROMPTS, "a red sign"]
# IF lower-cases, and this vocabulary has no small letters to spell a quoted word with
UNQUOTED = [
    "",
    "a red sign on a blue wall",
    "  A Red SIGN \n",
    "a green arrow on a dotted pink wall",
]
LENGTH = 22  # of the small tokenizers


@pytest.fixture(scope="module")
def published():
    """Small random pipelines made by diffusers; it comes with the extra `reference`."""
    pytest.importorskip("diffusers")
    from support import diffusers_pipelines

    return diffusers_pipelines


def sdxl(pipeline, **options) -> SDXLTextEncoders:
    tokenizers = pipeline.tokenizer, pipeline.tokenizer_2
    return SDXLTextEncoders(pipeline.text_encoder, pipeline.text_encoder_2, tokenizers, **options)


def sd3(pipeline) -> SD3TextEncoders:
    encoders = pipeline.text_encoder, pipeline.text_encoder_2, pipeline.text_encoder_3
    tokenizers = [
        pipeline.tokenizer,
        pipeline.tokenizer_2,
        *([pipeline.tokenizer_3] if encoders[2] else []),
    ]
    return SD3TextEncoders(
        *encoders, tokenizers, width=pipeline.transformer.config.joint_attention_dim
    )


def deepfloyd_if(pipeline) -> IFTextEncoder:
    return IFTextEncoder(pipeline.text_encoder, pipeline.tokenizer)


FAMILIES = {"sdxl": sdxl, "sd3": sd3, "deepfloyd_if": deepfloyd_if}


def require_equal(text, tokens, pooled):
    """The modules are the same objects and the batch the same, so the bits are too."""
    assert torch.equal(text.tokens, tokens) and torch.equal(text.pooled, pooled)


@pytest.mark.parametrize("seed", range(3))
def test_sdxl_equals_diffusers(published, seed):
    """SDXLTextEncoders = StableDiffusionXLPipeline.encode_prompt, "" too, each tokenizer padding as it
    does."""
    pipeline = published.sdxl(seed)
    pipeline.tokenizer_2.pad_token = (
        '"'  # the published one pads with "!", a word of the vocabulary
    )
    tokens, _, pooled, _ = pipeline.encode_prompt(WRITTEN, do_classifier_free_guidance=False)
    require_equal(sdxl(pipeline)(WRITTEN), tokens, pooled)


@pytest.mark.parametrize("negative", [None, "", "a red sign"])
@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_without_a_prompt_equals_diffusers(published, negative, zeros):
    """None is zeros, tokens and pooled, or "" with zeros_for_none off; a written negative is read, "" too."""
    pipeline = published.sdxl()
    pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    written = None if negative is None else [negative] * 2
    _, tokens, _, pooled = pipeline.encode_prompt(PROMPTS, negative_prompt=written)
    text = sdxl(pipeline, zeros_for_none=zeros)([negative] * 2)
    require_equal(text, tokens, pooled)
    is_zero = zeros and negative is None
    assert (text.tokens.abs().max() == 0) == (text.pooled.abs().max() == 0) == is_zero


def test_no_prompt_leaves_the_other_rows_alone(published):
    """Zeros for one row of a batch are zeros of that row only."""
    encode = sdxl(published.sdxl())
    some, all_written = encode([PROMPTS[0], None, PROMPTS[1]]), encode([PROMPTS[0], "", PROMPTS[1]])
    require_equal(some[[0, 2]], all_written[[0, 2]].tokens, all_written[[0, 2]].pooled)
    assert some.tokens[1].abs().max() == some.pooled[1].abs().max() == 0


@pytest.mark.parametrize("seed, t5", [(0, True), (1, True), (0, False), (1, False)])
def test_sd3_equals_diffusers(published, seed, t5):
    """SD3TextEncoders = StableDiffusion3Pipeline.encode_prompt with and without T5; None is ""."""
    pipeline, length = published.sd3(seed, t5), LENGTH if t5 else 256
    encode, options = sd3(pipeline), dict(prompt_2=None, prompt_3=None, max_sequence_length=length)
    tokens, empty, pooled, empty_pooled = pipeline.encode_prompt(WRITTEN, **options)
    require_equal(encode(WRITTEN), tokens, pooled)
    require_equal(encode([None] * len(WRITTEN)), empty, empty_pooled)
    assert tokens.shape[1] == LENGTH + length and (tokens[:, LENGTH:].abs().max() > 0) == t5


@pytest.mark.parametrize("seed", range(3))
def test_if_equals_diffusers(published, seed):
    """IFTextEncoder = IFPipeline.encode_prompt without caption cleaning; None is ""; no pooled vector."""
    pipeline = published.deepfloyd_if(seed)
    pipeline.tokenizer.model_max_length = 77
    tokens, empty = pipeline.encode_prompt(UNQUOTED, clean_caption=False)
    encode = deepfloyd_if(pipeline)
    assert torch.equal(encode(UNQUOTED).tokens, tokens) and torch.equal(
        encode([None] * 4).tokens, empty
    )
    assert encode(UNQUOTED).pooled is None


@pytest.mark.parametrize("family, hidden", [("deepfloyd_if", True), ("sd3", False)])
def test_whether_t5_attends_to_padding(published, family, hidden):
    """What padding is embedded as moves no word's state in IF, whose T5 is masked, and does in SD3."""
    pipeline = getattr(published, family)()
    encode, prompt = FAMILIES[family](pipeline), "a red sign"
    t5, tokenizer = list(encode.children())[-1], encode.tokenizers[-1]
    first = LENGTH if family == "sd3" else 0
    words = slice(first, first + len(tokenizer(prompt).input_ids))
    before = encode([prompt]).tokens
    t5.shared.weight[tokenizer.pad_token_id] += 1
    after = encode([prompt]).tokens
    assert torch.equal(before[:, words], after[:, words]) == hidden
    assert not torch.equal(before[:, words.stop :], after[:, words.stop :])


@pytest.mark.parametrize(
    "family, expected", [("sdxl", 77), ("sd3", 77 + 256), ("deepfloyd_if", 77)]
)
def test_no_encoder_reads_more_than_the_published_pipeline_feeds_it(published, family, expected):
    """CLIP reads 77 tokens, SD3's T5 256, IF's 77, however many the tokenizers would take."""
    encode = FAMILIES[family](getattr(published, family)())
    for tokenizer in encode.tokenizers:
        tokenizer.model_max_length = 10**30
    assert encode(["a red sign"]).tokens.shape[1] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_what_no_encoder_reads_is_refused(published, family):
    """An unknown word is named with what is near it; a prompt whose end is cut off everywhere is an error."""
    encode = FAMILIES[family](getattr(published, family)())
    for tokenizer in encode.tokenizers:
        tokenizer.model_max_length = LENGTH
    with pytest.raises(PromptError, match="does not know 'rad' in 'a rad sign'; closest: .*red"):
        encode(["a red sign", "a rad sign"])
    shortest = 23 + (2 if family == "sdxl" else 1)  # CLIP adds a begin and an end, T5 an end alone
    with pytest.raises(
        PromptError, match=f"is {shortest} tokens long, and the model reads at most 22"
    ):
        encode([None, "a " * 22 + "sign"])


def test_one_reader_is_enough(published):
    """A word that CLIP spells, and an end that T5 has room for, are read; without T5 that end is refused."""
    long = "a " * 30 + "sign"
    encode = sd3(published.sd3())
    encode.tokenizers[2].model_max_length = 256
    told = "a prompt of 33 tokens is read to its first 22 by text encoders 1, 2 of 3; .* by text encoder 3"
    with pytest.warns(UserWarning, match=told):
        found = encode([long]).tokens
    with pytest.warns(UserWarning, match="a prompt of 34 tokens"):
        assert not torch.equal(found, encode(["a " * 31 + "sign"]).tokens)
    encode.tokenizers[0].unk_token = encode.tokenizers[
        0
    ].eos_token  # as CLIP's, whose bytes spell every word
    assert encode(["a rad sign"]).tokens.isfinite().all()
    with pytest.raises(PromptError, match="is 33 tokens long, and the model reads at most 22"):
        sd3(published.sd3(t5=False))([long])


@pytest.fixture(scope="module")
def long_read(published):
    """An SDXL of diffusers that no test changes."""
    return published.sdxl()


def test_the_word_decides_whether_a_long_prompt_is_read(long_read):
    """With its quoted text inside it is read as by diffusers, and told; with it cut off it is refused."""
    pipeline = long_read
    word = 'a red sign that says "HELLO" on a blue wall'
    before, behind = "a " * 12 + word, word + " a" * 22
    with pytest.raises(
        PromptError, match="reads at most 22, so that no encoder reads its quoted text"
    ):
        sdxl(pipeline)([before])
    tokens, _, pooled, _ = pipeline.encode_prompt([behind], do_classifier_free_guidance=False)
    with pytest.warns(
        UserWarning, match="is read to its first 22 by text encoders 1, 2 of 2; .* 1, 2$"
    ):
        require_equal(sdxl(pipeline)([behind]), tokens, pooled)


def by_windows(clip, tokenizer, prompt: str, windows: int):
    """States of the last layer but one, side by side, and the output of the first window: each read alone."""
    ids = tokenizer(prompt).input_ids[1:-1]
    made = []
    for place in range(windows):
        own = ids[place * (LENGTH - 2) : (place + 1) * (LENGTH - 2)]
        row = [tokenizer.bos_token_id, *own, tokenizer.eos_token_id]
        row += [tokenizer.pad_token_id] * (LENGTH - len(row))
        made.append(clip(torch.tensor([row]), output_hidden_states=True))
    return torch.cat([one.hidden_states[-2] for one in made], dim=1), made[0]


def test_long_prompts_are_read_window_by_window(long_read):
    """SDXL in three windows, a short prompt beside a long one; one window is what is read without; None is
    zeros."""
    pipeline = long_read
    encode = sdxl(pipeline)
    long = 'a red sign that says "HELLO" on ' + "a blue " * 20 + "wall"
    found = encode.in_windows(3)([long, PROMPTS[0], None])
    assert found.tokens.shape[1] == 3 * LENGTH and found.tokens[2].abs().max() == 0
    for row, prompt in enumerate([long, PROMPTS[0]]):
        first, _ = by_windows(pipeline.text_encoder, pipeline.tokenizer, prompt, 3)
        second, pooled = by_windows(pipeline.text_encoder_2, pipeline.tokenizer_2, prompt, 3)
        tokens = torch.cat([first, second], dim=-1)
        assert relative(found.tokens[row], tokens[0]) <= 1e-5
        assert relative(found.pooled[row], pooled.text_embeds[0]) <= 1e-5
    one = encode.in_windows(1)(WRITTEN)
    require_equal(encode(WRITTEN), one.tokens, one.pooled)
    with pytest.raises(PromptError, match="tokens long, and the model reads at most 62"):
        encode.in_windows(3)(["a " * 61])


def test_windows_that_cannot_be_are_refused(long_read):
    """Of encoders that have a T5, of no window, and where the places of a word would be wrong."""
    with pytest.raises(PatchError, match="2 windows were asked of SD3TextEncoders"):
        small_encoders().in_windows(2)
    with pytest.raises(PatchError, match="0 windows were asked for"):
        sdxl(long_read).in_windows(0)
    pipeline = load("tiny-sdxl").with_long_prompts(2)
    assert pipeline.name == "tiny-sdxl of 2 windows"
    assert pipeline.encode([PROMPTS[0]]).tokens.shape[1] == 2 * LENGTH
    with pytest.raises(PatchError, match="reads prompts in several windows"):
        word_tokens(pipeline, PROMPTS[0])
    with pytest.raises(PatchError, match="reads prompts in several windows"):
        paired("last", pipeline, *PROMPTS[:2], 2 * LENGTH)


def test_faults_in_windows_are_noticed(long_read, monkeypatch):
    """Faults: windows that overlap, a pooled vector of the last one, and a word that nobody looks for."""
    faults = [
        (tokenizing, "_windows", "ids[start :", "ids[start + 1 :"),
        (SDXLTextEncoders, "read", "[:: self.windows]", "[self.windows - 1 :: self.windows]"),
    ]
    for fault in faults:
        with monkeypatch.context() as patch:
            plant(patch, *fault)
            with pytest.raises(AssertionError):
                test_long_prompts_are_read_window_by_window(long_read)
    plant(monkeypatch, tokenizing, "_needed", "prompt[: found[-1].end + 1]", "prompt[:0]")
    with pytest.raises(pytest.fail.Exception):
        test_the_word_decides_whether_a_long_prompt_is_read(long_read)


@pytest.mark.parametrize(
    "family, options",
    [
        ("sd3", dict(prompt_2=None, prompt_3=None, max_sequence_length=LENGTH)),
        ("deepfloyd_if", dict(clean_caption=False)),
    ],
)
def test_t5_may_keep_its_output_layers_in_float32(published, family, options):
    """All float16 but T5's `wo`, as transformers loads it: diffusers' tokens, bit for bit, and no overflow.

    With `wo` 1e5 times as large float16 overflows there; then these tokens are a hundred times nearer to
    float32's than those of a T5 all in float16.
    """
    pipeline, prompts = getattr(published, family)(), ["a red sign"]
    encode = FAMILIES[family](pipeline)
    encode.tokenizers[-1].model_max_length = 77 if family == "deepfloyd_if" else LENGTH
    wide = [module for name, module in encode.named_modules() if name.endswith(".wo")]
    for module in wide:
        module.weight *= 1e5
    exact, rounded = encode(prompts).tokens, encode.half()(prompts).tokens
    for module in wide:
        module.float()
    tokens, (theirs, *_) = encode(prompts).tokens, pipeline.encode_prompt(prompts, **options)
    assert tokens.dtype == torch.float16 and torch.equal(tokens, theirs)
    assert relative(tokens.float(), exact) < relative(rounded.float(), exact) / 100


def test_encoders_that_do_not_fit_together_are_refused():
    """CLIPs wider than the text tokens, and a tokenizer too many, are PatchErrors with both numbers."""
    made = small_encoders()
    clips = made.text_encoder, made.text_encoder_2
    with pytest.raises(PatchError, match="the CLIPs are 128 wide together, the text tokens 100"):
        SD3TextEncoders(*clips, None, made.tokenizers[:2], width=100)
    with pytest.raises(PatchError, match="3 tokenizers for 2 text encoders"):
        SD3TextEncoders(*clips, None, made.tokenizers, width=128)(["a red sign"])


def longer(pipeline, positions: int):
    """The same with so many positions in both CLIPs, and tokenizers that take as many tokens."""
    for name in ("text_encoder", "text_encoder_2"):
        clip = getattr(pipeline, name)
        config = copy.deepcopy(clip.config)
        config.max_position_embeddings = positions
        setattr(pipeline, name, randomize(type(clip)(config).eval(), 0).requires_grad_(False))
    for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2):
        tokenizer.model_max_length = positions
    return pipeline


@pytest.mark.parametrize("positions", taking((248,), [40, 248]))
def test_clips_with_other_positions_read_as_many_tokens(published, positions):
    """What SDXL's and SD3's tokenizers take is read, bit for bit as by diffusers, beyond 77 tokens, too.

    By default beyond 77 alone, as all other tests read fewer.
    """
    pipeline = longer(published.sdxl(), positions)
    tokens, _, pooled, _ = pipeline.encode_prompt(WRITTEN, do_classifier_free_guidance=False)
    require_equal(sdxl(pipeline)(WRITTEN), tokens, pooled)
    assert tokens.shape[1] == positions
    pipeline = longer(published.sd3(), positions)
    pipeline.tokenizer_max_length = positions
    options = dict(prompt_2=None, prompt_3=None, max_sequence_length=LENGTH)
    tokens, _, pooled, _ = pipeline.encode_prompt(WRITTEN, **options)
    require_equal(sd3(pipeline)(WRITTEN), tokens, pooled)
    assert tokens.shape[1] == positions + LENGTH


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_clips_that_read_prompts_of_two_lengths_are_refused(published, family):
    """Their states stand side by side, token by token: WeightsError with positions and tokenizers' lengths
    of both."""
    pipeline = longer(getattr(published, family)(), 248)
    pipeline.tokenizer_2.model_max_length = 77
    says = (
        "248 and 248 positions, .* model_max_length is 248 and 77; "
        "both must read prompts of one length: give both"
    )
    with pytest.raises(WeightsError, match=says):
        FAMILIES[family](pipeline)


@pytest.mark.parametrize(
    "end, name",
    taking(
        lambda case: case[1] == "text_encoder" or case[0] is None,
        product([0, -1, 2, 4, 10**9, None, [3]], ["text_encoder", "text_encoder_2"]),
    ),
)
def test_a_clip_that_pools_another_token_is_refused(end, name):
    """The end of a prompt is the tokenizer's, 3: another would be looked for in vain, and the first token
    pooled.

    By default of the first encoder, and once of the second.
    """
    made = copy.deepcopy(small_encoders())
    getattr(made, name).config.eos_token_id = end
    says = re.escape(
        f"says eos_token_id {end!r}, and its tokenizer ends prompts with 3, which is pooled; "
        "write eos_token_id 3"
    )
    with pytest.raises(WeightsError, match=says):
        SD3TextEncoders(
            made.text_encoder, made.text_encoder_2, None, made.tokenizers[:2], width=128
        )


def test_the_end_that_older_configurations_say_is_the_highest_token():
    """2 is right where prompts end with the last of the vocabulary, as CLIP's do: transformers then pools
    the highest."""
    made = copy.deepcopy(small_encoders())
    tokenizers = [copy.deepcopy(tokenizer) for tokenizer in made.tokenizers[:2]]
    for clip, tokenizer in zip((made.text_encoder, made.text_encoder_2), tokenizers, strict=True):
        clip.config.eos_token_id = 2
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(tokenizer.vocab_size - 1)
    SD3TextEncoders(made.text_encoder, made.text_encoder_2, None, tokenizers, width=128)


@pytest.mark.parametrize(
    "family, names",
    [
        ("sdxl", ["text_encoder", "text_encoder_2"]),
        ("sd3", ["text_encoder", "text_encoder_2", "text_encoder_3"]),
        ("deepfloyd_if", ["text_encoder"]),
    ],
)
def test_module_names_are_the_published_folders(published, family, names):
    """A state dict splits into the published components."""
    encode = FAMILIES[family](getattr(published, family)())
    assert sorted({key.split(".")[0] for key in encode.state_dict()}) == names


class Overheard:
    """A tokenizer that takes its time, and notes how many calls of it are under way."""

    def __init__(self, tokenizer):
        self.tokenizer, self.under_way, self.most = tokenizer, 0, 0

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, *prompts, **options):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        time.sleep(0.005)
        made = self.tokenizer(*prompts, **options)
        self.under_way -= 1
        return made


def test_threads_tokenize_one_after_another():
    """A fast tokenizer remembers between calls whether it pads, so that two at once may read without
    padding: never are."""
    tokenizer = Overheard(load("tiny-if").encoders.tokenizers[0])
    with ThreadPoolExecutor(3) as threads:
        made = list(threads.map(lambda _: tokenize(["a red sign"], [tokenizer], [77]), range(6)))
    assert tokenizer.most == 1 and all(
        torch.equal(one[0].input_ids, made[0][0].input_ids) for one in made
    )

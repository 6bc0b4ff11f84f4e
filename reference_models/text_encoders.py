"""Prompts to text conditions, by transformers' CLIP and T5 classes as each model uses them.

A prompt may be None, "no prompt".  It reads as the empty prompt, but for SDXL's zeros.

B prompts, T tokens, C width of the text tokens, P width of the pooled vector
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textpatch.errors import PatchError, WeightsError
from textpatch.reference_models.defaults import is_whole
from textpatch.reference_models.layers import TextCondition
from textpatch.reference_models.tokenizing import (
    MOST_WINDOWS,
    Windows,
    as_texts,
    in_windows,
    lengths_read,
    tokenize,
)

if TYPE_CHECKING:  # importing transformers takes 3 s, and a denoiser does without
    from transformers import (
        BatchEncoding,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        PreTrainedTokenizerBase,
        T5EncoderModel,
    )
    from transformers.utils import ModelOutput

    Tokens = list[BatchEncoding] | list[Windows]

# Tokens that the published pipelines of SD3 and of DeepFloyd IF give a T5, whose tokenizer would take more.
# A CLIP is given what its tokenizer takes, and reads no more than it has positions.  A T5 has no positions.
T5_LENGTH = 256
FLUX_LENGTHS = {True: 512, False: 256}  # by guidance_embeds: dev, then schnell
IF_LENGTH = 77
# The end token in CLIP configurations written by older versions of transformers.  For such a configuration
# transformers pools the highest token of the prompt.
OLD_END = 2
# classes of encoders of which this process has made one
_MADE: set[type[nn.Module]] = set()


class TextEncoders(nn.Module):
    """Encoders of a pipeline, each with the tokenizer and the most tokens of its place."""

    tokenizers: tuple[PreTrainedTokenizerBase, ...]
    limits: tuple[int, ...]
    clip_skip: int = 0
    windows: int = 1

    def in_windows(self, windows: int) -> TextEncoders:
        """Encoders of the same weights that read every prompt in so many windows of a CLIP's length.

        The windows are encoded one by one.  Their tokens stand behind each other on the token axis, and the
        pooled vector is the first window's.  AUTOMATIC1111's web UI does so where its shifting of commas is
        off, and ComfyUI where no word lies across two windows.
        Raises PatchError for encoders that are not read so, and for less than one window or more than
        MOST_WINDOWS.
        """
        raise PatchError(
            f"{windows!r} windows were asked of {type(self).__name__}, and only the CLIPs of "
            "Stable Diffusion 1, 2 and XL are read so; leave it out"
        )

    def __copy__(self) -> TextEncoders:
        """Encoders of the same modules."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> dict[str, object]:
        """State to pickle, of copies of the encoders without the hooks that transformers puts on them.

        These are functions inside a function, which no pickle holds.  A copy gets its own at its first call.
        """
        tensors = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        modules = copy.deepcopy(self._modules, tensors)
        for encoder in modules.values():
            for module in encoder.modules():
                _take_off_recorders(module)
        return {**self.__dict__, "_modules": modules}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Encoders of a pickle, in a process that may not have made any."""
        super().__setstate__(state)
        for encoder in self.children():
            _make_once(encoder)

    def skipping(self, layers: int) -> TextEncoders:
        """Encoders of the same weights that leave out the last layers of their CLIPs.

        Layers are counted as in diffusers, where 0 is none.  (In other programs 1 is none.)  They are left
        out for negative prompts, too, which diffusers reads with all layers.
        Raises PatchError for encoders that are not read so, and for more layers than there are.
        """
        raise PatchError(
            f"clip skip {layers!r} was asked of {type(self).__name__}, "
            "and only the CLIPs of Stable Diffusion 1, 2 and XL are read so; leave it out"
        )

    def forward(self, prompts: Sequence[str | None]) -> TextCondition:
        """Condition of tokens (B, T, C) and pooled (B, P).   Raises PromptError as `tokenize` does."""
        return self.read(self.tokenized(prompts), prompts)

    def read(self, tokens: Tokens, prompts: Sequence[str | None]) -> TextCondition:
        """Condition of prompts whose tokens are there already.

        tokens  what `tokenized` gives for these prompts
        """
        raise NotImplementedError

    def check(self, prompts: Sequence[str | None]) -> None:
        """Raise what encoding would for prompts that cannot be read.  No encoder runs."""
        for tokens, encoder in zip(self.tokenized(prompts), self.children(), strict=True):
            _ids(tokens, encoder)

    def tokenized(self, prompts: Sequence[str | None]) -> Tokens:
        """Tokens of the prompts for each encoder.   Raises PromptError as `tokenize` does."""
        if self.windows > 1:
            return in_windows(prompts, self.tokenizers, self.limits, self.windows)
        return tokenize(prompts, self.tokenizers, self.limits)


class SDTextEncoder(TextEncoders):
    """CLIP of Stable Diffusion 1 and 2.

    tokens     states of its last layer through the final norm
    pooled     None, because these U-Nets read none
    clip_skip  layers left out at the end, as `skipping` says

    Raises WeightsError as `SDXLTextEncoders` does.
    """

    def __init__(self, clip: CLIPTextModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.text_encoder = clip
        self.tokenizers = (tokenizer,)
        self.limits = _clip_limits((clip,), self.tokenizers)

    def read(self, tokens: Tokens, prompts: Sequence[str | None]) -> TextCondition:
        (ids,) = tokens
        states = _read_clip(self.text_encoder, ids).hidden_states[-1 - self.clip_skip]
        states = _final_norm(self.text_encoder)(states)  # (B * windows, T, C)
        return TextCondition(states.reshape(len(prompts), -1, states.shape[-1]))

    def in_windows(self, windows: int) -> SDTextEncoder:
        return _in_windows(self, windows)

    def skipping(self, layers: int) -> SDTextEncoder:
        return _skipping(self, layers, self.text_encoder.config.num_hidden_layers)


class SDXLTextEncoders(TextEncoders):
    """Two CLIPs, in the order of Stable Diffusion XL (arXiv 2307.01952, section 2.1).

    tokens          last-but-one hidden states of both, side by side on channels; with a clip_skip those of
                    so many layers before
    pooled          projected end token of the second
    zeros_for_none  True makes all zeros of "no prompt" and reads "" as text; published as
                    `force_zeros_for_empty_prompt`

    Raises WeightsError for CLIPs that read prompts of two lengths, or end them otherwise than their
    tokenizers.
    """

    def __init__(
        self,
        clip: CLIPTextModel,
        clip_2: CLIPTextModelWithProjection,
        tokenizers: Sequence[PreTrainedTokenizerBase],
        zeros_for_none: bool = True,
    ) -> None:
        super().__init__()
        self.text_encoder = clip
        self.text_encoder_2 = clip_2
        self.tokenizers = tuple(tokenizers)
        self.zeros_for_none = zeros_for_none
        self.limits = _clip_limits((clip, clip_2), tokenizers)

    def read(self, tokens: Tokens, prompts: Sequence[str | None]) -> TextCondition:
        ids, ids_2 = tokens
        first = _read_clip(self.text_encoder, ids)
        second = _read_clip(self.text_encoder_2, ids_2)
        states = _side_by_side(first, second, self.clip_skip)  # (B * windows, T, C)
        states = states.reshape(len(prompts), -1, states.shape[-1])
        pooled = second.text_embeds[:: self.windows]
        if self.zeros_for_none:
            none = torch.tensor([prompt is None for prompt in prompts], device=states.device)
            states = states.masked_fill(none[:, None, None], 0)
            pooled = pooled.masked_fill(none[:, None], 0)
        return TextCondition(states, pooled)

    def in_windows(self, windows: int) -> SDXLTextEncoders:
        return _in_windows(self, windows)

    def skipping(self, layers: int) -> SDXLTextEncoders:
        clips = self.text_encoder, self.text_encoder_2
        # the last layer of each is never read
        return _skipping(self, layers, min(clip.config.num_hidden_layers for clip in clips) - 1)


class SD3TextEncoders(TextEncoders):
    """Two CLIPs and a T5, in the order of Stable Diffusion 3 (arXiv 2403.03206, app. B.3).

    tokens  last-but-one hidden states of both CLIPs, side by side on channels and padded with zeros to T5's
            width, then T5's states after them on the token axis
    pooled  projected end tokens of both CLIPs, side by side
    t5      None puts zeros, `width` wide, where T5's states would be

    There is no attention mask, so that padding is read as text, as the published model was trained.
    Raises PatchError if the CLIPs are wider than the text tokens, and WeightsError as `SDXLTextEncoders`
    does.
    """

    def __init__(
        self,
        clip: CLIPTextModelWithProjection,
        clip_2: CLIPTextModelWithProjection,
        t5: T5EncoderModel | None,
        tokenizers: Sequence[PreTrainedTokenizerBase],
        width: int = 4096,
    ) -> None:
        super().__init__()
        self.text_encoder = clip
        self.text_encoder_2 = clip_2
        self.text_encoder_3 = t5
        self.tokenizers = tuple(tokenizers)
        self.limits = _clip_limits((clip, clip_2), tokenizers)
        self.width = width
        if t5 is not None:
            self.limits += (T5_LENGTH,)
            self.width = t5.config.d_model
        clips = clip.config.hidden_size + clip_2.config.hidden_size
        if clips > self.width:
            raise PatchError(
                f"the CLIPs are {clips} wide together, the text tokens {self.width}; "
                "give the denoiser's width"
            )

    def read(self, tokens: Tokens, prompts: Sequence[str | None]) -> TextCondition:
        ids, ids_2, *ids_3 = tokens
        first = _read_clip(self.text_encoder, ids)
        second = _read_clip(self.text_encoder_2, ids_2)
        clips = _side_by_side(first, second)
        clips = F.pad(clips, (0, self.width - clips.shape[-1]))  # (B, CLIP's T, C)
        if ids_3:
            states = self.text_encoder_3(_ids(ids_3[0], self.text_encoder_3))
            t5 = states.last_hidden_state  # (B, T5's T, C)
        else:
            t5 = clips.new_zeros(len(prompts), T5_LENGTH, self.width)
        pooled = torch.cat([first.text_embeds, second.text_embeds], dim=-1)
        return TextCondition(torch.cat([clips, t5], dim=1), pooled)


class FluxTextEncoders(TextEncoders):
    """CLIP and T5 of FLUX.1.

    tokens  states of T5, of `length` tokens, 512 in dev and 256 in schnell
    pooled  end token of CLIP, through its final norm and not projected

    There is no attention mask, so that padding is read as text, as the published model was trained.
    Raises WeightsError as `SDXLTextEncoders` does.
    """

    def __init__(
        self,
        clip: CLIPTextModel,
        t5: T5EncoderModel,
        tokenizers: Sequence[PreTrainedTokenizerBase],
        length: int = 512,
    ) -> None:
        super().__init__()
        self.text_encoder = clip
        self.text_encoder_2 = t5
        self.tokenizers = tuple(tokenizers)
        self.limits = (*_clip_limits((clip,), tokenizers), length)

    def read(self, tokens: Tokens, prompts: Sequence[str | None]) -> TextCondition:
        ids, ids_2 = tokens
        pooled = self.text_encoder(_ids(ids, self.text_encoder)).pooler_output
        states = self.text_encoder_2(_ids(ids_2, self.text_encoder_2)).last_hidden_state
        return TextCondition(states, pooled)


class IFTextEncoder(TextEncoders):
    """T5 of DeepFloyd IF, which reads 77 tokens and attends to those that are no padding.

    tokens  all 77 states; the denoiser reads those of padding as text, too
    pooled  None, because IF's denoiser pools the tokens itself

    Prompts are lower-cased and stripped, as by the published pipeline where its cleaning of captions is off
    or cannot be had.  That cleaning (HTML, addresses, file names) is not done here.
    """

    limits = (IF_LENGTH,)

    def __init__(self, t5: T5EncoderModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.text_encoder = t5
        self.tokenizers = (tokenizer,)

    def read(self, tokens: Tokens, prompts: Sequence[str | None]) -> TextCondition:
        (padded,) = tokens
        ids = _ids(padded, self.text_encoder)
        states = self.text_encoder(ids, attention_mask=padded.attention_mask.to(ids.device))
        return TextCondition(states.last_hidden_state)

    def tokenized(self, prompts: Sequence[str | None]) -> Tokens:
        plain = [self.as_read(text) for text in as_texts(prompts)]
        return super().tokenized(plain)

    def as_read(self, prompt: str) -> str:
        """Text that the tokenizer is given for a prompt."""
        return prompt.lower().strip()


def _clip_limits(
    clips: Sequence[CLIPTextModel], tokenizers: Sequence[PreTrainedTokenizerBase]
) -> tuple[int, ...]:
    """Limits of the CLIPs' prompts, the positions that each has.

    Raises WeightsError where the two would read different numbers of tokens, because their states stand side
    by side, and as `_require_end` does.
    """
    limits = tuple(clip.config.max_position_embeddings for clip in clips)
    if len(set(lengths_read(tokenizers, limits))) > 1:
        takes = [tokenizer.model_max_length for tokenizer in tokenizers[: len(limits)]]
        raise WeightsError(
            f"the CLIPs have {limits[0]} and {limits[1]} positions, "
            f"and their tokenizers' model_max_length is {takes[0]} and {takes[1]}; "
            "both must read prompts of one length: give both the same model_max_length"
        )
    # an SD3 has a third tokenizer, T5's
    for clip, tokenizer in zip(clips, tokenizers, strict=False):
        _require_end(clip, tokenizer)
    return limits


def _require_end(clip: CLIPTextModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise WeightsError if a CLIP would pool another token than the one its tokenizer ends prompts with."""
    configured = clip.config.eos_token_id
    end = tokenizer.eos_token_id
    pooled = configured
    if configured == OLD_END:
        pooled = tokenizer.vocab_size - 1
    if type(configured) is not int or pooled != end:
        raise WeightsError(
            f"a CLIP's config.json says eos_token_id {configured!r}, "
            f"and its tokenizer ends prompts with {end!r}, which is pooled; "
            f"write eos_token_id {end!r} there, or fetch both again"
        )


def _read_clip(
    clip: CLIPTextModel | CLIPTextModelWithProjection, tokens: BatchEncoding | Windows
) -> ModelOutput:
    return clip(_ids(tokens, clip), output_hidden_states=True)


def _final_norm(clip: CLIPTextModel) -> nn.Module:
    # transformers 4 has the model inside the model
    return getattr(clip, "text_model", clip).final_layer_norm


def _ids(
    tokens: BatchEncoding | Windows,
    encoder: CLIPTextModel | CLIPTextModelWithProjection | T5EncoderModel,
) -> Tensor:
    """Ids (B, T) on the encoder's device.   Raises WeightsError for one the encoder has no vector for."""
    highest = int(tokens.input_ids.max())
    known = encoder.config.vocab_size
    # checked here, because on a GPU such an id ends the process without an exception
    if highest >= known:
        raise WeightsError(
            f"the tokenizer gave token {highest}, its encoder has 0 to {known - 1}; fetch both again"
        )
    return tokens.input_ids.to(encoder.device)


def _side_by_side(first: ModelOutput, second: ModelOutput, clip_skip: int = 0) -> Tensor:
    """Last-but-one hidden states of both CLIPs, (B, T, C), or those of `clip_skip` layers before."""
    place = -2 - clip_skip
    return torch.cat([first.hidden_states[place], second.hidden_states[place]], dim=-1)


def _make_once(encoder: nn.Module) -> None:
    """Make a model of an encoder's class without weights, the first time in a process.

    From a model that is made transformers learns which outputs of its class can be asked for.  One that comes
    out of a pickle was made elsewhere.
    """
    kind = type(encoder)
    if kind not in _MADE and hasattr(encoder, "config"):
        with torch.device("meta"):
            kind(copy.deepcopy(encoder.config))
        _MADE.add(kind)


def _take_off_recorders(module: nn.Module) -> None:
    """Take off the hooks with which transformers records hidden states, and the mark that they are there."""
    hooks = module._forward_hooks
    for key in [key for key, hook in hooks.items() if _is_recorder(hook)]:
        del hooks[key]
    module.__dict__.pop("_output_capturing_hooks_installed", None)


def _is_recorder(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("transformers.")


def _skipping(encoders: TextEncoders, layers: int, held: int) -> TextEncoders:
    """Copy of encoders that skips some of the layers read, of which the shorter CLIP holds `held`."""
    if not is_whole(layers) or not 0 <= layers <= held:
        raise PatchError(
            f"clip skip {layers!r} was asked for; {held} layers are read here, so give 0 to {held}"
        )
    other = copy.copy(encoders)
    other.clip_skip = layers
    return other


def _in_windows(encoders: TextEncoders, windows: int) -> TextEncoders:
    """Copy of encoders that reads so many windows."""
    if not is_whole(windows) or not 1 <= windows <= MOST_WINDOWS:
        raise PatchError(
            f"{windows!r} windows were asked for; give a whole number of 1 to {MOST_WINDOWS}"
        )
    other = copy.copy(encoders)
    other.windows = windows
    return other

"""Prompts to text conditions: transformers' CLIP and T5 classes, built from local files, read as SD3 reads them.

B prompts, T1 CLIP tokens, T2 T5 tokens, C width of the text tokens, P width of the pooled vector
"""

from __future__ import annotations

from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, PreTrainedTokenizerBase, T5EncoderModel

from textpatch.errors import PromptError, closest
from textpatch.reference_models.layers import TextCondition

# What the published pipeline feeds each encoder, where the tokenizer itself would take more.
CLIP_LENGTH, T5_LENGTH = 77, 256


class SD3TextEncoders(nn.Module):
    """Two CLIPs and a T5, in the order of Stable Diffusion 3 (arXiv 2403.03206, app. B.3).

    Tokens: both CLIPs' last-but-one hidden states, side by side on channels and padded with zeros to T5's
    width, then T5's states after them on the token axis.  Pooled: both CLIPs' projected end tokens, side by
    side.  No attention mask anywhere: padding is read as text, as the published model was trained.
    """

    def __init__(
        self,
        clip: CLIPTextModelWithProjection,
        clip_2: CLIPTextModelWithProjection,
        t5: T5EncoderModel,
        tokenizers: Sequence[PreTrainedTokenizerBase],
    ):
        super().__init__()
        self.text_encoder, self.text_encoder_2, self.text_encoder_3 = clip, clip_2, t5
        self.tokenizers = tuple(tokenizers)

    def forward(self, prompts: Sequence[str]) -> TextCondition:
        """TextCondition: tokens (B, T1 + T2, C), pooled (B, P).

        Raises PromptError for a word that no tokenizer knows, and for a prompt whose end none would read.
        """
        for prompt in prompts:
            self._require_readable(prompt)
        ids = [torch.tensor([self._tokens(i, prompt) for prompt in prompts]) for i in range(3)]
        first, second, third = (x.to(self.text_encoder.device) for x in ids)
        first, pooled_first = self._clip(self.text_encoder, first)
        second, pooled_second = self._clip(self.text_encoder_2, second)
        t5 = self.text_encoder_3(third).last_hidden_state  # (B, T2, C)
        clip = torch.cat([first, second], dim=-1)
        clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))  # (B, T1, C)
        return TextCondition(torch.cat([clip, t5], dim=1), torch.cat([pooled_first, pooled_second], dim=-1))

    def _clip(self, encoder: CLIPTextModelWithProjection, ids: Tensor) -> tuple[Tensor, Tensor]:
        out = encoder(ids, output_hidden_states=True)
        return out.hidden_states[-2], out.text_embeds

    def _length(self, i: int) -> int:
        return min(self.tokenizers[i].model_max_length, T5_LENGTH if i == 2 else CLIP_LENGTH)

    def _tokens(self, i: int, prompt: str) -> list[int]:
        """The ids the i-th encoder reads, padded or cut to its length."""
        return self.tokenizers[i](
            prompt, padding="max_length", truncation=True, max_length=self._length(i)
        ).input_ids

    def _require_readable(self, prompt: str) -> None:
        """What no encoder can read would have no effect, and that is an error; one reader is enough."""
        whole = [tokenizer(prompt, verbose=False).input_ids for tokenizer in self.tokenizers]
        if all(_unknown(tokenizer, ids) for tokenizer, ids in zip(self.tokenizers, whole)):
            raise _unknown_word(self.tokenizers[0], prompt)
        if all(len(ids) > self._length(i) for i, ids in enumerate(whole)):
            raise PromptError(
                f"{prompt!r} is {min(map(len, whole))} tokens long, and the model reads at most "
                f"{max(map(self._length, range(3)))}; shorten it"
            )


def _unknown(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> bool:
    # CLIP's byte-level vocabulary knows every word, and names its end token as the unknown one
    return tokenizer.unk_token_id not in (None, tokenizer.eos_token_id) and tokenizer.unk_token_id in ids


def _unknown_word(tokenizer: PreTrainedTokenizerBase, prompt: str) -> PromptError:
    word = next((w for w in prompt.split() if _unknown(tokenizer, tokenizer(w).input_ids)), prompt)
    vocabulary = tokenizer.get_vocab()
    known = [w for w in sorted(vocabulary, key=vocabulary.get) if w not in tokenizer.all_special_tokens]
    return PromptError(f"the model does not know {word!r} in {prompt!r}{closest(word, known)}")

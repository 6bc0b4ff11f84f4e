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
        """TextCondition: tokens (B, T1 + T2, C), pooled (B, P).  Raises PromptError for unknown words."""
        ids = [self._ids(tokenizer, prompts) for tokenizer in self.tokenizers]
        first, pooled_first = self._clip(self.text_encoder, ids[0])
        second, pooled_second = self._clip(self.text_encoder_2, ids[1])
        t5 = self.text_encoder_3(ids[2]).last_hidden_state  # (B, T2, C)
        clip = torch.cat([first, second], dim=-1)
        clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))  # (B, T1, C)
        return TextCondition(torch.cat([clip, t5], dim=1), torch.cat([pooled_first, pooled_second], dim=-1))

    def _clip(self, encoder: CLIPTextModelWithProjection, ids: Tensor) -> tuple[Tensor, Tensor]:
        out = encoder(ids, output_hidden_states=True)
        return out.hidden_states[-2], out.text_embeds

    def _ids(self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Tensor:
        batch = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        _refuse_unknown(tokenizer, prompts, batch.input_ids)
        return batch.input_ids.to(self.text_encoder.device)

    def token_strings(self, prompt: str) -> list[str]:
        """The text tokens a site reads, in their order, as strings: CLIP's, then T5's."""
        first, _, third = self.tokenizers
        rows = [tok([prompt], padding="max_length", truncation=True).input_ids[0] for tok in (first, third)]
        return [s for tok, row in zip((first, third), rows) for s in tok.convert_ids_to_tokens(row)]


def _refuse_unknown(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], ids: Tensor) -> None:
    """A word outside a closed vocabulary would have no effect; the byte-level tokenizers of big models know all."""
    if tokenizer.unk_token_id in (None, tokenizer.eos_token_id) or not (ids == tokenizer.unk_token_id).any():
        return
    prompt = prompts[int((ids == tokenizer.unk_token_id).any(dim=1).nonzero()[0])]
    word = next((w for w in prompt.split() if tokenizer.unk_token_id in tokenizer(w).input_ids), prompt)
    vocabulary = tokenizer.get_vocab()
    known = [w for w in sorted(vocabulary, key=vocabulary.get) if w not in tokenizer.all_special_tokens]
    raise PromptError(f"the model does not know {word!r} in {prompt!r}{closest(word, known)}")

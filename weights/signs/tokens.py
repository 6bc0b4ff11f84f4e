"""Closed-vocabulary tokenizers of the shipped models, as standard `tokenizer.json` files."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from textpatch.weights.signs.drawing import LETTERS, vocabulary

SPECIAL = ("<unk>", "<pad>", "<bos>", "<eos>")
UNKNOWN, PAD, BEGIN, END = SPECIAL
# `a red sign that says " W O R D E R " in italic on a striped blue wall`, with begin and end
LENGTH = 22


def word_tokenizer(*, begin: bool, lowered: bool = False) -> PreTrainedTokenizerFast:
    """Tokenizer of whole words, with one token per quoted capital.

    begin    True opens a sequence like CLIP's, False like T5's
    lowered  True is for prompts in small letters, as DeepFloyd IF's are; letters inside quotes are read as
             capitals
    """
    ids = {token: i for i, token in enumerate([*SPECIAL, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex('"|[A-Z]'), "isolated")]
    )
    if lowered:
        # A quoted word reaches up to a quote.  Other words end before the space in front of the opening one.
        quoted = [normalizers.Replace(Regex(f'{c.lower()}(?=[A-Za-z]*")'), c) for c in LETTERS]
        tokenizer.normalizer = normalizers.Sequence(quoted)
    specials = [(token, ids[token]) for token in (BEGIN, END)]
    single = f"{BEGIN} $A {END}" if begin else f"$A {END}"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PAD,
        bos_token=BEGIN,
        eos_token=END,
        model_max_length=LENGTH,
        padding_side="right",
        truncation_side="right",
        model_input_names=["input_ids"],
    )

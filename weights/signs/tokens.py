"""Closed-vocabulary tokenizers of the shipped models, as standard `tokenizer.json` files."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from textpatch.weights.signs.drawing import LETTERS, SPACE, SignFormat, vocabulary

SPECIAL = ("<unk>", "<pad>", "<bos>", "<eos>")
UNKNOWN, PAD, BEGIN, END = SPECIAL
# `a red sign that says " W O R D E R " in italic on a striped blue wall`, with begin and end
LENGTH = 22


# what is followed by an odd number of quotes stands between two
QUOTED = r'(?=[^"]*"(?:[^"]*"[^"]*")*[^"]*$)'


def word_tokenizer(
    *, begin: bool, lowered: bool = False, fmt: SignFormat = SignFormat(), length: int = LENGTH
) -> PreTrainedTokenizerFast:
    """Tokenizer of whole words, with one token per quoted letter.

    begin    True opens a sequence like CLIP's, False like T5's
    lowered  True is for prompts in small letters, as DeepFloyd IF's are; letters inside quotes are read as
             capitals
    fmt      signs that prompts describe; in those of several lines a space between quotes has a token, too
    length   the most tokens of a prompt
    """
    ids = {token: i for i, token in enumerate([*SPECIAL, *vocabulary(fmt)])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    words = pre_tokenizers.WhitespaceSplit()
    if fmt.lines > 1:
        tokenizer.normalizer = normalizers.Replace(Regex(" " + QUOTED), SPACE)
        letters = pre_tokenizers.Split(Regex(f'"|[^"]{QUOTED}'), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([letters, words])
    else:
        letters = pre_tokenizers.Split(Regex('"|[A-Z]'), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
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
        model_max_length=length,
        padding_side="right",
        truncation_side="right",
        model_input_names=["input_ids"],
    )

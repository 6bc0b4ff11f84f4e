"""A tiny random CLIP in a folder of transformers' layout, with letters for tokens."""

import json
import string
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel

WINDOW = 12  # tokens, begin and end among them
SIZE = 32  # pixels


def a_clip(folder: Path) -> Path:
    """Write the folder: one layer each, 8 dimensions in common."""
    letters = string.ascii_lowercase
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    layer = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = dict(
        vocab_size=len(tokens),
        max_position_embeddings=WINDOW,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
        pad_token_id=len(tokens) - 1,
    )
    config = CLIPConfig(
        text_config={**layer, **text},
        vision_config={**layer, "image_size": SIZE, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    numbers = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder

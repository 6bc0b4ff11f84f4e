"""Random tensors, and places of tokens, that small foreign models are called with."""

import torch


def g(*shape):
    return torch.randn(*shape)


def grid(tokens: int, before: int = 0, axes: int = 3):
    """Positions (before + tokens, axes) of a picture three tokens wide.

    Tokens before it have position 0.
    """
    ids = torch.zeros(before + tokens, axes)
    ids[before:, 1], ids[before:, 2] = torch.arange(tokens) // 3, torch.arange(tokens) % 3
    return ids

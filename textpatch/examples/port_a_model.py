"""Teach textpatch where text enters a model of your own, and see that the table is right.

A port is a table of `SiteSpec`s, here of one row.  `check_port` runs the model and holds every claim
of the table to what the model's attention really gets.

    python -m textpatch.examples.port_a_model

prints

    every check holds at 3 sites
    source reads target's text at layers.0: changed by 1.05
    target reads its own text: changed by 0.00
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from textpatch import SiteSpec, Span, capture, check_port, find_sites, patch


class CrossAttention(nn.Module):
    """Picture tokens (B, S, 8) attend to text tokens (B, T, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.query = nn.Linear(8, 8)
        self.key = nn.Linear(6, 8)
        self.value = nn.Linear(6, 8)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        q = self.split(self.query(x))  # (B, 2, S, 4)
        k = self.split(self.key(words))  # (B, 2, T, 4)
        v = self.split(self.value(words))
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + attended.transpose(1, 2).flatten(2)

    def split(self, y: Tensor) -> Tensor:
        """(B, N, 8) to (B, 2, N, 4)."""
        return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Denoiser(nn.Module):
    """Three layers, each of which reads the text."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([CrossAttention() for _ in range(3)])

    def forward(self, x: Tensor, t: Tensor, words: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x + t, words)
        return x


# In every layer `key` and `value` make the text's keys and values, from what forward gets as `words`.
TABLE = [SiteSpec("layers.*", "cross", projections=("key", "value"), span=Span(text="words"))]


def main() -> None:
    torch.manual_seed(0)
    model = Denoiser().eval()
    inputs = {"x": torch.randn(2, 5, 8), "t": torch.tensor(0.3), "words": torch.randn(2, 4, 6)}
    report = check_port(model, TABLE, inputs)  # one PatchError that lists whatever fails
    print(f"every check holds at {len(report.sites)} sites")

    sites = find_sites(model, TABLE)
    with capture(model, sites, rows=["source", "target"]) as cache:
        plain = model(**inputs)
    with patch(model, cache, sites[:1], rows=["target", None]):
        patched = model(**inputs)
    change = (patched - plain).abs().amax(dim=(1, 2))
    print(f"source reads target's text at {sites[0].name}: changed by {change[0]:.2f}")
    print(f"target reads its own text: changed by {change[1]:.2f}")


if __name__ == "__main__":
    main()

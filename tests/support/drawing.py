"""A net of one's own with a call that draws by it, as somebody without diffusers has them."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from textpatch import SiteSpec, Span, wrap

SIZE = 12  # pixels along a side
WIDTH = 8
TOKENS = 6
TABLE = [
    SiteSpec("layers.*", "cross", projections=("key", "value"), span=Span(text="words"), heads=2)
]
SETTINGS = dict(sites=TABLE, steps=3, guidance=2.0)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, words):
        q, k, v = (
            y.unflatten(-1, (2, -1)).transpose(1, 2)
            for y in (self.query(x), self.key(words), self.value(words))
        )
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Net(nn.Module):
    """Denoiser of pictures (B, S S, C) whose first three channels are the colours."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Attention() for _ in range(3))

    def forward(self, x, timestep, words):
        for layer in self.layers:
            x = layer(x + timestep, words)
        return torch.tanh(x)


class Drawing:
    """A net, its words, and the call that draws: one call a step, the unconditional rows first."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.net = Net().eval()
        for parameter in self.net.parameters():
            nn.init.normal_(parameter, std=0.7)
        self.letters = torch.randn(128, WIDTH)

    def words(self, prompts):
        """Texts (B, T, C), the last words of each prompt, which is cut or padded in front."""
        rows = []
        for prompt in prompts:
            sums = [sum(map(ord, word)) % 128 for word in prompt.split()[-TOKENS:]]
            rows.append(self.letters[[0] * (TOKENS - len(sums)) + sums])
        return torch.stack(rows)

    def noise(self, seeds):
        shape = SIZE * SIZE, WIDTH
        return torch.stack(
            [torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds]
        )

    def predicted(self, x, time, prompts, guidance, negative):
        """Guided prediction of a step."""
        texts = self.words([*[negative or ""] * len(prompts), *prompts])
        none, own = self.net(torch.cat([x, x]), time, texts).chunk(2)
        return none + guidance * (own - none)

    def __call__(self, prompts, *, seeds, steps, guidance, negative):
        x = self.noise(seeds)
        for step in range(steps):
            time = torch.tensor(1 - step / steps)
            x = x + self.predicted(x, time, prompts, guidance, negative) / steps
        return self.pictures(x)

    def pictures(self, x):
        levels = (x[..., :3].tanh() * 127 + 128).round().byte()
        return [Image.fromarray(one.view(SIZE, SIZE, 3).numpy()) for one in levels]


class TwoCalls(Drawing):
    """The same with a call for each branch, the conditional one first."""

    def predicted(self, x, time, prompts, guidance, negative):
        own = self.net(x, time, self.words(prompts))
        none = self.net(x, time, self.words([negative or ""] * len(prompts)))
        return none + guidance * (own - none)


def wrapped(drawing=None, **changed):
    """A drawing as a pipeline."""
    drawing = drawing or Drawing()
    return wrap(drawing.net, drawing, **SETTINGS | changed)


def distance(a, b):
    """Largest distance of two pictures in levels."""
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())

"""Prompt-to-Prompt's attention: by two ordinary calls, beside maps that are made and edited.

    python benchmarks/edited_maps.py --csv results/edited_maps.csv

Every way puts out the source's row as it is, and the target's with text columns of the source's map.

  plain      both rows by one ordinary call, which edits nothing
  two calls  the source's row, and the target's by `textpatch.editing.replacing`, which makes no map
  maps       the maps of both rows, the target's edited, each times its values
  image_tokens, text_tokens, heads  with heads of width 64
  mb         megabytes of the largest tensor that a way makes, a copy of its inputs included
"""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from measure import TIMES, Table, arguments, environment, in_turns, parsed, require_alike, timed
from textpatch.editing.mappers import identity_mapper
from textpatch.editing.replacing import Columns, Heads, by_columns, joined, of_row, text_steps

WIDTH = 64
TEXT = 77
TOLERANCE = 1e-4  # float32, of the largest output
COLUMNS = ["image_tokens", "text_tokens", "heads", "way", "mb", *TIMES]


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation gave."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for x in made if isinstance(made, tuple) else [made]:
            if isinstance(x, Tensor):
                self.bytes = max(self.bytes, x.numel() * x.element_size())
        return made


def drawn(image: int, heads: int, device: torch.device, dtype: torch.dtype) -> Heads:
    """Random queries, keys and values of a joint attention, the text's queries left out."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(*shape, WIDTH, generator=generator).to(device, dtype)

    two, one = (2, heads), (heads,)
    return Heads(
        some(*two, image),
        None,
        some(*two, image),
        some(*two, TEXT),
        some(*one, image),
        some(*one, TEXT),
    )


def half_of_the_text() -> Columns:
    """Half of the text columns edited, as in a swap of some words in their window."""
    edited = (torch.arange(TEXT) < TEXT // 2).double()
    (step,) = text_steps(identity_mapper(TEXT), edited[None], torch.ones(TEXT).double())
    return Columns(False, step)


def plain(heads: Heads) -> Tensor:
    values = joined(heads.v_image, heads.v_text, dim=1).expand(2, -1, -1, -1)
    keys = joined(heads.k_image, heads.k_text)
    return torch.nn.functional.scaled_dot_product_attention(heads.q_image, keys, values)


def two_calls(heads: Heads, columns: Columns) -> Tensor:
    source = of_row(heads, 0)(heads.v_image, heads.v_text)
    edited = by_columns(heads, columns)(heads.v_image, heads.v_text)
    return torch.stack([source, edited])


def maps(heads: Heads, columns: Columns) -> Tensor:
    keys = joined(heads.k_image, heads.k_text)
    both = (heads.q_image @ keys.mT * WIDTH**-0.5).softmax(-1)
    step, (source, target) = columns.text, both
    image = heads.v_image.shape[1]
    moved = source[..., image:] @ step.matrix.to(both)
    text = step.taken.to(both) * moved + step.kept.to(both) * target[..., image:]
    edited = torch.cat([target[..., :image], text], dim=-1)
    values = joined(heads.v_image, heads.v_text, dim=1)
    return torch.stack([source, edited]) @ values


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=[256, 1024, 2048],
        help="image tokens (256 1024 2048)",
    )
    parser.add_argument("--heads", type=int, default=8, help="heads (8)")
    options = parsed(parser, argv)
    table = Table(COLUMNS, environment(options.device), options.csv, options.append)
    for tokens in options.tokens:
        heads = drawn(tokens, options.heads, options.device, options.dtype)
        columns = half_of_the_text()
        ways = {
            "plain": partial(plain, heads),
            "two calls": partial(two_calls, heads, columns),
            "maps": partial(maps, heads, columns),
        }
        largest = {}
        for name, way in ways.items():
            with Largest() as seen:
                way()
            largest[name] = seen.bytes / 1e6
        require_alike("two calls", two_calls(heads, columns), maps(heads, columns), TOLERANCE)
        clock = time.process_time if options.device.type == "cpu" else time.perf_counter
        taken = in_turns(ways, rounds=options.rounds, device=options.device, clock=clock)
        for name in ways:
            shape = dict(
                image_tokens=tokens,
                text_tokens=TEXT,
                heads=options.heads,
                way=name,
                mb=largest[name],
            )
            table.add(**shape, **timed(taken, name, "plain"))


if __name__ == "__main__":
    main()

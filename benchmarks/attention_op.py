"""Time the attention op beside what one would write without it.

    python benchmarks/attention_op.py

Each line is one way of computing one case of one published shape.  `ratio` is its time over that of
textpatch's own choice: below 1 textpatch loses.

  identity  every row reads its own text
  rows      every row reads the text of another row
  heads     half of the heads of every row do
  mask      every row reads its own text, the end of it hidden, elsewhere in each row
  pieces    what surrounds SDPA where the op is not used, alone: joining, gathering, cutting the output

The ways are

  - textpatch by its own choice and by each backend
  - gather, concatenate and torch's SDPA, as it chooses and pinned to a backend
  - FlexAttention, compiled, with the slots as its page table (blocks of 128)
  - FlashAttention 3 where it is installed

All give what the projections after an attention take, (B, tokens, H D).  Before anything is timed, each
is held to the definition in float64, at some queries, within what rounding explains.  A way that refuses
a case is listed with its reason and not timed, and so is another library's that is wrong.

On a CPU the sizes are cut to what fits (4 heads, see --heads and --scale), and the table says to which.
On a GPU launching small shapes from Python takes longer than computing them, so --graphs times them as
CUDA graphs.  --resume --csv FILE goes on after the cases that FILE holds.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from measure import (
    TIMES,
    Table,
    Unequal,
    arguments,
    environment,
    in_turns,
    kept,
    megabytes,
    parsed,
    replayed,
    require_close,
    timed,
    with_peak,
)
from textpatch import attention
from textpatch.attention import segment_attention
from textpatch.errors import PatchError

PINNED = {  # on each kind of device
    "cuda": {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    },
    "cpu": {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH},
}
BLOCK = 128  # of FlexAttention
REFERENCE_BYTES = 2**26  # of scores; above, the definition is no way to compute anything
SAMPLED = 32  # queries that are checked
# a library that is absent, a kernel that refuses the case, memory that does not reach
REFUSALS = ImportError, NotImplementedError, RuntimeError, PatchError
BASELINE = "textpatch"  # what ratios are against


@dataclass(frozen=True)
class Shape:
    """The sizes of one attention, and whether the image has keys and the text has queries."""

    image: int
    text: int
    heads: int
    width: int = 64
    image_keys: bool = True
    text_queries: bool = False

    @property
    def queries(self) -> int:
        return self.image + self.text_queries * self.text

    @property
    def keys(self) -> int:
        return self.image_keys * self.image + self.text


SHAPES = {
    "sdxl-4096": Shape(4096, 77, 10, image_keys=False),
    "sdxl-1024": Shape(1024, 77, 20, image_keys=False),
    "if-1024": Shape(1024, 77, 22),
    "if-256": Shape(256, 77, 33),
    "if-64": Shape(64, 77, 44),
    "sd3-4429": Shape(4096, 333, 24, text_queries=True),
    "sd3-1357": Shape(1024, 333, 24, text_queries=True),
    "flux-4608": Shape(4096, 512, 24, 128, text_queries=True),
}


@dataclass(frozen=True)
class Case:
    """Inputs of one attention, with what is read said as a user would say it.

    q, k, v  of the image and of the text, None where there are none
    donors   (B,) or (B, H), the row that each row or head reads.  Its own when None
    keep     (B, T), tokens that are not hidden.  All when None
    """

    q: tuple[Tensor, Tensor | None]
    k: tuple[Tensor | None, Tensor]
    v: tuple[Tensor | None, Tensor]
    donors: Tensor | None = None
    keep: Tensor | None = None

    @property
    def keys(self) -> int:
        return sum(x.shape[2] for x in self.k if x is not None)

    @property
    def slots(self) -> Tensor | None:
        """int32 (B, H or 1, T)."""
        if self.donors is None and self.keep is None:
            return None
        rows = len(self.q[0])
        tokens = self.k[1].shape[2]
        device = self.q[0].device
        donors = torch.arange(rows, device=device) if self.donors is None else self.donors
        table = donors.view(rows, -1, 1) * tokens + torch.arange(tokens, device=device)
        return (table if self.keep is None else table.masked_fill(~self.keep[:, None], -1)).int()

    def read(self, bank: Tensor) -> Tensor:
        """The text keys or values that each row reads, (B, H, T, D)."""
        if self.donors is None:
            return bank
        if self.donors.dim() == 1:
            return bank.index_select(0, self.donors)
        return bank[self.donors, torch.arange(bank.shape[1], device=bank.device)]

    @property
    def mask(self) -> Tensor | None:
        """Bool (B, 1, 1, N + T), True = read."""
        if self.keep is None:
            return None
        image = 0 if self.k[0] is None else self.k[0].shape[2]
        return F.pad(self.keep, (image, 0), value=True)[:, None, None]


def make_case(shape: Shape, case: str, rows: int, device: torch.device, dtype: torch.dtype) -> Case:
    """Random inputs in the memory layout of projections, peaked so that a wrong donor would show."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(rows: int, tokens: int) -> Tensor:
        size = rows, tokens, shape.heads, shape.width
        return torch.randn(size, generator=generator, device=device, dtype=dtype).transpose(1, 2)

    bank = rows if case in ("identity", "mask") else max(rows, 2)
    q = 3 * draw(rows, shape.image), 3 * draw(rows, shape.text) if shape.text_queries else None
    k, v = (
        (draw(rows, shape.image) if shape.image_keys else None, draw(bank, shape.text))
        for _ in "kv"
    )
    own = torch.arange(rows, device=device)
    other = (own + 1) % bank
    if case == "heads":
        odd = torch.arange(shape.heads, device=device) % 2 == 1
        return Case(q, k, v, donors=torch.where(odd, other[:, None], own[:, None]))
    if case == "mask":
        length = shape.text - 1 - 7 * own % (shape.text // 2)
        return Case(q, k, v, keep=torch.arange(shape.text, device=device) < length[:, None])
    return Case(q, k, v, donors=other if case == "rows" else None)


def flat(*parts: Tensor | None) -> tuple[Tensor, ...]:
    """Tensors (B, H, tokens, D) as the next projection takes them, (B, tokens, H D).

    Copied only where the memory layout asks for it.
    """
    return tuple(part.transpose(1, 2).flatten(2) for part in parts if part is not None)


def joined(*parts: Tensor | None) -> Tensor:
    there = [part for part in parts if part is not None]
    return there[0] if len(there) == 1 else torch.cat(there, dim=2)


def cut(case: Case, out: Tensor) -> tuple[Tensor, ...]:
    image = case.q[0].shape[2]
    return flat(out) if case.q[1] is None else flat(out[:, :, :image], out[:, :, image:])


def by_textpatch(case: Case, backend: str | None) -> Callable[[], tuple[Tensor, ...]]:
    slots = case.slots
    return lambda: flat(*segment_attention(case.q, case.k, case.v, slots_k=slots, backend=backend))


def by_sdpa(case: Case, pinned: SDPBackend | None) -> Callable[[], tuple[Tensor, ...]]:
    """Gather, concatenate and attend.  The mask is made once, as one prompt serves all layers and steps."""
    mask = case.mask

    def attend() -> tuple[Tensor, ...]:
        k, v = (joined(image, case.read(bank)) for image, bank in (case.k, case.v))
        return cut(case, F.scaled_dot_product_attention(joined(*case.q), k, v, attn_mask=mask))

    def attend_pinned() -> tuple[Tensor, ...]:
        with sdpa_kernel(pinned):
            return attend()

    return attend_pinned if pinned else attend


def by_flash_3(case: Case) -> Callable[[], tuple[Tensor, ...]]:
    from flash_attn_interface import flash_attn_func

    if case.keep is not None:
        raise NotImplementedError("takes no mask")

    def attend() -> tuple[Tensor, ...]:
        k, v = (joined(image, case.read(bank)) for image, bank in (case.k, case.v))
        out = flash_attn_func(*(x.transpose(1, 2) for x in (joined(*case.q), k, v)))
        return cut(case, (out[0] if isinstance(out, tuple) else out).transpose(1, 2))

    return attend


def by_flex(case: Case) -> Callable[[], tuple[Tensor, ...]]:
    """Put all keys into one pool of whole blocks, of which each row lists those that it reads."""
    torch._dynamo.reset()  # past eight shapes torch stops compiling, and FlexAttention would run eagerly
    attend = torch.compile(flex_attention, dynamic=False)
    pages = page_table(case)
    bank = None
    if case.k[0] is None:  # the bank of a U-Net is made once for all steps
        bank = pooled(*case.k), pooled(*case.v)

    def work() -> tuple[Tensor, ...]:
        k, v = bank or (pooled(*case.k), pooled(*case.v))
        return cut(case, attend(joined(*case.q), k, v, block_mask=pages))

    return work


def pooled(image: Tensor | None, bank: Tensor) -> Tensor:
    """The image's rows and then the bank's, each padded to whole blocks, (1, H, tokens of all rows, D)."""
    padded = [F.pad(x, (0, 0, 0, -x.shape[2] % BLOCK)) for x in (image, bank) if x is not None]
    return torch.cat([x.transpose(0, 1).flatten(1, 2) for x in padded], dim=1)[None]


def page_table(case: Case) -> BlockMask:
    """The blocks of the pool that each row and head reads, whole ones apart from those with hidden tokens."""
    image, bank = case.k
    device = case.q[0].device
    rows = len(case.q[0])
    heads = bank.shape[1]
    own = torch.arange(rows, device=device)[:, None].expand(rows, heads)
    donors = own if case.donors is None else case.donors.view(rows, -1).expand(rows, heads)
    blocks = [0 if x is None else -(-x.shape[2] // BLOCK) for x in (image, bank)]
    starts = own * blocks[0], rows * blocks[0] + donors * blocks[1]
    read = torch.cat(
        [
            start[..., None] + torch.arange(n, device=device)
            for start, n in zip(starts, blocks, strict=True)
        ],
        dim=-1,
    )

    there = [
        torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=device)
        for x in (image, bank)
        if x is not None
    ]
    if case.keep is not None:
        there[-1] = case.keep
    # of each token of the pool
    valid = torch.cat([F.pad(x, (0, -x.shape[1] % BLOCK)).flatten() for x in there])
    total = len(valid) // BLOCK
    named = torch.zeros(rows, heads, total, dtype=torch.bool, device=device).scatter_(
        -1, read, True
    )
    whole = valid.view(total, BLOCK).all(1)
    queries = joined(*case.q).shape[2]

    def for_each_block(x: Tensor) -> Tensor:
        """A tensor (B, H, ...) repeated for every block of queries."""
        repeated = x[:, :, None].expand(-1, -1, -(-queries // BLOCK), *x.shape[2:])
        return repeated.int().contiguous()

    def listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The number of chosen blocks of (B, H, blocks), and all blocks with the chosen ones first."""
        which = chosen.int().argsort(dim=-1, descending=True, stable=True)
        return for_each_block(chosen.sum(-1)), for_each_block(which)

    return BlockMask.from_kv_blocks(
        *listed(named & ~whole),
        *listed(named & whole),
        BLOCK_SIZE=BLOCK,
        seq_lengths=(queries, len(valid)),
        mask_mod=lambda b, h, q, kv: named[b, h, kv // BLOCK] & valid[kv],
    )


def makers(
    case: Case, pinned: dict[str, SDPBackend]
) -> dict[str, dict[str, Callable[[], Callable]]]:
    """Kind of way -> name -> what makes it.  Making fails where a library is absent."""
    rows, heads, queries, _ = case.q[0].shape
    small = rows * heads * queries * case.keys * case.q[0].element_size() <= REFERENCE_BYTES
    backends = [name for name in attention.BACKENDS if name != "reference" or small]
    return {
        "textpatch": {"textpatch": lambda: by_textpatch(case, None)}
        | {f"textpatch {name}": lambda name=name: by_textpatch(case, name) for name in backends},
        "sdpa": {"cat + SDPA": lambda: by_sdpa(case, None)}
        | {
            f"cat + SDPA {name}": lambda backend=backend: by_sdpa(case, backend)
            for name, backend in pinned.items()
        },
        "flex": {"FlexAttention": lambda: by_flex(case)},
        "fa3": {"cat + FlashAttention 3": lambda: by_flash_3(case)},
    }


def ways_of(
    case: Case, options
) -> tuple[dict[str, Callable], dict[str, int | None], dict[str, str]]:
    """The ways that can compute a case, their peak bytes, and why the others cannot."""
    ways = {}
    peaks = {}
    refused = {}
    known = makers(case, PINNED[options.device.type])
    for name, make in [entry for kind in options.ways for entry in known[kind].items()]:
        try:
            way = make()
            way()  # a first call makes what later ones find: compiled code, workspaces
            _, peak = with_peak(way, options.device)
            ways[name] = replayed(way, options.device) if options.graphs else way
            peaks[name] = peak
        except REFUSALS as reason:
            if name == BASELINE:
                raise
            refused[name] = " ".join(str(reason).split())[:90]
    return ways, peaks, refused


def expected_of(case: Case) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Sampled queries of image and text, what the definition gives there in float64, and the bound.

    A weight is off by its score's rounding, D products of float32, twice, and by being rounded to the
    dtype.  A sum of N weighted values is off by N roundings of float32, twice.  The output and a way's own
    intermediate are off by one rounding each.  Together:
        |error| <= sum_j p_j |v_j| (3 u + 2 e ((D + 2) max |q| |k| scale + N))
    """
    chosen = [
        x if x is None else torch.linspace(0, x.shape[2] - 1, SAMPLED, device=x.device).long()
        for x in case.q
    ]
    q = tuple(
        None if x is None else x[:, :, at].double() for x, at in zip(case.q, chosen, strict=True)
    )
    k, v = (tuple(None if x is None else x.double() for x in pair) for pair in (case.k, case.v))
    sizes = tuple(None if x is None else x.abs() for x in v)
    exact, spread = (
        flat(*segment_attention(q, k, x, slots_k=case.slots, backend="reference"))
        for x in (v, sizes)
    )

    width = case.q[0].shape[3]
    unit = torch.finfo(case.q[0].dtype).eps / 2
    scores = (width + 2) * largest_norm(q) * largest_norm(k) * width**-0.5
    share = 3 * unit + torch.finfo(torch.float32).eps * (scores + case.keys)
    queries = [at for at in chosen if at is not None]
    return list(zip(queries, exact, [share * a for a in spread], strict=True))


def largest_norm(pair: tuple[Tensor | None, Tensor | None]) -> float:
    return max(x.norm(dim=-1).max().item() for x in pair if x is not None)


def require_right(
    name: str, made: tuple[Tensor, ...], expected: list[tuple[Tensor, Tensor, Tensor]]
) -> None:
    """Raise Unequal where what a way made is further from the definition than its bound."""
    for part, (at, exact, bound) in zip(made, expected, strict=True):
        require_close(name, part[:, at].double(), exact, bound)


def pieces(case: Case) -> dict[str, Callable[[], object]]:
    """The pieces that surround SDPA, each alone, and SDPA on tensors that are joined already."""
    q, k, v = joined(*case.q), *(joined(image, case.read(bank)) for image, bank in (case.k, case.v))
    out = F.scaled_dot_product_attention(q, k, v)
    parts = {
        "SDPA alone": lambda: F.scaled_dot_product_attention(q, k, v),
        "index_select of text k, v": lambda: [case.read(bank) for _, bank in (case.k, case.v)],
        "output cut in two": lambda: cut(case, out),
    }
    if case.k[0] is not None:
        text = [case.read(bank) for _, bank in (case.k, case.v)]
        images = case.k[0], case.v[0]
        parts["cat of q, k, v"] = lambda: (joined(*case.q), *map(joined, images, text))
    return parts


def drop_wrong(ways: dict[str, Callable], refused: dict[str, str], expected: list) -> None:
    """Drop another library's way that is wrong, with the reason for the table.

    Raises Unequal for a way of ours that is wrong.
    """
    for name, way in list(ways.items()):
        try:
            require_right(name, way(), expected)
        except Unequal as reason:
            if name.startswith(BASELINE):
                raise
            refused[name] = str(reason)
            del ways[name]


KEYS = ["shape", "rows", "dtype", "case"]  # what --resume knows a case by
COLUMNS = [
    "shape",
    "rows",
    "heads",
    "queries",
    "keys",
    "dtype",
    "case",
    "way",
    "peak_mb",
    *TIMES,
    "note",
]
CASES = ["identity", "rows", "heads", "mask", "pieces"]


def cut_down(shape: Shape, heads: int | None, scale: int) -> Shape:
    """The shape with at most so many heads, and with 1 / scale of the tokens."""
    return replace(
        shape,
        heads=min(shape.heads, heads or shape.heads),
        image=shape.image // scale,
        text=max(shape.text // scale, 2),
    )


@torch.no_grad()
def measure_case(table: Table, options, name: str, shape: Shape, kind: str, rows: int) -> None:
    """Check and time all ways of one case, and add them to the table."""
    case = make_case(
        shape, "rows" if kind == "pieces" else kind, rows, options.device, options.dtype
    )
    ways = pieces(case)
    peaks = {}
    refused = {}
    if kind != "pieces":
        ways, peaks, refused = ways_of(case, options)
        drop_wrong(ways, refused, expected_of(case))
    taken = in_turns(ways, rounds=options.rounds, device=options.device, least=options.least)
    same = dict(
        shape=name,
        rows=rows,
        heads=shape.heads,
        queries=shape.queries,
        keys=shape.keys,
        dtype=str(options.dtype).removeprefix("torch."),
        case=kind,
    )
    for way in ways:
        table.add(
            **same,
            way=way,
            peak_mb=megabytes(peaks.get(way)),
            **timed(taken, way, next(iter(ways))),
        )
    for way, reason in refused.items():
        table.add(**same, way=way, note=reason)


def main(argv: list[str] | None = None) -> None:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument(
        "--rows", nargs="+", type=int, help="batch rows (1 on a CPU; 1 8 26 on a GPU)"
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=["textpatch", "sdpa", "flex", "fa3"],
        default=["textpatch", "sdpa", "flex", "fa3"],
    )
    parser.add_argument(
        "--heads", type=int, help="at most so many heads (4 on a CPU, all on a GPU)"
    )
    parser.add_argument("--scale", type=int, default=1, help="divide the numbers of tokens by this")
    parser.add_argument(
        "--least", type=float, default=0.02, help="seconds each measurement takes at least (0.02)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="skip the cases that the CSV file holds"
    )
    parser.add_argument(
        "--graphs", action="store_true", help="time CUDA graphs, without launches from Python"
    )
    options = parsed(parser, argv)
    on_cpu = options.device.type == "cpu"
    if options.graphs and on_cpu:
        parser.error("--graphs are CUDA's; give --device cuda")
    if options.resume and not options.csv:
        parser.error("--resume needs --csv, the file that holds what was measured")
    options.ways = [BASELINE, *(way for way in options.ways if way != BASELINE)]
    heads = options.heads or (4 if on_cpu else None)
    where = environment(options.device, "triton") + (", CUDA graphs" if options.graphs else "")
    there = kept(options.csv, KEYS) if options.resume else set()
    table = Table(COLUMNS, where, options.csv, options.append or options.resume)
    # a pinned backend says why it refuses; `note` says it too
    warnings.filterwarnings("ignore", category=UserWarning)
    for name in options.shapes:
        for rows in options.rows or ([1] if on_cpu else [1, 8, 26]):
            for kind in options.cases:
                if (name, str(rows), str(options.dtype).removeprefix("torch."), kind) in there:
                    continue
                measure_case(
                    table, options, name, cut_down(SHAPES[name], heads, options.scale), kind, rows
                )


if __name__ == "__main__":
    main()

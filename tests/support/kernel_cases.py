"""Cases for the laws of the Triton kernels, their definition in eager torch, and how far from it a result
may be.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, replace
from tempfile import NamedTemporaryFile

import torch
import torch.nn.functional as F
from torch import Tensor

QKV = "q_image", "q_text", "k_image", "k_text", "v_image", "v_text"


@dataclass(frozen=True)
class Case:
    """Sizes of one call: B rows of M image and Mt text queries, N image keys, T tokens read from R rows of S.

    `tables` names the parts that have a table ("", "k", "v", "kv"), `per_head` whether it differs by head,
    `hidden` the share of -1; `peak` multiplies the queries; `mixed` strides: channels first, and far apart.
    """

    B: int = 2
    H: int = 2
    G: int = 2
    M: int = 37
    Mt: int = 5
    N: int = 35
    T: int = 21
    R: int = 3
    S: int = 9
    D: int = 16
    tables: str = "k"
    per_head: bool = False
    hidden: float = 0.0
    peak: float = 1.0
    mixed: bool = False
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    seed: int = 0

    @property
    def sizes(self) -> dict[str, tuple[int, int, int]]:
        """Rows, heads and places of each tensor."""
        image, text = (self.B, self.G, self.N), (self.R, self.G, self.S)
        queries = (self.B, self.H, self.M), (self.B, self.H, self.Mt)
        return dict(zip(QKV, (*queries, image, text, image, text), strict=True))


@dataclass(frozen=True)
class Inputs:
    """The arguments of the kernels, by name."""

    q_image: Tensor
    q_text: Tensor | None
    k_image: Tensor | None
    k_text: Tensor
    v_image: Tensor | None
    v_text: Tensor
    slots_k: Tensor | None
    slots_v: Tensor | None
    scale: float

    @property
    def arguments(self) -> list:
        return list(vars(self).values())

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in QKV if getattr(self, name) is not None}

    def with_(self, **changes) -> Inputs:
        return replace(self, **changes)

    def map(self, change) -> Inputs:
        """Every tensor but the tables changed."""
        return self.with_(**{name: change(x) for name, x in self.tensors.items()})


def make(case: Case) -> Inputs:
    """Random inputs of a case: normal numbers, rounded to its dtype.

    Slots of any token, so that many repeat.
    """
    generator = torch.Generator().manual_seed(case.seed)

    def draw(name: str) -> Tensor | None:
        b, h, n = case.sizes[name]
        x = torch.randn(b, h, n, case.D, generator=generator) * (case.peak if name[0] == "q" else 1)
        x = x.to(case.device, case.dtype)
        return (scatter(x) if case.mixed else x) if n else None

    def table(part: str) -> Tensor | None:
        shape = case.B, case.H if case.per_head else 1, case.T
        slots = torch.randint(case.R * case.S, shape, generator=generator, dtype=torch.int32)
        hide = torch.rand(shape, generator=generator) < case.hidden
        return slots.masked_fill(hide, -1).to(case.device) if part in case.tables else None

    tensors = {name: draw(name) for name in QKV}
    return Inputs(**tensors, slots_k=table("k"), slots_v=table("v"), scale=case.D**-0.5)


def scatter(x: Tensor) -> Tensor:
    """The same numbers with head dim outermost and gaps between all of them."""
    b, h, n, d = x.shape
    return x.new_empty(d, 2 * b, h + 1, 3 * n)[:, ::2, 1:, ::3].permute(1, 2, 3, 0).copy_(x)


STRIDE = 2**30 + 2**16  # fits into 32 bits, and twice of it does not


def far_apart(x: Inputs, dim: int) -> Inputs:
    """The same numbers with STRIDE from one to the next along dim: on a CPU in a sparse file, which takes
    no memory.

    As many lie before them, so that an offset cut to 32 bits finds zeros there and no foreign memory.
    """
    size, like = 2**32 + 2**18, x.q_image
    if like.device.type == "cpu":
        with NamedTemporaryFile() as file:
            memory = torch.from_file(file.name, shared=True, size=size, dtype=like.dtype)
            taken = 512 * os.fstat(file.fileno()).st_blocks
            assert taken < 2**20, (
                f"an empty file takes {taken} bytes: the temporary folder knows no sparse files"
            )
    else:
        memory = like.new_zeros(size)
    places = iter(range(2**31, 2**32, 2**12))

    def move(t: Tensor) -> Tensor:
        strides = list(t.contiguous().stride())
        strides[dim] = STRIDE
        return memory.as_strided(t.shape, strides, next(places)).copy_(t)

    return x.map(move)


def read(bank: Tensor, slots: Tensor | None, group: int) -> Tensor:
    """The bank (R, G, S, D) as the rows and query heads read it, (B, H, T, D)."""
    heads, tokens = bank.repeat_interleave(group, 1), bank.shape[2]
    if slots is None:
        return heads
    h = torch.arange(heads.shape[1], device=bank.device)[None, :, None]
    known = slots.clamp(0, bank.shape[0] * tokens - 1).long()
    return heads[known // tokens, h, known % tokens]


def own_slots(x: Inputs) -> Tensor:
    """The table by which row b reads row b."""
    rows, _, tokens, _ = x.k_text.shape
    slots = torch.arange(rows * tokens, dtype=torch.int32, device=x.k_text.device)
    return slots.view(rows, 1, tokens)


def full_tables(x: Inputs) -> list[Tensor]:
    """The tables of keys and of values, written out."""
    if x.slots_k is None and x.slots_v is None:
        return [own_slots(x)] * 2
    slots_k = own_slots(x) if x.slots_k is None else x.slots_k
    return [slots_k, slots_k if x.slots_v is None else x.slots_v]


def joint(x: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries (B, H, M + Mt, D), keys and values (B, H, N + T, D), and which keys are seen, (B, H or 1,
    1, N + T).
    """
    tables, group = full_tables(x), x.q_image.shape[1] // x.k_text.shape[1]
    q = torch.cat([part for part in (x.q_image, x.q_text) if part is not None], 2)
    segments = []
    for image, text, table in ((x.k_image, x.k_text, tables[0]), (x.v_image, x.v_text, tables[1])):
        image = [] if image is None else [image.repeat_interleave(group, 1)]
        segments.append(torch.cat([*image, read(text, table, group)], 2))
    seen = F.pad(
        (tables[0] >= 0) & (tables[1] >= 0),
        (segments[0].shape[2] - tables[0].shape[2], 0),
        value=True,
    )
    return q, *segments, seen[:, :, None]


def definition(x: Inputs) -> tuple[Tensor, Tensor]:
    """softmax(q k^T scale) v and the logarithm of the sums, in the dtype of the inputs, term by term."""
    q, k, v, seen = joint(x)
    scores = (q @ k.mT * x.scale).masked_fill(~seen, float("-inf"))
    blind = ~seen.any(-1, keepdim=True)
    return scores.softmax(-1).masked_fill(blind, 0.0) @ v, scores.logsumexp(-1)


def sdpa(x: Inputs) -> Tensor:
    q, k, v, seen = joint(x)
    mask = None if seen.all() else seen
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=x.scale)
    return out.masked_fill(~seen.any(-1, keepdim=True), 0.0)


def run(kernels, x: Inputs) -> tuple[Tensor, Tensor]:
    """The kernel's result for both segments (B, H, M + Mt, D), and the logarithm of the sums."""
    image, text, lse = kernels.forward.forward(*x.arguments)
    return joined(image, text), lse


def joined(image: Tensor, text: Tensor | None) -> Tensor:
    """The results of both segments (B, H, M + Mt, D)."""
    return image if text is None else torch.cat([image, text], 2)


def gradients(kernels, x: Inputs, grad: Tensor) -> dict[str, Tensor]:
    """The kernels' gradients by name, for the gradient of both segments' results."""
    return backward_of(kernels, x, grad, kernels.forward.forward(*x.arguments, wide=True))


def backward_of(kernels, x: Inputs, grad: Tensor, made: tuple) -> dict[str, Tensor]:
    """The gradients by name, for what a forward made."""
    image, text, lse = made
    first, second = grad.split([image.shape[2], grad.shape[2] - image.shape[2]], 2)
    of_text = None if text is None else second
    found = kernels.backward.backward(first, of_text, *x.arguments, image, text, lse)
    return {name: value for name, value in zip(QKV, found, strict=True) if value is not None}


def eager_gradients(x: Inputs, grad: Tensor) -> dict[str, Tensor]:
    """Autograd's, through the definition."""
    leaves = x.map(lambda t: t.detach().clone().requires_grad_())
    found = torch.autograd.grad(definition(leaves)[0], list(leaves.tensors.values()), grad)
    return dict(zip(leaves.tensors, found, strict=True))


def exact(x: Inputs) -> Inputs:
    """The same rounded numbers in float64."""
    return x.map(Tensor.double)


def random_case(seed: int, dtype: torch.dtype, device: str) -> Case:
    """One of all cases: every head dim, ragged and empty segments, one token, peaks, every kind of table."""
    draw = random.Random(seed)
    tables = draw.choice(["", "k", "k", "kv", "v"])
    S = draw.choice([1, 2, 7, 21]) if "k" in tables or not tables else 21
    heads, group = draw.choice([(1, 1), (2, 1), (2, 2)])
    B, T = draw.choice([1, 2]), S if tables in ("", "v") else draw.choice([1, 16, 77, 83])
    return Case(
        B=B,
        H=heads,
        G=heads // group,
        M=draw.choice([1, 16, 33, 50]),
        Mt=draw.choice([0, 0, 3, 33]),
        N=draw.choice([0, 1, 32, 45, 70]),
        T=T,
        R=B if tables in ("", "v") else draw.choice([1, 3]),
        S=S,
        D=draw.choice([16, 24, 32, 40, 64, 72, 80, 96, 128, 160, 256]),
        tables=tables,
        per_head=draw.random() < 0.4,
        hidden=draw.choice([0, 0, 0.3, 1.0]),
        peak=draw.choice([1.0, 1.0, 8.0]),
        mixed=draw.random() < 0.3,
        dtype=dtype,
        device=device,
        seed=seed,
    )


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def floor(reference: Tensor, dtype: torch.dtype) -> float:
    """2 max |x + 0.3 - 0.3 - x| in dtype, the atol of FlashAttention's own tests: for results eager has
    exactly.
    """
    x = reference.to(dtype)
    return 2 * float((x + 0.3 - 0.3 - x).abs().max())


def cancellation(x: Inputs, grad: Tensor) -> dict[str, float]:
    """What rounding can do to the gradients of queries and keys where dS = P (dP - delta) cancels.

    dP and delta = rowsum(dO O) are sums of D products in float32, O one of N.  One key seen: dS is zero,
    and eager finds just that.  |dS| <= P 2^-23 (|dO| |V|^T + rowsum(|dO| |O|)) is carried to Q and K by
    autograd through the sum of that bound times |Q| |K|^T.
    """
    q, k, v, seen = joint(x)
    weights = (q @ k.mT * x.scale).masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0)
    of_delta = (grad * (weights @ v)).abs().sum(-1, keepdim=True)
    fixed = 2.0**-23 * weights * (grad.abs() @ v.abs().mT + of_delta)
    leaves = x.map(lambda t: t.detach().abs().requires_grad_())
    q, k, _, _ = joint(leaves)
    of = {name: leaf for name, leaf in leaves.tensors.items() if name[0] != "v"}
    bounds = torch.autograd.grad((fixed * (q @ k.mT) * x.scale).sum(), list(of.values()))
    return {name: float(bound.abs().max()) for name, bound in zip(of, bounds, strict=True)}

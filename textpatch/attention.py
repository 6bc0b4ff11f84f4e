"""Attention whose text keys and values are read from a bank through a table of slots.

B rows, R bank rows, H heads, M image queries, Mt text queries, N image keys, T text tokens read,
S bank tokens, D head width

    out[b, h] = softmax(q[b, h] [k_image[b, h]; k_bank[h, slots[b, h]]]^T * scale) [v_image; v_bank[h, slots]]

`slots` is int (B, H or 1, T) and holds `donor_row * S + donor_token`; -1 hides that token from every query.
Without a table row b reads row b.  Image keys come first, as in the published SD3 weights' training code; the
order changes nothing but the last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from textpatch.errors import PatchError
from textpatch.kernels import available, refusal
from textpatch.shapes import Inputs, in_one_dtype, paired, require_fit
from textpatch.slots import below_zero, gather_text, hidden_by_tables
from textpatch.softmax import attention_reference, attention_sdpa, log_sum_exp, scale_of, wider

BACKENDS = "sdpa", "reference", "triton"
EAGER = {"sdpa": attention_sdpa, "reference": attention_reference}
# GPUs by name on which benchmarks/attention_op.py found the kernels faster than sdpa wherever a table
# is read.  None was at hand yet, and where nothing was measured sdpa runs.
TRITON_IS_FASTER: frozenset[str] = frozenset()
_asked: ContextVar[str | None] = ContextVar("the backend asked for", default=None)


@overload
def segment_attention(
    q: tuple[Tensor, Tensor | None],
    k: tuple[Tensor | None, Tensor],
    v: tuple[Tensor | None, Tensor],
    slots_k: Tensor | None = None,
    slots_v: Tensor | None = None,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]: ...


@overload
def segment_attention(
    q: tuple[Tensor, Tensor | None],
    k: tuple[Tensor | None, Tensor],
    v: tuple[Tensor | None, Tensor],
    slots_k: Tensor | None = None,
    slots_v: Tensor | None = None,
    scale: float | None = None,
    *,
    return_lse: Literal[True],
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None, Tensor]: ...


def segment_attention(
    q: tuple[Tensor, Tensor | None],
    k: tuple[Tensor | None, Tensor],
    v: tuple[Tensor | None, Tensor],
    slots_k: Tensor | None = None,
    slots_v: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    *,
    backend: str | None = None,
) -> tuple[Tensor | None, ...]:
    """Attend from image and text queries to image keys and gathered text keys.

    q           image (B, H, M, D), and text (B, H, Mt, D) or None
    k, v        image (B, H, N, D) or None, and the text's bank (R, H, S, D)
    slots_k     int (B, H or 1, T), or None, by which row b reads row b
    slots_v     the same for values; those of the keys when None
    scale       D ** -0.5 when None
    return_lse  whether the log sum exp is returned as well
    backend     one of BACKENDS; when None, what `choose_backend` says

    Returns image (B, H, M, D) and text (B, H, Mt, D) or None, in the dtype of q.  The log sum exp of each
    query's scaled scores is (B, H, M + Mt), float32 or float64, and carries no gradient.
    A query that may read no key at all gets zeros, and a log sum exp of -inf.

    Raises PatchError

    - for what is no pair of tensors, and for shapes, dtypes and devices that do not fit
    - for slots outside the bank.  Kernels and CUDA graphs do not look for these: they give NaN, or torch's
      index error
    - for a scale that is no finite number, and a backend that cannot run here
    """
    if slots_v is slots_k:
        slots_v = None
    inputs = in_one_dtype(paired(q, k, v))
    require_fit(inputs, slots_k, slots_v)
    if backend is not None:
        _require_known(backend)
    arguments = slots_k, slots_v, scale_of(scale, q[0]), backend, return_lse
    if _is_watched(inputs):
        image, text, lse = _segment_attention(*inputs, *arguments)
    else:
        image, text, lse = _forward(inputs, *arguments)
    if q[1] is None:
        text = None
    return (image, text, lse) if return_lse else (image, text)


def _is_watched(inputs: Inputs) -> bool:
    """True where the call is traced or differentiated.  Without the op 10 us of dispatch are saved."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return True
    there = [x for x in inputs if x is not None]
    if any(type(x) is not Tensor for x in there):
        return True
    return torch.is_grad_enabled() and any(x.requires_grad for x in there)


def row_slots(donors: Tensor, tokens: int) -> Tensor:
    """Slots (B, 1, T), int32, by which row b reads all tokens of bank row `donors[b]`."""
    return (donors[:, None, None] * tokens + torch.arange(tokens, device=donors.device)).int()


# --- which backend


def choose_backend(q: Tensor, table: bool) -> str:
    """Name of the backend for queries like q.

    That is the backend asked for by `use_backend`, else the fastest measured, else sdpa.
    table: whether the call reads through slots, which only the kernels do without gathering first.
    """
    asked = _asked.get()
    if asked is not None:
        return asked
    faster = table and q.is_cuda and torch.cuda.get_device_name(q.device) in TRITON_IS_FASTER
    return "triton" if faster and available(q) else "sdpa"


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Run every segment_attention in this block, and in this thread, on one of BACKENDS."""
    _require_known(backend)
    token = _asked.set(backend)
    try:
        yield
    finally:
        _asked.reset(token)


def _require_known(backend: str) -> None:
    if backend not in BACKENDS:
        raise PatchError(f"no backend {backend!r}; known: {', '.join(BACKENDS)}")


# --- the op: opaque to torch.compile, so that one graph serves every table


@torch.library.custom_op("textpatch::segment_attention", mutates_args=())
def _segment_attention(
    q_image: Tensor,
    q_text: Tensor | None,
    k_image: Tensor | None,
    k_text: Tensor,
    v_image: Tensor | None,
    v_text: Tensor,
    slots_k: Tensor | None,
    slots_v: Tensor | None,
    scale: float,
    backend: str | None,
    lse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Results of `_forward` as an op may return them.

    An op returns no None, so what is not there is an empty tensor, and no output shares memory with another.
    """
    inputs = Inputs(q_image, q_text, k_image, k_text, v_image, v_text)
    image, text, sums = _forward(inputs, slots_k, slots_v, scale, backend, lse)
    if text is None:
        text = q_image.new_empty(0)
    elif image.untyped_storage().data_ptr() == text.untyped_storage().data_ptr():
        image = _laid_out(image).copy_(image)
        text = _laid_out(text).copy_(text)
    if sums is None:
        sums = q_image.new_empty(0)
    return image, text, sums


def _forward(
    inputs: Inputs,
    slots_k: Tensor | None,
    slots_v: Tensor | None,
    scale: float,
    backend: str | None,
    lse: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Image outputs, text outputs or None, and the log sum exp or None.

    slots_v: the table of the keys when None.
    """
    backend = backend or choose_backend(inputs.q_image, slots_k is not None)
    if backend == "triton":
        _require_kernels(inputs.q_image)
        return _kernel("forward")(*inputs, slots_k, slots_v, scale, with_lse=lse)
    hidden, blind = hidden_by_tables(slots_k, slots_v, inputs.k_text)
    out, sums = _attend(*inputs, slots_k, slots_v, hidden, blind, scale, EAGER[backend], lse)
    queries = inputs.q_image.shape[2]
    text = None
    if inputs.q_text is not None:
        text = _token_major(out[:, :, queries:])
    return _token_major(out[:, :, :queries]), text, sums


def _token_major(x: Tensor) -> Tensor:
    """Copy of (B, H, M, D), unless it lies so already, that lies in memory as [B, M, H, D].

    A projection copies any other layout, and rounds its sums otherwise than a compiled one.
    """
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@_segment_attention.register_fake
def _shapes(q_image: Tensor, q_text: Tensor | None, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, lse = others
    B, H, queries, _ = q_image.shape
    text = q_image.new_empty(0)
    if q_text is not None:
        text = _laid_out(q_text)
        queries += q_text.shape[2]
    sums = q_image.new_empty(0)
    if lse:
        sums = q_image.new_empty((B, H, queries), dtype=wider(q_image.dtype))
    return _laid_out(q_image), text, sums


def _laid_out(like: Tensor) -> Tensor:
    """An empty (B, H, M, D) laid out [B, M, H, D], so that the projection after it copies nothing."""
    empty = torch.empty_like(like.transpose(1, 2), memory_format=torch.contiguous_format)
    return empty.transpose(1, 2)


# --- its gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, slots_k, slots_v, ctx.scale, backend, _ = inputs
    # now: the backward may run outside of `use_backend`, and on a GPU runs in another thread
    ctx.backend = backend or choose_backend(tensors[0], slots_k is not None)
    ctx.save_for_backward(*tensors, slots_k, slots_v)
    ctx.mark_non_differentiable(output[2])


def _gradients(
    ctx: Any, d_image: Tensor, d_text: Tensor, d_lse: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of the op's arguments, of which only the six tensors have any.

    A donor's gradient is the sum over its readers.
    """
    if ctx.backend == "triton":
        made = _gradients_by_kernels(ctx, d_image, d_text)
    else:
        made = _gradients_by_autograd(ctx, d_image, d_text)
    return *made, None, None, None, None, None


def _gradients_by_kernels(ctx: Any, d_image: Tensor, d_text: Tensor) -> list[Tensor | None]:
    inputs = Inputs._make(ctx.saved_tensors[:6])
    d_text_or_none = None if inputs.q_text is None else d_text
    made = _kernel_gradients(d_image, d_text_or_none, *ctx.saved_tensors, ctx.scale)
    return [None if x is None else d for x, d in zip(inputs, made, strict=True)]


def _gradients_by_autograd(ctx: Any, d_image: Tensor, d_text: Tensor) -> list[Tensor | None]:
    """Gradients of the six tensors, by the same attention once more under autograd."""
    *saved, slots_k, slots_v = ctx.saved_tensors
    wanted = [i for i, x in enumerate(saved) if x is not None and ctx.needs_input_grad[i]]
    leaves: dict[int, Tensor] = {}
    with torch.enable_grad():
        for i in wanted:
            leaves[i] = saved[i].detach().requires_grad_()
        # a mask even if it hides nothing: while a graph is traced nobody can look into the tables
        tables = [slots for slots in (slots_k, slots_v) if slots is not None]
        hidden = below_zero(tables) if tables else None
        attend = EAGER[ctx.backend]
        tensors = Inputs._make([leaves.get(i, x) for i, x in enumerate(saved)])
        out, _ = _attend(*tensors, slots_k, slots_v, hidden, True, ctx.scale, attend, False)
    d_out = d_image
    if saved[1] is not None:
        d_out = torch.cat([d_image, d_text], dim=2)
    made = torch.autograd.grad(out, list(leaves.values()), d_out)
    gradients = dict(zip(wanted, made, strict=True))
    return [gradients.get(i) for i in range(len(saved))]


_segment_attention.register_autograd(once_differentiable(_gradients), setup_context=_save)


# --- the kernels, which no compiler looks into either


def _kernel(name: str) -> Callable[..., Any]:
    return getattr(import_module(f"textpatch.kernels.{name}"), name)


def _require_kernels(q: Tensor) -> None:
    why = refusal(q)
    if why:
        raise PatchError(f"backend 'triton' cannot run: {why}; ask for 'sdpa', or for none")


@torch.library.custom_op("textpatch::segment_attention_gradients", mutates_args=())
def _kernel_gradients(
    d_image: Tensor,
    d_text: Tensor | None,
    q_image: Tensor,
    q_text: Tensor | None,
    k_image: Tensor | None,
    k_text: Tensor,
    v_image: Tensor | None,
    v_text: Tensor,
    slots_k: Tensor | None,
    slots_v: Tensor | None,
    scale: float,
) -> list[Tensor]:
    """Gradients of the six tensors, empty for a tensor that is not there.

    The forward runs again, because the backward needs its results before they were rounded.
    """
    inputs = q_image, q_text, k_image, k_text, v_image, v_text, slots_k, slots_v, scale
    forward = _kernel("forward")(*inputs, wide=True)
    made = _kernel("backward")(d_image, d_text, *inputs, *forward)
    return [d_image.new_empty(0) if x is None else x for x in made]


@_kernel_gradients.register_fake
def _gradient_shapes(d_image: Tensor, d_text: Tensor | None, *inputs: Any) -> list[Tensor]:
    return [d_image.new_empty(0) if x is None else _laid_out(x) for x in inputs[:6]]


# --- gather, join, attend


def _attend(
    q_image: Tensor,
    q_text: Tensor | None,
    k_image: Tensor | None,
    k_text: Tensor,
    v_image: Tensor | None,
    v_text: Tensor,
    slots_k: Tensor | None,
    slots_v: Tensor | None,
    hidden: Tensor | None,
    blind: bool,
    scale: float,
    attend: Callable[..., Tensor],
    lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Output (B, H, M + Mt, D), and the log sum exp or None.

    hidden, blind  as in `slots.Hidden`

    Hidden tokens must not leak NaN, and 0 x NaN is NaN.  So their slots are redirected to a token that the
    row reads anyway.  Where a row may see no text at all, their keys and values are zeroed instead.
    """
    queries = _joined(q_image, q_text)  # (B, H, M + Mt, D)
    if slots_k is not None and hidden is not None and not blind:
        slots_k = torch.where(hidden, slots_k.amax(-1, keepdim=True), slots_k)
    k_text = gather_text(k_text, slots_k)
    v_text = gather_text(v_text, slots_k if slots_v is None else slots_v)
    if hidden is not None and blind:
        k_text = k_text.masked_fill(hidden[..., None], 0.0)
        v_text = v_text.masked_fill(hidden[..., None], 0.0)
    keys = _joined(k_image, k_text)  # (B, H, N + T, D)
    values = _joined(v_image, v_text)
    mask = None if hidden is None else _visible(hidden, keys.shape[2])
    out = attend(queries, keys, values, mask, scale, blind and keys.shape[2] == k_text.shape[2])
    sums = log_sum_exp(queries, keys, mask, scale) if lse else None
    return out, sums


def _joined(*parts: Tensor | None) -> Tensor:
    """Image, then text, along the tokens."""
    there = [part for part in parts if part is not None]
    return there[0] if len(there) == 1 else torch.cat(there, dim=2)


def _visible(hidden: Tensor, keys: int) -> Tensor:
    """Bool (B, H or 1, 1, N + T), True for all of the image and for the text that is not hidden."""
    return F.pad(~hidden, (keys - hidden.shape[-1], 0), value=True)[:, :, None]

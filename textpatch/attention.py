"""Attention whose text keys and values are read from a bank through a table of slots.

B rows, R bank rows, H heads, M image queries, N image keys, T text tokens read, S bank tokens, D head width

    out[b, h] = softmax(q[b, h] [k_image[b, h]; k_bank[h, slots[b, h]]]^T * scale) [v_image; v_bank[h, slots]]

`slots` is int (B, H or 1, T) and holds `donor_row * S + donor_token`; -1 hides that token from every query.
No table means that row b reads row b.  Image keys come first, as in the published SD3 weights' training
code; the order changes nothing but the last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

from textpatch.errors import PatchError
from textpatch.kernels import available, refusal

BACKENDS = "sdpa", "reference", "triton"
# Names of GPUs on which benchmarks/attention_op.py found the kernels faster than sdpa wherever a table is read.
# None was at hand yet, and where nothing was measured sdpa runs.
TRITON_IS_FASTER: frozenset[str] = frozenset()
_asked: ContextVar[str | None] = ContextVar("the backend asked for", default=None)
_answers = (
    WeakTensorKeyDictionary()
)  # table of slots -> ((its version, entries of the bank), what `_look` found)


def segment_attention(
    q, k, v, slots_k=None, slots_v=None, scale=None, return_lse=False, *, backend=None
):
    """Attend from image and text queries to image keys and gathered text keys.

    q = (image (B, H, M, D), text (B, H, Mt, D) or None); k, v = (image (B, H, N, D) or None, text bank
    (R, H, S, D)); slots_k, slots_v: int (B, H or 1, T) or None, slots_v defaults to slots_k.
    scale defaults to D ** -0.5; backend, one of BACKENDS, to what `choose_backend` says.
    Returns (image (B, H, M, D), text (B, H, Mt, D) or None), q's dtype; with return_lse a third, the log sum exp
    of each query's scaled scores, (B, H, M + Mt), float32 or float64, which carries no gradient.
    A query that may read no key at all gets zeros, and a log sum exp of -inf.
    Raises PatchError for shapes, dtypes and devices that do not fit, for slots outside the bank (in kernels and
    CUDA graphs, which cannot be asked: NaN, or torch's index error), and for a backend that cannot run here.
    """
    slots_v = None if slots_v is slots_k else slots_v
    tensors = _in_one_dtype(q[0], q[1], k[0], k[1], v[0], v[1])
    _require_fit(*tensors, slots_k, slots_v)
    if backend not in (None, *BACKENDS):
        raise PatchError(f"no backend {backend!r}; known: {', '.join(BACKENDS)}")
    scale = q[0].shape[-1] ** -0.5 if scale is None else float(scale)
    attend = _segment_attention if _is_watched(tensors) else _forward
    image, text, lse = attend(*tensors, slots_k, slots_v, scale, backend, return_lse)
    text = None if q[1] is None else text
    return (image, text, lse) if return_lse else (image, text)


def _is_watched(tensors: list[Tensor | None]) -> bool:
    """Whether somebody traces or differentiates the call; an op that nobody watches is 10 us of dispatch for nothing."""
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return True
    there = [x for x in tensors if x is not None]
    return (
        any(type(x) is not Tensor for x in there)
        or torch.is_grad_enabled()
        and any(x.requires_grad for x in there)
    )


# --- which backend


def choose_backend(q: Tensor, table: bool) -> str:
    """The backend for queries like q: the one asked for by `use_backend`, else the fastest measured, else sdpa.

    table: whether the call reads through slots, which only the kernels do without gathering first.
    """
    faster = table and q.is_cuda and torch.cuda.get_device_name(q.device) in TRITON_IS_FASTER
    return _asked.get() or ("triton" if faster and available(q) else "sdpa")


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Every segment_attention in this block, and in this thread, runs on one of BACKENDS."""
    if backend not in BACKENDS:
        raise PatchError(f"no backend {backend!r}; known: {', '.join(BACKENDS)}")
    token = _asked.set(backend)
    try:
        yield
    finally:
        _asked.reset(token)


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
    """`_forward`, as an op has it: empty where there is none, and no output shares memory with another."""
    inputs = (
        q_image,
        q_text,
        k_image,
        k_text,
        v_image,
        v_text,
        slots_k,
        slots_v,
        scale,
        backend,
        lse,
    )
    image, text, sums = _forward(*inputs)
    if text is not None and image.untyped_storage().data_ptr() == text.untyped_storage().data_ptr():
        image, text = (_laid_out(part).copy_(part) for part in (image, text))
    return image, *(q_image.new_empty(0) if x is None else x for x in (text, sums))


def _forward(
    q_image,
    q_text,
    k_image,
    k_text,
    v_image,
    v_text,
    slots_k,
    slots_v,
    scale: float,
    backend: str | None,
    lse: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Image and text outputs and log sum exp, or None; slots_v None: that of the keys."""
    tensors = q_image, q_text, k_image, k_text, v_image, v_text
    backend = backend or choose_backend(q_image, slots_k is not None)
    if backend == "triton":
        _require_kernels(q_image)
        return _kernel("forward")(*tensors, slots_k, slots_v, scale, with_lse=lse)
    hidden, blind = _hidden(slots_k, slots_v, k_text)
    out, sums = _attend(*tensors, slots_k, slots_v, hidden, blind, scale, EAGER[backend], lse)
    parts = [out] if q_text is None else out.tensor_split([q_image.shape[2]], dim=2)
    # each lies as (B, N, H, D): a projection copies any other layout, and rounds its sums otherwise than a compiled one
    image, *text = (part.transpose(1, 2).contiguous().transpose(1, 2) for part in parts)
    return image, *(text or [None]), sums


@_segment_attention.register_fake
def _shapes(
    q_image, q_text, k_image, k_text, v_image, v_text, slots_k, slots_v, scale, backend, lse
):
    B, H, M, _ = q_image.shape
    Mt = 0 if q_text is None else q_text.shape[2]
    text = q_image.new_empty(0) if q_text is None else _laid_out(q_text)
    sums = q_image.new_empty(
        (B, H, M + Mt) if lse else 0, dtype=_wide(q_image.dtype) if lse else q_image.dtype
    )
    return _laid_out(q_image), text, sums


def _laid_out(like: Tensor) -> Tensor:
    """An empty (B, H, M, D) laid out [B, M, H, D], so that the projection after it copies nothing."""
    return torch.empty_like(like.transpose(1, 2), memory_format=torch.contiguous_format).transpose(
        1, 2
    )


def _save(ctx, inputs, output) -> None:
    *tensors, slots_k, slots_v, ctx.scale, backend, _ = inputs
    # now: the backward may run outside of `use_backend`, and on a GPU runs in another thread
    ctx.backend = backend or choose_backend(tensors[0], slots_k is not None)
    ctx.save_for_backward(*tensors, slots_k, slots_v)
    ctx.mark_non_differentiable(output[2])


def _gradients(ctx, d_image: Tensor, d_text: Tensor, d_lse: Tensor):
    """By the same attention once more under autograd: a donor's gradient is the sum over its readers."""
    *tensors, slots_k, slots_v = ctx.saved_tensors
    if ctx.backend == "triton":
        d_text = None if tensors[1] is None else d_text
        made = _kernel_gradients(d_image, d_text, *ctx.saved_tensors, ctx.scale)
        return (
            *(None if x is None else d for x, d in zip(tensors, made)),
            None,
            None,
            None,
            None,
            None,
        )
    wanted = [i for i, x in enumerate(tensors) if x is not None and ctx.needs_input_grad[i]]
    with torch.enable_grad():
        tensors = [x.detach().requires_grad_() if i in wanted else x for i, x in enumerate(tensors)]
        # a mask even if it hides nothing: while a graph is traced nobody can look into the tables
        tables = [slots for slots in (slots_k, slots_v) if slots is not None]
        hidden = _below_zero(tables) if tables else None
        out, _ = _attend(
            *tensors, slots_k, slots_v, hidden, True, ctx.scale, EAGER[ctx.backend], False
        )
    d_out = d_image if tensors[1] is None else torch.cat([d_image, d_text], dim=2)
    gradients = dict(zip(wanted, torch.autograd.grad(out, [tensors[i] for i in wanted], d_out)))
    return *(gradients.get(i) for i in range(len(tensors))), None, None, None, None, None


_segment_attention.register_autograd(once_differentiable(_gradients), setup_context=_save)


# --- the kernels, which no compiler looks into either


def _kernel(name: str) -> Callable:
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
    """Those of the six tensors, empty where there is none; the forward runs again, for what it had not rounded."""
    inputs = q_image, q_text, k_image, k_text, v_image, v_text, slots_k, slots_v, scale
    made = _kernel("backward")(d_image, d_text, *inputs, *_kernel("forward")(*inputs, wide=True))
    return [d_image.new_empty(0) if x is None else x for x in made]


@_kernel_gradients.register_fake
def _gradient_shapes(d_image, d_text, q_image, q_text, k_image, k_text, v_image, v_text, *rest):
    tensors = q_image, q_text, k_image, k_text, v_image, v_text
    return [d_image.new_empty(0) if x is None else _laid_out(x) for x in tensors]


# --- the definition, and torch's own attention beside it


def _attend(
    q_image,
    q_text,
    k_image,
    k_text,
    v_image,
    v_text,
    slots_k,
    slots_v,
    hidden,
    blind: bool,
    scale: float,
    attend: Callable,
    lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """Output (B, H, M + Mt, D) and log sum exp, or None: gather, join, attend.

    hidden, blind: as `_hidden` says.  A NaN in what is read in place of a hidden token would come through, for 0 x NaN
    is NaN: so a token is read there that the row sees anyway, and where there may be none, zeros.
    """
    queries = _joined(q_image, q_text)  # (B, H, M + Mt, D)
    if hidden is not None and not blind:
        slots_k = torch.where(hidden, slots_k.amax(-1, keepdim=True), slots_k)
    k_text, v_text = (
        gather_text(k_text, slots_k),
        gather_text(v_text, slots_k if slots_v is None else slots_v),
    )
    if hidden is not None and blind:
        k_text, v_text = (x.masked_fill(hidden[..., None], 0.0) for x in (k_text, v_text))
    keys, values = _joined(k_image, k_text), _joined(v_image, v_text)  # (B, H, N + T, D)
    mask = None if hidden is None else _visible(hidden, keys.shape[2])
    out = attend(queries, keys, values, mask, scale, blind and keys.shape[2] == k_text.shape[2])
    return out, log_sum_exp(queries, keys, mask, scale) if lse else None


def _joined(*parts: Tensor | None) -> Tensor:
    """Image, then text, along the tokens."""
    there = [part for part in parts if part is not None]
    return there[0] if len(there) == 1 else torch.cat(there, dim=2)


def gather_text(bank: Tensor, slots: Tensor | None) -> Tensor:
    """Text keys or values as each row reads them: (R, H, S, D) by slots (B, H or 1, T) -> (B, H, T, D)."""
    if slots is None:
        return bank
    (_, H, _, D), (B, apart, T) = bank.shape, slots.shape
    rows = bank.transpose(1, 2).reshape(-1, H // apart, D)  # (R S apart, H / apart, D)
    read = slots.clamp(min=0)
    if apart > 1:
        read = (
            read.long() * apart + torch.arange(apart, device=bank.device)[:, None]
        ).mT  # (B, T, apart)
    return rows.index_select(0, read.flatten()).view(B, T, H, D).transpose(1, 2)


def _hidden(
    slots_k: Tensor | None, slots_v: Tensor | None, bank: Tensor
) -> tuple[Tensor | None, bool]:
    """Bool (B, H or 1, T), tokens hidden in either table; None if none is, which keeps SDPA's fast path.

    And whether a row may see no text: looked up in one table, assumed where there are two.
    A CUDA graph being captured cannot wait for an answer, and assumes both.
    """
    tables = [slots for slots in (slots_k, slots_v) if slots is not None]
    if tables and bank.is_cuda and torch.cuda.is_current_stream_capturing():
        return _below_zero(tables), True
    look = _look_once if bank.is_cuda else _look
    # a list, for each of the tables is to be checked
    found = [look(slots, bank.shape[0] * bank.shape[2]) for slots in tables]
    if not any(hides for hides, _ in found):
        return None, False
    return _below_zero(tables), slots_v is not None or found[0][1]


def _below_zero(tables: list[Tensor]) -> Tensor:
    return tables[0] < 0 if len(tables) == 1 else (tables[0] < 0) | (tables[1] < 0)


def _look(slots: Tensor, entries: int) -> tuple[bool, bool]:
    """Whether a table hides a token, and whether it hides all of some row's.

    Raises PatchError for slots outside a bank of so many entries.
    """
    low, high = (int(x) for x in slots.aminmax()) if slots.numel() else (0, -1)
    if low < -1 or high >= entries:
        raise PatchError(
            f"slot {low if low < -1 else high} is outside the bank, whose slots are 0..{entries - 1}, or -1 to hide"
        )
    return low < 0, low < 0 and bool((slots.amax(-1) < 0).any())


def _look_once(slots: Tensor, entries: int) -> tuple[bool, bool]:
    """The same, asked again only of a table that was written to: asking a GPU waits for all it has to do."""
    asked = None if slots.is_inference() else (slots._version, entries)
    known, found = _answers.get(slots, (None, None))
    if asked is None or asked != known:
        found = _look(slots, entries)
        _answers[slots] = asked, found
    return found


def _visible(hidden: Tensor, keys: int) -> Tensor:
    """Bool (B, H or 1, 1, N + T), True = visible: all of the image, and the text that is not hidden."""
    return F.pad(~hidden, (keys - hidden.shape[-1], 0), value=True)[:, :, None]


def attention_reference(q, k, v, mask=None, scale=None, blind=True):
    """softmax(q k^T * scale) v in q's own dtype, term by term; the definition other backends are held to.

    blind: whether a row may see no key at all, which gives zeros.
    """
    scores = (
        q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    )  # (B, H, M, N + T)
    if mask is None:
        return scores.softmax(-1) @ v
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return (weights.masked_fill(_blind(mask), 0.0) if blind else weights) @ v


def attention_sdpa(q, k, v, mask=None, scale=None, blind=True):
    """The same through `torch.nn.functional.scaled_dot_product_attention`."""
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out if mask is None or not blind else out.masked_fill(_blind(mask), 0.0)


def _blind(mask: Tensor) -> Tensor:
    """Which rows and heads see no key at all, (B, H or 1, 1, 1); a NaN from anywhere else stays a NaN."""
    return ~mask.any(-1, keepdim=True)


EAGER = {"sdpa": attention_sdpa, "reference": attention_reference}


def log_sum_exp(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """log sum_j exp(q k_j * scale) over the keys seen, (B, H, M): some queries at a time, for scores are large."""
    wide, sums = _wide(q.dtype), []
    with torch.autocast(q.device.type, enabled=False):  # which would take the product down again
        for part in q.split(1024, dim=2):
            scores = part.to(wide) @ k.to(wide).transpose(-2, -1) * scale
            sums.append(
                (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).logsumexp(-1)
            )
    return torch.cat(sums, dim=2)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


# --- what fits

NAMES = "image queries", "text queries", "image keys", "text keys", "image values", "text values"


def _in_one_dtype(*tensors: Tensor | None) -> list[Tensor | None]:
    """Under autocast all but float64 in its dtype, as torch does for its own attention; otherwise as they are."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    dtype = torch.get_autocast_dtype(kind)
    return [x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors]


def _require_fit(q_image, q_text, k_image, k_text, v_image, v_text, slots_k, slots_v) -> None:
    """Raise PatchError unless all shapes, dtypes and devices fit those of the image queries and the text keys."""
    for name, x in zip(NAMES, (q_image, q_text, k_image, k_text, v_image, v_text)):
        if x is not None and x.dim() != 4:
            raise PatchError(
                f"{name} are {tuple(x.shape)}; give four dimensions: rows, heads, tokens, head width"
            )
    if (k_image is None) != (v_image is None):
        raise PatchError("image keys without image values, or the reverse; give both or neither")
    (B, H, _, D), (R, _, S, _) = q_image.shape, k_text.shape
    image = None if k_image is None else (B, H, k_image.shape[2], D)
    _require_like(
        "text queries", q_text, None if q_text is None else (B, H, q_text.shape[2], D), q_image
    )
    _require_like("image keys", k_image, image, q_image)
    _require_like("image values", v_image, image, q_image)
    _require_like("text keys", k_text, (R, H, S, D), q_image)
    _require_like("text values", v_text, (R, H, S, D), q_image)
    T = S if slots_k is None else slots_k.shape[-1]
    _require_slots("keys", slots_k, B, H, T, q_image.device)
    _require_slots("values", slots_v, B, H, T, q_image.device)
    if slots_k is None and R != B:
        raise PatchError(f"{R} rows of text for {B} rows of queries; say by slots who reads what")


def _require_like(name: str, x: Tensor | None, shape: tuple | None, like: Tensor) -> None:
    if x is not None and (
        tuple(x.shape) != shape or x.dtype != like.dtype or x.device != like.device
    ):
        raise PatchError(
            f"{name} are {tuple(x.shape)}, {x.dtype}, on {x.device}; the image queries are {tuple(like.shape)}, "
            f"{like.dtype}, on {like.device}, so {shape} was expected; all must share heads, width, dtype and device"
        )


def _require_slots(
    name: str, slots: Tensor | None, rows: int, heads: int, tokens: int, device
) -> None:
    if slots is None:
        return
    # number by number: torch.compile with dynamic shapes finds no symbolic shape in a tuple of shapes
    fits = slots.dim() == 3 and slots.shape[0] == rows and slots.shape[2] == tokens
    if not fits or not (slots.shape[1] == 1 or slots.shape[1] == heads) or slots.device != device:
        raise PatchError(
            f"slots of {name} are {tuple(slots.shape)} on {slots.device}; {rows} rows of {heads} heads that read "
            f"{tokens} tokens on {device} need ({rows}, 1 or {heads}, {tokens}) there"
        )
    if slots.dtype not in (torch.int32, torch.int64):
        raise PatchError(f"slots of {name} are {slots.dtype}; give int32")


def row_slots(donors: Tensor, tokens: int) -> Tensor:
    """Slots (B, 1, T), int32, by which row b reads all tokens of bank row `donors[b]`."""
    return (donors[:, None, None] * tokens + torch.arange(tokens, device=donors.device)).int()

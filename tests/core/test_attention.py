"""Laws of segment_attention: an index into a bank, one result on all backends, gradients to the donors."""

from contextlib import nullcontext
from dataclasses import replace
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from support import laws
from support.strategies import attentions, make_attention
from textpatch import attention
from textpatch import slots as tables_of_slots
from textpatch.attention import (
    attention_reference,
    gather_text,
    row_slots,
    segment_attention,
    use_backend,
)
from textpatch.errors import PatchError


@given(attentions())
def test_slots_are_an_index(case):
    """gather(bank, s)[b, h, t] = bank[s // S, h, s % S]."""
    laws.law_slots_are_an_index(case)


@given(attentions())
def test_own_slots(case):
    """s(b, t) = (b, t): bit-equal to no slots."""
    laws.law_own_slots_are_the_identity(case)


@given(attentions())
def test_permuted_bank(case):
    """A(P bank, P slots) = A(bank, slots), bit for bit."""
    laws.law_the_order_of_the_bank_is_nothing(case)


@given(attentions())
def test_hidden_tokens(case):
    """s = -1: that key is absent; all absent: zeros."""
    laws.law_hidden_tokens_are_absent(case)


@settings(max_examples=2)
@given(attentions())
def test_gradients(case):
    """gradcheck; d out / d (unread token) = 0."""
    laws.law_gradients_reach_the_donors(case)


@given(attentions())
def test_backends_agree(case):
    """sdpa = softmax(q k^T / sqrt(D)) v, 1e-12 in float64, masked or not."""
    for slots in (case.slots, case.slots.masked_fill(case.slots % 2 == 0, -1)):
        assert laws.close(
            *(laws.attend(replace(case, backend=b), slots) for b in ("sdpa", "reference"))
        )


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_no_gradient_is_nan_where_nothing_is_seen(backend):
    """All keys hidden: out = 0 and every gradient = 0."""
    case = make_attention(backend=backend)
    k, v = (x[1].clone().requires_grad_() for x in (case.k, case.v))
    laws.attend(case, torch.full_like(case.slots, -1), k, v, image=False).sum().backward()
    assert not k.grad.any() and not v.grad.any()


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_what_nobody_reads_may_be_nan(backend):
    """NaN in every bank entry that no slot names: the output without it, and gradients of 0 there."""
    case = make_attention(rows=2, bank=2, tokens=2, per_head=False, backend=backend)
    # of 8; entry 0, which stands in for -1, is not named
    slots = torch.tensor([[[5, 6]], [[-1, 5]]])
    entries = torch.arange(8).view(2, 1, 4, 1)
    read = (entries == 5) | (entries == 6)
    banks = [x[1].masked_fill(~read, float("nan")).requires_grad_() for x in (case.k, case.v)]
    made = laws.attend(case, slots, *banks)
    assert torch.equal(made, laws.attend(case, slots))
    made.sum().backward()
    assert all(x.grad.isfinite().all() and not x.grad.masked_fill(read, 0).any() for x in banks)


@pytest.mark.parametrize("dtype, factor", [(torch.float32, 1.1), (torch.bfloat16, 1.0)])
@pytest.mark.parametrize("tokens", [7, 77])
def test_sdpa_errs_no_more_than_eager(dtype, factor, tokens):
    """rms |sdpa - float64| <= 1.1 (bfloat16: 1.0) rms |eager - float64|, same inputs."""
    generator = torch.Generator().manual_seed(tokens)
    qkv = [
        torch.randn(4, 3, n, 64, generator=generator).to(dtype)
        for n in (96, 64 + tokens, 64 + tokens)
    ]
    slots = row_slots(torch.tensor([1, 0, 3, 3]), tokens)

    def out(q, k, v, backend):
        banks = ((x[:, :, :64], x[:, :, 64:]) for x in (k, v))
        return segment_attention((q, None), *banks, slots_k=slots, backend=backend)[0].double()

    exact = out(*(x.double() for x in qkv), "reference")
    sdpa, eager = ((out(*qkv, b) - exact).square().mean().sqrt() for b in ("sdpa", "reference"))
    assert sdpa <= factor * eager


def test_scale_and_cross_attention():
    """No image keys, no text queries, a scale of one's own: softmax(c q k^T) v."""
    case = make_attention()
    k, v = (gather_text(x[1], case.slots) for x in (case.k, case.v))
    for backend in ("sdpa", "reference"):
        inputs = (case.q[0], None), (None, case.k[1]), (None, case.v[1])
        image, text = segment_attention(*inputs, slots_k=case.slots, scale=0.3, backend=backend)
        assert text is None and laws.close(
            image, attention_reference(case.q[0] * 0.3, k, v, scale=1.0)
        )


def inputs(case, text=True, image=True, grad=False):
    """The six tensors of the op, as it takes them."""
    pairs = (
        (case.q[0], case.q[1] if text else None),
        *((x[0] if image else None, x[1]) for x in (case.k, case.v)),
    )
    return [None if x is None else x.clone().requires_grad_(grad) for pair in pairs for x in pair]


# (text queries, image keys, log sum exp, a table for the values); by default the case that has most
@pytest.mark.parametrize(
    "text, image, lse, apart",
    [
        (1, 1, 1, 0),
        pytest.param(0, 1, 0, 1, marks=pytest.mark.long),
        pytest.param(0, 0, 1, 0, marks=pytest.mark.long),
    ],
)
def test_the_op_is_a_good_citizen(text, image, lse, apart):
    """torch's own check: schema, fake shapes and strides, autograd, and tracing with dynamic shapes."""
    case = make_attention(per_head=bool(apart))
    slots = case.slots, case.slots.flip(-1) if apart else None
    tensors = inputs(case, text, image, grad=True)
    made = torch.library.opcheck(
        attention._segment_attention, (*tensors, *slots, 0.4, None, bool(lse))
    )
    assert len(made) == 4 and set(made.values()) == {"SUCCESS"}


@given(attentions())
def test_log_sum_exp(case):
    """exp(q k_j / sqrt(D) - lse) are the weights of all keys seen, and their sum is 1."""
    q, width = torch.cat(case.q, dim=2), case.q[0].shape[-1]
    for slots in (case.slots, case.slots.masked_fill(case.slots % 3 == 0, -1)):
        *_, lse = segment_attention(
            case.q, case.k, case.v, slots_k=slots, return_lse=True, backend=case.backend
        )
        keys = torch.cat([case.k[0], gather_text(case.k[1], slots)], dim=2)
        mask = attention._visible(slots < 0, keys.shape[2])
        eye = torch.eye(keys.shape[2], dtype=torch.float64).expand(*keys.shape[:2], -1, -1)
        weights = (q @ keys.mT * width**-0.5 - lse[..., None]).exp() * mask
        assert laws.close(weights, attention_reference(q, keys, eye, mask))


def test_log_sum_exp_of_nothing():
    """All keys hidden: -inf."""
    case = make_attention()
    nothing = torch.full_like(case.slots, -1)
    *_, lse = segment_attention(
        (case.q[0], None), (None, case.k[1]), (None, case.v[1]), slots_k=nothing, return_lse=True
    )
    assert lse.shape == case.q[0].shape[:3] and (lse == float("-inf")).all()


def test_log_sum_exp_is_wide_and_without_gradient():
    """float32 for half precision; asking for its gradient is an error, not zeros."""
    case = make_attention()
    q, k, v = ([x.half().requires_grad_() for x in pair] for pair in (case.q, case.k, case.v))
    image, _, lse = segment_attention(q, k, v, slots_k=case.slots, return_lse=True)
    assert (image.dtype, lse.dtype) == (torch.float16, torch.float32)
    assert image.requires_grad and not lse.requires_grad


def test_the_op_is_left_out_where_nobody_watches(monkeypatch):
    """No gradient, no compiler, no fake tensor: not dispatched, the same bits; otherwise dispatched."""
    case, called, op = make_attention(), [], attention._segment_attention
    monkeypatch.setattr(
        attention, "_segment_attention", lambda *args: called.append(1) or op(*args)
    )

    def attend(q_text):
        with FakeTensorMode(allow_non_fake_inputs=True) if q_text is None else nullcontext():
            return segment_attention(
                (case.q[0], q_text), case.k, case.v, slots_k=case.slots, return_lse=True
            )

    plain, watched = attend(case.q[1]), attend(case.q[1].clone().requires_grad_())
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True)) and len(called) == 1
    with torch.no_grad():
        attend(case.q[1].clone().requires_grad_())
    assert len(called) == 1
    fake, _, sums = attend(None)
    assert len(called) == 2 and fake.shape == plain[0].shape and sums.shape == fake.shape[:3]


def test_second_derivatives_are_refused():
    """A second backward pass is an error, not a gradient without the donors' part."""
    case = make_attention()
    q, *rest = inputs(case, text=False, grad=True)
    made, _ = segment_attention((q, None), rest[1:3], rest[3:], slots_k=case.slots)
    (once,) = torch.autograd.grad(made.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        once.sum().backward()


def test_one_graph_for_every_table():
    """Compiled whole, forward and backward; other tables run the same code: 1 graph, 0 recompilations."""
    case = make_attention(per_head=True)
    leaves = inputs(case, grad=True)

    def loss(slots, slots_v):
        pairs = zip(leaves[::2], leaves[1::2], strict=True)
        return sum(x.sin().sum() for x in segment_attention(*pairs, slots_k=slots, slots_v=slots_v))

    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    fast = torch.compile(loss, backend=counter, fullgraph=True)
    tables = [
        case.slots,
        case.slots.flip(0),
        case.slots.flip(-1),
        case.slots.masked_fill(case.slots % 2 == 0, -1),
    ]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for slots, slots_v in zip(tables, reversed(tables), strict=True):
            made = [torch.autograd.grad(f(slots, slots_v), leaves) for f in (fast, loss)]
            assert all(laws.close(a, b) for a, b in zip(*made, strict=True))
    assert counter.frame_count == 1


def test_one_graph_for_every_size():
    """Compiled with dynamic shapes: other numbers of rows, tokens and heads of a table are checked and
    run, too.
    """
    torch._dynamo.reset()
    fast = torch.compile(segment_attention, backend="eager", fullgraph=True, dynamic=True)
    for rows, image, tokens in ((2, 5, 3), (3, 6, 4)):
        for per_head in (True, False):
            case = make_attention(
                rows=rows, bank=rows, image=image, tokens=tokens, per_head=per_head
            )
            made = [
                f(case.q, case.k, case.v, slots_k=case.slots) for f in (fast, segment_attention)
            ]
            assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


def test_the_backend_asked_for():
    """use_backend reaches every call of the block; another's name is refused."""
    case, seen = make_attention(), []
    plain = attention.EAGER["reference"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(attention.EAGER, "reference", lambda *args: seen.append(1) or plain(*args))
        with use_backend("reference"):
            segment_attention(case.q, case.k, case.v, slots_k=case.slots)
        segment_attention(case.q, case.k, case.v, slots_k=case.slots)
    assert len(seen) == 1
    with pytest.raises(PatchError, match="no backend 'flash'; known: sdpa, reference, triton"):
        segment_attention(case.q, case.k, case.v, slots_k=case.slots, backend="flash")
    with pytest.raises(PatchError, match="no backend 'flash'"), use_backend("flash"):
        pass


@pytest.mark.parametrize(
    "asked, backend",
    [
        ("reference", None),
        (None, "reference"),
        ("sdpa", "reference"),
        ("reference", "sdpa"),
    ],
)
def test_the_backend_is_kept_for_the_backward(asked, backend, monkeypatch):
    """Gradients are made by the backend of the forward, also after `use_backend` ends and in a thread
    that never saw it.
    """
    case, seen = make_attention(), []
    for name, attend in list(attention.EAGER.items()):
        spy = lambda *args, name=name, attend=attend: seen.append(name) or attend(*args)  # noqa: E731
        monkeypatch.setitem(attention.EAGER, name, spy)
    q, *rest = inputs(case, text=False, grad=True)
    with use_backend(asked) if asked else nullcontext():
        made, _ = segment_attention(
            (q, None), rest[1:3], rest[3:], slots_k=case.slots, backend=backend
        )
        made.sum().backward(retain_graph=True)
    made.sum().backward(retain_graph=True)
    thread = Thread(target=made.sum().backward)
    thread.start()
    thread.join()
    assert seen == [backend or asked] * 4


def test_the_backend_chosen(monkeypatch):
    """sdpa, unless a table is read on a GPU measured faster with the kernels, which must also be able to
    run.
    """
    gpu = SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", {gpu.device: "Measured GPU"}.get)
    monkeypatch.setattr(attention, "available", lambda q: q is gpu)
    assert attention.choose_backend(gpu, table=True) == "sdpa"  # nothing was measured
    monkeypatch.setattr(attention, "TRITON_IS_FASTER", frozenset({"Measured GPU"}))
    assert [attention.choose_backend(gpu, table=table) for table in (True, False)] == [
        "triton",
        "sdpa",
    ]
    assert attention.choose_backend(torch.zeros(1, 1, 1, 8), table=True) == "sdpa"
    with use_backend("reference"):
        assert attention.choose_backend(gpu, table=True) == "reference"
    monkeypatch.setattr(attention, "available", lambda q: False)
    assert attention.choose_backend(gpu, table=True) == "sdpa"


def test_kernels_that_cannot_run_are_refused():
    """Asked for by name where they cannot run: why, and what to ask for instead."""
    case = make_attention()
    with pytest.raises(
        PatchError,
        match="'triton' cannot run: the kernels take .* and the queries are torch.float64; ask",
    ):
        segment_attention(case.q, case.k, case.v, slots_k=case.slots, backend="triton")


BAD = {
    "slot 12 is outside the bank, whose slots are 0..11": lambda c: dict(
        slots_k=torch.full_like(c.slots, 12)
    ),
    "slot -2 is outside": lambda c: dict(slots_k=torch.full_like(c.slots, -2)),
    "slot 99 is outside": lambda c: dict(slots_k=c.slots, slots_v=torch.full_like(c.slots, 99)),
    r"slots of keys are \(3, 2, 3\) on cpu; 2 rows": lambda c: dict(slots_k=c.slots[[0, 0, 1]]),
    r"slots of keys are \(2, 3, 3\)": lambda c: dict(slots_k=c.slots[:, [0, 1, 1]]),
    r"slots of values are \(2, 2, 2\)": lambda c: dict(slots_k=c.slots, slots_v=c.slots[..., 1:]),
    "slots of keys are torch.float64; give int32": lambda c: dict(slots_k=c.slots.double()),
    r"slots of keys are \(2, 2, 3\) on meta": lambda c: dict(slots_k=c.slots.to("meta")),
    "3 rows of text for 2 rows": lambda c: dict(),
    r"text keys are \(3, 1, 4, 4\)": lambda c: dict(slots_k=c.slots, k=(c.k[0], c.k[1][:, :1])),
    r"text values are \(3, 2, 3, 4\)": lambda c: dict(
        slots_k=c.slots, v=(c.v[0], c.v[1][:, :, :3])
    ),
    r"text values are \(3, 2, 4, 3\)": lambda c: dict(slots_k=c.slots, v=(c.v[0], c.v[1][..., :3])),
    r"image keys are \(1, 2, 5, 4\)": lambda c: dict(slots_k=c.slots, k=(c.k[0][:1], c.k[1])),
    r"image values are \(2, 2, 4, 4\)": lambda c: dict(
        slots_k=c.slots, v=(c.v[0][:, :, 1:], c.v[1])
    ),
    "image keys without image values": lambda c: dict(slots_k=c.slots, v=(None, c.v[1])),
    r"text queries are \(1, 2, 3, 4\)": lambda c: dict(slots_k=c.slots, q=(c.q[0], c.q[1][:1])),
    r"image queries are \(2, 2, 6\); give four dimensions": lambda c: dict(
        q=(c.q[0][..., 0], None)
    ),
    r"text queries are \(2, 3\); give four": lambda c: dict(q=(c.q[0], c.q[1][0, ..., 0])),
    r"image keys are \(5, 4\); give four": lambda c: dict(k=(c.k[0][0, 0], c.k[1])),
    r"image values are \(5, 4\); give four": lambda c: dict(v=(c.v[0][0, 0], c.v[1])),
    r"text keys are \(3, 4, 4\); give four": lambda c: dict(k=(c.k[0], c.k[1][:, 0])),
    r"text values are \(1, 3, 2, 4, 4\); give four": lambda c: dict(v=(c.v[0], c.v[1][None])),
    "text values are .*torch.float32": lambda c: dict(slots_k=c.slots, v=(c.v[0], c.v[1].float())),
    "text keys are None; give a tensor": lambda c: dict(k=(c.k[0], None)),
    "text values are None; give a tensor": lambda c: dict(v=(c.v[0], None)),
    "image queries are None; give a tensor": lambda c: dict(q=(None, c.q[1])),
    "image keys are a list of 2; give a torch.Tensor": lambda c: dict(k=([1, 2], c.k[1])),
    "q is a Tensor; give a pair": lambda c: dict(q=c.q[0]),
    "v is a tuple of 1; give a pair": lambda c: dict(v=c.v[:1]),
    "slots of keys are a list of 2; give an int32": lambda c: dict(slots_k=c.slots.tolist()),
    r"slots of values are \(\); give an int32": lambda c: dict(slots_v=torch.tensor(0)),
    "text keys are .* on meta": lambda c: dict(slots_k=c.slots, k=(c.k[0], c.k[1].to("meta"))),
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_refused(message):
    """Shapes, dtypes, devices and slots: a PatchError with both values."""
    case = make_attention()
    with pytest.raises(PatchError, match=message):
        segment_attention(**{"q": case.q, "k": case.k, "v": case.v} | BAD[message](case))


def test_a_table_is_looked_into_once(monkeypatch):
    """Asked again only after a write, for a bank of another size, or of a table whose writes torch does
    not count.
    """
    looks = []
    look = tables_of_slots._look
    monkeypatch.setattr(
        tables_of_slots, "_look", lambda *args: looks.append(args[1]) or look(*args)
    )
    table = row_slots(torch.tensor([0, 1]), 3)
    assert [tables_of_slots._look_once(table, 6) for _ in range(3)] == [
        (False, False)
    ] * 3 and looks == [6]
    with pytest.raises(PatchError, match="slot 5 is outside the bank, whose slots are 0..4"):
        tables_of_slots._look_once(table, 5)
    table[0, 0, 0] = -1
    assert [tables_of_slots._look_once(table, 6) for _ in range(2)] == [
        (True, False)
    ] * 2 and looks == [
        6,
        5,
        6,
    ]
    with torch.inference_mode():
        uncounted = table + 0
    assert tables_of_slots._look_once(uncounted, 6) == (True, False)
    with torch.inference_mode():
        uncounted.fill_(-1)
    assert tables_of_slots._look_once(uncounted, 6) == (True, True)


def test_autocast():
    """Under autocast queries and keys of two dtypes meet in autocast's, as in torch's own attention.

    The log sum exp is wide.
    """
    case = make_attention()
    q, k, v = ([x.float() for x in pair] for pair in (case.q, case.k, case.v))
    with torch.autocast("cpu", torch.bfloat16):
        image, _, lse = segment_attention(
            q, k, [x.bfloat16() for x in v], slots_k=case.slots, return_lse=True
        )
    halves = ([x.bfloat16() for x in pair] for pair in (q, k, v))
    exact, _, sums = segment_attention(*halves, slots_k=case.slots, return_lse=True)
    assert image.dtype == torch.bfloat16 and torch.equal(image, exact)
    assert lse.dtype == torch.float32 and torch.equal(lse, sums)


def test_autocast_leaves_float64():
    """Under autocast float64 stays float64, of the bits it has without, as in torch's
    scaled_dot_product_attention.
    """
    case = make_attention()
    k, v = (gather_text(x[1], case.slots) for x in (case.k, case.v))
    text = (case.q[0], None), (None, case.k[1]), (None, case.v[1])
    alone = segment_attention(*text, slots_k=case.slots)[0]
    with torch.autocast("cpu", torch.bfloat16):
        ours, torchs = (
            segment_attention(*text, slots_k=case.slots)[0],
            scaled_dot_product_attention(case.q[0], k, v),
        )
    assert ours.dtype == torchs.dtype == torch.float64
    assert torch.equal(ours, alone) and laws.close(ours, torchs)


def test_row_slots():
    """slots[b, 0, t] = donor(b) T + t, int32."""
    assert row_slots(torch.tensor([1, 0]), 2).tolist() == [[[2, 3]], [[0, 1]]]
    assert row_slots(torch.tensor([1, 0]), 2).dtype == torch.int32

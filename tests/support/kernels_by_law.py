"""The laws of the Triton kernels, and faults they must notice: on a GPU, or on a CPU by Triton's interpreter.

Run by test_kernels.py in a process of its own, since TRITON_INTERPRET is read when a kernel is defined.
"""

import importlib.util
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch

import textpatch.kernels
import textpatch.kernels.backward
import textpatch.kernels.forward
from support import kernel_laws as laws
from support.planting import occurrences
from support.strategies import make_attention
from textpatch.attention import _segment_attention, segment_attention

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16, *([] if INTERPRETED else [torch.bfloat16])]
SOURCES = Path(textpatch.kernels.__file__).parent


def matmul(a, b, dtype=None):
    """numpy.matmul by torch: two BLAS differ by 13 % of their error at 256 products, and in the bits of q
    k^T.
    """
    a, b = (torch.from_numpy(numpy.ascontiguousarray(x)).float() for x in (a, b))
    return (a @ b).numpy()


@pytest.fixture(autouse=True)
def _one_library_multiplies(monkeypatch):
    """The kernel and the eager ruler multiply with the same library, so that their errors can be compared."""
    if INTERPRETED:
        monkeypatch.setattr(numpy, "matmul", matmul)


@pytest.fixture(autouse=True)
def _nothing_is_copied_back(monkeypatch):
    """The interpreter copies every storage onto itself after each kernel, and law_far_... has gigabytes."""
    if INTERPRETED:
        monkeypatch.setattr(
            "triton.runtime.interpreter.GridExecutor._restore_args_dev", lambda *args: None
        )


@pytest.fixture(autouse=True)
def _patched_once_a_launch(monkeypatch):
    """The interpreter patches triton.language anew in each call of a launch, 9 of the laws' 36 seconds."""
    if INTERPRETED:
        from triton.runtime import interpreter

        monkeypatch.setattr(interpreter, "_patch_lang", once_a_launch(interpreter))


def once_a_launch(interpreter):
    """A function that patches the modules a function calls by, unless the launch under way has patched them.

    What a launch has patched is restored at its end, the last first.
    """
    patch_lang = interpreter._patch_lang
    scopes = {}

    def patched(function):
        called_by = frozenset(name for name in ("tl", "core") if name in function.__globals__)
        if called_by in scopes:
            return interpreter._LangPatchScope()
        scopes[called_by] = patch_lang(function)
        outermost = interpreter._LangPatchScope()
        if len(scopes) == 1:
            outermost.restore = restore
        return outermost

    def restore():
        while scopes:
            scopes.popitem()[1].restore()

    return patched


SLOW = pytest.mark.long
PEAKS = [8.0, pytest.param(1.0, marks=SLOW)]


@pytest.mark.parametrize("peak", PEAKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward(dtype, peak, long):
    """Results against float64: no further off than eager, and SDPA."""
    cases = laws.numeric(range(15 if long else 1), dtype, DEVICE, peak)
    laws.law_forward_errs_no_more_than_eager(textpatch.kernels, cases)


@pytest.mark.parametrize("peak", PEAKS)
@pytest.mark.parametrize(
    "dtype",
    [pytest.param(dtype, marks=[SLOW] * (dtype is torch.float16)) for dtype in DTYPES],
    ids=str,
)
def test_backward(dtype, peak, long):
    """Gradients against autograd in float64: at most twice as far off as eager's."""
    cases = laws.numeric(range(100, 110) if long else [101], dtype, DEVICE, peak)
    laws.law_gradients_err_no_more_than_twice_eager(textpatch.kernels, cases)


SMALL = replace(laws.SMALL, device=DEVICE)
HEADS = replace(SMALL, H=2, G=2)
RAGGED = replace(HEADS, tables="kv", per_head=True, hidden=0.3)
PEAKED = replace(SMALL, dtype=torch.float16, D=32, peak=8.0)
FAR = replace(SMALL, dtype=torch.float16, B=3, M=3, Mt=0, N=3, T=4, S=3)
FAR_ROWS = replace(FAR, M=1, N=2, S=2)
FAR_HEADS = replace(FAR, B=1, R=1, H=3, G=3, M=1, N=2, S=2)
LONG = replace(SMALL, dtype=torch.float16, T=83, N=66)
PROPERTIES = [
    (laws.law_what_cancels_is_not_rounded, PEAKED),
    pytest.param(laws.law_a_swap_is_a_copy, replace(HEADS, T=9), marks=SLOW),
    (laws.law_a_swap_is_a_copy, replace(SMALL, T=9, tables="v", R=2)),
    pytest.param(laws.law_a_swap_is_a_copy, replace(LONG, tables="kv"), marks=SLOW),
    (laws.law_a_row_is_alone, replace(RAGGED, H=1, G=1, T=7)),
    (laws.law_rows_not_named_stay, SMALL),
    (laws.law_unread_tokens_are_nothing, replace(RAGGED, H=1, G=1, T=7)),
    pytest.param(laws.law_the_order_of_the_bank_is_nothing, RAGGED, marks=SLOW),
    (laws.law_hidden_in_either_is_hidden, replace(SMALL, tables="kv", T=7)),
    (laws.law_nothing_seen_is_zero, SMALL),
    (laws.law_wild_slots_are_loud, replace(SMALL, tables="kv", T=7)),
    (laws.law_strides_are_nothing, replace(HEADS, B=1)),
    pytest.param(laws.law_strides_are_nothing, HEADS, marks=SLOW),
    (laws.law_far_is_no_further_than_near, FAR_ROWS),
    pytest.param(laws.law_far_is_no_further_than_near, FAR, marks=SLOW),
    pytest.param(laws.law_far_is_no_further_than_near, FAR_HEADS, marks=SLOW),
    pytest.param(laws.law_one_table_serves_all_heads, HEADS, marks=SLOW),
    (laws.law_padding_is_nothing, replace(SMALL, D=40)),
    (laws.law_key_heads_serve_their_group, replace(HEADS, B=1, H=4)),
    (laws.law_the_lse_is_optional, SMALL),
]


@pytest.mark.parametrize(
    "law, case", PROPERTIES, ids=lambda value: getattr(value, "__name__", None)
)
def test_property(law, case):
    """The law holds; its docstring is the claim."""
    law(textpatch.kernels, case)


def _attention(**sizes) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Leaves q, k and v of image and text, and a table of slots with hidden ones."""
    case = make_attention(**sizes)
    leaves = [
        x.float().to(DEVICE).requires_grad_() for pair in (case.q, case.k, case.v) for x in pair
    ]
    return leaves, case.slots.masked_fill(case.slots % 4 == 0, -1).to(DEVICE)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=SLOW), False])
@pytest.mark.parametrize("text", [pytest.param(True, marks=SLOW), False])
def test_property_of_the_op(text, compiled):
    """segment_attention by the kernels and its gradients, also compiled: those of the definition, 1e-5."""
    tensors, slots = _attention(rows=2, heads=1, image=7, bank_tokens=5)

    def results(backend: str):
        q, k, v = zip(tensors[::2], tensors[1::2], strict=True)
        made = segment_attention(
            (q[0], q[1] if text else None), k, v, slots_k=slots, backend=backend
        )
        loss = sum(x.sin().sum() for x in made if x is not None)
        return [x for x in made if x is not None], torch.autograd.grad(
            loss, tensors, materialize_grads=True
        )

    run = torch.compile(results, backend="aot_eager", fullgraph=False) if compiled else results
    for made, expected in zip(run("triton"), results("reference"), strict=True):
        assert all(
            torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(made, expected, strict=True)
        )


@pytest.mark.long
@pytest.mark.parametrize("text", [True, False])
def test_opcheck(text):
    """torch.library.opcheck finds nothing in the op by the kernels, on one row of one head.

    By default tests/core/test_attention.py asks the op by SDPA.
    """
    tensors, slots = _attention(rows=1, heads=1, bank=2)
    inputs = [tensors[0], tensors[1] if text else None, *tensors[2:]]
    checked = torch.library.opcheck(_segment_attention, (*inputs, slots, None, 0.5, "triton", True))
    assert set(checked.values()) == {"SUCCESS"}


def test_every_law_is_asked():
    """{laws} = {laws with a case}."""
    stated = {law for name, law in vars(laws).items() if name.startswith("law_")}
    numbers = {
        laws.law_forward_errs_no_more_than_eager,
        laws.law_gradients_err_no_more_than_twice_eager,
    }
    cases = [getattr(case, "values", case) for case in PROPERTIES]
    assert stated == numbers | {law for law, _ in cases}


def forward(kernels, case):
    laws.law_forward_errs_no_more_than_eager(kernels, [case])


def backward(kernels, case):
    laws.law_gradients_err_no_more_than_twice_eager(kernels, [case])


TWO_TILES = replace(SMALL, M=34, Mt=3, N=33, T=37, S=9)
FAULTS = {
    "earlier weights not scaled down": (
        forward,
        TWO_TILES,
        "forward",
        "total * decay +",
        "total +",
    ),
    "earlier values not scaled down": (
        forward,
        TWO_TILES,
        "forward",
        "out * decay[:, None],",
        "out,",
    ),
    "base e for base 2": (forward, SMALL, "tiles", "scale / math.log(2)", "scale"),
    "largest of this tile alone": (
        forward,
        replace(TWO_TILES, peak=64.0),
        "forward",
        "tl.maximum(most, tl.max(scores, 1))",
        "tl.max(scores, 1)",
    ),
    "tail of the text forgotten": (
        forward,
        TWO_TILES,
        "forward",
        "range(whole, sizes.text_keys, TAIL)",
        "range(whole, whole, TAIL)",
    ),
    "last image keys unmasked": (
        forward,
        SMALL,
        "tiles",
        'v, tl.where(inside, 0.0, float("-inf"))',
        "v, tl.where(inside, 0.0, 0.0)",
    ),
    "LSE in base 2": (forward, SMALL, "forward", "tl.log2(total)) * LN2", "tl.log2(total))"),
    "LSE of the text over the image's": (
        forward,
        SMALL,
        "tiles",
        "sizes.image_queries + text)",
        "text)",
    ),
    "values through the table of keys": (
        forward,
        replace(SMALL, tables="kv"),
        "tiles",
        "slot_v // given.sizes.bank_tokens\n token_v = slot_v %",
        "slot_k // given.sizes.bank_tokens\n        token_v = slot_k %",
    ),
    "table of one head for all": (
        forward,
        replace(HEADS, per_head=True),
        "tiles",
        "vectors(slots.expand(-1, heads, -1))",
        "vectors(slots[:, :1].expand(-1, heads, -1))",
    ),
    "hidden in keys alone": (
        laws.law_hidden_in_either_is_hidden,
        replace(SMALL, tables="kv"),
        "tiles",
        "seen = (tl.minimum(slot_k, slot_v) >= 0)",
        "seen = (slot_k >= 0)",
    ),
    "head dim stride taken for one": (
        laws.law_strides_are_nothing,
        HEADS,
        "tiles",
        "[:, None] + (d * x.d)[None, :]\n    return",
        "[:, None] + d[None, :]\n    return",
    ),
    "row in 32 bits": (
        laws.law_far_is_no_further_than_near,
        FAR_ROWS,
        "tiles",
        "row.to(tl.int64) * x.b",
        "row * x.b",
    ),
    "head in 32 bits": (
        laws.law_far_is_no_further_than_near,
        FAR_HEADS,
        "tiles",
        "head.to(tl.int64) * x.h",
        "head * x.h",
    ),
    "token in 32 bits": (
        laws.law_far_is_no_further_than_near,
        FAR,
        "tiles",
        "token.to(tl.int64) * x.n",
        "token * x.n",
    ),
    "division by nothing seen": (
        laws.law_nothing_seen_is_zero,
        SMALL,
        "forward",
        "tl.where(total == 0.0, 1.0, total)",
        "total",
    ),
    "wild slots hidden": (
        laws.law_wild_slots_are_loud,
        replace(SMALL, tables="kv"),
        "tiles",
        'tl.where(wild, float("nan"), ',
        "tl.where(wild, 0.0, ",
    ),
    "wild slots of values hidden": (
        laws.law_wild_slots_are_loud,
        replace(SMALL, tables="kv"),
        "tiles",
        "wild = (tl.minimum(slot_k, slot_v) < -1)",
        "wild = (slot_k < -1)",
    ),
    "key heads not shared": (
        laws.law_key_heads_serve_their_group,
        replace(HEADS, H=4),
        "tiles",
        "k = load_tile(given.k_text, row_k, head // given.sizes.group,",
        "k = load_tile(given.k_text, row_k, head % (4 // given.sizes.group),",
    ),
    "results in rows of heads": (
        laws.law_strides_are_nothing,
        HEADS,
        "tiles",
        "like.new_empty(b, n, h, d, dtype=dtype).transpose(1, 2)",
        "like.new_empty(b, h, n, d, dtype=dtype)",
    ),
    "delta forgotten": (
        backward,
        SMALL,
        "backward",
        'tl.trans(v), input_precision="ieee") - delta[:, None])',
        'tl.trans(v), input_precision="ieee"))',
    ),
    "delta of a rounded result": (
        laws.law_what_cancels_is_not_rounded,
        PEAKED,
        "forward",
        "torch.float32 if wide else None",
        "None",
    ),
    "scale forgotten in dQ": (backward, SMALL, "backward", "share * scale * LN2", "share"),
    "scale forgotten in dK": (backward, SMALL, "backward", "dk * (scale * LN2)", "dk"),
    "text queries forgotten in dK": (
        backward,
        SMALL,
        "backward",
        "count = sizes.text_queries",
        "count = 0",
    ),
    "text queries read the image's numbers": (
        backward,
        SMALL,
        "backward",
        "at = sizes.image_queries",
        "at = 0",
    ),
    "last reader forgotten": (
        backward,
        SMALL,
        "backward",
        "tl.max(stop - start)",
        "tl.max(stop - start) - 1",
    ),
    "donors of values by the keys' table": (
        backward,
        replace(SMALL, tables="kv"),
        "backward",
        "None if slots_k is None else (slots_k, slots_v)",
        "None if slots_k is None else (slots_k, slots_k)",
    ),
    "readers of the next token": (
        laws.law_unread_tokens_are_nothing,
        replace(RAGGED, T=7),
        "backward",
        "torch.searchsorted(read, ends.",
        "torch.searchsorted(read, (ends + 1).",
    ),
    "gradient of nothing seen": (
        laws.law_nothing_seen_is_zero,
        SMALL,
        "backward",
        'tl.where(lse == float("-inf"), 0.0, lse / LN2)',
        "lse / LN2",
    ),
}


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """A function that imports a copy of the kernels with one text of one file changed."""

    def copy(file: str, old: str, new: str):
        shutil.copytree(SOURCES, tmp_path / "faulty", ignore=shutil.ignore_patterns("__pycache__"))
        path = tmp_path / "faulty" / f"{file}.py"
        source = path.read_text()
        places = occurrences(source, old)
        assert len(places) == 1, f"{file} holds {old!r} {len(places)} times"
        start, end = places[0]
        path.write_text(source[:start] + new + source[end:])
        spec = importlib.util.spec_from_file_location("faulty", path.parent / "__init__.py")
        made = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "faulty", made)
        spec.loader.exec_module(made)
        made.forward = importlib.import_module("faulty.forward")
        made.backward = importlib.import_module("faulty.backward")
        return made

    yield copy
    for name in [name for name in sys.modules if name.startswith("faulty")]:
        del sys.modules[name]


# These take the interpreter more than a second each.  Beside each stands a fault of its kind that is shorter.
LONG_FAULTS = {
    "division by nothing seen",
    "tail of the text forgotten",
    "results in rows of heads",
    "head dim stride taken for one",
    "wild slots of values hidden",
    "scale forgotten in dQ",
    "text queries forgotten in dK",
    "token in 32 bits",
    "head in 32 bits",
    "key heads not shared",
    "readers of the next token",
    "last reader forgotten",
    "delta of a rounded result",
    "row in 32 bits",
    "hidden in keys alone",
    "text queries read the image's numbers",
    "largest of this tile alone",
    "gradient of nothing seen",
    "donors of values by the keys' table",
    "scale forgotten in dK",
    "earlier values not scaled down",
    "table of one head for all",
}

if INTERPRETED:  # a planted fault may read wild, which is no way to treat a GPU

    @pytest.mark.parametrize(
        "fault",
        [pytest.param(fault, marks=[SLOW] * (fault in LONG_FAULTS)) for fault in FAULTS],
    )
    def test_the_law_notices(fault, faulty):
        """Not law(kernels with the fault); test_property and test_forward hold the law without it."""
        law, case, *place = FAULTS[fault]
        with pytest.raises(AssertionError):
            law(faulty(*place), case)

    def test_the_interpreter_refuses_bfloat16():
        """It would multiply the raw bits."""
        q = torch.zeros(1, 1, 2, 16)
        taken = textpatch.kernels.DTYPES
        assert [dtype for dtype in taken if textpatch.kernels.refusal(q.to(dtype))] == [
            torch.bfloat16
        ]

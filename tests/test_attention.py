"""Laws of segment_attention: an index into a bank, one result on all backends, gradients to the donors."""

from dataclasses import replace

import laws
import pytest
import torch
from hypothesis import given
from strategies import attentions, make_attention

from textpatch.attention import attention_reference, gather_text, row_slots, segment_attention


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


@given(attentions())
def test_gradients(case):
    """gradcheck; d out / d (unread token) = 0."""
    laws.law_gradients_reach_the_donors(case)


@given(attentions())
def test_backends_agree(case):
    """sdpa = softmax(q k^T / sqrt(D)) v, 1e-12 in float64, masked or not."""
    for slots in (case.slots, case.slots.masked_fill(case.slots % 2 == 0, -1)):
        assert laws.close(*(laws.attend(replace(case, backend=b), slots) for b in ("sdpa", "reference")))


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_no_gradient_is_nan_where_nothing_is_seen(backend):
    """All keys hidden: out = 0 and every gradient = 0."""
    case = make_attention(backend=backend)
    k, v = (x[1].clone().requires_grad_() for x in (case.k, case.v))
    laws.attend(case, torch.full_like(case.slots, -1), k, v, image=False).sum().backward()
    assert not k.grad.any() and not v.grad.any()


@pytest.mark.parametrize("dtype, factor", [(torch.float32, 1.1), (torch.bfloat16, 1.0)])
@pytest.mark.parametrize("tokens", [7, 77])
def test_sdpa_errs_no_more_than_eager(dtype, factor, tokens):
    """rms |sdpa - float64| <= 1.1 (bfloat16: 1.0) rms |eager - float64|, same inputs."""
    generator = torch.Generator().manual_seed(tokens)
    qkv = [torch.randn(4, 3, n, 64, generator=generator).to(dtype) for n in (96, 64 + tokens, 64 + tokens)]
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
        assert text is None and laws.close(image, attention_reference(case.q[0] * 0.3, k, v, scale=1.0))


def test_row_slots():
    """slots[b, 0, t] = donor(b) T + t, int32."""
    assert row_slots(torch.tensor([1, 0]), 2).tolist() == [[[2, 3]], [[0, 1]]]
    assert row_slots(torch.tensor([1, 0]), 2).dtype == torch.int32

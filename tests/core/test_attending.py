"""Keys and values are written into as long as they are attended to, and then are the module's own again."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from support.planting import plant
from textpatch import Plan, Row, SiteSpec, Span, Swap, attending, find_sites, swap

ROWS = [Row("a", "a"), Row("b", "b")]
TABLE = [SiteSpec("layer", "cross", projections=("key", "value"), span=Span(text="text"), heads=2)]
TEXT = torch.arange(24.0).sin().view(2, 3, 4)


def apart(k, v):
    return k, v


def one_tensor(k, v):
    return k, k


def shared_heads(k, v):
    """All heads are one in memory."""
    return k[:, :1].expand_as(k), v[:, :1].expand_as(v)


class Keeping(nn.Module):
    """Cross-attention that keeps what it attended to, as a model with a cache does."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.key, self.value = nn.Linear(4, 8), nn.Linear(4, 8)
        self.form = form

    def forward(self, text):
        k, v = (
            made.unflatten(-1, (2, -1)).transpose(1, 2)
            for made in (self.key(text), self.value(text))
        )
        self.kept = self.form(k, v)
        return F.scaled_dot_product_attention(torch.ones(2, 2, 5, 4), *self.kept)


class Net(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.layer = Keeping(form)

    def forward(self, text, t):
        return self.layer(text)


def run(form, part, gradients):
    """What a net gives under a swap of one head, and keeps.   With gradients it attends to copies."""
    net = Net(form)
    plan = Plan([Swap(0, "a", "b", heads=[0], part=part)])
    with torch.set_grad_enabled(gradients), swap(net, plan, ROWS, sites=find_sites(net, TABLE)):
        output = net(text=TEXT, t=0)
    return output, net.layer.kept


def require_as_with_copies(form, part):
    """Whether they are written into or copied, the output is one, and so is what the module keeps."""
    written, kept = run(form, part, gradients=False)
    copied, own = run(form, part, gradients=True)
    assert torch.equal(written, copied)
    assert all(map(torch.equal, kept, own))
    plain = Net(form)(text=TEXT, t=0)
    assert not torch.equal(written[0], plain[0]) and torch.equal(written[1], plain[1])


@pytest.mark.parametrize("part", ["k", "v", "kv"])
@pytest.mark.parametrize("form", [apart, one_tensor, shared_heads])
def test_what_is_attended_to_is_lent(form, part):
    """However keys and values lie in memory."""
    require_as_with_copies(form, part)


FAULTS = {
    "not given back": (
        apart,
        "_with_written",
        "for into, place, own in reversed(held):",
        "for _ in ():",
    ),
    "one tensor for both": (one_tensor, "_can_be_restored", "< len(tensors)", "< 0"),
    "heads in one place": (shared_heads, "_repeats", "return True", "return False"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_lending_is_noticed(monkeypatch, fault):
    """Fault: what is lent is not given back, or is lent where it lies in one place with other things."""
    form, *place = FAULTS[fault]
    plant(monkeypatch, attending, *place)
    with pytest.raises((AssertionError, RuntimeError)):
        require_as_with_copies(form, "k")

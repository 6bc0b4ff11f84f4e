"""Explanations have the equation of every kind of site, and the tensors that a patched call changes."""

import re

import pytest
import torch

from support.foreign import foreign
from support.planting import plant
from support.strategies import fixed_case
from textpatch import HookRegistry, Plan, Site, Span, Swap, capture, explaining, find_sites, patch
from textpatch.plan import Window

TENSOR = re.compile(r"^ +([kv])' ([\w.]+)(\[.*\])?  (\d+) x (\d+) x (\d+) x (\d+)$", re.MULTILINE)
TOKENS = {"z_image": 32}  # padded; five elsewhere
HEADS = (0,)
PLACES = (1, 3)


def patched(model, site, call, part: str) -> torch.Tensor:
    """Output of a call in which row 0 reads row 1's text at some heads and tokens."""
    with capture(model, site, rows=["a", "b"]) as cache:
        call()
    with patch(model, cache, site, rows=["b", None], heads=HEADS, tokens=PLACES, part=part):
        return output_of(call)


def by_hand(model, site, call, lines, tokens: int) -> torch.Tensor:
    """Output of a call in which these entries of the tensors named are row 1's in row 0."""

    def replaced(name: str, output: torch.Tensor) -> torch.Tensor:
        made = output.clone()
        for cut in (line[2] for line in lines if line[1] == name):
            text = eval(f"made{cut}")  # (B, T, W)
            assert text.shape[1] == tokens
            entries = text.unflatten(2, (site.text_heads, -1))
            places = torch.tensor(PLACES)[:, None], torch.tensor(HEADS)
            entries[0][places] = entries[1][places].clone()
        return made

    with HookRegistry(model, {line[1] for line in lines}).replace(replaced):
        return output_of(call)


def output_of(call) -> torch.Tensor:
    """First tensor of what a model returns, that of row 0 where it returns a list."""
    made = call()
    while not isinstance(made, torch.Tensor):
        made = made[0]
    return made


def require_true(model, call, tokens: int, part: str) -> None:
    """The tensors named, replaced by hand at a swap's row, heads and tokens, make a patch's output."""
    plain = output_of(call)
    for site in find_sites(model):
        swap = Swap(site, "a", "b", heads=HEADS, tokens=PLACES, part=part)
        lines = TENSOR.findall(Plan([swap]).explain(find_sites(model), tokens=tokens))
        assert [line[0] for line in lines] == list(part)
        width = site.head_dim
        counted = ("1", str(len(HEADS)), str(len(PLACES)), str(width))
        assert all(tuple(line[3:]) == counted for line in lines)
        found = patched(model, site, call, part)
        assert torch.equal(by_hand(model, site, call, lines, tokens), found)
        assert not torch.equal(found, plain)


# by default keys alone and values alone are named on one model
@pytest.mark.parametrize(
    "name, part",
    [
        pytest.param(name, part, marks=[pytest.mark.long] * (part != "kv" and name != "sd35"))
        for name in ("sdxl", "deepfloyd_if", "sd35", "flux", "fused_flux", "z_image", "krea2")
        for part in ("kv", "k", "v")
    ],
)
def test_every_tensor_of_a_foreign_model(diffusers, name, part):
    """SDXL, IF, SD3.5, FLUX (double and single, also fused), Z-Image and Krea 2 of diffusers."""
    model, inputs = foreign(diffusers, name)
    require_true(model, lambda: model(**inputs), TOKENS.get(name, 5), part)


@pytest.mark.parametrize("architecture", ["sdxl", "if-i", "if-ii", "mmdit"])
def test_every_tensor_of_our_models(architecture):
    """SDXL, DeepFloyd IF and MMDiT of our own, two rows at a time."""
    case = fixed_case(architecture)
    x, t, text = case.inputs
    require_true(case.model, lambda: case.model(x[:2], t, text[[0, 1]]), case.tokens, "kv")


FAULTS = {
    "channels of the other part": (
        explaining,
        "_tensors",
        'zip("kv", site.taps,',
        'zip("kv", site.taps[::-1],',
    ),
    "text at the other end": (Span, "cut", '"first": f":{length}"', '"first": f"-{length}:"'),
    "channels left out": (Span, "cut", "if channels:", "if False:"),
    "part ignored": (explaining, "_tensors", "if part in swap.part:", "if True:"),
    "heads ignored": (
        explaining,
        "_tensors",
        "_how_many(swap.heads, site.text_heads)",
        "site.text_heads",
    ),
    "tokens ignored": (explaining, "_tensors", "_how_many(swap.tokens, tokens)", "tokens"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_test_notices(diffusers, fault, monkeypatch):
    """true(explain), and not true(explain with the fault)."""
    model, inputs = foreign(diffusers, "fused_flux")
    plant(monkeypatch, *FAULTS[fault])
    with pytest.raises((AssertionError, RuntimeError)):
        require_true(model, lambda: model(**inputs), 5, "k")


def test_equations():
    """Cross-attention reads text keys alone, the other kinds the image's beside them.

    Primes stand where the donor is read.
    """
    cross, joint = (
        Site(i, f"blocks.{i}", kind, 2, 4, 0) for i, kind in enumerate(("cross", "joint"))
    )
    said = [
        Plan([Swap(i, "a", "b", part=part)]).explain([cross, joint]).splitlines()[0]
        for i, part in ((0, "kv"), (1, "kv"), (1, "v"), ("all", "k"))
    ]
    assert said == [
        "a <- b:  softmax(q k'^T / sqrt(D)) v'",
        "a <- b:  softmax(q [k_image; k']^T / sqrt(D)) [v_image; v']",
        "a <- b:  softmax(q [k_image; k]^T / sqrt(D)) [v_image; v']",
        "a <- b:  softmax(q [k_image; k']^T / sqrt(D)) [v_image; v], softmax(q k'^T / sqrt(D)) v",
    ]


def test_every_word():
    """A swap with a window is printed as written here, without a run and in one."""
    case = fixed_case()
    some = Plan(
        [Swap(1, ("a", "c"), "b", steps=Window("sigma", 0.5), heads=[1], part="k", branch="cond")]
    )
    lines = [
        "a, c <- b:  softmax(q [k_image; k']^T / sqrt(D)) [v_image; v]",
        "  steps of sigma from 0.5; heads 1; tokens all; branch cond",
        "  k' of row b, same step and branch; readers x heads x tokens x head_dim:",
        "     1  transformer_blocks.1.attn  (joint)",
        "          k' transformer_blocks.1.attn.add_k_proj  2 x 1 x T x 4",
    ]
    sites = case.model.sites
    run = dict(schedule=case.pipeline.schedule, steps=3)
    assert some.explain(sites) == "\n".join(lines)
    inside = ", ".join(map(str, some.at(**run).swaps[0].steps))
    within = (
        "\n".join(lines).replace("from 0.5", f"from 0.5 = {inside}").replace("x T x 4", "x 4 x 4")
    )
    assert some.explain(sites, **run, tokens=4) == within
    assert f"steps {inside};" in some.at(**run).explain(sites)


@pytest.mark.parametrize("sites, said", [((2, 1), "1, 2"), ("*.attn", "*.attn"), (3, "3")])
def test_without_a_model_a_plan_explains_what_was_asked(sites, said):
    """A plan without a model shows both equations and the sites as they were named.

    It shows no tensors.
    """
    assert Plan([Swap(sites, "a", "b", part="v")]).explain() == (
        "a <- b:  softmax(q k^T / sqrt(D)) v' or softmax(q [k_image; k]^T / sqrt(D)) [v_image; v']\n"
        "  steps all; heads all; tokens all; branch both\n"
        f"  v' of row b, same step and branch, at sites {said}"
    )

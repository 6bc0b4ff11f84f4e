"""A swap carried out by hand: the sites' forwards written anew, K and V as tensors of which cells are
replaced.

Shares with the library the projections' weights and the norms around them; no slots, no bank, no torch
attention. B rows, T text tokens, N image tokens, H heads, D head width
"""

from functools import partial

import torch
from torch import Tensor, nn

from support.patched_calls import cells
from support.strategies import Case
from textpatch.plan import Swap


def linear(layer: nn.Linear, x: Tensor, heads: int | None = None) -> Tensor:
    """x W^T + b, in heads (B, T, H, D) if there are any."""
    y = torch.einsum("btc,oc->bto", x, layer.weight) + (0 if layer.bias is None else layer.bias)
    return y if heads is None else y.reshape(*y.shape[:2], heads, -1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v: (B, N, H, D) and twice (B, T, H, D) -> (B, N, H D)."""
    scores = torch.einsum("bnhd,bthd->bhnt", q, k) / q.shape[-1] ** 0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    return torch.einsum("bhnt,bthd->bnhd", weights, v).flatten(2)


def replaced(x: Tensor, named: Tensor, donor: int) -> Tensor:
    """x (B, T, H, D), of the donor's row in the cells (B, H, T) that are named."""
    return torch.where(named.transpose(1, 2)[..., None], x[donor : donor + 1], x)


def cross(module, heads: int, named: Tensor, donor: int, x: Tensor, text: Tensor, slots) -> Tensor:
    k, v = (
        replaced(linear(p, text, heads), n, donor)
        for p, n in zip((module.to_k, module.to_v), named, strict=True)
    )
    return linear(module.to_out[0], attend(linear(module.to_q, x, heads), k, v))


def added(module, heads: int, named: Tensor, donor: int, x: Tensor, text: Tensor, slots) -> Tensor:
    text, pixels = module.norm_cross(text.mT).mT, module.group_norm(x.flatten(2)).mT
    projections = module.add_k_proj, module.add_v_proj
    k, v = (
        replaced(linear(p, text, heads), n, donor) for p, n in zip(projections, named, strict=True)
    )
    if hasattr(module, "to_k"):
        k, v = (
            torch.cat([y, linear(p, pixels, heads)], 1)
            for p, y in ((module.to_k, k), (module.to_v, v))
        )
    out = linear(module.to_out[0], attend(linear(module.to_q, pixels, heads), k, v))
    return x + out.mT.reshape(x.shape)


def joint(module, heads: int, named: Tensor, donor: int, image: Tensor, text: Tensor, slots):
    projections = module.add_k_proj, module.add_v_proj
    k, v = (
        replaced(linear(p, text, heads), n, donor) for p, n in zip(projections, named, strict=True)
    )
    k = torch.cat([module.norm_added_k(k), module.norm_k(linear(module.to_k, image, heads))], 1)
    v = torch.cat([v, linear(module.to_v, image, heads)], 1)
    q = (
        module.norm_added_q(linear(module.add_q_proj, text, heads)),
        module.norm_q(linear(module.to_q, image, heads)),
    )
    out = attend(torch.cat(q, 1), k, v)
    text, image = out.split([text.shape[1], image.shape[1]], 1)
    return linear(module.to_out[0], image), None if module.to_add_out is None else linear(
        module.to_add_out, text
    )


FORWARDS = {"cross": cross, "added": added, "joint": joint}


def by_hand(case: Case, swap: Swap) -> Tensor:
    """One call on all rows, every site by hand."""
    named, donor = (
        cells(case, swap, 0, case.rows),
        [row.name for row in case.rows].index(swap.donor),
    )
    modules = [case.model.get_submodule(site.name) for site in case.model.sites]
    for site, module in zip(case.model.sites, modules, strict=True):
        here = named[site.index, :, :, : site.heads]
        module.forward = partial(FORWARDS[site.kind], module, site.heads, here, donor)
    try:
        return case.call()
    finally:
        for module in modules:
            del module.forward

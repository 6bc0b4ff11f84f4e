"""Attention edited without maps is attention edited by explicit maps, on every variant."""

from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from support.planting import raw, require_noticed
from support.recorded_runs import distance
from textpatch.editing import replacing
from textpatch.editing.mappers import Mapper
from textpatch.editing.replacing import (
    Columns,
    Heads,
    by_columns,
    by_queries_and_keys,
    of_row,
    text_steps,
)

H = 2
D = 4
M = 6  # image queries and keys
T = 5  # text tokens, and text queries
TOLERANCE = 1e-14  # in float64, of the largest number


def heads(seed: int, image: bool, text: bool, queries: bool) -> Heads:
    """Random queries, keys and values of both rows, of which some are not there."""
    drawn = torch.Generator().manual_seed(seed)

    def some(there: bool, *shape: int) -> torch.Tensor | None:
        return torch.randn(*shape, D, generator=drawn).double() if there else None

    return Heads(
        some(True, 2, H, M),
        some(queries, 2, H, T),
        some(image, 2, H, M),
        some(text, 2, H, T),
        some(image, H, M),
        some(text, H, T),
    )


class Asked(NamedTuple):
    """An edit with a mapper that is no permutation, a window, factors and new tokens.

    w, c  window and factor of each text token
    """

    image: bool
    mapper: Mapper
    w: torch.Tensor
    c: torch.Tensor

    @property
    def columns(self) -> Columns:
        return Columns(self.image, text_steps(self.mapper, self.w[None], self.c)[0])


def asked(seed: int, image: bool, text: bool) -> Asked:
    """A random edit, of image columns, of text columns, or of both."""
    drawn = torch.Generator().manual_seed(seed)
    alpha = torch.randint(0, 2, (T,), generator=drawn).double()
    matrix = torch.rand(T, T, generator=drawn).double() * alpha
    w = torch.randint(0, 2, (T,), generator=drawn).double() * text
    return Asked(image, Mapper(matrix, alpha), w, torch.rand(T, generator=drawn).double() + 0.5)


def maps(heads: Heads, queries: bool) -> torch.Tensor:
    """Explicit maps (2, H, queries, keys) of both rows."""
    q = replacing.joined(heads.q_image, heads.q_text if queries else None)
    k = replacing.joined(heads.k_image, heads.k_text)
    return (q @ k.mT * D**-0.5).softmax(-1)


def edited_map(own: torch.Tensor, other: torch.Tensor, edit: Asked, keys: int) -> torch.Tensor:
    """Map (H, queries, keys) of the target as published, of which the first `keys` columns are the image's.

    R = alpha (a_A M) + (1 - alpha) a_B,   a_B' = w c R + (1 - w) a_B
    """
    made = own.clone()
    if edit.image:
        made[..., :keys] = other[..., :keys]
    if own.shape[-1] > keys:
        alpha = edit.mapper.alpha
        mixed = alpha * (other[..., keys:] @ edit.mapper.matrix) + (1 - alpha) * own[..., keys:]
        made[..., keys:] = edit.w * edit.c * mixed + (1 - edit.w) * own[..., keys:]
    return made


kinds = st.sampled_from([(True, False), (False, True), (True, True)])
seeds = st.integers(0, 2**16)


@settings(max_examples=30)
@given(seeds, kinds, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_columns_by_explicit_maps(seed, kind, image, text, queries, renormalise):
    """Image columns, text columns by a mapper under windows and factors, both and neither; of the image's
    queries or of all, and divided by their sum or not.
    """
    with_image, with_text = kind
    given_heads = heads(seed, with_image, with_text, queries)
    edit = asked(seed, image and with_image, text and with_text)
    other, own = maps(given_heads, queries)
    expected = edited_map(own, other, edit, M if with_image else 0)
    if renormalise:
        expected = expected / expected.sum(-1, keepdim=True)
    values = given_heads.v_image, given_heads.v_text
    made = by_columns(given_heads, edit.columns, queries, renormalise)(*values)
    assert distance(made, expected @ replacing.joined(*values, dim=1)) <= TOLERANCE


@settings(max_examples=10)
@given(seeds, kinds, st.booleans())
def test_queries_and_keys_by_an_explicit_map(seed, kind, queries):
    """Image queries and keys of the source, the text's and all values of the target: one softmax."""
    given_heads = heads(seed, *kind, queries)
    mixed = [
        None if pair is None else pair[row : row + 1].expand_as(pair)
        for pair, row in zip(given_heads[:4], (0, 1, 0, 1), strict=True)
    ]
    expected = maps(Heads(*mixed, None, None), queries)[0]
    values = given_heads.v_image, given_heads.v_text
    made = by_queries_and_keys(given_heads)(*values)
    wanted = expected @ replacing.joined(*values, dim=1)
    assert distance(made, wanted) <= TOLERANCE


def test_one_row_is_its_own():
    """Nothing edited = attention of that row."""
    given_heads = heads(0, True, True, False)
    values = given_heads.v_image, given_heads.v_text
    for row in (0, 1):
        wanted = maps(given_heads, False)[row] @ replacing.joined(*values, dim=1)
        assert distance(of_row(given_heads, row)(*values), wanted) <= TOLERANCE


class Largest(TorchDispatchMode):
    """Largest number of elements that any operation gave."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for x in made if isinstance(made, tuple) else [made]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return made


def test_no_map_is_made():
    """With four times the tokens the largest tensor grows four times, where a map grows sixteen times."""
    largest = []
    for tokens in (256, 1024):
        q, k = torch.randn(2, 2, H, tokens, 8)
        made = Heads(q, None, k, None, k[1], None)
        with Largest() as seen:
            by_columns(made, Columns(image=True))(made.v_image, None)
        largest.append(seen.elements)
    assert largest[1] == 4 * largest[0] < H * 1024**2


BY_MAPS = partial(raw(test_columns_by_explicit_maps), 3, (True, True))
FAULTS = {
    "a mapper transposed": (
        partial(BY_MAPS, True, True, False, False),
        replacing.Columns,
        "_text_taken",
        "self.text.matrix.to(text)",
        "self.text.matrix.mT.to(text)",
    ),
    "weights beside the mapper's rows": (
        partial(BY_MAPS, True, True, False, False),
        replacing.Columns,
        "_text_taken",
        "return self.text.matrix.to(text) @ weighted",
        "return self.text.taken.to(text)[:, None] * (self.text.matrix.to(text) @ text)",
    ),
    "image columns twice": (
        partial(BY_MAPS, True, True, False, False),
        replacing.Columns,
        "kept",
        "if image is not None and self.image",
        "if image is not None and not self.image",
    ),
    "new tokens without weight": (
        partial(BY_MAPS, False, True, False, False),
        replacing,
        "text_steps",
        "+ w * factors * (1 - mapper.alpha)",
        "+ 0 * w",
    ),
    "sums that are not divided by": (
        partial(BY_MAPS, True, True, False, True),
        replacing,
        "by_columns",
        "normal if renormalise",
        "linear if renormalise",
    ),
    "the target's image keys": (
        partial(raw(test_queries_and_keys_by_an_explicit_map), 3, (True, True), True),
        replacing,
        "by_queries_and_keys",
        "heads.k_image[:1]",
        "heads.k_image[1:]",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(fault, monkeypatch):
    """The check holds, and with the fault in place it does not."""
    FAULTS[fault][0]()
    require_noticed(monkeypatch, FAULTS[fault])

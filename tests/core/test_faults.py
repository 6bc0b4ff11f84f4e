"""Faults planted in the library's source break the laws that forbid them."""

import pytest

from support.faults import FAULTS, planted, require, require_noticed
from support.planting import plant


@pytest.mark.parametrize(
    "fault, architecture", [(fault, on) for fault in FAULTS for on in planted(fault)]
)
def test_the_law_notices(fault, architecture, monkeypatch):
    """law(library), and not law(library with the fault)."""
    law, *place = FAULTS[fault]
    require(law, architecture)
    plant(monkeypatch, *place)
    require_noticed(law, architecture)

"""Faults planted in the library's source break the laws that forbid them."""

import pytest

from support.faults import FAULTS, planted, require, require_noticed
from support.planting import plant


def cases():
    """Each fault with every architecture that shows it.

    By default with MMDiT, which runs fastest, and where it shows nothing with another, each in its turn.
    """
    for number, fault in enumerate(FAULTS):
        shown = planted(fault)
        turn = "mmdit" if "mmdit" in shown else shown[number % len(shown)]
        for architecture in shown:
            marks = [pytest.mark.long] * (architecture != turn)
            yield pytest.param(fault, architecture, id=f"{fault}-{architecture}", marks=marks)


@pytest.mark.parametrize("fault, architecture", list(cases()))
def test_the_law_notices(fault, architecture, monkeypatch):
    """law(library), and not law(library with the fault)."""
    law, *place = FAULTS[fault]
    require(law, architecture)
    plant(monkeypatch, *place)
    require_noticed(law, architecture)

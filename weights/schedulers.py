"""Schedules from published configurations and from what single files say of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textpatch.errors import PatchError, WeightsError
from textpatch.reference_models.schedules import Schedule
from textpatch.reference_models.schedules.published import schedule_of


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """Schedule that a scheduler_config.json describes.

    Raises WeightsError for a class or a value that none of our schedules has, with both values.
    """
    try:
        return schedule_of(config)
    except PatchError as error:
        raise WeightsError(str(error)) from None

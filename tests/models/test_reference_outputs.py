"""Reference outputs stored with the tests: the proof that also runs where diffusers is absent."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from support import seeded_models
from support.small_models import relative

REFERENCE = load_file(Path(__file__).parents[1] / "golden" / "reference.safetensors")


@pytest.mark.parametrize("name", seeded_models.MODELS)
def test_stored_outputs_are_equalled(name):
    """Each model makes of its inputs what diffusers made of the same weights and inputs, 1e-10 in float64.

    The time sinusoids are those of the machine that made the reference.
    """
    stored = iter(
        REFERENCE[key] for key in sorted(REFERENCE) if key.startswith(f"{name}.sinusoids")
    )
    with seeded_models.sinusoids(lambda t, width: next(stored)):
        made = seeded_models.outputs(name)
    assert made and all(relative(made[key], REFERENCE[key]) <= 1e-10 for key in made)

"""Reference outputs stored with the tests: the proof that also runs where diffusers is absent."""

from pathlib import Path

import pytest
import stored
from safetensors.torch import load_file
from small import relative

REFERENCE = load_file(Path(__file__).parent / "golden" / "reference.safetensors")


@pytest.mark.parametrize("name", stored.MODELS)
def test_stored_outputs_are_equalled(name):
    """Each model makes of its inputs what diffusers made of the same weights and inputs, 1e-10 in float64."""
    made = stored.outputs(name)
    assert made and all(relative(made[key], REFERENCE[key]) <= 1e-10 for key in made)

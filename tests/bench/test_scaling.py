"""What one device computes of a fixed batch, compiled for several."""

import jax
import pytest

from utilgen_jax.bench import scaling
from utilgen_jax.errors import InputError

SETTINGS = {"classifier": "mlp", "image_size": 8, "batch_size": 64, "most_devices": 2}


@pytest.fixture(autouse=True)
def devices():
    """Those of all tests: the benchmark can make no others then."""
    assert len(jax.devices()) == 8


@pytest.mark.slow
def test_a_device_computes_its_part_of_the_batch():
    table, figures = scaling.run(SETTINGS)
    alone, of_two = figures["devices"][1], figures["devices"][2]
    for program in ("classifier", "unet"):
        # The optimiser works on whole weights.
        assert 2 * of_two[program]["flops"] == pytest.approx(alone[program]["flops"], rel=0.1)
        assert of_two[program]["bytes"] < alone[program]["bytes"]
    assert "(1.0" in table


def test_wrong_numbers_of_devices_are_told():
    assert scaling.check_settings(SETTINGS) == []
    assert "is no power of two" in scaling.check_settings(SETTINGS | {"most_devices": 3})[0]
    assert "does not divide among 128" in scaling.check_settings(SETTINGS | {"most_devices": 128})[0]
    with pytest.raises(InputError, match="has 8 devices already"):
        scaling.run(SETTINGS | {"most_devices": 64})

import dataclasses

import pytest

from tests.toy_images import CONFIG
from utilgen_jax.classifier import config as classifier_config
from utilgen_jax.classifier.config import synthetic_fraction
from utilgen_jax.classifier.model import NORMALIZATIONS
from utilgen_jax.data.augment.batch_mixing import MIXINGS


@pytest.mark.parametrize("batch_size", [2, 3, 64, 100])
def test_a_batch_holds_a_synthetic_and_a_real_image_at_least(batch_size):
    for percent in range(100):
        config = dataclasses.replace(CONFIG, batch_size=batch_size, synthetic_fraction=percent / 100)
        assert 1 <= config.num_synthetic <= batch_size - 1
        if 1 < batch_size * percent / 100 < batch_size - 1:
            assert abs(config.num_synthetic - batch_size * percent / 100) <= 0.5
    assert dataclasses.replace(config, synthetic_fraction=1.0).num_synthetic == batch_size


@pytest.mark.parametrize(("shots", "expected"), [(0, 1.0), (1, 0.75), (3, 0.5), (9, 0.25), (12, 0.2), (16, 0.2)])
def test_the_synthetic_images_count_as_three_real_ones_down_to_a_fifth(shots, expected):
    assert synthetic_fraction(shots) == pytest.approx(expected)


def test_the_choices_are_what_there_is():
    assert set(classifier_config.MIXINGS) == {"none", *MIXINGS}
    assert set(classifier_config.NORMALIZATIONS) == set(NORMALIZATIONS)

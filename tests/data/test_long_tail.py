import numpy as np
import pytest

from utilgen_jax.data.long_tail import fill_counts, long_tail_counts, long_tail_indices
from utilgen_jax.errors import InputError


def test_counts_are_those_of_the_public_code_for_cifar():
    # CIFAR-10-LT and CIFAR-100-LT as published: 12,406 and 10,847 images at factor 100, 11,203 of CIFAR-10 at 200.
    counts = long_tail_counts(5000, 10, 100.0)
    assert counts.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert counts.sum() == 12406 and long_tail_counts(500, 100, 100.0).sum() == 10847
    assert long_tail_counts(5000, 10, 200.0).sum() == 11203


def test_ends_of_the_tail():
    assert long_tail_counts(100, 3, 100.0).tolist() == [100, 10, 1]
    assert long_tail_counts(7, 5, 1.0).tolist() == [7] * 5
    assert long_tail_counts(5, 4, 100.0).tolist() == [5, 1, 1, 1]


def test_a_smaller_tail_is_part_of_a_larger_one():
    labels = np.random.default_rng(0).integers(3, size=60)
    large, small = (long_tail_indices(labels, np.array(counts), seed=1) for counts in ([12, 6, 3], [12, 3, 1]))
    assert np.bincount(labels[large]).tolist() == [12, 6, 3] and len(set(large)) == 21
    assert set(small) < set(large) and (np.diff(labels[large]) >= 0).all()
    assert set(large) != set(long_tail_indices(labels, np.array([12, 6, 3]), seed=2))
    with pytest.raises(InputError, match="class 1 has"):
        long_tail_indices(labels, np.array([5, 60, 1]), seed=0)


def test_filling_up():
    assert fill_counts(np.array([100, 10, 1]), 20).tolist() == [0, 10, 19]

import numpy as np
import pytest

from utilgen_jax.pool.selection import select_top


def test_the_best_of_each_class_in_the_order_of_the_pool():
    labels = np.array([1, 0, 1, 0, 1, 0])
    scores = np.array([0.1, 0.5, 0.9, 0.7, 0.3, 0.6])
    np.testing.assert_array_equal(select_top(labels, scores, [1, 2]), [2, 3, 4])
    np.testing.assert_array_equal(select_top(labels, scores, [2, 1]), [2, 3, 5])
    np.testing.assert_array_equal(select_top(labels, -scores, np.array([1, 1])), [0, 1])


def test_of_equal_scores_the_first_images_are_selected():
    labels = np.zeros(8, int)
    scores = np.array([0.5, 0.7, 0.5, 0.5, 0.7, 0.5, 0.2, 0.5])
    for count, expected in enumerate([[], [1], [1, 4], [0, 1, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]]):
        np.testing.assert_array_equal(select_top(labels, scores, [count]), expected)
    # So many that an unstable sort would mix them.
    np.testing.assert_array_equal(select_top(np.zeros(1000, int), np.ones(1000), [17]), np.arange(17))


def test_a_class_with_fewer_images_gives_all_of_them_and_no_other_class_makes_up_for_it():
    labels, scores = np.array([0, 2, 2, 0, 2]), np.arange(5.0)
    found = select_top(labels, scores, [5, 3, 2])
    np.testing.assert_array_equal(found, [0, 2, 3, 4])
    assert found.dtype == np.int64


@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_is_left_out_scores_higher(seed):
    rng = np.random.default_rng(seed)
    labels, scores, counts = rng.integers(4, size=60), rng.integers(5, size=60) / 5, [3, 0, 100, 7]
    chosen = select_top(labels, scores, counts)
    assert (np.diff(chosen) > 0).all()
    for label, count in enumerate(counts):
        of_class = np.flatnonzero(labels == label)
        inside, outside = np.intersect1d(of_class, chosen), np.setdiff1d(of_class, chosen)
        assert len(inside) == min(count, len(of_class))
        if len(inside) and len(outside):
            assert scores[inside].min() >= scores[outside].max()

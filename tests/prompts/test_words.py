import numpy as np
import pytest

from utilgen_jax.prompts.words import ClassWords, deal, pair_in_turn

WORDS = ClassWords((("bird", "machine"), ("cat",), ("bank", "bench", "shore")))


def rng(seed=0):
    return np.random.default_rng(seed)


def test_words_stand_class_after_class():
    assert WORDS.names == ("bird", "machine", "cat", "bank", "bench", "shore")
    assert WORDS.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert WORDS.columns.tolist() == [0, 1, 3, 4, 5] and WORDS.are_several
    np.testing.assert_allclose(WORDS.uniform_probabilities(), [1 / 2, 1 / 2, 1, 1 / 3, 1 / 3, 1 / 3])
    single = ClassWords((("cat",), ("dog",)))
    assert not single.are_several and single.columns.tolist() == []


def test_probabilities_are_reweighted_within_a_class():
    even = WORDS.uniform_probabilities()
    # Of the five words of the two classes that have several.
    logits = np.log([3.0, 1.0, 1.0, 2.0, 5.0])
    np.testing.assert_allclose(WORDS.reweighted(even, logits), [3 / 4, 1 / 4, 1, 1 / 8, 2 / 8, 5 / 8])
    np.testing.assert_allclose(WORDS.reweighted(even, logits + 900), WORDS.reweighted(even, logits))
    single = ClassWords((("cat",), ("dog",)))
    np.testing.assert_array_equal(single.reweighted(np.ones(2), np.zeros(0)), [1, 1])
    np.testing.assert_allclose(WORDS.normalized(np.array([2.0, 6, 3, 0, 0, 0])), [1 / 4, 3 / 4, 1, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("shares", "number", "counts"),
    [
        ([0.5, 0.5], 8, [4, 4]),
        ([0.5, 0.5], 7, [4, 3]),
        ([1 / 3, 1 / 3, 1 / 3], 9, [3, 3, 3]),
        ([0.75, 0.0, 0.25], 8, [6, 0, 2]),
        ([0.7, 0.3], 9, [6, 3]),
        ([1.0, 0.0], 1, [1, 0]),
    ],
)
def test_options_are_dealt_in_proportion(shares, number, counts):
    dealt = deal(np.array(shares), number, rng())
    assert len(dealt) == number
    assert np.bincount(dealt, minlength=len(shares)).tolist() == counts


def test_the_order_is_random_and_the_seeds():
    first = deal(np.array([0.5, 0.5]), 200, rng())
    np.testing.assert_array_equal(first, deal(np.array([0.5, 0.5]), 200, rng()))
    assert (first != deal(np.array([0.5, 0.5]), 200, rng(1))).any()
    # Folds take every other image: each gets both words.
    assert 30 < first[::2].sum() < 70


def test_each_image_of_a_class_gets_a_word():
    probabilities = np.array([1.0, 0.0, 1.0, 0.5, 0.5, 0.0])
    dealt = WORDS.deal_all(probabilities, [4, 7, 6], [3])
    assert dealt[:2] == [[0] * 4, [2]] and sorted(dealt[2]) == [3, 3, 3, 4, 4, 4]
    # A class that gets no images has a word all the same.
    assert WORDS.deal_all(probabilities, [0, 0, 0], [3])[:2] == [[0], [2]]
    orders = [WORDS.deal_all(WORDS.uniform_probabilities(), [60, 1, 60], seed) for seed in ([3], [3], [4])]
    assert orders[0] == orders[1] != orders[2]
    # Each class has an order of its own.
    twice = ClassWords((("a", "b"), ("c", "d"))).deal_all(np.full(4, 0.5), [60, 60], [0])
    assert [place - 2 for place in twice[1]] != twice[0]


def test_a_column_is_of_a_word_and_its_class():
    words = ClassWords((("zero", "eight"), ("cat",), ("eight", "zero")))
    encoded = words.one_hot([0, 2, 2, 1, 0], ["eight", "eight", "zero", None, None])
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    with pytest.raises(KeyError):
        words.one_hot([0], ["cat"])


def test_each_word_goes_with_each_caption():
    assert pair_in_turn([7], ["a", "b"]) == [(7, "a"), (7, "b")]
    # Not the first word with the first caption alone, as taking both in turn would have it.
    assert pair_in_turn([0, 1, 0, 1, 1], ["a", "b"]) == [(0, "a"), (1, "a"), (0, "b"), (1, "b"), (1, "a")]

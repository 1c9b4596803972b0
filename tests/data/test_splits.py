import dataclasses

import numpy as np
import pytest

from utilgen_jax.data.image_source import ArraySource, Sources
from utilgen_jax.data.splits import cross_fit_folds, few_shot
from utilgen_jax.data.subset import choose_classes
from utilgen_jax.errors import InputError


def _source(counts, prefix="train"):
    """A source with counts[k] shuffled images of class k; the first pixel is the number of the image."""
    labels = np.random.default_rng(9).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    images = np.zeros((len(labels), 4, 4, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    names = tuple(f"class {k}" for k in range(len(counts)))
    return ArraySource("made", names, labels, tuple(f"{prefix}/{n}" for n in range(len(labels))), images, 4, 1)


UNDIVIDED = Sources(_source([20, 30, 50]), None)
DIVIDED = Sources(_source([5, 6, 7]), _source([10, 20, 30], "test"))


def _consistent(part, source):
    """Images, labels and ids of a split agree."""
    positions = part.images[:, 0, 0, 0]
    np.testing.assert_array_equal(part.labels, source.labels[positions])
    assert part.ids == tuple(source.ids[position] for position in positions)
    assert part.images.dtype == np.uint8 and part.labels.dtype == np.int32


@pytest.mark.parametrize("sources", [UNDIVIDED, DIVIDED])
def test_k_shots_per_class_disjoint_from_the_test_images(sources):
    split = few_shot(sources, shots=3, seed=1)
    np.testing.assert_array_equal(np.bincount(split.real.labels), [3, 3, 3])
    _consistent(split.real, sources.train)
    _consistent(split.test, sources.test or sources.train)
    assert not set(split.real.ids) & set(split.test.ids)
    assert len(split.test) == (91 if sources is UNDIVIDED else 60)
    assert len(set(split.test.ids)) == len(split.test)


def test_shots_are_nested_and_depend_on_the_seed():
    sets = [few_shot(UNDIVIDED, shots, seed=4).real for shots in (1, 2, 5)]
    for smaller, larger in zip(sets, sets[1:], strict=False):
        assert larger.ids[: len(smaller)] == smaller.ids
    assert few_shot(UNDIVIDED, 5, seed=4).real.ids == sets[2].ids
    others = {few_shot(UNDIVIDED, 5, seed=seed).real.ids for seed in range(5)}
    assert len(others) == 5


@pytest.mark.parametrize("sources", [UNDIVIDED, DIVIDED])
def test_max_test_keeps_the_proportions(sources):
    split = few_shot(sources, shots=2, seed=0, max_test=30)
    assert len(split.test) == 30
    share = np.bincount(sources.test.labels if sources.test else sources.train.labels)
    assert np.abs(np.bincount(split.test.labels) - 30 * share / share.sum()).max() <= 1
    assert not set(split.real.ids) & set(split.test.ids)
    assert few_shot(sources, shots=2, seed=1, max_test=30).test.ids != split.test.ids
    assert len(few_shot(sources, shots=2, seed=0, max_test=1000).test) == (94 if sources is UNDIVIDED else 60)


def test_a_small_test_set_is_the_same_for_every_number_of_shots():
    assert len({few_shot(UNDIVIDED, shots, seed=0, max_test=30).test.ids for shots in (1, 2, 5, 10)}) == 1


def test_zero_shots_means_all_training_images():
    split = few_shot(DIVIDED, shots=0, seed=0)
    assert split.real.ids == DIVIDED.train.ids
    with pytest.raises(InputError, match="no test split"):
        few_shot(UNDIVIDED, shots=0, seed=0)


def test_more_shots_than_images_names_the_classes():
    with pytest.raises(InputError, match=r"7 shots.*class 0 \(5\), class 1 \(6\)$"):
        few_shot(DIVIDED, shots=7, seed=0)
    assert len(few_shot(DIVIDED, shots=5, seed=0).real) == 15
    # Without a test split, one image per class is needed for testing.
    with pytest.raises(InputError, match=r"class 0 \(20\); without a test split"):
        few_shot(UNDIVIDED, shots=20, seed=0)
    assert np.bincount(few_shot(UNDIVIDED, shots=19, seed=0).test.labels)[0] == 1


@pytest.mark.parametrize(("shots", "max_test"), [(-1, 0), (1, -1)])
def test_negative_counts_are_refused(shots, max_test):
    with pytest.raises(InputError, match="negative"):
        few_shot(DIVIDED, shots, seed=0, max_test=max_test)


def test_take_keeps_things_together():
    part = few_shot(UNDIVIDED, shots=2, seed=0).test.take([3, 0])
    assert len(part) == 2
    _consistent(part, UNDIVIDED.train)


@pytest.mark.parametrize("counts", [[1, 1, 1], [2, 2], [1, 4, 2], [5, 5, 5, 5], [10], [1] * 10])
@pytest.mark.parametrize("num_folds", [2, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_folds_are_balanced_and_validate_every_image_once(counts, num_folds, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    folds = cross_fit_folds(labels, num_folds, seed)
    everything = np.arange(len(labels))
    assert len(folds) == num_folds
    np.testing.assert_array_equal(np.sort(np.concatenate([fold.validation_indices for fold in folds])), everything)
    for fold in folds:
        both = np.concatenate([fold.train_indices, fold.validation_indices])
        np.testing.assert_array_equal(np.sort(both), everything)
    in_folds = np.array([np.bincount(labels[fold.validation_indices], minlength=len(counts)) for fold in folds])
    assert in_folds.sum(axis=1).min() >= 1
    assert np.ptp(in_folds.sum(axis=1)) <= 1
    assert np.ptp(in_folds, axis=0).max() <= 1


def test_folds_depend_on_the_seed_alone():
    labels = np.repeat(np.arange(3), 4)
    parts = [tuple(cross_fit_folds(labels, 2, seed)[0].validation_indices) for seed in (0, 0, 1, 2, 3)]
    assert parts[0] == parts[1]
    assert len(set(parts)) > 2


@pytest.mark.parametrize("num_folds", [0, 1, 4])
def test_folds_that_do_not_fit_are_refused(num_folds):
    with pytest.raises(InputError, match="folds of 3 real images"):
        cross_fit_folds(np.array([0, 1, 2]), num_folds, 0)


def test_originals_are_those_of_the_shots_at_any_size():
    sources = Sources(choose_classes(UNDIVIDED.train, {"class 0": "zero", "class 2": "two"}), None)
    split = few_shot(sources, shots=3, seed=1)
    split = dataclasses.replace(split, real=split.real.take([4, 0, 3]))
    np.testing.assert_array_equal(split.originals(4, 1), split.real.images)
    larger = split.originals(8, 3)
    assert larger.shape == (3, 8, 8, 3) and larger.dtype == np.uint8
    np.testing.assert_array_equal(larger[:, 0, 0, 0], split.real.images[:, 0, 0, 0])


def _wide(number=4, width=12):
    """Images three times as wide as high, of whose columns each has its own grey level."""
    images = np.broadcast_to((10 * np.arange(width, dtype=np.uint8))[:, None], (number, 4, width, 1))
    names, ids = ("a", "b"), tuple(f"{n}" for n in range(number))
    return Sources(ArraySource("wide", names, np.arange(number, dtype=np.int32) % 2, ids, images, 4, 1), None)


def test_crops_are_squares_at_random_places_of_the_longer_side():
    split = few_shot(_wide(), 1, seed=0)
    crops = split.crops(4, 1, 40, False, np.random.default_rng(0))
    assert crops.shape == (80, 4, 4, 1) and crops.dtype == np.uint8
    first = crops[:, 0, 0, 0] // 10
    np.testing.assert_array_equal(crops[:, 0, :, 0], 10 * (first[:, None] + np.arange(4)))
    assert set(first) == set(range(9)) - {8}  # the last place is that of a draw of exactly 1
    np.testing.assert_array_equal(crops, split.crops(4, 1, 40, False, np.random.default_rng(0)))
    middle = split.crops(4, 1, 0, False, np.random.default_rng(0))
    np.testing.assert_array_equal(middle, split.originals(4, 1))


def test_crops_are_mirrored_where_asked():
    split = few_shot(_wide(), 1, seed=0)
    both = split.crops(4, 1, 0, True, np.random.default_rng(0))
    np.testing.assert_array_equal(both[:2], split.originals(4, 1))
    np.testing.assert_array_equal(both[2:], both[:2, :, ::-1])
    rising = np.diff(split.crops(4, 1, 40, True, np.random.default_rng(0))[:, 0, :2, 0].astype(int)).ravel()
    assert set(rising) == {10, -10} and 20 < np.sum(rising == 10) < 60


def test_crops_of_a_subset_are_those_of_its_images():
    sources = _wide(6)
    chosen = Sources(choose_classes(sources.train, {"b": "b", "a": "a"}), None)
    split, of_subset = few_shot(sources, 1, seed=3), few_shot(chosen, 1, seed=3)
    crops = [each.crops(4, 1, 3, True, np.random.default_rng(1)) for each in (split, of_subset)]
    np.testing.assert_array_equal(*crops)


def test_test_images_that_are_copies_of_shots_are_counted(capsys):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 16, 16, 1), dtype=np.uint8)
    others = rng.integers(0, 256, (6, 16, 16, 1), dtype=np.uint8)
    labels = np.arange(8, dtype=np.int32) % 2
    others[2], others[5] = images[3], images[4]
    others[1] = np.roll(images[0].reshape(4, 4, 4, 4, 1), 1, axis=1).reshape(16, 16, 1)  # alike once scaled down
    train = ArraySource("made", ("a", "b"), labels, tuple(f"train/{n}" for n in range(8)), images, 4, 1)
    test = ArraySource("made", ("a", "b"), labels[:6], tuple(f"test/{n}" for n in range(6)), others, 4, 1)
    split = few_shot(Sources(train, test), shots=0, seed=0)
    np.testing.assert_array_equal(split.real.images[0], split.test.images[1])
    assert capsys.readouterr().err == (
        "warning: made: 2 of 6 test images are copies of few-shot images, such as test/2 of train/3; they make "
        "accuracies too high\n"
    )


def test_a_split_without_copies_is_read_without_a_word(capsys):
    few_shot(UNDIVIDED, shots=2, seed=0)
    assert capsys.readouterr().err == ""

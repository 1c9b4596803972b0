"""Who may see which image; the one place where that is decided.

Fairness rules: the labelled real images are k shots a class, the same for every method at the same seed. Validation
images (D_v, see `cross_fit_folds`), conditioning images and whatever is adapted to real data come out of these
shots only. The test images are read once, by the final evaluation.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from utilgen_jax.data.image_source import ImageSource, Sources
from utilgen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Decoded images in memory.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N].
        ids: N stable names.
        class_names: K words.
    """

    images: np.ndarray
    labels: np.ndarray
    ids: tuple[str, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    def take(self, indices: Sequence[int] | np.ndarray) -> "LabelledImages":
        """Some of the images, in the order of indices [n]."""
        indices = np.asarray(indices, np.int64)
        return dataclasses.replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            ids=tuple(self.ids[index] for index in indices),
        )


@dataclasses.dataclass(frozen=True)
class FewShotSplit:
    """The real images that methods may use, and the test images that only the final evaluation may."""

    real: LabelledImages
    test: LabelledImages


@dataclasses.dataclass(frozen=True)
class Fold:
    """Indices into the shots, int64, sorted: a part to train on and the rest to validate on."""

    train_indices: np.ndarray
    validation_indices: np.ndarray


def few_shot(sources: Sources, shots: int, seed: int, max_test: int = 0) -> FewShotSplit:
    """Chooses the shots, and the test images.

    The shots of a seed are nested: the k-shot set is the beginning of the (k+1)-shot set. Of an undivided set every
    image but the shots is test.

    Args:
        sources: The data set.
        shots: Images a class; 0: all train images, which needs a set with a test part.
        seed: Chooses the images.
        max_test: Test images at most, in the proportions of the classes; 0: all.

    Returns:
        Decoded images: `real` one of each class after the other, `test` in the order of the source.

    Raises:
        InputError: shots or max_test below 0, or a class with too few images.
    """
    if shots < 0 or max_test < 0:
        raise InputError(f"shots={shots} and max_test={max_test} must not be negative")
    train, test = sources.train, sources.test
    counts = np.bincount(train.labels, minlength=len(train.class_names))
    if test is None and shots == 0:
        raise InputError(f"{train.name} has no test part, so shots=0 (all images) would leave nothing to test on")
    available = counts if test is not None else counts - 1
    if (available < shots).any():
        few = ", ".join(f"{train.class_names[k]} ({counts[k]})" for k in np.flatnonzero(available < shots))
        left = "" if test is not None else ", and the set has no test part, so one a class must be left for that"
        raise InputError(f"{train.name}: {shots} shots a class are more than these classes have: {few}{left}")

    rank = _rank_in_class(train.labels, seed)
    if shots == 0:
        chosen = np.arange(len(train.labels))
    else:
        chosen = np.lexsort((train.labels, rank))
        chosen = chosen[rank[chosen] < shots]
    if test is None:
        # From the far end of the same shuffle, so that the test images are nearly the same for every number of shots.
        test, rank = train, counts[train.labels] - 1 - rank
        candidates = np.setdiff1d(np.arange(len(train.labels)), chosen)
    else:
        rank = _rank_in_class(test.labels, seed)
        candidates = np.arange(len(test.labels))
    if 0 < max_test < len(candidates):
        class_sizes = np.bincount(test.labels, minlength=len(test.class_names))
        # Image r of a class of n stands at (r + 1/2) / n: any beginning of this order is in proportion.
        position = (rank[candidates] + 0.5) / class_sizes[test.labels[candidates]]
        candidates = np.sort(candidates[np.argsort(position, kind="stable")[:max_test]])
    return FewShotSplit(real=_read(train, chosen), test=_read(test, candidates))


def cross_fit_folds(labels: np.ndarray, num_folds: int, seed: int) -> list[Fold]:
    """Parts the shots into folds; each in turn is D_v, while the others are trained on.

    Stratified: the folds' sizes, and their counts of any one class, differ by one at most. With fewer shots a class
    than folds a fold cannot hold every class; the classes are then spread over the folds, and no fold is empty.

    Args:
        labels: int [N] of the shots.
        num_folds: 2..N.
        seed: Deals the images out.

    Returns:
        num_folds folds; every index is a validation index of exactly one.

    Raises:
        InputError: num_folds is out of range.
    """
    labels = np.asarray(labels)
    if not 2 <= num_folds <= len(labels):
        raise InputError(f"{num_folds} folds do not fit {len(labels)} real images; take 2..{len(labels)}")
    rng = np.random.default_rng(seed)
    # Dealing out class after class like cards, without starting anew at each class, keeps the folds even.
    dealt = np.concatenate([rng.permutation(np.flatnonzero(labels == k)) for k in rng.permutation(np.unique(labels))])
    fold_of = np.empty(len(labels), np.int64)
    fold_of[dealt] = np.arange(len(labels)) % num_folds
    return [Fold(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(num_folds)]


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A shuffle of which any beginning holds the classes in their proportions: int64 [N], of labels int [N]."""
    class_sizes = np.bincount(labels)
    return np.argsort((_rank_in_class(labels, seed) + 0.5) / class_sizes[labels], kind="stable")


def _rank_in_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """int64 [N]: the place of each image in a shuffle of its class that depends on the seed and the class alone."""
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[np.random.default_rng((seed, int(label))).permutation(members)] = np.arange(len(members))
    return rank


def _read(source: ImageSource, indices: np.ndarray) -> LabelledImages:
    return LabelledImages(
        images=source.read(indices),
        labels=source.labels[indices],
        ids=tuple(source.ids[index] for index in indices),
        class_names=source.class_names,
    )

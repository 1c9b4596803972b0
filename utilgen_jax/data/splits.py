"""Few-shot and test splits; no other module decides which images a method may use.

For a fair comparison, all methods of a seed use the same k labelled real images per class (k shots). Validation images
(D_v, see `cross_fit_folds`), conditioning images and images for fine-tuning are among these images. The test images are
read once, by the final evaluation.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from utilgen_jax.data.fingerprint import Fingerprints, digest
from utilgen_jax.data.image_source import ImageSource, Sources, random_crops
from utilgen_jax.data.streamed_images import IN_MEMORY, Images, Reading, StreamedImages
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.notes import warn

CLASS_NAMES = "class names"  # among the fingerprints
_SAMPLED = 64  # originals of which there is a fingerprint, where images are streamed


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images in memory, decoded, or to be streamed.

    Attributes:
        images: uint8 [N, H, W, C].
        labels: int32 [N].
        ids: N stable image ids.
        class_names: K class names.
    """

    images: Images
    labels: np.ndarray
    ids: tuple[str, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images, N."""
        return len(self.labels)

    def fingerprints(self, kind: str) -> Fingerprints:
        """The fingerprints of ids, labels and pixels; `kind` is what messages call the images, such as 'test'.

        Of images to be streamed pixels are left out, which it would take hours to decode.
        """
        found = {
            f"ids of the {kind} images": digest(name.encode() for name in self.ids),
            f"labels of the {kind} images": digest([self.labels.tobytes()]),
        }
        if isinstance(self.images, StreamedImages):
            return found
        pixels = digest([str(self.images.shape).encode(), self.images.tobytes()])
        return {**found, f"pixels of the {kind} images": pixels}

    def take(self, indices: Sequence[int] | np.ndarray) -> "LabelledImages":
        """Selects images by indices [n]."""
        indices = np.asarray(indices, np.int64)
        return dataclasses.replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            ids=tuple(self.ids[index] for index in indices),
        )


@dataclasses.dataclass(frozen=True)
class FewShotSplit:
    """Real images for the methods, and test images for the final evaluation only.

    Attributes:
        real: the few-shot images, as the classifier sees them.
        test: as the classifier sees them.
        source: of the few-shot images.
    """

    real: LabelledImages
    test: LabelledImages
    source: ImageSource

    @cached_property
    def fingerprints(self) -> Fingerprints:
        """The fingerprints of all images as the classifier sees them, of the shots' originals, and of the names.

        Of images to be streamed only so many originals are read.
        """
        rows, kind = self._rows(), "few-shot"
        if self.is_streamed:
            rows, kind = rows[evenly_spaced(len(rows), _SAMPLED)], f"{_SAMPLED} sampled"
        return {
            CLASS_NAMES: digest(name.encode() for name in self.real.class_names),
            f"originals of the {kind} images": digest(self.source.encoded(int(row)) for row in rows),
            **self.real.fingerprints("few-shot"),
            **self.test.fingerprints("test"),
        }

    @property
    def is_streamed(self) -> bool:
        """Whether the few-shot images are not held in memory."""
        return isinstance(self.real.images, StreamedImages)

    def originals(self, image_size: int, channels: int, reading: Reading = IN_MEMORY) -> Images:
        """The few-shot images anew, at another size: uint8 [N, image_size, image_size, channels].

        Args:
            image_size, channels: of the images.
            reading: what is held in memory.

        Raises:
            InputError: an image cannot be decoded.
        """
        shape = image_size, image_size, channels
        return reading.images(self.source.at(image_size, channels), self._rows(), shape)

    def crops(
        self, image_size: int, channels: int, number: int, is_flipped: bool, rng: np.random.Generator
    ) -> np.ndarray:
        """Random squares of the few-shot images' originals, see `image_source.random_crops`."""
        return random_crops(self.source.at(image_size, channels), self._rows(), number, is_flipped, rng)

    def _rows(self) -> np.ndarray:
        """Where the few-shot images stand in the source."""
        row_of = {name: row for row, name in enumerate(self.source.ids)}
        return np.array([row_of[name] for name in self.real.ids], np.int64)


@dataclasses.dataclass(frozen=True)
class Fold:
    """Sorted indices, int64, of the real images to train on and to validate on."""

    train_indices: np.ndarray
    validation_indices: np.ndarray


def few_shot(sources: Sources, shots: int, seed: int, max_test: int = 0, reading: Reading = IN_MEMORY) -> FewShotSplit:
    """Chooses the few-shot images and the test images.

    The choices of a seed are nested: the k-shot set is the beginning of the (k+1)-shot set. Without a test split, all
    other images are test images.

    Args:
        sources: data set.
        shots: images per class; 0 for all training images, which requires a test split.
        seed: random seed of the choice.
        max_test: maximal number of test images, stratified by class; 0 for all.
        reading: what is held in memory.

    Returns:
        Images: `real` with one image of each class in turn, `test` in the order of the source.

    Raises:
        InputError: shots or max_test is negative, a class has too few images, or images cannot be decoded.
    """
    if shots < 0 or max_test < 0:
        raise InputError(f"shots={shots} and max_test={max_test} must not be negative")
    train, test = sources.train, sources.test
    counts = np.bincount(train.labels, minlength=len(train.class_names))
    if test is None and shots == 0:
        raise InputError(f"{train.name} has no test split, so shots=0 (all images) leaves no test images")
    available = counts if test is not None else counts - 1
    if (available < shots).any():
        few = ", ".join(f"{train.class_names[k]} ({counts[k]})" for k in np.flatnonzero(available < shots))
        left = "" if test is not None else "; without a test split, one image per class is needed for testing"
        raise InputError(f"{train.name}: {shots} shots are more than these classes have: {few}{left}")

    rank = _rank_in_class(train.labels, seed)
    if shots == 0:
        chosen = np.arange(len(train.labels))
    else:
        chosen = np.lexsort((train.labels, rank))
        chosen = chosen[rank[chosen] < shots]
    if test is None:
        # From the end of the same shuffle, so that the test images hardly depend on the number of shots.
        test, rank = train, counts[train.labels] - 1 - rank
        candidates = np.setdiff1d(np.arange(len(train.labels)), chosen)
    else:
        rank = _rank_in_class(test.labels, seed)
        candidates = np.arange(len(test.labels))
    if 0 < max_test < len(candidates):
        class_sizes = np.bincount(test.labels, minlength=len(test.class_names))
        # Image r of a class of n has position (r + 1/2) / n: any prefix of this order is stratified.
        position = (rank[candidates] + 0.5) / class_sizes[test.labels[candidates]]
        candidates = np.sort(candidates[np.argsort(position, kind="stable")[:max_test]])
    split = FewShotSplit(*_read_all(train, chosen, test, candidates, reading), train)
    copies = _copies(split, chosen, test, candidates)
    if copies:
        warn(
            f"{train.name}: {len(copies)} of {len(candidates)} test images are copies of few-shot images, such as "
            f"{copies[0][0]} of {copies[0][1]}; they make accuracies too high"
        )
    return split


def evenly_spaced(number: int, most: int) -> np.ndarray:
    """Places of at most so many among a number of things, spread evenly: int [min(number, most)]."""
    return np.linspace(0, number - 1, min(number, most)).astype(int)


def cross_fit_folds(labels: np.ndarray, num_folds: int, seed: int) -> list[Fold]:
    """Splits the real images into stratified folds; each is D_v once, while the others are trained on.

    The sizes of the folds, and their counts of any class, differ by at most one. If a class has fewer images than
    there are folds, the classes are spread over the folds; no fold is empty.

    Args:
        labels: labels of the real images, int [N].
        num_folds: number of folds, 2..N.
        seed: random seed of the folds.

    Returns:
        The folds; every index is a validation index of exactly one fold.

    Raises:
        InputError: num_folds is out of range.
    """
    labels = np.asarray(labels)
    if not 2 <= num_folds <= len(labels):
        raise InputError(f"{num_folds} folds of {len(labels)} real images are impossible; use 2..{len(labels)}")
    rng = np.random.default_rng(seed)
    # Round-robin over all classes, without restarting at each class, balances the folds.
    dealt = np.concatenate([rng.permutation(np.flatnonzero(labels == k)) for k in rng.permutation(np.unique(labels))])
    fold_of = np.empty(len(labels), np.int64)
    fold_of[dealt] = np.arange(len(labels)) % num_folds
    return [Fold(np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)) for fold in range(num_folds)]


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Returns a permutation, int64 [N], of which any prefix is stratified by the labels, int [N]."""
    class_sizes = np.bincount(labels)
    return np.argsort((_rank_in_class(labels, seed) + 0.5) / class_sizes[labels], kind="stable")


def _rank_in_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """Returns the rank of each image in a shuffle of its class, int64 [N], by seed and class only."""
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[np.random.default_rng((seed, int(label))).permutation(members)] = np.arange(len(members))
    return rank


def _copies(split: FewShotSplit, shots: np.ndarray, test: ImageSource, candidates: np.ndarray) -> list[tuple[str, str]]:
    """The test images with the pixels of a few-shot image, whatever their names and files: ids of both.

    None is looked for where images are streamed.
    """
    if isinstance(split.real.images, StreamedImages) or isinstance(split.test.images, StreamedImages):
        return []
    place_of = {image.tobytes(): place for place, image in enumerate(split.real.images)}
    same = [
        (place, place_of[image.tobytes()])
        for place, image in enumerate(split.test.images)
        if image.tobytes() in place_of
    ]
    # What was scaled down alike need not be the same: the originals are compared.
    originals = {shot: np.asarray(split.source.open(int(shots[shot]))) for shot in {shot for _, shot in same}}
    return [
        (split.test.ids[place], split.real.ids[shot])
        for place, shot in same
        if np.array_equal(np.asarray(test.open(int(candidates[place]))), originals[shot])
    ]


def _read_all(
    train: ImageSource, chosen: np.ndarray, test: ImageSource, candidates: np.ndarray, reading: Reading
) -> tuple[LabelledImages, LabelledImages]:
    """Reads both splits; InputError names the broken images of both."""
    read, problems = [], []
    for source, indices in ((train, chosen), (test, candidates)):
        try:
            read.append(_read(source, indices, reading))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return read[0], read[1]


def _read(source: ImageSource, indices: np.ndarray, reading: Reading) -> LabelledImages:
    shape = source.image_size, source.image_size, source.channels
    return LabelledImages(
        images=reading.images(source, indices, shape),
        labels=source.labels[indices],
        ids=tuple(source.ids[index] for index in indices),
        class_names=source.class_names,
    )

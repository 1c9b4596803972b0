"""The words of classes in prompts: some classes have several, of which each prompt holds one.

    crane: 'a photo of a crane bird', 'a photo of a construction crane', 'a photo of a crane bird', ...

Probabilities stand in one array for the words of all classes, class after class; those of a class sum to 1.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np


@dataclasses.dataclass(frozen=True)
class ClassWords:
    """The words of K classes, P in all.

    Attributes:
        of_class: one word or more for each class.
    """

    of_class: tuple[tuple[str, ...], ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All P words."""
        return tuple(word for words in self.of_class for word in words)

    @cached_property
    def labels(self) -> np.ndarray:
        """The class of each word: int [P]."""
        return np.repeat(np.arange(len(self.of_class)), [len(words) for words in self.of_class])

    @cached_property
    def columns(self) -> np.ndarray:
        """Which of the P words are of classes that have several: int [W]."""
        return np.flatnonzero(np.bincount(self.labels)[self.labels] > 1)

    @property
    def are_several(self) -> bool:
        """Whether any class has several words."""
        return len(self.columns) > 0

    def uniform_probabilities(self) -> np.ndarray:
        """Probabilities by which each word of a class is as frequent as the others: float64 [P]."""
        return 1 / np.bincount(self.labels)[self.labels]

    def normalized(self, values: np.ndarray) -> np.ndarray:
        """Probabilities in proportion to values, float [P], not negative; even where those of a class are all zero."""
        sums = np.bincount(self.labels, values, minlength=len(self.of_class))[self.labels]
        return np.where(sums > 0, values / np.where(sums > 0, sums, 1.0), self.uniform_probabilities())

    def reweighted(self, probabilities: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Returns probabilities [P] times exp(logits), normalised in each class; logits float [W] are of `columns`."""
        factors = np.ones(len(self.names))
        factors[self.columns] = np.exp(logits - np.max(logits, initial=-np.inf)) if len(logits) else 1.0
        return self.normalized(probabilities * factors)

    def deal_all(
        self, probabilities: np.ndarray, counts: Sequence[int] | np.ndarray, seed: Sequence[int]
    ) -> list[list[int]]:
        """Deals the words of each class to its images.

        Args:
            probabilities: of all words, float [P].
            counts: K numbers of images.
            seed: of the order, whole numbers.

        Returns:
            For each class places in `names`: one where it has one word, else one for each image, at least one.
        """
        dealt = []
        for label, number in enumerate(counts):
            places = np.flatnonzero(self.labels == label)
            rng = np.random.default_rng([*seed, label])
            chosen = deal(probabilities[places], max(int(number), 1), rng) if len(places) > 1 else [0]
            dealt.append([int(places[index]) for index in chosen])
        return dealt

    def one_hot(self, labels: Sequence[int] | np.ndarray, words: Sequence[str | None]) -> np.ndarray:
        """Encodes the words of N images as float32 [N, W], a column for each word of each class that has several.

        A column belongs to one class, as what a word is for depends on the class. Rows of None are zero.
        """
        columns = [(self.labels[place], self.names[place]) for place in self.columns]
        column_of = {key: column for column, key in enumerate(columns)}
        encoded = np.zeros((len(words), len(columns)), np.float32)
        for row, (label, word) in enumerate(zip(labels, words, strict=True)):
            if word is not None:
                encoded[row, column_of[int(label), word]] = 1.0
        return encoded


def deal(shares: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Deals options in proportion, exactly but for rounding, and in random order.

    In turn would not do: folds of a pool take its images in turn too, and each would get one word.

    Args:
        shares: of the options, float [n], of sum 1.
        number: how many to deal.
        rng: of the order.

    Returns:
        Indices of options, int [number].
    """
    exact = np.round(shares * number, 9)
    counts = np.floor(exact).astype(int)
    most_lacking = np.argsort(counts - exact, kind="stable")
    counts[most_lacking[: number - counts.sum()]] += 1
    return rng.permutation(np.repeat(np.arange(len(shares)), counts))


def pair_in_turn(words: Sequence[int], captions: Sequence[str]) -> list[tuple[int, str]]:
    """Pairs words with captions: each word takes the captions in turn.

    Args:
        words: one for all captions, or the word of each image, several different ones.
        captions: of a class, at least one.

    Returns:
        A pair for each caption where there is one word, else for each image.
    """
    if len(words) == 1:
        return [(words[0], caption) for caption in captions]
    used: Counter[int] = Counter()
    pairs = []
    for word in words:
        pairs.append((word, captions[used[word] % len(captions)]))
        used[word] += 1
    return pairs

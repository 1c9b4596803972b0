"""Prompts with random attributes: each attribute appends one of its values to a class prompt, or nothing.

    a photo of the digit three, bold, leaning left

The options of an attribute are "absent" (option 0) and its values (options 1, 2, ...). They are drawn independently for
each attribute.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from utilgen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PromptAttributes:
    """Attributes that vary a prompt.

    Attributes:
        groups: the values of each of G attributes; all values are distinct.
    """

    groups: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> PromptAttributes:
        """Parses attributes, such as 'thin|bold'.

        Raises:
            InputError: there are no attributes, or a value is empty, repeated or contains a comma, which separates
                values in a prompt.
        """
        groups = tuple(tuple(value.strip() for value in text.split("|")) for text in texts)
        values = [value for group in groups for value in group]
        invalid = [value for value in values if not value or "," in value or values.count(value) > 1]
        if invalid or not groups:
            problem = f"{invalid[0]!r} is empty, repeated or contains a comma" if invalid else "there are none"
            raise InputError(f"prompts.attributes: needs attributes such as 'thin|bold'; {problem}")
        return cls(groups)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of options of each attribute."""
        return tuple(len(group) + 1 for group in self.groups)

    def uniform_probabilities(self, attribute_probability: float) -> np.ndarray:
        """Returns probabilities of all options that are uniform over the values of an attribute.

        Args:
            attribute_probability: probability that an attribute is present.

        Returns:
            float64 [A], where A is the sum of `sizes`.
        """
        present = attribute_probability
        return np.concatenate([[1 - present, *[present / len(group)] * len(group)] for group in self.groups])

    def reweighted(self, probabilities: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Returns probabilities times exp(logits), float [A] each, normalised for each attribute."""
        raised = probabilities * np.exp(logits - np.max(logits))
        return np.concatenate([part / part.sum() for part in self._split(raised)])

    def draw(self, probabilities: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
        """Draws options from probabilities [A]: int [number, G]."""
        return np.stack(
            [rng.choice(len(part), number, p=part / part.sum()) for part in self._split(probabilities)], axis=1
        )

    def render(self, prompt: str, options: np.ndarray) -> str:
        """Appends the values of options, int [G], to a prompt."""
        values = (group[option - 1] for group, option in zip(self.groups, options, strict=True) if option)
        return ", ".join([prompt, *values])

    def parse_prompt(self, prompt: str) -> np.ndarray:
        """Returns the options of a prompt, int [G]; the inverse of `render`."""
        parts = set(prompt.split(", "))
        return np.array([next((i for i, value in enumerate(group, 1) if value in parts), 0) for group in self.groups])

    def one_hot(self, options: np.ndarray) -> np.ndarray:
        """Encodes options [N, G] as float32 [N, A] with a one for each attribute."""
        columns = [np.eye(size, dtype=np.float32)[options[:, place]] for place, size in enumerate(self.sizes)]
        return np.concatenate(columns, axis=1)

    def _split(self, values: np.ndarray) -> list[np.ndarray]:
        return np.split(np.asarray(values, np.float64), np.cumsum(self.sizes)[:-1])

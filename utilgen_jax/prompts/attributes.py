"""Prompts that vary: behind a class's own words stands a phrase of each of some groups, or none of a group.

    a photo of the digit three, bold, leaning left

Which phrases are said is drawn from probabilities, a number for each option of each group. A group's first option is to
say nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from utilgen_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PromptAttributes:
    """What can be said.

    Attributes:
        groups: G of them, each with its phrases; no phrase stands in two.
    """

    groups: tuple[tuple[str, ...], ...]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> PromptAttributes:
        """Reads groups such as 'thin|bold'.

        Raises:
            InputError: there is no group, or a phrase is empty, stands there twice, or has a comma, which parts
                phrases.
        """
        groups = tuple(tuple(phrase.strip() for phrase in text.split("|")) for text in texts)
        phrases = [phrase for group in groups for phrase in group]
        wrong = [phrase for phrase in phrases if not phrase or "," in phrase or phrases.count(phrase) > 1]
        if wrong or not groups:
            found = f"{wrong[0]!r} is empty, holds a comma or stands there twice" if wrong else "there is none"
            raise InputError(f"generator.phrases: groups such as 'thin|bold' are needed; {found}")
        return cls(groups)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Options of each group, silence among them."""
        return tuple(len(group) + 1 for group in self.groups)

    def uniform_probabilities(self, said: float) -> np.ndarray:
        """Returns float64 [A], A = sum of `sizes`: some option of each group with the probability `said`, all alike."""
        return np.concatenate([[1 - said, *[said / len(group)] * len(group)] for group in self.groups])

    def reweighted(self, probabilities: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Chances times exp(logits), float [A] each, normalised in each group."""
        raised = probabilities * np.exp(logits - np.max(logits))
        return np.concatenate([part / part.sum() for part in self._parts(raised)])

    def draw(self, probabilities: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
        """Draws from probabilities [A]: an option of each group, int [number, G]."""
        return np.stack(
            [rng.choice(len(part), number, p=part / part.sum()) for part in self._parts(probabilities)], axis=1
        )

    def say(self, prompt: str, options: np.ndarray) -> str:
        """A prompt with the phrases of a row of options, int [G]."""
        phrases = (group[option - 1] for group, option in zip(self.groups, options, strict=True) if option)
        return ", ".join([prompt, *phrases])

    def read(self, prompt: str) -> np.ndarray:
        """The options that a prompt says, int [G]; the inverse of `say`."""
        said = set(prompt.split(", "))
        return np.array([next((i for i, text in enumerate(group, 1) if text in said), 0) for group in self.groups])

    def one_hot(self, options: np.ndarray) -> np.ndarray:
        """Options [N, G] as float32 [N, A] of zeros and, in each group, a one."""
        columns = [np.eye(size, dtype=np.float32)[options[:, place]] for place, size in enumerate(self.sizes)]
        return np.concatenate(columns, axis=1)

    def _parts(self, values: np.ndarray) -> list[np.ndarray]:
        return np.split(np.asarray(values, np.float64), np.cumsum(self.sizes)[:-1])

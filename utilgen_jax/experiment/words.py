"""The word steps of an experiment: which of a class's several words its prompts hold."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.experiment.keys import Key
from utilgen_jax.experiment.stages import step
from utilgen_jax.methods.base import PoolSpec
from utilgen_jax.pool.plan import plan_pool
from utilgen_jax.report.words import word_table
from utilgen_jax.valuation.config import EnsembleConfig
from utilgen_jax.valuation.ensemble import predict_by_ensemble
from utilgen_jax.valuation.words import choose_words

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool
    from utilgen_jax.valuation.cross_fit import PoolValues

Embeds = TypeVar("Embeds")  # an array, or a pytree of them


@dataclasses.dataclass(frozen=True)
class WordPool(PoolSpec):
    """A small plain pool of every word of the classes that have several."""

    @property
    def name(self) -> str:
        """Of the folder."""
        return "words"

    @property
    def uses_shots(self) -> bool:
        """The shots have no part in it; they value it."""
        return False

    def build(self, experiment: Experiment) -> GeneratedPool:
        """Makes the pool, the words of a class in turn."""
        words, number = experiment.words, experiment.config.prompts.images_per_word
        prompts = [
            [experiment.word_prompts[place] for place in np.flatnonzero(words.labels == label)]
            for label in range(len(words.of_class))
        ]
        counts = number * np.bincount(words.labels[words.columns], minlength=len(prompts))
        records = experiment.pools.with_words(plan_pool(prompts, counts, experiment.config.seed, 0))
        return experiment.pools.generate(self, records)


class WordSteps:
    """Chooses words.

    Args:
        experiment: whose steps these are.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    @property
    def is_needed(self) -> bool:
        """Whether words are chosen: `prompts.choose_words`, and a class has several."""
        return self.experiment.config.prompts.choose_words and self.experiment.words.are_several

    def probabilities(self) -> np.ndarray:
        """By which the words of a class stand in prompts, float64 [P]; even where words are not chosen."""
        if not self.is_needed:
            return self.experiment.words.uniform_probabilities()
        return self.chosen(self.experiment.pool(WordPool()))["probabilities"]

    def likeliest(self) -> np.ndarray:
        """The most probable word of each class, of equal ones the first: places in `words.names`, int [K]."""
        words, probabilities = self.experiment.words, self.probabilities()
        of_class = [np.flatnonzero(words.labels == label) for label in range(len(words.of_class))]
        return np.array([places[np.argmax(probabilities[places])] for places in of_class])

    def class_means(self, of_words: Embeds) -> Embeds:
        """The mean over each class's words, by their probabilities, of embeddings: leaves float [P, ...] to [K, ...].

        For what the generator learns of a class as a whole, whichever word its images were prompted with.
        """
        words = self.experiment.words
        if not words.are_several:
            return of_words
        shares = (words.labels == np.arange(len(words.of_class))[:, None]) * self.probabilities()
        return jax.tree.map(lambda leaf: jnp.tensordot(jnp.asarray(shares, leaf.dtype), leaf, axes=1), of_words)

    def table(self, pool: GeneratedPool, values: PoolValues) -> list[dict[str, Any]]:
        """What was found of each word of the classes that have several, see `report.words.word_table`."""
        words, class_names = self.experiment.words, self.experiment.split.real.class_names
        soft = values.soft_labels
        columns = {
            "weight": values.weights,
            "label_probability": None if soft is None else soft[np.arange(len(soft)), pool.labels],
            "difficulty": values.difficulty,
        }
        names = [(class_names[words.labels[place]], words.names[place]) for place in words.columns]
        rows = word_table(names, pool.records, columns)
        if self.is_needed:
            chosen = self.chosen(self.experiment.pool(WordPool()))
            for row, place in zip(rows, words.columns, strict=True):
                value, share = (round(float(chosen[name][place]), 4) for name in ("values", "probabilities"))
                row |= {"value": value, "share": share}
        return rows

    @step("words", dict)
    def chosen(self, pool: GeneratedPool) -> dict[str, np.ndarray]:
        """Values the images of every word and chooses, see `valuation.words`.

        Args:
            pool: of the spec `WordPool`.

        Returns:
            "values" and "probabilities" of the words, float64 [P]; of a class's only word 1.
        """
        experiment, words = self.experiment, self.experiment.words
        ensemble = experiment.config.section(EnsembleConfig)
        with experiment.training_loop(ensemble.members * experiment.classifier_config.steps) as loop:
            predicted = predict_by_ensemble(
                experiment.classifier,
                experiment.classifier_config,
                experiment.real,
                experiment.examples(pool).inputs,
                jax.random.split(experiment.key(Key.WORDS), ensemble.members),
                loop,
            )
        own = predicted[np.arange(len(pool.labels)), pool.labels]
        of_words = words.one_hot(pool.labels, [record.word for record in pool.records])
        values = np.ones(len(words.names))
        values[words.columns] = own @ of_words / of_words.sum(0)
        return {"values": values, "probabilities": choose_words(values, words.labels)}

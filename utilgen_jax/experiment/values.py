"""The valuation steps of an experiment: what each image of a pool counts in training, and under which label."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.classifier.batches import loaded
from utilgen_jax.experiment.keys import Key
from utilgen_jax.experiment.stages import step
from utilgen_jax.methods.base import PoolSpec
from utilgen_jax.report.plots import plot_weight_curve
from utilgen_jax.runtime.sharding import to_host
from utilgen_jax.valuation.config import EnsembleConfig
from utilgen_jax.valuation.cross_fit import (
    PREDICTION_BATCH_SIZE,
    PoolValues,
    cross_fit,
    predict_weights,
    smoothed,
    weighting_folds,
)
from utilgen_jax.valuation.ensemble import EnsembleLabels, ensemble_labels, ensemble_steps, predict_soft_labels

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool


class ValueSteps:
    """Values pools.

    Args:
        experiment: whose steps these are.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    @step("value_{name}", PoolValues)
    def uniform(self, name: str, pool: GeneratedPool) -> PoolValues:
        """All images count the same; their difficulty is measured for the report.

        Args:
            name: of the stage.
            pool: the images.
        """
        return self.predict_uniform(pool)

    @step("value_{name}", PoolValues)
    def cross_fit(self, name: str, pool: GeneratedPool, weighting: str) -> PoolValues:
        """Learns a weighting over the folds of the shots, see `valuation.cross_fit`.

        Args:
            name: of the stage.
            pool: the images.
            weighting: key of `cross_fit.WEIGHTINGS`.
        """
        experiment = self.experiment
        difficulty = self.difficulty(pool)
        config, valuation = experiment.classifier_config, experiment.config.valuation
        folds = weighting_folds(valuation, experiment.split.real.labels, experiment.config.seed)
        with experiment.training_loop(valuation.total_steps(config, len(folds))) as loop:
            values = cross_fit(
                experiment.classifier,
                config,
                valuation,
                weighting,
                experiment.real,
                experiment.examples(pool),
                folds,
                experiment.key(Key.VALUATION),
                loop,
            )
        assert values.agreement is not None
        experiment.metrics.write(pool.round, f"agreement_{name}", correlation=values.agreement)
        if values.contradictory and experiment.is_first:
            print(
                f"value_{name}: the weights contradict what images do, or rise with the loss without evidence, "
                "so all images count the same",
                file=sys.stderr,
            )
        return dataclasses.replace(values, difficulty=difficulty)

    @step("ensemble_{spec.name}", EnsembleLabels)
    def ensemble_labels(self, spec: PoolSpec, pool: GeneratedPool) -> EnsembleLabels:
        """What the ensembles say of a pool, see `valuation.ensemble`.

        Args:
            spec: of the methods that share these labels.
            pool: the images.
        """
        experiment = self.experiment
        ensemble = experiment.config.section(EnsembleConfig)
        with experiment.training_loop(ensemble_steps(experiment.classifier_config, ensemble)) as loop:
            return ensemble_labels(
                experiment.classifier,
                experiment.classifier_config,
                ensemble,
                experiment.real,
                experiment.examples(pool),
                experiment.key(Key.ENSEMBLE),
                loop,
            )

    def predict_uniform(self, pool: GeneratedPool) -> PoolValues:
        """The values of images that all count the same; no stage."""
        difficulty = self.difficulty(pool)
        return PoolValues(np.ones_like(difficulty), difficulty=difficulty)

    def predict_weights(self, found: PoolValues, pool: GeneratedPool, weighting: str) -> PoolValues:
        """The values of other images by the fold models of a pool's valuation; no stage.

        Args:
            found: by `cross_fit`.
            pool: the other images.
            weighting: that the fold models were trained with.
        """
        experiment, uniform = self.experiment, self.predict_uniform(pool)
        if found.contradictory or found.fold_models is None:
            return uniform
        examples = smoothed(experiment.classifier_config, experiment.examples(pool))
        models = jax.tree.map(jnp.asarray, found.fold_models)
        parts = [
            to_host(
                predict_weights(
                    experiment.classifier,
                    weighting,
                    experiment.config.valuation,
                    models,
                    loaded(examples.take(np.arange(start, min(start + PREDICTION_BATCH_SIZE, len(examples))))),
                )
            )
            for start in range(0, len(examples), PREDICTION_BATCH_SIZE)
        ]
        return dataclasses.replace(uniform, weights=np.concatenate(parts))

    def predict_soft_labels(self, labels: EnsembleLabels, pool: GeneratedPool) -> np.ndarray:
        """What the ensembles of another pool say of images, float32 [N, K]; no stage."""
        experiment = self.experiment
        images = experiment.examples(pool).inputs
        return predict_soft_labels(experiment.classifier, experiment.classifier_config, labels, images)

    def show_weight_curve(self, name: str, pool_round: int, values: PoolValues) -> None:
        """Draws the curve W(loss), whose slope UtilGen's instance level follows, and logs it as two numbers."""
        experiment = self.experiment
        assert values.losses is not None
        slope, correlation = weight_slope(values.losses, values.weights)
        experiment.metrics.write(pool_round, f"weight_curve_{name}", slope=slope, correlation=correlation)
        image = experiment.workdir / "report" / f"weight_curve_{name}_{pool_round}.png"
        if experiment.is_first and not image.is_file():
            plot_weight_curve(values.losses, values.weights, image)

    def difficulty(self, pool: GeneratedPool) -> np.ndarray:
        """How hard the classifier of the real images finds a pool's, float32 [N]."""
        return self.experiment.classifiers.difficulty(self.experiment.examples(pool), pool.labels)


def weight_slope(losses: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """The curve W(loss) over a pool in two numbers.

    Args:
        losses: float [N].
        weights: float [N].

    Returns:
        The least-squares slope of the weights over the losses, and their correlation, 0 where the weights are flat.
    """
    spread = losses - losses.mean()
    slope = float(np.sum(spread * weights) / max(np.sum(spread**2), 1e-12))
    deviation = float(np.std(weights))
    return slope, slope * float(np.std(losses)) / deviation if deviation > 1e-8 else 0.0

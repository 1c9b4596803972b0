"""The classifier's steps of an experiment: training, evaluation, difficulty."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.practice import Patience, Practised, train_until_stall
from utilgen_jax.classifier.train import predict_features, predict_logits, train_classifier
from utilgen_jax.data.splits import evenly_spaced
from utilgen_jax.data.streamed_images import StreamedImages
from utilgen_jax.experiment.keys import Key
from utilgen_jax.experiment.stages import Result, step
from utilgen_jax.methods.base import Method
from utilgen_jax.report.data import Findings
from utilgen_jax.runtime.sharding import replicate, to_host
from utilgen_jax.types import Array, Params
from utilgen_jax.valuation.config import SaflexConfig
from utilgen_jax.valuation.difficulty import cross_fitted_difficulty, difficulty
from utilgen_jax.valuation.saflex import SaflexClassifier, SaflexProgram, train_saflex

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool


_MOST_SHOWN = 5000  # images of a kind on the report's map, and real ones in its density of difficulty


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How a classifier did on the test images.

    Attributes:
        value: the accuracy in [0, 1]; in a stage's file an array of one number.
        predicted: its class of each test image, int32 [T]; None in the file of an earlier version.
    """

    value: float | np.ndarray
    predicted: np.ndarray | None = None

    @property
    def accuracy(self) -> float:
        """The accuracy in [0, 1]."""
        return float(self.value)


class ClassifierSteps:
    """Trains and applies the experiment's classifier.

    Args:
        experiment: whose steps these are.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    @step("classifier_{method.name}", dict)
    def train(self, method: Method, synthetic: Examples | None, teachers: Params | None = None) -> Params:
        """Trains a method's classifier: on real images and synthetic ones, if any; or, if so set, on these alone.

        Args:
            method: whose images they are.
            synthetic: its own.
            teachers: what labels them in training, see `train_classifier`.
        """
        return self._train(self._config_of(method, self._is_synthetic_only(synthetic)), synthetic, teachers)

    @step("classifier_{method.name}_synthetic_only", dict)
    def train_on_synthetic(self, method: Method, synthetic: Examples, teachers: Params | None = None) -> Params:
        """Trains another classifier, on a method's synthetic images alone, for as many steps; see `train`."""
        return self._train(self._config_of(method, True), synthetic, teachers)

    @step("classifier_{method.name}", SaflexClassifier)
    def train_saflex(self, method: Method, synthetic: Examples) -> SaflexClassifier:
        """Trains the classifier of a method, which weighs and relabels synthetic images as it goes."""
        return self._train_saflex(self._config_of(method, self._is_synthetic_only(synthetic)), synthetic)

    @step("classifier_{method.name}_synthetic_only", SaflexClassifier)
    def train_saflex_on_synthetic(self, method: Method, synthetic: Examples) -> SaflexClassifier:
        """Trains another one, on the synthetic images alone."""
        return self._train_saflex(self._config_of(method, True), synthetic)

    def _train_saflex(self, config: ClassifierConfig, synthetic: Examples) -> SaflexClassifier:
        experiment = self.experiment
        with experiment.training_loop(config.steps) as loop:
            return train_saflex(
                experiment.classifier,
                SaflexProgram(config, experiment.config.section(SaflexConfig)),
                (experiment.real, experiment.folds),
                synthetic,
                experiment.key(Key.CLASSIFIER),
                loop,
            )

    def _is_synthetic_only(self, synthetic: Examples | None) -> bool:
        return synthetic is not None and self.experiment.config.classifier.is_synthetic_only

    def _config_of(self, method: Method, synthetic_only: bool) -> ClassifierConfig:
        changes: dict[str, Any] = {
            name: getattr(method, name) for name in ("augmentation", "mixing") if getattr(method, name)
        }
        if synthetic_only:
            changes["synthetic_fraction"] = 1.0
        return dataclasses.replace(self.experiment.classifier_config, **changes)

    def practise(self, pool: GeneratedPool, start: Params | None, check_every: int, patience: int) -> Practised:
        """Trains a classifier on a pool until its accuracy on the first fold's shots stalls.

        Args:
            pool: as far as it has grown.
            start: parameters to go on from; None: begins.
            check_every, patience: see `Patience`.
        """
        return self._practise(pool, start, Patience(check_every, patience), pool.records[-1].round or 0)

    @step("practice_{pool.spec.name}_{round_number}", Practised)
    def _practise(self, pool: GeneratedPool, start: Params | None, patience: Patience, round_number: int) -> Practised:
        experiment, config = self.experiment, self.experiment.classifier_config
        fold = experiment.folds[0]
        train, held_out = (experiment.real.take(places) for places in (fold.train_indices, fold.validation_indices))
        with experiment.training_loop(config.steps) as loop:
            practised = train_until_stall(
                experiment.classifier,
                config,
                patience,
                (train, experiment.examples(pool), held_out),
                start,
                jax.random.fold_in(experiment.key(Key.PRACTICE), round_number),
                loop,
            )
        if len(practised.accuracies):
            experiment.metrics.write(round_number, "practice", held_out_accuracy=float(practised.accuracies[-1]))
        return practised

    def real(self) -> Params:
        """The classifier of the real images alone, which measures difficulty; that of the method `real`."""
        return self._run_real("classifier_real", dict, lambda: self._train(self.experiment.classifier_config, None))

    def _train(self, config: ClassifierConfig, synthetic: Examples | None, teachers: Params | None = None) -> Params:
        experiment = self.experiment
        with experiment.training_loop(config.steps) as loop:
            key = experiment.key(Key.CLASSIFIER)
            taught_by = None if teachers is None else replicate(teachers)
            return train_classifier(experiment.classifier, config, experiment.real, synthetic, key, loop, taught_by)

    def evaluate(self, method: Method, params: Params) -> Evaluation:
        """The accuracy on the test images, which nothing but these evaluations reads."""
        if method.name == "real":
            return self._run_real("evaluation_real", Evaluation, lambda: self._test(params))
        return self._evaluate(method, params)

    @step("evaluation_{method.name}", Evaluation)
    def _evaluate(self, method: Method, params: Params) -> Evaluation:
        return self._test(params)

    @step("evaluation_{method.name}_synthetic_only", Evaluation)
    def evaluate_on_synthetic(self, method: Method, params: Params) -> Evaluation:
        """The accuracy on the test images of the classifier of a method's synthetic images alone."""
        return self._test(params)

    def _run_real(self, name: str, kind: type[Result], compute: Callable[[], Result]) -> Result:
        """Runs a stage of the real images alone, which runs that differ in the size of their pools share."""
        shared = self.experiment.shared
        return self.experiment.stages.run(name, kind, compute, shared.real_stages if shared else None)

    def _test(self, params: Params) -> Evaluation:
        predicted = self.predict_test(params).argmax(-1)
        return Evaluation((predicted == self.experiment.split.test.labels).mean(), predicted.astype(np.int32))

    def predict_test(self, params: Params) -> np.ndarray:
        """The logits [T, K] of the test images, for evaluations alone."""
        return self.predict(params, self.experiment.split.test.images)

    def predict(self, params: Params, images: Array | StreamedImages) -> np.ndarray:
        """The logits [N, K] of images [N, H, W, C]."""
        experiment = self.experiment
        return predict_logits(experiment.classifier, params, images, experiment.config.classifier.eval_batch_size)

    @step("difficulty", np.ndarray)
    def real_difficulty(self) -> np.ndarray:
        """How hard the classifier of the real images finds them, or `_MOST_SHOWN` of them, float32 [n]."""
        real = self.experiment.split.real
        rows = evenly_spaced(len(real), _MOST_SHOWN)
        return self.difficulty(self.experiment.real.take(rows), real.labels[rows])

    def difficulty(self, examples: Examples, labels: np.ndarray) -> np.ndarray:
        """How hard the classifier of the real images finds examples, float32 [N]."""
        return difficulty(self.predict(self.real(), examples.inputs), labels)

    @step("image_map", dict)
    def image_map(self, pool: GeneratedPool | None) -> dict[str, np.ndarray]:
        """The images in the plane of the two principal components of their features, as the real classifier has them.

        Returns:
            "real", float32 [n, 2], and its "real_rows", int [n], among the few-shot images, `_MOST_SHOWN` at most;
            "synthetic" and "synthetic_rows", where there is a pool; and "explained", float32 [2], the share of the
            variance along each axis.
        """
        from sklearn.decomposition import PCA  # slow to import

        experiment, params = self.experiment, self.real()
        inputs = {"real": experiment.real.inputs}
        if pool is not None:
            inputs["synthetic"] = experiment.examples(pool).inputs
        rows = {name: evenly_spaced(len(images), _MOST_SHOWN) for name, images in inputs.items()}
        size = experiment.config.classifier.eval_batch_size
        mapped = {
            name: (images if isinstance(images, StreamedImages) else to_host(images))[rows[name]]
            for name, images in inputs.items()
        }
        features = {
            name: predict_features(experiment.classifier, params, images, size).astype(np.float64)
            for name, images in mapped.items()
        }
        pca = PCA(2, svd_solver="covariance_eigh").fit(np.concatenate([*features.values()]))
        places = {name: pca.transform(part).astype(np.float32) for name, part in features.items()}
        explained = pca.explained_variance_ratio_.astype(np.float32)
        return {**places, **{f"{name}_rows": part for name, part in rows.items()}, "explained": explained}

    def cross_fitted_difficulty(self, pool: GeneratedPool) -> tuple[np.ndarray, np.ndarray]:
        """How hard shots [N] and a plain pool [M] are for classifiers that were not trained on them."""
        measured = self._cross_fitted_difficulty(pool)
        return measured["real"], measured["pool"]

    def difficulty_findings(self, pool: GeneratedPool) -> Findings:
        """The same, for the report."""
        real, plain = self.cross_fitted_difficulty(pool)
        return Findings(real_difficulty=real, plain_difficulty=plain)

    @step("difficulty_of_shots", dict)
    def _cross_fitted_difficulty(self, pool: GeneratedPool) -> dict[str, np.ndarray]:
        experiment = self.experiment
        config, folds = experiment.classifier_config, experiment.folds
        with experiment.training_loop(config.steps * len(folds)) as loop:
            real, synthetic = cross_fitted_difficulty(
                experiment.classifier,
                config,
                experiment.real,
                experiment.examples(pool),
                folds,
                experiment.key(Key.CLASSIFIER),
                loop,
            )
        return {"real": real, "pool": synthetic}

"""What a method is: a pool of synthetic images, and what each image counts and under which label.

The files beside this one import nothing heavy: a config is checked before JAX is imported. Their code calls the cached
steps of an `Experiment`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from utilgen_jax.config.schema import Config
    from utilgen_jax.experiment.experiment import Experiment, TrainingData
    from utilgen_jax.experiment.pools import GeneratedPool
    from utilgen_jax.generator.config import SamplingConfig
    from utilgen_jax.report.data import Findings
    from utilgen_jax.types import Params
    from utilgen_jax.valuation.cross_fit import PoolValues


@dataclasses.dataclass(frozen=True)
class PoolSpec:
    """How a pool of synthetic images is made; methods whose specs are equal share the pool.

    A subclass is a frozen dataclass: its fields are the method's flags, and its `build` is the method's steps in the
    order of the paper.
    """

    @property
    def name(self) -> str:
        """Name of the pool's folder and of the stages that make it."""
        raise NotImplementedError

    @property
    def uses_shots(self) -> bool:
        """Whether the few-shot images have a part in the pool; if not, runs that differ in shots share it."""
        return True

    @property
    def images_follow_records(self) -> bool:
        """Whether an image follows from its record alone, so that a smaller pool is the beginning of a larger one."""
        return False

    @property
    def class_tokens(self) -> bool:
        """Whether the prompts hold learnt class tokens (textual inversion)."""
        return False

    @property
    def captions(self) -> bool:
        """Whether the prompts hold captions of the few-shot images."""
        return False

    @property
    def attributes(self) -> bool:
        """Whether the prompts hold drawn attributes, which the classifier's examples then carry (words: always)."""
        return False

    def sampling(self, config: Config) -> SamplingConfig:
        """How its images are sampled."""
        return config.generator

    def check(self, experiment: Experiment) -> None:
        """Raises InputError where config, data or checkpoint do not suit; called before anything is written."""

    def build(self, experiment: Experiment) -> GeneratedPool:
        """Makes the pool."""
        raise NotImplementedError

    def stages(self, config: Config, num_classes: int) -> tuple[str, ...]:
        """Names of the stages that `build` runs, in their order, for the progress line."""
        return (f"pool_{self.name}",)

    def findings(self, experiment: Experiment) -> Findings | None:
        """What the training of the generator found, for the report of a pool that is built; None: nothing of note."""
        return None


@dataclasses.dataclass(frozen=True)
class Method:
    """One method of a comparison: real images, and the synthetic images of a pool if it has one.

    Attributes:
        name: on the command line.
        title: in tables.
        pool: of its synthetic images; None: none are added.
        published: whether it is a published system, which others are compared with.
        only_in_ablations: whether a comparison leaves it out unless it is named.
        augmentation: of the classifier's training images in place of the config's; "": the config's.
        mixing: of a batch's images in place of the config's; "": the config's.
    """

    name: str
    title: str
    pool: PoolSpec | None = None
    published: bool = False
    only_in_ablations: bool = False
    augmentation: str = ""
    mixing: str = ""

    @property
    def has_weights(self) -> bool:
        """Whether `predict_values` gives weights that differ."""
        return False

    @property
    def has_soft_labels(self) -> bool:
        """Whether `predict_values` gives soft labels."""
        return False

    @property
    def validation_field(self) -> str:
        """The config field of how many held-out real images a step sees, of all at 0; "": none sees them."""
        return ""

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages between pool and classifier, for the progress line."""
        return (f"value_{self.name}",)

    @property
    def stages_of_update(self) -> tuple[str, ...]:
        """Names of the stages of `accuracy_of_update`."""
        return ()

    def training_data(self, experiment: Experiment) -> TrainingData:
        """Returns what the classifier trains on beside the real images."""
        if self.pool is None:
            return experiment.real_only()
        pool = experiment.pool(self.pool)
        return experiment.training_data(pool, self.value(experiment, pool))

    def value(self, experiment: Experiment, pool: GeneratedPool) -> PoolValues:
        """Returns weights, and soft labels if any, of the pool's images; all images count the same by default."""
        return experiment.values.uniform(self.name, pool)

    def predict_values(self, experiment: Experiment, pool: GeneratedPool) -> PoolValues:
        """Returns weights, and soft labels if any, of other images than the run's own, by what `value` has trained.

        All images count the same by default.
        """
        return experiment.values.predict_uniform(pool)

    def train(self, experiment: Experiment, data: TrainingData) -> tuple[Params, TrainingData]:
        """Trains the classifier.

        Returns:
            Its parameters; and the data, with the values that its images had in training where training found them.
        """
        return experiment.classifiers.train(self, data.synthetic), data

    def accuracy_of_update(self, experiment: Experiment) -> float | None:
        """The test accuracy of the classifiers that a bilevel update has trained on its way; None where none has."""
        return None

    def train_on_synthetic(self, experiment: Experiment, data: TrainingData) -> Params:
        """Trains another classifier, on the synthetic images alone; returns its parameters."""
        assert data.synthetic is not None  # a method without a pool has no such classifier
        return experiment.classifiers.train_on_synthetic(self, data.synthetic)

"""Our own method, and the default: classifier, weight network and the generator's adapter trained by one update.

1. Plain images of the generator.
2. One jitted bilevel update trains, side by side: classifiers of the folds; a weight network on loss, margin, entropy,
   class, difficulty and attributes; a LoRA of the UNet; a difficulty encoder, and the difficulty to request for each
   class; the probabilities of the prompts' attributes.
3. The gate: only if classifiers of the adapter's images do better on held-out shots is the adapter used.
4. The pool, by what was trained, or the plain images.
5. The weight network weighs it; ensembles of classifiers label it, and in the final classifier's training they are the
   teachers: they label each image anew as it stands in the batch, shifted and mixed.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from utilgen_jax.errors import InputError
from utilgen_jax.joint.config import JointConfig
from utilgen_jax.methods.base import Method, PoolSpec
from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.methods.difficulty import DifficultyPool
from utilgen_jax.valuation.config import EnsembleConfig

if TYPE_CHECKING:
    from utilgen_jax.config.schema import Config
    from utilgen_jax.experiment.experiment import Experiment, TrainingData
    from utilgen_jax.experiment.pools import GeneratedPool
    from utilgen_jax.joint.train import JointResult
    from utilgen_jax.report.data import Findings
    from utilgen_jax.types import Params
    from utilgen_jax.valuation.cross_fit import PoolValues
    from utilgen_jax.valuation.ensemble import EnsembleLabels


@dataclasses.dataclass(frozen=True)
class JointPool(PoolSpec):
    """Images by the trained adapter, or plain ones, as the gate decides.

    Attributes:
        without: what the update leaves out, names of `joint.program.LEVELS` and `REGULARIZERS`, and "gate".
    """

    without: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "_without_".join(["joint", *self.without])

    @property
    def attributes(self) -> bool:
        return True

    def check(self, experiment: Experiment) -> None:
        from utilgen_jax.prompts.attributes import PromptAttributes

        PromptAttributes.parse(experiment.config.prompts.attributes)
        features = experiment.config.section(JointConfig).coverage_features
        if "image_encoder" in features and experiment.generator.architecture.image_encoder is None:
            raise InputError(
                f"joint.coverage_features={','.join(features)}: this checkpoint has no image_encoder; an unCLIP "
                "checkpoint has"
            )

    def stages(self, config: Config, num_classes: int) -> tuple[str, ...]:
        joint, names = config.section(JointConfig), list(PlainPool().stages(config, num_classes))
        if joint.start == "difficulty":
            names += ["difficulty_of_shots", f"lora_{DifficultyPool().name}"]
        gate = [] if "gate" in self.without or not joint.gate_images else [f"gate_{self.name}"]
        return (*names, f"joint_{self.name}", *gate, f"pool_{self.name}")

    def train(self, experiment: Experiment) -> JointResult:
        """Trains by the joint update, once."""
        starts_at_difficulty = experiment.config.section(JointConfig).start == "difficulty"
        start = DifficultyPool().train(experiment) if starts_at_difficulty else None
        return experiment.joint.train(self, experiment.pool(PlainPool()), start, self.without)

    def build(self, experiment: Experiment) -> GeneratedPool:
        plain = experiment.pool(PlainPool())
        trained = self.train(experiment)
        if not self._is_used(experiment, plain, trained):
            return experiment.pools.adopt(self, plain)
        prompts = experiment.pools.attribute_prompts(trained.attribute_logits)
        records = experiment.pools.plan(prompts, difficulty=(trained.difficulties.tolist(), 0.0))
        return experiment.pools.generate(self, records, trained.adapter)

    def findings(self, experiment: Experiment) -> Findings:
        return experiment.joint.findings(
            self, experiment.pool(PlainPool()), self.train(experiment), self._has_gate(experiment)
        )

    def _is_used(self, experiment: Experiment, plain: GeneratedPool, trained: JointResult) -> bool:
        return not self._has_gate(experiment) or experiment.joint.gate(self, plain, trained).is_open

    def _has_gate(self, experiment: Experiment) -> bool:
        return "gate" not in self.without and experiment.config.section(JointConfig).gate_images > 0


@dataclasses.dataclass(frozen=True)
class Joint(Method):
    """A pool whose weights come from the update's weight network, and its labels from ensembles.

    Attributes:
        weights: whether the images are weighed.
        ensemble: whether they get soft labels.
        teachers: whether the ensembles give them in each step of training, and not once for all.
    """

    weights: bool = True
    ensemble: bool = True
    teachers: bool = True

    @property
    def validation_field(self) -> str:
        return "valuation.validation_batch_size" if isinstance(self.pool, JointPool) else ""

    @property
    def has_weights(self) -> bool:
        return self.weights

    @property
    def has_soft_labels(self) -> bool:
        return self.ensemble

    @property
    def stages(self) -> tuple[str, ...]:
        assert self.pool is not None
        return (f"value_{self.name}", *([f"ensemble_{self.pool.name}"] if self.ensemble else []))

    @property
    def stages_of_update(self) -> tuple[str, ...]:
        return (f"evaluation_{self.pool.name}_update",) if isinstance(self.pool, JointPool) else ()

    def value(self, experiment: Experiment, pool: GeneratedPool) -> PoolValues:
        if self.weights:
            assert isinstance(self.pool, JointPool)
            values = experiment.joint.value(self.name, pool, self.pool.train(experiment), self.pool.without)
        else:
            values = experiment.values.uniform(self.name, pool)
        if not self.ensemble:
            return values
        labels = experiment.values.ensemble_labels(pool.spec, pool)
        return dataclasses.replace(values, soft_labels=labels.soft_labels)

    def predict_values(self, experiment: Experiment, pool: GeneratedPool) -> PoolValues:
        if self.weights:
            assert isinstance(self.pool, JointPool)
            values = experiment.joint.predict_values(pool, self.pool.train(experiment), self.pool.without)
        else:
            values = experiment.values.predict_uniform(pool)
        if not self.ensemble:
            return values
        assert self.pool is not None
        labels = experiment.values.ensemble_labels(self.pool, experiment.pool(self.pool))
        return dataclasses.replace(values, soft_labels=experiment.values.predict_soft_labels(labels, pool))

    def train(self, experiment: Experiment, data: TrainingData) -> tuple[Params, TrainingData]:
        teachers = self._ensembles(experiment, data)
        # Beside real images those teach best that have learnt from such batches (measured: valuation/README.md).
        takes_all = experiment.config.classifier.is_synthetic_only
        chosen = teachers and (teachers.members if takes_all else teachers.members_of_pool)
        return experiment.classifiers.train(self, data.synthetic, chosen), data

    def train_on_synthetic(self, experiment: Experiment, data: TrainingData) -> Params:
        assert data.synthetic is not None
        teachers = self._ensembles(experiment, data)
        return experiment.classifiers.train_on_synthetic(self, data.synthetic, teachers and teachers.members)

    def _ensembles(self, experiment: Experiment, data: TrainingData) -> EnsembleLabels | None:
        if not (self.ensemble and self.teachers):
            return None
        assert data.pool is not None
        return experiment.values.ensemble_labels(data.pool.spec, data.pool)

    def accuracy_of_update(self, experiment: Experiment) -> float | None:
        if not isinstance(self.pool, JointPool):
            return None
        return experiment.joint.accuracy(self.pool, self.pool.train(experiment))


METHODS = (Joint("joint", "+ synthetic images, joint", JointPool()),)
SECTIONS = {"ensemble": EnsembleConfig, "joint": JointConfig}

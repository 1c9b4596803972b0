"""Our own method: prompts with drawn attributes, and soft labels from an ensemble of classifiers.

Its further flags are what was tried beside that (measured: README.md in this folder): of a larger pool the images of
which the ensemble is least sure, or which a weight network finds most useful; attribute probabilities and a LoRA that
the bilevel update trains; weights by a network that sees loss, margin, entropy, class and attributes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from utilgen_jax.joint.config import JointConfig
from utilgen_jax.methods.base import Method, PoolSpec
from utilgen_jax.valuation.config import EnsembleConfig

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool
    from utilgen_jax.valuation.cross_fit import PoolValues

WEIGHTING = "feature_network"


@dataclasses.dataclass(frozen=True)
class JointPool(PoolSpec):
    """Images whose prompts hold drawn attributes.

    Attributes:
        train_attributes: the bilevel update trains the attributes' probabilities.
        train_lora: and a LoRA of the UNet.
        oversample: more images are made than a pool should have, for a selection.
        select: "uncertain" or "useful": a part of an oversampled pool; "": the pool as it comes.
    """

    train_attributes: bool = False
    train_lora: bool = False
    oversample: bool = False
    select: str = ""

    @property
    def name(self) -> str:
        flags = {"reweighted": self.train_attributes, "lora": self.train_lora, "oversampled": self.oversample}
        return "_".join(["joint", *(name for name, on in flags.items() if on), *filter(None, [self.select])])

    @property
    def uses_shots(self) -> bool:
        return bool(self.train_attributes or self.train_lora or self.select)

    @property
    def attributes(self) -> bool:
        return True

    def build(self, experiment: Experiment) -> GeneratedPool:
        if self.select:
            return self._select(experiment, experiment.pool(JointPool(oversample=True)))
        if self.train_attributes or self.train_lora:
            return self._train(experiment, experiment.pool(JointPool()))
        prompts = experiment.pools.attribute_prompts(self._oversampling(experiment))
        records = experiment.pools.plan(prompts, oversampling=self._oversampling(experiment))
        return experiment.pools.generate(self, records)

    def check(self, experiment: Experiment) -> None:
        from utilgen_jax.prompts.attributes import PromptAttributes

        PromptAttributes.parse(experiment.config.prompts.attributes)

    def _oversampling(self, experiment: Experiment) -> int:
        return experiment.config.section(JointConfig).oversampling if self.oversample else 1

    def _train(self, experiment: Experiment, pool: GeneratedPool) -> GeneratedPool:
        logits, adapter = experiment.adapters.train_jointly(self, pool, lora=self.train_lora)
        number = pool.round + 1
        prompts = experiment.pools.attribute_prompts(1, number, logits)
        return experiment.pools.generate(self, experiment.pools.plan(prompts, number), adapter)

    def _select(self, experiment: Experiment, pool: GeneratedPool) -> GeneratedPool:
        if self.select == "uncertain":
            # Uncertainty sampling (Lewis and Gale 1994, arXiv cmp-lg/9407020) by an ensemble's entropy.
            labels = experiment.values.ensemble_labels(self, pool)
            return experiment.pools.select(self, pool, experiment.values.entropy(labels), labels)
        weights = experiment.values.cross_fit(f"{self.name}_{pool.round}", pool, WEIGHTING).weights
        return experiment.pools.select(self, pool, weights)


@dataclasses.dataclass(frozen=True)
class Joint(Method):
    """A pool whose labels, weights or both are learnt.

    Attributes:
        ensemble: soft labels from an ensemble of classifiers.
        weights: weights from a network of several features.
    """

    ensemble: bool = True
    weights: bool = False

    def value(self, experiment: Experiment, pool: GeneratedPool) -> PoolValues:
        values = (
            experiment.values.cross_fit(self.name, pool, WEIGHTING)
            if self.weights
            else experiment.values.uniform(self.name, pool)
        )
        if not self.ensemble:
            return values
        labels = pool.soft_labels
        if labels is None:
            labels = experiment.values.ensemble_labels(pool.spec, pool)
        return dataclasses.replace(values, soft_labels=labels)


METHODS = (Joint("joint", "+ synthetic images, joint", JointPool()),)
SECTIONS = {"ensemble": EnsembleConfig, "joint": JointConfig}

"""SAFLEX (ICLR 2024, arXiv 2410.02512): weights and soft labels from the influence matrix, in each step of training.

1. A pool by any upstream method, here plain synthetic images.
2. Each step of the classifier's training weighs and relabels the synthetic images of its batch by what lowers the loss
   on few-shot images that this step does not train on.

Ours: the constants; folds of the shots validate in turn; influence less its mean in the batch; the plain first quarter
(`saflex.plain_fraction`), `saflex.memory` and `saflex.validation_decay`, which are off at 0.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from utilgen_jax.methods.base import Method
from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.valuation.config import SaflexConfig

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Experiment, TrainingData
    from utilgen_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Saflex(Method):
    """Plain synthetic images, reweighted and relabelled while the classifier trains on them."""

    @property
    def validation_field(self) -> str:
        return "saflex.validation_batch_size"

    def train(self, experiment: Experiment, data: TrainingData) -> tuple[Params, TrainingData]:
        assert data.synthetic is not None and data.values is not None  # the method has a pool
        trained = experiment.classifiers.train_saflex(self, data.synthetic)
        values = dataclasses.replace(data.values, weights=trained.weights, soft_labels=trained.soft_labels)
        return trained.params, dataclasses.replace(data, values=values)

    def train_on_synthetic(self, experiment: Experiment, data: TrainingData) -> Params:
        assert data.synthetic is not None
        return experiment.classifiers.train_saflex_on_synthetic(self, data.synthetic).params


METHODS = (Saflex("saflex", "+ synthetic images, SAFLEX", PlainPool(), published=True),)
SECTIONS = {"saflex": SaflexConfig}

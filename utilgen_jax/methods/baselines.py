"""Baselines: real images only, with common augmentations, and plain synthetic images."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from utilgen_jax.methods.base import Method, PoolSpec

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool


@dataclasses.dataclass(frozen=True)
class PlainPool(PoolSpec):
    """Images of the class prompt, by the generator as it is."""

    @property
    def name(self) -> str:
        return "plain"

    @property
    def uses_shots(self) -> bool:
        return False

    @property
    def images_follow_records(self) -> bool:
        return True

    def build(self, experiment: Experiment) -> GeneratedPool:
        prompts = experiment.pools.class_prompts()
        return experiment.pools.generate(self, experiment.pools.plan(prompts))


METHODS = (
    Method("real", "real images only"),
    Method("randaugment", "real images only, RandAugment", augmentation="randaugment"),
    Method("mixup", "real images only, Mixup", mixing="mixup"),
    Method("cutmix", "real images only, CutMix", mixing="cutmix"),
    Method("vanilla", "+ plain synthetic images", PlainPool()),
)

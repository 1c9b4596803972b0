"""SAFLEX (ICLR 2024, arXiv 2410.02512): weights and soft labels of synthetic images, from the influence matrix."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from utilgen_jax.methods.base import Method
from utilgen_jax.methods.baselines import PlainPool

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool
    from utilgen_jax.valuation.cross_fit import PoolValues


@dataclasses.dataclass(frozen=True)
class Saflex(Method):
    """Plain synthetic images, reweighted and relabelled by what lowers the held-out shots' loss."""

    def value(self, experiment: Experiment, pool: GeneratedPool) -> PoolValues:
        return experiment.values.cross_fit(self.name, pool, "saflex")


METHODS = (Saflex("saflex", "+ synthetic images, SAFLEX", PlainPool(), published=True),)

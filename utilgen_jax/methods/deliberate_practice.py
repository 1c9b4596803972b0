"""Deliberate Practice (ICML 2025, arXiv 2502.15588): the pool grows by images of which the classifier is unsure.

1. A part of the pool: plain images.
2. A classifier is trained on it until its accuracy on held-out shots stalls.
3. More images are sampled, led towards those whose classes this classifier cannot tell.
4. It goes on training on the larger pool; 2 and 3 repeat, until the pool is whole.

Ours: the gradient is that of the predicted clean image, not through the UNet, and is normalised; the final classifier
is trained from the start, and on real images too.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from utilgen_jax.fields import setting
from utilgen_jax.generator.config import OwnSampling
from utilgen_jax.methods.base import Method, PoolSpec

if TYPE_CHECKING:
    from utilgen_jax.config.schema import Config
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool
    from utilgen_jax.generator.config import SamplingConfig
    from utilgen_jax.types import Params


@dataclasses.dataclass(frozen=True)
class DeliberatePracticeConfig(OwnSampling):
    """The section `deliberate_practice`: when the pool grows, how far new images are led, and how they are sampled."""

    rounds: int = setting(3, "times that the pool grows", minimum=1)
    initial_fraction: float = setting(0.25, "of the pool, plain images", minimum=0.01, maximum=0.99)
    scale: float = setting(
        0.05, "part of a predicted image's length that it is moved each step; below 0: to sure ones", minimum=-1.0
    )
    check_every: int = setting(25, "steps between two looks at the held-out accuracy", minimum=1)
    patience: int = setting(3, "looks without a new best after which the pool grows", minimum=1)
    micro_batch_size: int = setting(0, "images of a batch that are led at a time; 0: all", minimum=0)


def growth(settings: DeliberatePracticeConfig) -> list[float]:
    """Fractions of the pool that are there after each round: the initial one, then it grows by equal parts to 1."""
    first, rounds = settings.initial_fraction, settings.rounds
    return [first + (1 - first) * number / rounds for number in range(rounds)] + [1.0]


@dataclasses.dataclass(frozen=True)
class DeliberatePracticePool(PoolSpec):
    """Plain images, and images led by the classifiers of those before them."""

    @property
    def name(self) -> str:
        return "deliberate_practice"

    def sampling(self, config: Config) -> SamplingConfig:
        return config.section(DeliberatePracticeConfig).of(config.generator)

    def stages(self, config: Config, num_classes: int) -> tuple[str, ...]:
        rounds = range(config.section(DeliberatePracticeConfig).rounds)
        grown = [(f"practice_{self.name}_{number}", f"pool_{self.name}_{number + 1}") for number in rounds]
        return (f"pool_{self.name}", *(name for pair in grown for name in pair))

    def build(self, experiment: Experiment) -> GeneratedPool:
        settings = experiment.config.section(DeliberatePracticeConfig)
        first, *others = experiment.pools.plan_rounds(experiment.pools.class_prompts(), growth(settings))
        pool = experiment.pools.generate(self, first)
        params: Params | None = None
        for records in others:
            params = experiment.classifiers.practise(pool, params, settings.check_every, settings.patience).params
            led = experiment.pools.led_by(params, settings.scale, settings.micro_batch_size)
            pool = experiment.pools.generate(self, records, condition_on=led)
        return pool


METHODS = (
    Method("deliberate_practice", "+ synthetic images, Deliberate Practice", DeliberatePracticePool(), published=True),
)
SECTIONS = {"deliberate_practice": DeliberatePracticeConfig}

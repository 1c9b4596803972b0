"""Augmented conditioning (arXiv 2502.04475): two few-shot images of a class, mixed, condition each new image.

A generator with an image encoder (unCLIP) is given the image embedding of the mix; any other starts from the mixed
image (SDEdit).

Ours: only the few-shot images are mixed, not all of the train split; Embed-CutMix cuts along the features, where the
released code cuts along the batch; configs keep the checkpoint that all methods share, at its size, where the paper has
SD 2.1-unCLIP at 768 pixels.
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

# The ten of `generator.image_conditioning.MIX_STRATEGIES`.
_PLAIN = ("image", "cutmix", "mixup", "embed_cutmix", "embed_mixup")
MIX_STRATEGIES = _PLAIN + tuple(f"{name}_dropout" for name in _PLAIN)


@dataclasses.dataclass(frozen=True)
class AugcondConfig(OwnSampling):
    """The section `augcond`: how few-shot images condition new ones, and how these are sampled."""

    mix_strategy: str = setting("cutmix", "how two shots are mixed", choices=MIX_STRATEGIES)
    strength: float = setting(
        0.7, "without an image encoder: part of the way from noise that is walked", minimum=0.01, maximum=1.0
    )


@dataclasses.dataclass(frozen=True)
class AugcondPool(PoolSpec):
    """Images of the class prompt, conditioned on mixed shots."""

    @property
    def name(self) -> str:
        return "augcond"

    def sampling(self, config: Config) -> SamplingConfig:
        return config.section(AugcondConfig).of(config.generator)

    def check(self, experiment: Experiment) -> None:
        from utilgen_jax.generator.image_conditioning import find_mix_strategy

        has_image_encoder = experiment.generator.architecture.image_encoder is not None
        find_mix_strategy(experiment.config.section(AugcondConfig).mix_strategy, has_image_encoder)

    def build(self, experiment: Experiment) -> GeneratedPool:
        records = experiment.pools.plan(experiment.pools.class_prompts())
        settings = experiment.config.section(AugcondConfig)
        records, condition = experiment.pools.mixed_shots(records, settings.mix_strategy)
        return experiment.pools.generate(self, records, condition_on=condition, strength=settings.strength)


METHODS = (Method("augcond", "+ synthetic images, augmented conditioning", AugcondPool(), published=True),)
SECTIONS = {"augcond": AugcondConfig}

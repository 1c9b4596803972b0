"""Captions as prompts (arXiv 2307.08526): each few-shot image is captioned, and its caption prompts new images.

Ours: as many images a caption as the pool wants of the class, where the paper takes one.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from utilgen_jax.generator.config import OwnSampling
from utilgen_jax.methods.base import Method, PoolSpec

if TYPE_CHECKING:
    from utilgen_jax.config.schema import Config
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool
    from utilgen_jax.generator.config import SamplingConfig


@dataclasses.dataclass(frozen=True)
class CaptionsConfig(OwnSampling):
    """The section `captions`: how images of captions are sampled; the captions themselves are of `prompts.captions`."""


@dataclasses.dataclass(frozen=True)
class CaptionPool(PoolSpec):
    """Images of "class prompt, caption", the captions of a class in turn."""

    @property
    def name(self) -> str:
        return "captions"

    @property
    def images_follow_records(self) -> bool:
        return True

    @property
    def captions(self) -> bool:
        return True

    def sampling(self, config: Config) -> SamplingConfig:
        return config.section(CaptionsConfig).of(config.generator)

    def build(self, experiment: Experiment) -> GeneratedPool:
        prompts = experiment.pools.caption_prompts()
        return experiment.pools.generate(self, experiment.pools.plan(prompts))


METHODS = (Method("captions", "+ synthetic images, captions", CaptionPool(), published=True),)
SECTIONS = {"captions": CaptionsConfig}

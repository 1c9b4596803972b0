"""Captions as prompts (arXiv 2307.08526): each few-shot image is captioned, and its caption prompts new images."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from utilgen_jax.methods.base import Method, PoolSpec

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool


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

    def build(self, experiment: Experiment) -> GeneratedPool:
        prompts = experiment.pools.caption_prompts()
        return experiment.pools.generate(self, experiment.pools.plan(prompts))


METHODS = (Method("captions", "+ synthetic images, captions", CaptionPool(), published=True),)

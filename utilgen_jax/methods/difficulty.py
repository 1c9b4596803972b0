"""Difficulty-controlled diffusion (arXiv 2411.18109): images of a requested difficulty.

The difficulty of each shot is measured by a classifier; an encoder of label and difficulty gives the text encoder's
states one more token, and is trained with a LoRA by the denoising loss; new images are requested at difficulties drawn
from a normal distribution, with captions as prompts.

Ours: the learning rate decays by a cosine; Real-Fake's code, on which the paper builds, keeps it. Shots and pool are
those of all methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from utilgen_jax.errors import InputError, nearest
from utilgen_jax.fields import setting
from utilgen_jax.generator.finetune.config import LoraConfig
from utilgen_jax.methods.base import Method, PoolSpec
from utilgen_jax.methods.baselines import PlainPool

if TYPE_CHECKING:
    from utilgen_jax.config.schema import Config
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool
    from utilgen_jax.generator.adapter import Adapter
    from utilgen_jax.generator.config import SamplingConfig
    from utilgen_jax.report.data import Findings


@dataclasses.dataclass(frozen=True)
class DifficultyConfig(LoraConfig):
    """The section `difficulty`: training of LoRA and encoder, and the difficulties that are requested."""

    steps: int = setting(1000, "optimiser steps", minimum=1)
    batch_size: int = setting(32, "images a step, drawn with replacement", minimum=2)
    prior_fraction: float = setting(
        0.9, "fraction of a batch that the generator itself made (prior preservation)", minimum=0.0, maximum=0.95
    )
    learning_rate: float = setting(2e-3, "AdamW's peak, then cosine decay", minimum=1e-8, maximum=1.0)
    zero_start: bool = setting(False, "the encoder's token is zero before the first step, and not random")
    mean: float = setting(0.5, "mean of the requested difficulties", minimum=0.0, maximum=1.0)
    by_class: tuple[str, ...] = setting((), "classes with another mean, 'three=0.7,eight=0.3'")
    std: float = setting(0.1, "their standard deviation; clipped to [0, 1]", minimum=0.0, maximum=1.0)


def class_means(settings: DifficultyConfig, class_names: Sequence[str]) -> list[float]:
    """The mean of the requested difficulties of each class.

    Raises:
        InputError: an entry of `by_class` names no class, or no number in [0, 1].
    """
    means = dict.fromkeys(class_names, settings.mean)
    for entry in settings.by_class:
        name, _, text = entry.partition("=")
        if name not in means:
            near = nearest(name, class_names)
            raise InputError(f"config.difficulty.by_class: {name!r} is none of the classes; the nearest is {near!r}")
        try:
            means[name] = float(text)
        except ValueError:
            means[name] = -1.0
        if not 0 <= means[name] <= 1:
            raise InputError(f"config.difficulty.by_class: {entry!r} should be such as '{name}=0.7', from 0 to 1")
    return list(means.values())


@dataclasses.dataclass(frozen=True)
class DifficultyPool(PoolSpec):
    """Images of "class prompt, caption" at requested difficulties."""

    @property
    def name(self) -> str:
        return "difficulty"

    @property
    def captions(self) -> bool:
        return True

    def sampling(self, config: Config) -> SamplingConfig:
        return config.section(DifficultyConfig).of(config.generator)

    def check(self, experiment: Experiment) -> None:
        class_means(experiment.config.section(DifficultyConfig), experiment.split.real.class_names)

    def train(self, experiment: Experiment) -> Adapter:
        """Trains LoRA and encoder, once."""
        plain = experiment.pool(PlainPool())
        measured = experiment.classifiers.cross_fitted_difficulty(plain)
        settings = experiment.config.section(DifficultyConfig)
        prior = plain if settings.num_prior else None
        return experiment.adapters.train_lora(self, settings, prior, measured, settings.zero_start)

    def stages(self, config: Config, num_classes: int) -> tuple[str, ...]:
        own = ("difficulty_of_shots", f"lora_{self.name}", "difficulty_sheets", f"pool_{self.name}")
        return (*PlainPool().stages(config, num_classes), *own)

    def build(self, experiment: Experiment) -> GeneratedPool:
        settings = experiment.config.section(DifficultyConfig)
        adapter = self.train(experiment)
        experiment.pools.show_difficulty(self, adapter)
        means = class_means(settings, experiment.split.real.class_names)
        records = experiment.pools.plan(experiment.pools.caption_prompts(), difficulty=(means, settings.std))
        return experiment.pools.generate(self, records, adapter)

    def findings(self, experiment: Experiment) -> Findings:
        return experiment.classifiers.difficulty_findings(experiment.pool(PlainPool()))


METHODS = (Method("difficulty", "+ synthetic images, difficulty", DifficultyPool(), published=True),)
SECTIONS = {"difficulty": DifficultyConfig}

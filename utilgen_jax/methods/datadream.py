"""DataDream (arXiv 2407.10910): a LoRA of the generator, fitted to the few-shot images by the denoising loss.

One for all classes, or with `lora.per_class` one for each, as in the paper's main results.

Ours: random crops are drawn once, `lora.crops` of each image, not anew at each step; in the classifier's training real
images count by their share of a batch, not 0.8; the number of images and the classifier are those of all methods.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from utilgen_jax.fields import setting
from utilgen_jax.generator.finetune.config import LoraConfig
from utilgen_jax.methods.base import Method, PoolSpec
from utilgen_jax.methods.baselines import PlainPool

if TYPE_CHECKING:
    from utilgen_jax.config.schema import Config
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool
    from utilgen_jax.generator.config import SamplingConfig


@dataclasses.dataclass(frozen=True)
class DataDreamConfig(LoraConfig):
    """The section `lora`: training of DataDream's LoRA, and how its images are sampled."""

    per_class: bool = setting(False, "a LoRA for each class, fitted to its shots alone, in place of one for all")


@dataclasses.dataclass(frozen=True)
class DataDreamPool(PoolSpec):
    """Images of the class prompt, by the generator with the LoRA."""

    @property
    def name(self) -> str:
        return "datadream"

    def sampling(self, config: Config) -> SamplingConfig:
        return config.section(DataDreamConfig).of(config.generator)

    def stages(self, config: Config, num_classes: int) -> tuple[str, ...]:
        settings = config.section(DataDreamConfig)
        prior = PlainPool().stages(config, num_classes) if settings.num_prior else ()
        labels = [f"_{label}" for label in range(num_classes)] if settings.per_class else [""]
        return (*prior, *(f"lora_{self.name}{label}" for label in labels), f"pool_{self.name}")

    def build(self, experiment: Experiment) -> GeneratedPool:
        settings = experiment.config.section(DataDreamConfig)
        prior = experiment.pool(PlainPool()) if settings.num_prior else None
        records = experiment.pools.plan(experiment.pools.class_prompts())
        if not settings.per_class:
            return experiment.pools.generate(self, records, experiment.adapters.train_lora(self, settings, prior))
        adapters = experiment.adapters.train_class_loras(self, settings, prior)
        return experiment.pools.generate(self, sorted(records, key=lambda record: record.label), adapters)


METHODS = (Method("datadream", "+ synthetic images, DataDream", DataDreamPool(), published=True),)
SECTIONS = {"lora": DataDreamConfig}

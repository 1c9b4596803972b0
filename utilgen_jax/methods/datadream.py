"""DataDream (arXiv 2407.10910): a LoRA of the generator, fitted to the few-shot images by the denoising loss."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from utilgen_jax.generator.finetune.config import LoraConfig
from utilgen_jax.methods.base import Method, PoolSpec
from utilgen_jax.methods.baselines import PlainPool

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool


@dataclasses.dataclass(frozen=True)
class DataDreamPool(PoolSpec):
    """Images of the class prompt, by the generator with the LoRA."""

    @property
    def name(self) -> str:
        return "datadream"

    def build(self, experiment: Experiment) -> GeneratedPool:
        prior = experiment.pool(PlainPool())
        adapter = experiment.adapters.train_lora(self, experiment.config.section(LoraConfig), prior)
        records = experiment.pools.plan(experiment.pools.class_prompts())
        return experiment.pools.generate(self, records, adapter)


METHODS = (Method("datadream", "+ synthetic images, DataDream", DataDreamPool(), published=True),)
SECTIONS = {"lora": LoraConfig}

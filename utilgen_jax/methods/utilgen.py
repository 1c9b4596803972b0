"""UtilGen (NeurIPS 2025, arXiv 2510.24262): the generator is optimised by the utility of its images.

The steps, in the paper's order:

1. A token for each class by textual inversion on the few-shot images, and a first pool.
2. Task-oriented valuation: a weight network, learnt by the bilevel update, maps a sample's loss to its weight.
3. Model level: rounds of Diffusion-DPO on pairs of high- and low-weight images of a class, each on a new pool.
4. Instance level: a prompt embedding of each image's own, by gradient ascent on its weight, and a starting noise that
   hints at the prompt.
5. The classifier trains on the real images and the weighted pool.

Ours: step counts, ranks and learning rates, on which the paper is silent and whose code is not public. And where the
weights contradict what the images do there is nothing to follow: step 3 leaves the generator, 4 the prompts.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from utilgen_jax.errors import InputError
from utilgen_jax.generator.config import PerImageConfig
from utilgen_jax.generator.finetune.config import DpoConfig, TextualInversionConfig
from utilgen_jax.methods.base import Method, PoolSpec
from utilgen_jax.methods.baselines import PlainPool

if TYPE_CHECKING:
    from utilgen_jax.config.schema import Config
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool
    from utilgen_jax.valuation.cross_fit import PoolValues

WEIGHTING = "loss_network"


@dataclasses.dataclass(frozen=True)
class UtilGenPool(PoolSpec):
    """UtilGen's pool; the ablation is these three flags.

    Attributes:
        dpo: the model level.
        prompts: the instance level's prompts.
        noise: the instance level's noise.
    """

    dpo: bool = True
    prompts: bool = True
    noise: bool = True

    @property
    def name(self) -> str:
        parts = [part for part in ("dpo", "prompts", "noise") if getattr(self, part)]
        if not parts:
            return "class_tokens"
        return "utilgen" if len(parts) == 3 else "_".join(["utilgen", *parts])

    @property
    def class_tokens(self) -> bool:
        return True

    def check(self, experiment: Experiment) -> None:
        settings = experiment.config.section(PerImageConfig)
        if not (self.prompts and settings.clip_weight):
            return
        if settings.clip:
            from utilgen_jax.generator.clip_towers import find_clip

            find_clip(settings.clip)
        elif experiment.generator.architecture.image_encoder is None:
            raise InputError(
                "config.per_image.clip: this checkpoint has no image_encoder to hold each image's prompt to its class; "
                "give --config.per_image.clip=openai/clip-vit-large-patch14 or a folder, or "
                "--config.per_image.clip_weight=0 to do without"
            )

    def stages(self, config: Config, num_classes: int) -> tuple[str, ...]:
        rounds = config.section(DpoConfig).rounds
        if not (self.dpo or self.prompts or self.noise):
            has_prior = config.section(TextualInversionConfig).num_prior
            prior = PlainPool().stages(config, num_classes) if has_prior else ()
            return (*prior, "class_tokens", f"pool_{self.name}")
        if self.prompts or self.noise:
            before = UtilGenPool(dpo=self.dpo, prompts=False, noise=False).stages(config, num_classes)
            last = rounds if self.dpo else 0
            value = [f"value_{self.name}_{last}"] if self.prompts else []
            return (*before, *value, f"pool_{self.name}_{last + 1}")
        before = UtilGenPool(dpo=False, prompts=False, noise=False).stages(config, num_classes)
        of_rounds = [
            (f"value_{self.name}_{number}", f"dpo_{self.name}_{number}", f"pool_{self.name}_{number + 1}")
            for number in range(rounds)
        ]
        return (*before, *(name for names in of_rounds for name in names))

    def build(self, experiment: Experiment) -> GeneratedPool:
        if not (self.dpo or self.prompts or self.noise):
            has_prior = experiment.config.section(TextualInversionConfig).num_prior
            experiment.adapters.learn_class_tokens(prior=experiment.pool(PlainPool()) if has_prior else None)
            prompts = experiment.pools.class_token_prompts()
            return experiment.pools.generate(self, experiment.pools.plan(prompts))
        if self.prompts or self.noise:
            pool = experiment.pool(UtilGenPool(dpo=self.dpo, prompts=False, noise=False))
            return self._instance_level(experiment, pool)
        return self._model_level(experiment, experiment.pool(UtilGenPool(dpo=False, prompts=False, noise=False)))

    def _model_level(self, experiment: Experiment, pool: GeneratedPool) -> GeneratedPool:
        for _ in range(experiment.config.section(DpoConfig).rounds):
            values = self._value(experiment, pool)
            adapter = pool.adapter
            if not values.contradictory:
                adapter = experiment.adapters.train_dpo(self, pool, values.weights)
            records = experiment.pools.plan(experiment.pools.class_token_prompts(), pool.round + 1)
            pool = experiment.pools.generate(self, records, adapter)
        return pool

    def _instance_level(self, experiment: Experiment, pool: GeneratedPool) -> GeneratedPool:
        values = self._value(experiment, pool) if self.prompts else None
        fold_models = None if values is None or values.contradictory else values.fold_models
        refine = experiment.adapters.per_image(self, fold_models, WEIGHTING, self.noise)
        records = experiment.pools.plan(experiment.pools.class_token_prompts(), pool.round + 1)
        return experiment.pools.generate(self, records, pool.adapter, refine=refine)

    def _value(self, experiment: Experiment, pool: GeneratedPool) -> PoolValues:
        values = experiment.values.cross_fit(f"{self.name}_{pool.round}", pool, WEIGHTING)
        experiment.values.show_weight_curve(self.name, pool.round, values)
        return values


@dataclasses.dataclass(frozen=True)
class UtilGen(Method):
    """UtilGen's pool, weighted by its weight network."""

    @property
    def validation_field(self) -> str:
        return "valuation.validation_batch_size"

    @property
    def has_weights(self) -> bool:
        return True

    def value(self, experiment: Experiment, pool: GeneratedPool) -> PoolValues:
        return experiment.values.cross_fit(self.name, pool, WEIGHTING)

    def predict_values(self, experiment: Experiment, pool: GeneratedPool) -> PoolValues:
        assert self.pool is not None
        found = self.value(experiment, experiment.pool(self.pool))
        return experiment.values.predict_weights(found, pool, WEIGHTING)


METHODS = (UtilGen("utilgen", "+ synthetic images, UtilGen", UtilGenPool(), published=True),)
SECTIONS = {"textual_inversion": TextualInversionConfig, "dpo": DpoConfig, "per_image": PerImageConfig}

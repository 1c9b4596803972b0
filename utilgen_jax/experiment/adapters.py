"""The generator's steps of an experiment: what is trained of it, and what each image's own prompt and noise become."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.data.images import to_float
from utilgen_jax.data.streamed_images import Images, in_memory
from utilgen_jax.experiment.keys import Key
from utilgen_jax.experiment.per_image import FoldModels, PerImageProgram, refine_batch
from utilgen_jax.experiment.stages import step
from utilgen_jax.generator.adapter import Adapter, ClassAdapters
from utilgen_jax.generator.clip_similarity import (
    TEXT_PROJECTION,
    embed_prompts,
    load_text_projection,
)
from utilgen_jax.generator.clip_towers import ImageTower, find_clip, image_tower_of, load_clip_towers
from utilgen_jax.generator.conditioning import encode_images, encode_prompts
from utilgen_jax.generator.config import PerImageConfig
from utilgen_jax.generator.finetune.config import (
    DenoisingConfig,
    DpoConfig,
    LoraConfig,
    TextualInversionConfig,
)
from utilgen_jax.generator.finetune.denoising import DenoisingSet, Prompts
from utilgen_jax.generator.finetune.dpo import DpoPairs, preference_pairs, train_dpo
from utilgen_jax.generator.finetune.lora import train_lora
from utilgen_jax.generator.finetune.textual_inversion import class_tokens, initial_embeds, train_textual_inversion
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.generator.sampling import encode_to_latents
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.text_states import TextStates
from utilgen_jax.generator.tokens import add_tokens, tokenize_prompts
from utilgen_jax.methods.base import PoolSpec
from utilgen_jax.prompts.templates import class_prompts
from utilgen_jax.runtime.sharding import replicate, sharding_for, to_host
from utilgen_jax.types import Params
from utilgen_jax.valuation.difficulty import balanced_resample

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool

RefineBatch = Callable[[Adapter, SampleInputs], Adapter]


class AdapterSteps:
    """Trains parts of the generator.

    Args:
        experiment: whose steps these are.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._class_embeds: np.ndarray | None = None
        self._anchors: dict[PoolSpec, tuple[ImageTower, jax.Array] | None] = {}

    @cached_property
    def sd(self) -> StableDiffusion:
        """The checkpoint, read when it is first needed."""
        experiment = self.experiment
        return load_stable_diffusion(
            experiment.generator.checkpoint,
            jnp.dtype(experiment.config.generator.dtype),
            sharding_for=sharding_for(experiment.mesh),
            architecture=experiment.generator.architecture,
        )

    @cached_property
    def sd_with_tokens(self) -> StableDiffusion:
        """The checkpoint with the learnt class tokens; RuntimeError before `learn_class_tokens`."""
        if self._class_embeds is None:
            raise RuntimeError("the class tokens are not learnt yet, see learn_class_tokens")
        tokens = class_tokens(self.experiment.classifier_input.num_classes)
        return add_tokens(self.sd, tokens, jnp.asarray(self._class_embeds))

    def sd_of(self, spec: PoolSpec) -> StableDiffusion:
        """The checkpoint, with class tokens where the pool's prompts hold them."""
        return self.sd_with_tokens if spec.class_tokens else self.sd

    def learn_class_tokens(self, prior: GeneratedPool | None) -> None:
        """Learns a token for each class from the shots, beside prior images if any; `sd_with_tokens` holds them.

        A token starts from the mean of the class's words, see `WordSteps.class_means`.
        """
        self._class_embeds = self._learn_class_tokens(prior)

    @step("class_tokens", np.ndarray)
    def _learn_class_tokens(self, prior: GeneratedPool | None) -> np.ndarray:
        experiment = self.experiment
        config = experiment.config.section(TextualInversionConfig).of_images(len(experiment.split.real))
        tokens = class_tokens(experiment.classifier_input.num_classes)
        with experiment.training_loop(config.steps) as loop:
            embeds = train_textual_inversion(
                self.sd,
                class_prompts(experiment.config.prompts.template, tokens),
                experiment.word_choice.class_means(initial_embeds(self.sd, experiment.words.names)),
                self._shots(config),
                None if prior is None else self._denoising_set(self.sd, prior.images, prior.labels),
                config,
                experiment.key(Key.TEXTUAL_INVERSION),
                loop,
            )
        return np.asarray(to_host(embeds))

    def train_lora(
        self,
        spec: PoolSpec,
        config: LoraConfig,
        prior: GeneratedPool | None,
        difficulties: tuple[np.ndarray, np.ndarray] | None = None,
        zero_token: bool = False,
    ) -> Adapter:
        """Fits a LoRA to the shots by the denoising loss, and with difficulties an encoder of them.

        Args:
            spec: of the pool that it is for.
            config: of the training.
            prior: images of the generator itself, trained on beside the shots; None where there are none in a batch.
            difficulties: of the shots [N] and of the prior images [M], in [0, 1]; None: no encoder.
            zero_token: whether the encoder's token is zero before the first step, and not random.
        """
        return _on_device(self._train_lora(spec, config, prior, difficulties, zero_token))

    @step("lora_{spec.name}", Adapter)
    def _train_lora(
        self,
        spec: PoolSpec,
        config: LoraConfig,
        prior: GeneratedPool | None,
        difficulties: tuple[np.ndarray, np.ndarray] | None,
        zero_token: bool,
    ) -> Adapter:
        experiment = self.experiment
        config = config.of_images(len(experiment.split.real))
        of_shots, of_prior = difficulties or (None, None)
        prior_set = None if prior is None else self._denoising_set(self.sd, prior.images, prior.labels, of_prior)
        if prior_set is not None and of_prior is not None:
            rng = np.random.default_rng([experiment.config.seed, Key.LORA])
            prior_set = prior_set.take(balanced_resample(of_prior, 4 * len(of_prior), rng))
        shots = self._shots(config, difficulties=of_shots)
        with experiment.training_loop(config.steps) as loop:
            prompts = self._training_prompts(config)
            key = experiment.key(Key.LORA)
            return train_lora(self.sd, prompts, shots, prior_set, config, key, loop, zero_token)

    def train_class_loras(self, spec: PoolSpec, config: LoraConfig, prior: GeneratedPool | None) -> ClassAdapters:
        """Fits a LoRA to the shots of each class alone, one class after the other, each a stage.

        Args:
            spec, config, prior: see `train_lora`; an epoch is one of a class's images.

        Returns:
            (class) -> its adapter.
        """
        of_class = partial(self._train_class_lora, spec, config, prior)
        for label in range(self.experiment.classifier_input.num_classes):
            of_class(label)
        return lambda label: _on_device(of_class(label))

    @step("lora_{spec.name}_{label}", Adapter)
    def _train_class_lora(self, spec: PoolSpec, config: LoraConfig, prior: GeneratedPool | None, label: int) -> Adapter:
        experiment = self.experiment
        rows = np.flatnonzero(experiment.split.real.labels == label)
        config = config.of_images(len(rows))
        prior_set = None
        if prior is not None:
            of_class = prior.labels == label
            prior_set = self._denoising_set(self.sd, prior.images[of_class], prior.labels[of_class])
        key = jax.random.fold_in(experiment.key(Key.LORA), label)
        with experiment.training_loop(config.steps) as loop:
            prompts = self._training_prompts(config)
            return train_lora(self.sd, prompts, self._shots(config, rows), prior_set, config, key, loop)

    def _training_prompts(self, config: LoraConfig) -> Prompts:
        """Text states of the class prompts, or their token ids for a LoRA that is of the text encoder too.

        Of a class with several words: the mean of their text states, or the ids of the likeliest one.
        """
        experiment = self.experiment
        if not config.text_encoder_rank:
            return experiment.word_choice.class_means(encode_prompts(self.sd, experiment.word_prompts))
        prompts = [experiment.word_prompts[place] for place in experiment.word_choice.likeliest()]
        return jnp.asarray(tokenize_prompts(self.sd, prompts))

    def _shots(
        self, config: DenoisingConfig, rows: np.ndarray | None = None, difficulties: np.ndarray | None = None
    ) -> DenoisingSet:
        """The few-shot images, or those of some rows, to train on: their middle squares, or random crops."""
        experiment, real = self.experiment, self.experiment.split.real
        rows = np.arange(len(real)) if rows is None else rows
        if not (config.crops or config.flip):
            images = experiment.generator_shots[rows]
        else:
            rng = np.random.default_rng([experiment.config.seed, Key.CROPS, *rows[:1].tolist()])
            split = dataclasses.replace(experiment.split, real=real.take(rows))
            images = split.crops(experiment.config.generator.image_size, 3, config.crops, config.flip, rng)
        times = len(images) // len(rows)
        difficulties = None if difficulties is None else np.tile(difficulties[rows], times)
        return self._denoising_set(self.sd, images, np.tile(real.labels[rows], times), difficulties)

    def train_dpo(self, spec: PoolSpec, pool: GeneratedPool, weights: np.ndarray) -> Adapter:
        """Trains one round of Diffusion-DPO on pairs of a pool, high against low weights of a class.

        Args:
            spec: of the pool that it is for.
            pool: the images.
            weights: of the images, float [N].
        """
        return _on_device(self._train_dpo(spec, pool, weights))

    @step("dpo_{spec.name}_{pool.round}", Adapter)
    def _train_dpo(self, spec: PoolSpec, pool: GeneratedPool, weights: np.ndarray) -> Adapter:
        experiment, sd = self.experiment, self.sd_of(spec)
        config = experiment.config.section(DpoConfig)
        winners, losers = preference_pairs(weights, pool.labels, config.fraction)
        embeds, prompt_of_image = self._prompt_table(sd, pool)
        images = self._denoising_set(sd, pool.images, pool.labels)
        pairs = DpoPairs(
            latents=images.latents,
            labels=images.labels,
            prompt_embeds=embeds,
            prompts=jnp.asarray(prompt_of_image),
            winners=jnp.asarray(winners),
            losers=jnp.asarray(losers),
        )
        key = jax.random.fold_in(experiment.key(Key.DPO), pool.round)
        with experiment.training_loop(config.steps) as loop:
            return train_dpo(sd, pool.adapter, replicate(pairs), config, key, loop)

    def per_image(
        self, spec: PoolSpec, fold_models: dict[str, Params] | None, weighting: str, noise: bool
    ) -> RefineBatch:
        """Makes the function that gives each image of a batch a prompt and a noise of its own (UtilGen).

        Args:
            spec: of the pool that it is for.
            fold_models: of a valuation; None: the prompts stay as they are.
            weighting: that the fold models were trained with.
            noise: whether each image gets a golden noise.

        Returns:
            (adapter, inputs of M images with a row each) -> the adapter for that batch.
        """
        experiment = self.experiment
        program = PerImageProgram(
            noise=noise,
            config=experiment.config.section(PerImageConfig),
            sampling=experiment.config.generator,
            valuation=experiment.config.valuation,
            weighting=weighting,
            classifier_input=experiment.classifier_input,
            label_smoothing=experiment.config.classifier.label_smoothing,
        )
        models = (
            None if fold_models is None else FoldModels(experiment.classifier, jax.tree.map(jnp.asarray, fold_models))
        )
        # The checkpoint is read with the first batch: a finished pool needs none.
        return partial(self._refine_batch, program, spec, models)

    def _refine_batch(
        self,
        program: PerImageProgram,
        spec: PoolSpec,
        models: FoldModels | None,
        adapter: Adapter,
        inputs: SampleInputs,
    ) -> Adapter:
        sd = self.sd_of(spec)
        if spec not in self._anchors:
            self._anchors[spec] = self._class_anchors(sd)
        tower = None
        if (found := self._anchors[spec]) is not None:
            tower, anchors = found
            inputs = dataclasses.replace(inputs, clip_anchors=anchors[inputs.labels])
        return refine_batch(program, sd, models, tower, adapter, inputs)

    def _class_anchors(self, sd: StableDiffusion) -> tuple[ImageTower, jax.Array] | None:
        """CLIP's image encoder, and the embedding that images of each class should stay near, [K, E].

        That of the class prompt, by a CLIP of its own or by the checkpoint; of a checkpoint whose text encoder has no
        projection, the mean of the shots'. None where the distance does not count.
        """
        experiment = self.experiment
        config = experiment.config.section(PerImageConfig)
        if config.clip_weight == 0:
            return None
        if config.clip:
            towers = load_clip_towers(
                find_clip(config.clip),
                jnp.dtype(experiment.config.generator.dtype),
                sharding_for=sharding_for(experiment.mesh),
            )
            return towers.image, experiment.word_choice.class_means(towers.embed_prompts(experiment.word_prompts))
        return image_tower_of(sd), self._own_anchors(sd)

    def _own_anchors(self, sd: StableDiffusion) -> jax.Array:
        experiment = self.experiment
        checkpoint = experiment.generator.checkpoint
        if (checkpoint / TEXT_PROJECTION).is_dir():
            projection = load_text_projection(checkpoint, sd.architecture)
            return experiment.word_choice.class_means(embed_prompts(sd, projection, experiment.word_prompts))
        batches = self._batches(experiment.generator_shots)
        embeds = jnp.concatenate([encode_images(sd, batch).astype(jnp.float32) for batch in batches])
        embeds = embeds / jnp.linalg.norm(embeds, axis=-1, keepdims=True)
        labels = jnp.asarray(experiment.split.real.labels)
        return jax.ops.segment_sum(embeds, labels, experiment.classifier_input.num_classes)

    def _denoising_set(
        self, sd: StableDiffusion, images: Images, labels: np.ndarray, difficulties: np.ndarray | None = None
    ) -> DenoisingSet:
        """Encodes images uint8 [N, S, S, 3]; difficulties float32 [N] where they are known."""
        difficulty = None if difficulties is None else jnp.asarray(difficulties)
        return replicate(DenoisingSet(self.latents(sd, images), jnp.asarray(labels), difficulty))

    def latents(self, sd: StableDiffusion, images: Images) -> jax.Array:
        """Latents [N, h, w, C] of images uint8 [N, S, S, 3], encoded in batches."""
        return jnp.concatenate([encode_to_latents(sd, batch) for batch in self._batches(images)])

    def _batches(self, images: Images) -> Iterator[jax.Array]:
        """Images uint8 [N, S, S, 3] as float32 in [-1, 1], a batch at a time."""
        size = self.experiment.config.generator.batch_size
        for start in range(0, len(images), size):
            yield jnp.asarray(to_float(in_memory(images[start : start + size])))

    def _prompt_table(self, sd: StableDiffusion, pool: GeneratedPool) -> tuple[TextStates, np.ndarray]:
        """Text states of the different prompts of a pool, and which of them each image has, int [N]."""
        distinct, prompt_of_image = np.unique([record.prompt or "" for record in pool.records], return_inverse=True)
        return encode_prompts(sd, distinct.tolist()), prompt_of_image


def _on_device(adapter: Adapter) -> Adapter:
    return jax.tree.map(jnp.asarray, adapter)

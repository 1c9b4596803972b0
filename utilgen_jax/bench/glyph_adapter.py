"""The glyph domain for `bench adapter`: a fixed classifier, images and their utility, and each objective's gradient."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from utilgen_jax import checkpoints
from utilgen_jax.bilevel.examples import Examples, labelled
from utilgen_jax.bilevel.influence import influence
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.classifier.model import make_classifier
from utilgen_jax.classifier.train import train_classifier
from utilgen_jax.config.schema import Config
from utilgen_jax.data.digits import CLASS_NAMES
from utilgen_jax.data.images import to_float
from utilgen_jax.data.sources import load_source
from utilgen_jax.data.splits import cross_fit_folds, few_shot
from utilgen_jax.diffusion.samplers.ddim import make_ddim
from utilgen_jax.diffusion.schedules import read_by
from utilgen_jax.generator.adapter import Adapter, AdapterConfig, generate_images, init_adapter
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.finetune.ddpo import Trajectory, normalized_advantages, policy_gradient, rollout
from utilgen_jax.generator.finetune.dpo import DpoBatch, dpo_losses
from utilgen_jax.generator.finetune.draft import pathwise_loss
from utilgen_jax.generator.inputs import SampleInputs, make_sample_inputs
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.generator.sampling import decode_latents
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.utility import influence_utility
from utilgen_jax.prompts.templates import class_prompts
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.types import Params

NUM_CLASSES = 10
LORA_RANK = 4
CLASSIFIER_STEPS = 60
NUM_STEPS, ETA = 4, 1.0  # a short way, with noise in each step, as DDPO needs it
INNER_LEARNING_RATE = 0.005  # of plain SGD: a step that short is about linear in the images
DPO_NOISES = 4  # random timesteps and noises for each pair in each update


@struct.dataclass
class Task:
    """What is fixed for a seed.

    Attributes:
        sd: the generator.
        theta: the classifier's.
        validation: held-out shots.
    """

    sd: StableDiffusion
    theta: Params
    validation: Examples


@struct.dataclass
class Round:
    """Generated images and their utility to the classifier.

    Attributes:
        reference: the adapter that generated them.
        trajectory: how.
        utilities: Σ_k y_k Π_k of each, float32 [M].
        direction: q of the classifier's step on them all.
        validation_loss: after that step.
        pairs: winners and losers, int [P] each.
    """

    reference: Adapter
    trajectory: Trajectory
    utilities: jax.Array
    direction: Params
    validation_loss: jax.Array
    pairs: tuple[np.ndarray, np.ndarray] | None = None


class GlyphDomain:
    """What all seeds share; its methods see no other state, so that each compiles once."""

    def __init__(self) -> None:
        """Loads the embedded generator."""
        self.config = Config()
        self.sd = load_stable_diffusion(checkpoints.resolve_checkpoint(self.config.generator.checkpoint))
        self.sampler = make_ddim(read_by(self.sd.schedule, "DDIMScheduler"), NUM_STEPS, first=0, eta=ETA)
        settings = self.config.data
        self.classifier = make_classifier(self.config.classifier, NUM_CLASSES, settings.image_size, settings.channels)
        self.to_examples = partial(
            ClassifierInput(NUM_CLASSES, settings.image_size, settings.channels).examples,
            label_smoothing=self.config.classifier.label_smoothing,
        )
        self.value = jax.jit(self._value)

    def apply(self, theta: Params, inputs: jax.Array) -> jax.Array:
        """The classifier's logits."""
        return self.classifier.apply(theta, inputs)

    def make_task(self, seed: int) -> Task:
        """Trains the classifier on one half of the seed's shots; the other half validates."""
        config = ClassifierConfig(steps=CLASSIFIER_STEPS, mixing="none")
        real = few_shot(load_source(self.config.data), self.config.data.shots, seed).real
        fold = cross_fit_folds(real.labels, 2, seed)[0]
        images = jnp.asarray(to_float(real.images))
        training = labelled(images, real.labels, NUM_CLASSES).take(fold.train_indices)
        theta = train_classifier(self.classifier, config, training, None, jax.random.key(seed), TrainingLoop())
        chosen = fold.validation_indices
        targets = self.to_examples(images[chosen], jnp.asarray(real.labels[chosen])).targets
        return Task(self.sd, theta, Examples(images[chosen], targets))

    def make_sample_inputs(self, number: int, rng: np.random.Generator) -> SampleInputs:
        """Images of the classes in turn, from fresh noise."""
        labels = np.arange(number) % NUM_CLASSES
        prompts = class_prompts(self.config.prompts.template, [CLASS_NAMES[label] for label in labels])
        seeds = rng.integers(0, 2**31, number)
        return make_sample_inputs(self.sd, prompts, labels, seeds, self.sampling)

    def init_adapter(self, sample_inputs: SampleInputs, seed: int) -> Adapter:
        """A LoRA on the UNet's attention that changes nothing yet."""
        return init_adapter(self.sd.params, sample_inputs, AdapterConfig(lora_rank=LORA_RANK), jax.random.key(seed))

    def _value(self, task: Task, adapter: Adapter, sample_inputs: SampleInputs) -> Round:
        trajectory = rollout(task.sd, adapter, sample_inputs, self.sampler, self.sampling.guidance_scale)
        examples = self.to_examples(decode_latents(task.sd, trajectory.latents[-1]), sample_inputs.labels)
        optimizer = optax.sgd(INNER_LEARNING_RATE)
        found = influence(self.apply, optimizer, task.theta, optimizer.init(task.theta), examples, task.validation)
        utilities = jnp.sum(examples.targets * found.matrix, axis=-1)
        return Round(adapter, trajectory, utilities, found.direction, found.validation_loss)

    @property
    def sampling(self) -> SamplingConfig:
        """Of all images."""
        settings = self.config.generator
        return SamplingConfig(
            steps=NUM_STEPS, guidance_scale=settings.guidance_scale, image_size=settings.image_size, eta=ETA
        )

    def pathwise(self, task: Task, adapter: Adapter, seen: Round, key: jax.Array) -> Adapter:
        """The gradient of the utility itself, through the last step and the decoder."""
        del key
        generated = partial(generate_images, task.sd, sampling=self.sampling)
        utility = influence_utility(self.apply, task.theta, seen.direction, self.to_examples)
        return jax.grad(pathwise_loss)(
            adapter, seen.trajectory.sample_inputs, generate_images=generated, utility=utility
        )

    def policy_gradient(self, task: Task, adapter: Adapter, seen: Round, key: jax.Array) -> Adapter:
        """DDPO's, with utilities normalised class by class."""
        del key
        advantages = normalized_advantages(seen.utilities, seen.trajectory.sample_inputs.labels, NUM_CLASSES)
        _, gradient = policy_gradient(task.sd, adapter, seen.trajectory, advantages)
        return gradient

    def dpo(self, task: Task, adapter: Adapter, seen: Round, key: jax.Array) -> Adapter:
        """Diffusion-DPO's, on pairs of the round."""
        assert seen.pairs is not None
        winners, losers = (jnp.tile(chosen, DPO_NOISES) for chosen in seen.pairs)
        batch = DpoBatch(seen.trajectory.sample_inputs, seen.trajectory.latents[-1], winners, losers)

        def mean_loss(adapter: Adapter) -> jax.Array:
            return jnp.mean(dpo_losses(task.sd, adapter, seen.reference, batch, key))

        return jax.grad(mean_loss)(adapter)

"""What the joint update is made of: its parts, their optimisers, and what they learn from."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.weightings import Weighting, feature_network, importance_ratio, product, uniform
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.generator.adapter import Adapter, AdapterConfig, init_adapter
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.text_states import TextStates
from utilgen_jax.joint.config import JointConfig
from utilgen_jax.joint.regularizers import AnchorSet
from utilgen_jax.types import Params
from utilgen_jax.valuation.config import ValuationConfig
from utilgen_jax.valuation.cross_fit import local_optimizer

LEVELS = ("weights", "attributes", "lora", "difficulty")  # what the outer level trains
REGULARIZERS = ("anchor", "coverage", "bounds")
FEATURES = ("loss", "margin", "entropy", "class", "difficulty", "attributes")  # that the weight network sees


@dataclasses.dataclass(frozen=True)
class JointProgram:
    """What the compiled update depends on.

    Attributes:
        config: the classifier's.
        valuation: of the weight network, and the rate of the inner steps.
        joint: of the other parts of the outer level.
        sampling: of the images made in the update; its steps and batch size are the joint config's.
        classifier_input: what the classifier sees of an image.
        latent_shape: of an image's latents, (h, w, C).
        num_attributes: A.
        without: names of `LEVELS` that are not trained and of `REGULARIZERS` that are left out.
    """

    config: ClassifierConfig
    valuation: ValuationConfig
    joint: JointConfig
    sampling: SamplingConfig
    classifier_input: ClassifierInput
    latent_shape: tuple[int, int, int]
    num_attributes: int
    without: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether a level is trained, or a regularizer applied."""
        return name not in self.without

    @property
    def has_anchor(self) -> bool:
        """Whether the outer loss has that term."""
        return self.joint.anchor > 0 and self.has("anchor")

    @property
    def has_coverage(self) -> bool:
        """The same of generated and real features."""
        return self.joint.coverage > 0 and self.has("coverage")

    @property
    def step_sampling(self) -> SamplingConfig:
        """Of the images made in an update."""
        return dataclasses.replace(
            self.sampling, steps=self.joint.sampler_steps, batch_size=self.joint.num_generated, strength=1.0
        )

    @property
    def weighting(self) -> Weighting:
        """Of the pool's and the generated images."""
        parts = {}
        if self.has("weights"):
            parts["network"] = self.network
        if self.has("attributes"):
            parts["attributes"] = importance_ratio(self.num_attributes)
        return product(**parts) if parts else uniform()

    @property
    def network(self) -> Weighting:
        """The weight network's part of it."""
        if not self.has("weights"):
            return uniform()
        num_classes = self.classifier_input.num_classes
        return feature_network(FEATURES, num_classes, self.valuation.hidden, self.num_attributes)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Of the classifier."""
        return local_optimizer(self.joint.inner_learning_rate, self.config.weight_decay)

    @property
    def outer_optimizer(self) -> optax.GradientTransformation:
        """Gives each part of the outer level its own optimiser; parts that are not trained stay as they are."""
        joint, valuation = self.joint, self.valuation
        lowest, highest = (jax.scipy.special.logit(end) for end in (joint.lowest_difficulty, joint.highest_difficulty))
        bounds = keep_within(lowest, highest) if self.has("bounds") else optax.identity()
        optimizers = {
            "weights": optax.chain(
                optax.add_decayed_weights(valuation.weight_decay), optax.adam(joint.weight_learning_rate)
            ),
            "attributes": optax.chain(
                optax.add_decayed_weights(joint.attribute_weight_decay), optax.adam(joint.attribute_learning_rate)
            ),
            "lora": _clipped_adam(joint.lora_learning_rate) if self.has("lora") else optax.set_to_zero(),
            "encoder": _clipped_adam(joint.encoder_learning_rate) if self.has("difficulty") else optax.set_to_zero(),
            "difficulty": optax.chain(optax.adam(joint.difficulty_learning_rate), bounds),
            "frozen": optax.set_to_zero(),
        }
        return optax.partition(optimizers, self._labels)

    def _labels(self, outer: dict[str, Any]) -> dict[str, Any]:
        """The optimiser of each part of the outer level, by name."""
        difficulty = self.has("difficulty")
        parts = {
            "unet_lora": "lora" if self.has("lora") else "frozen",
            "difficulty_encoder": "encoder" if difficulty else "frozen",
            "difficulty_offset": "encoder" if difficulty else "frozen",
            "difficulty_logits": "difficulty" if difficulty else "frozen",
        }
        adapter = {name: label for name, label in parts.items() if getattr(outer["adapter"], name) is not None}
        weighting = {"network": "weights", "attributes": "attributes"}
        return {
            "weighting": {name: weighting[name] for name in outer["weighting"]},
            "adapter": Adapter(**adapter),  # type: ignore[arg-type]
        }

    def init_outer(
        self, generator_params: Params, sample_inputs: SampleInputs, start: Adapter | None, key: jax.Array
    ) -> dict[str, Any]:
        """The outer level before the first update.

        Args:
            generator_params: weights by component.
            sample_inputs: of any images.
            start: an adapter with LoRA and difficulty encoder, or with a LoRA alone, see `init_lora`; None: one that
                changes nothing.
            key: PRNG key.
        """
        num_classes = self.classifier_input.num_classes
        middle = (self.joint.lowest_difficulty + self.joint.highest_difficulty) / 2
        config = AdapterConfig(
            lora_rank=self.joint.lora_rank if start is None else None,
            num_classes=num_classes,
            difficulty_offset=True,
            difficulties=[middle] * num_classes,
        )
        adapter = init_adapter(generator_params, sample_inputs, config, jax.random.fold_in(key, 0))
        if start is not None and start.knows_difficulty:
            adapter = dataclasses.replace(start, difficulty_logits=adapter.difficulty_logits)
        elif start is not None:
            adapter = dataclasses.replace(adapter, unet_lora=start.unet_lora)
        return {"weighting": self.weighting.init(jax.random.fold_in(key, 1)), "adapter": adapter}

    def init_lora(self, generator_params: Params, sample_inputs: SampleInputs, key: jax.Array) -> Adapter:
        """The LoRA that `init_outer` makes in a jitted function, for its `start`; this one is not to be jitted."""
        config = AdapterConfig(lora_rank=self.joint.lora_rank)
        # Layers draw in the order of their names, as in a jitted function: `tree.map` sorts them.
        generator_params = jax.tree.map(lambda leaf: leaf, generator_params)
        return init_adapter(generator_params, sample_inputs, config, jax.random.fold_in(key, 0))


def _clipped_adam(learning_rate: float) -> optax.GradientTransformation:
    """Of many small arrays, worked on as one: an operation for each takes seconds more to compile."""
    return optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate)))


def keep_within(lowest: jax.Array | float, highest: jax.Array | float) -> optax.GradientTransformation:
    """Shortens updates that would leave [lowest, highest]; last in a chain."""

    def update(updates: Params, state: optax.OptState, params: Params = None) -> tuple[Params, optax.OptState]:
        kept = jax.tree.map(lambda step, leaf: jnp.clip(leaf + step, lowest, highest) - leaf, updates, params)
        return kept, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@struct.dataclass
class JointData:
    """What the images that an update generates are drawn from.

    Attributes:
        anchors: noised images of the generator as it is; None where the update has no anchor.
        prompt_embeds: text states of P prompts with drawn attributes, see `TextStates`.
        prompt_labels: their classes, int32 [P].
        prompt_attributes: their attributes, float32 [P, A].
        negative_prompt_embeds: of the unconditional branch, of one.
    """

    anchors: AnchorSet | None
    prompt_embeds: TextStates
    prompt_labels: jax.Array
    prompt_attributes: jax.Array
    negative_prompt_embeds: TextStates


@struct.dataclass
class JointBatch:
    """The images that an update is given; with K > 1 inner steps `examples` and `shots` have a leading axis [K].

    Attributes:
        examples: B real and synthetic images that the classifier learns from, with difficulty and attributes; both are
            0 for a real one.
        class_counts: how many real images of each class it may learn from, float32 [C].
        validation: held-out shots; None: a plain step of the classifier, without the outer level.
        shots: real images that M generated ones are compared with; None where they are not.
    """

    examples: Examples
    class_counts: jax.Array
    validation: Examples | None = None
    shots: Examples | None = None

"""Our side of `bench unet`: the UNet's forward pass and the LoRA training step, with random weights and inputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from utilgen_jax.bench.compiled import prepare_compiled
from utilgen_jax.bench.peaks import jax_matmul
from utilgen_jax.bench.timing import Prepared, Work
from utilgen_jax.diffusion.losses import denoising_loss
from utilgen_jax.diffusion.schedules import NoiseSchedule, load_schedule
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.finetune.denoising import (
    DenoisingSet,
    adapter_loss,
    init_train_state,
    make_train_step,
)
from utilgen_jax.generator.stable_diffusion import Architecture, StableDiffusion, expected_params
from utilgen_jax.models.lora import Lora, init_lora
from utilgen_jax.models.unet import NUM_SIZES, UNet2DConditionModel
from utilgen_jax.runtime.flops import count_flops
from utilgen_jax.types import Params

LEARNING_RATE = 1e-4
_NUM_TOKENS = 77  # of a prompt, as CLIP pads it
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The arguments of both sides: numpy arrays, batch-first, latents NHWC.

    Attributes:
        latents: clean ones, float32 [B, h, w, C].
        noisy_latents: float32 [B, h, w, C].
        timesteps: int32 [B].
        target: of the training step's prediction, float32 [B, h, w, C].
        prompt_embeds: float32 [B, T, D].
        class_labels: float32 [B, E], or None where the UNet takes none.
        num_sizes: how many of the last class labels are an image's sizes, see `unet.NUM_SIZES`.
    """

    latents: np.ndarray
    noisy_latents: np.ndarray
    timesteps: np.ndarray
    target: np.ndarray
    prompt_embeds: np.ndarray
    class_labels: np.ndarray | None
    num_sizes: int


@dataclasses.dataclass(frozen=True)
class UNetSettings:
    """What both sides have in common.

    Attributes:
        dtype: to compute in.
        weights_dtype: to keep the weights in.
        rank: of the LoRA.
    """

    dtype: str
    weights_dtype: str
    rank: int


class JaxUNet:
    """A UNet with random weights, and a random LoRA on its attention.

    Attributes:
        params: nested dicts of arrays in the weights' dtype, linen names.
        lora: factors float32.
    """

    def __init__(
        self,
        unet_config: Mapping[str, Any],
        scheduler_config: Mapping[str, Any],
        settings: UNetSettings,
        attention: str = "auto",
        gradient_checkpointing: str = "none",
    ) -> None:
        """Draws the weights.

        Args:
            unet_config: a parsed `config.json`.
            scheduler_config: a parsed `scheduler_config.json`, for the training step's noise.
            settings: those that torch's side shares.
            attention: see `dot_product_attention`.
            gradient_checkpointing: see `UNet2DConditionModel`.
        """
        self.settings = settings
        module = UNet2DConditionModel.from_config(unet_config, jnp.dtype(settings.dtype), gradient_checkpointing)
        self._module = module.clone(attention_implementation=attention)
        self._schedule = load_schedule(scheduler_config)
        self.params = random_params(expected_params(module), settings.weights_dtype)
        lora = init_lora(self.params, jax.random.key(_SEED), rank=settings.rank)
        # Training starts at up = 0, which would hide a mistake in `down` from the comparison of both sides.
        self.lora = Lora(random_params(lora.factors, "float32"), lora.scales)

    def inputs(self, batch_size: int, latent_size: int) -> Inputs:
        """Draws inputs, the same ones each time."""
        generator = np.random.default_rng(_SEED)
        module = self._module

        def normal(*shape: int) -> np.ndarray:
            return generator.standard_normal((batch_size, *shape), np.float32)

        latents = normal(latent_size, latent_size, module.in_channels)
        # `make_train_step` folds its key with the number of the step: these are the first one's draws.
        step_key = jax.random.fold_in(jax.random.key(_SEED), 0)
        noisy_latents, timesteps, target = drawn_noise(self._schedule, latents, step_key)
        return Inputs(
            latents=latents,
            noisy_latents=noisy_latents,
            timesteps=timesteps,
            target=target,
            prompt_embeds=normal(_NUM_TOKENS, module.cross_attention_dim),
            class_labels=None if module.label_width is None else normal(module.label_width),
            num_sizes=0 if module.pooled_width is None else NUM_SIZES,
        )

    def forward(self, inputs: Inputs) -> Prepared:
        """Compiles the forward pass; outputs 'prediction' [B, h, w, C]."""
        arguments = jax.tree.map(
            jnp.asarray, (inputs.noisy_latents, inputs.timesteps, inputs.prompt_embeds, inputs.class_labels)
        )

        def make(module: Any) -> Any:
            return jax.jit(lambda params, *arguments: {"prediction": module.apply({"params": params}, *arguments)})

        return self._prepare(make, (self.params, *arguments), lambda compiled: compiled(self.params, *arguments))

    def lora_step(self, inputs: Inputs) -> Prepared:
        """Compiles the LoRA training step with AdamW; outputs 'loss' and 'grad_norm' of the first step."""
        optimizer = optax.adamw(LEARNING_RATE)
        # Each step donates its state. The LoRA's scale is 1, as an adapter's always is.
        state = init_train_state(Adapter(unet_lora=jax.tree.map(jnp.copy, self.lora.factors)), optimizer)
        latents, prompt_embeds, class_labels = jax.tree.map(
            jnp.asarray, (inputs.latents, inputs.prompt_embeds, inputs.class_labels)
        )
        batch = DenoisingSet(latents, jnp.arange(len(latents)), class_labels=class_labels)
        arguments = ({"unet": self.params}, prompt_embeds, batch, jax.random.key(_SEED))

        def make(module: Any) -> Any:
            train_step = make_train_step(adapter_loss, optimizer)

            def step(state: Any, params: Params, *inputs: Any) -> Any:
                return train_step(state, StableDiffusion(_unet_alone(module, self._schedule), params), *inputs)

            return jax.jit(step, donate_argnums=0)

        def step(compiled: Any) -> dict[str, jax.Array]:
            nonlocal state
            state, metrics = compiled(state, *arguments)
            return metrics

        return self._prepare(make, (state, *arguments), step)

    def matmul(self, size: int) -> Work:
        """XLA's matrix product in the dtype of the activations."""
        return jax_matmul(self.settings.dtype, size)

    def _prepare(
        self, make: Callable[[Any], Any], arguments: tuple[Any, ...], call: Callable[[Any], Mapping[str, jax.Array]]
    ) -> Prepared:
        """Compiles make(module), a jitted function, for its arguments; `call` calls what is compiled."""
        plain = self._module.clone(attention_implementation="plain", gradient_checkpointing="none")
        flops = count_flops(make(plain).trace(*arguments).jaxpr)
        prepared = prepare_compiled(lambda: make(self._module).trace(*arguments), call, _in_float32)
        return dataclasses.replace(prepared, flops=flops)


def _in_float32(outputs: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(output, np.float32) for name, output in outputs.items()}


def random_params(shapes: Any, dtype: str) -> Params:
    """Draws weights with which activations keep their size, and in which no name can be taken for another unseen.

    On the host: XLA takes minutes to compile the initialisation of a large model for a CPU.

    Args:
        shapes: nested dicts of arrays or `jax.ShapeDtypeStruct`, linen names.
        dtype: of the result.

    Returns:
        The same nesting: norms' scales around 1, biases around 0, all others of variance 1 / inputs.
    """
    generator = np.random.default_rng(_SEED)

    def draw(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        noise = generator.standard_normal(leaf.shape, np.float32)
        if leaf.ndim > 1:
            noise /= math.sqrt(math.prod(leaf.shape[:-1]))
        else:
            noise *= 0.1
        return jnp.asarray(noise + 1 if path[-1].key == "scale" else noise, dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def drawn_noise(
    schedule: NoiseSchedule, latents: np.ndarray, key: jax.Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `denoising_loss` draws from a key: noisy latents, timesteps [B], and the target of the prediction."""
    seen: list[jax.Array] = []

    def loss(prediction: jax.Array) -> jax.Array:
        def denoise(noisy_latents: jax.Array, timesteps: jax.Array) -> jax.Array:
            seen.extend((noisy_latents, timesteps))
            return prediction

        return denoising_loss(denoise, schedule, jnp.asarray(latents), key).sum()

    # The loss is the mean of (prediction - target)²: its gradient at zero is -2 target / elements.
    gradient = jax.grad(loss)(jnp.zeros_like(latents))
    noisy_latents, timesteps = map(np.asarray, seen)
    return noisy_latents, timesteps, np.asarray(gradient) * (-latents[0].size / 2)


def _unet_alone(module: Any, schedule: NoiseSchedule) -> Architecture:
    """An architecture of a UNet and its schedule: all that training on text states uses."""
    return Architecture(
        unet=module,
        vae=None,
        text_encoder=None,
        image_encoder=None,
        tokenizer=None,
        schedule=schedule,
        image_noising_schedule=None,
        image_mean=(),
        image_std=(),
    )

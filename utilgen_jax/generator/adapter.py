"""The adapter, all that is trained of a frozen generator, and images as a differentiable function of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.diffusion.samplers import Denoiser, UNetInputs, guided
from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.difficulty_token import add_difficulty, append_difficulty
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.sampling import sample, sample_beside, unet_with_guidance
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.models.difficulty import DifficultyEncoder, with_zero_token
from utilgen_jax.models.lora import Lora, init_lora, merge_lora
from utilgen_jax.types import Params


@struct.dataclass
class Adapter:
    """All that is trained of the generator; every leaf is float32, and a part that is None is not there.

    The tables have N rows, one for each class or one for each image; `SampleInputs.rows` selects them.

    Attributes:
        unet_lora: low-rank factors of the UNet, as in `Lora.factors`. Their scale is 1 and no leaf: it is not trained.
        text_encoder_lora: those of the text encoder. It has a part in prompts that are encoded with the adapter, as in
            training; sample inputs hold text states that are encoded already.
        text_encoder_2_lora: those of the second text encoder of Stable Diffusion XL.
        difficulty_encoder: parameters of a `DifficultyEncoder`; its token is put behind the prompt.
        difficulty_offset: parameters of a `DifficultyEncoder` whose token is added to the prompt's last text state. As
            long as it is zero it changes nothing, which a token more would do whatever it is.
        difficulty_logits: [N], the sigmoid of which is the requested difficulty.
        prompt_offsets: [N, T, D], added to the prompt's text states.
        noise_offsets: [N, h, w, C], added to the starting noise. Gradients reach them where all steps are
            differentiable, see `generate_images`.
    """

    unet_lora: Mapping[str, Any] | None = None
    text_encoder_lora: Mapping[str, Any] | None = None
    text_encoder_2_lora: Mapping[str, Any] | None = None
    difficulty_encoder: Params | None = None
    difficulty_offset: Params | None = None
    difficulty_logits: jax.Array | None = None
    prompt_offsets: jax.Array | None = None
    noise_offsets: jax.Array | None = None

    @property
    def knows_difficulty(self) -> bool:
        """Whether images can be requested at a difficulty."""
        return self.difficulty_encoder is not None or self.difficulty_offset is not None


# (class) -> what was trained for images of that class
ClassAdapters = Callable[[int], Adapter]
GenerateImages = Callable[[Adapter, SampleInputs], jax.Array]


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Which parts an adapter has; None for a part that it does not have.

    Attributes:
        lora_rank: rank of a LoRA on the UNet.
        lora_targets: the layers that get it, see `models.lora.init_lora`.
        text_encoder_lora_rank: rank of a LoRA on the text encoders' attention.
        num_prompts: rows of a table of prompt offsets.
        num_noises: rows of a table of noise offsets.
        num_classes: classes of a difficulty encoder.
        difficulty_offset: whether its token is added to the prompt's last text state, zero at the start, in place of
            being put behind the prompt.
        difficulties: the requested difficulties at the start, each in (0, 1); needed with `num_classes`.
    """

    lora_rank: int | None = None
    lora_targets: Sequence[str] = ("attention",)
    text_encoder_lora_rank: int | None = None
    num_prompts: int | None = None
    num_noises: int | None = None
    num_classes: int | None = None
    difficulty_offset: bool = False
    difficulties: Sequence[float] | np.ndarray | None = None


def init_adapter(params: Params, sample_inputs: SampleInputs, config: AdapterConfig, key: jax.Array) -> Adapter:
    """Makes an adapter that changes nothing yet: LoRA products and tables are zero.

    A difficulty encoder whose token is put behind the prompt is the exception. Its weights are random, and its token is
    one more word for a generator that was not trained with it.

    Args:
        params: weights by component, `StableDiffusion.params`.
        sample_inputs: the tables get their shapes.
        config: the parts.
        key: PRNG key of LoRA and difficulty encoder.

    Raises:
        InputError: a difficulty is not inside (0, 1), or comes without an encoder, or the encoder without it; or see
            `init_lora`.
    """
    if (config.num_classes is None) != (config.difficulties is None):
        raise InputError("init_adapter: a difficulty encoder needs num_classes and difficulties, both")
    loras = {
        "unet": (config.lora_rank, config.lora_targets, jax.random.fold_in(key, 0)),
        "text_encoder": (config.text_encoder_lora_rank, ("attention",), jax.random.fold_in(key, 2)),
        "text_encoder_2": (config.text_encoder_lora_rank, ("attention",), jax.random.fold_in(key, 3)),
    }
    factors = {
        f"{name}_lora": init_lora(params[name], lora_key, rank=rank, targets=targets).factors
        for name, (rank, targets, lora_key) in loras.items()
        if rank is not None and name in params
    }
    encoder = logits = None
    if config.num_classes is not None:
        requested = np.asarray(config.difficulties, np.float32)
        if not ((requested > 0) & (requested < 1)).all():
            raise InputError(
                f"init_adapter: difficulties={requested.tolist()} must be above 0 and below 1: 0.5 is a start"
            )
        logits = jax.scipy.special.logit(jnp.asarray(requested))
        module = DifficultyEncoder(config.num_classes, sample_inputs.condition.prompt_embeds.shape[-1])
        encoder = module.init(jax.random.fold_in(key, 1), sample_inputs.labels[:1], logits[:1])["params"]
        if config.difficulty_offset:
            encoder = with_zero_token(encoder)

    def table(rows: int | None, like: jax.Array) -> jax.Array | None:
        return None if rows is None else jnp.zeros((rows, *like.shape[1:]))

    return Adapter(
        **factors,
        difficulty_encoder=None if config.difficulty_offset else encoder,
        difficulty_offset=encoder if config.difficulty_offset else None,
        difficulty_logits=logits,
        prompt_offsets=table(config.num_prompts, sample_inputs.condition.prompt_embeds),
        noise_offsets=table(config.num_noises, sample_inputs.latents),
    )


def adapter_loras(adapter: Adapter) -> dict[str, Lora]:
    """The adapter's LoRA by component, as `sample` and `checkpoints.lora_files.save_lora` take it."""
    loras = {
        "unet": adapter.unet_lora,
        "text_encoder": adapter.text_encoder_lora,
        "text_encoder_2": adapter.text_encoder_2_lora,
    }
    return {name: _scale_one(factors) for name, factors in loras.items() if factors is not None}


def with_text_encoder_lora(sd: StableDiffusion, adapter: Adapter) -> StableDiffusion:
    """The checkpoint with the adapter's LoRA in the weights of its text encoders, to encode prompts as in training."""
    loras = {name: lora for name, lora in adapter_loras(adapter).items() if name != "unet"}
    return sd.with_params(**{name: merge_lora(sd.params[name], lora) for name, lora in loras.items()}) if loras else sd


def _scale_one(factors: Mapping[str, Any]) -> Lora:
    layers = {path[:-1] for path in flatten_dict(factors)}
    scales = unflatten_dict({(*path, "scale"): jnp.float32(1.0) for path in sorted(layers)})
    return Lora(factors=factors, scales=scales)


def unscaled_factors(lora: Lora) -> dict[str, Any]:
    """The factors of any LoRA for an `Adapter`, whose scales are 1: the scales are multiplied into `up`."""
    flat, scales = flatten_dict(lora.factors), flatten_dict(lora.scales)
    return unflatten_dict(
        {path: leaf * scales[*path[:-1], "scale"] if path[-1] == "up" else leaf for path, leaf in flat.items()}
    )


def requested_difficulty(adapter: Adapter, sample_inputs: SampleInputs) -> jax.Array | None:
    """The requested difficulty of each image, float32 [M] in [0, 1]; None if the adapter has none."""
    if adapter.difficulty_logits is None:
        return None
    return jax.nn.sigmoid(adapter.difficulty_logits[sample_inputs.rows])


def apply_adapter(adapter: Adapter, sample_inputs: SampleInputs) -> tuple[Condition, jax.Array]:
    """Applies offsets and difficulty token: condition and starting noise [M, h, w, C].

    The conditional branch gets the token of the requested difficulty s, the unconditional branch that of 1 - s:
    guidance then leads away from the opposite difficulty as it leads towards the prompt [ours].
    """
    condition, latents = sample_inputs.condition, sample_inputs.latents
    if adapter.noise_offsets is not None:
        latents = latents + adapter.noise_offsets[sample_inputs.rows]
    embeds, negative = condition.prompt_embeds, condition.negative_prompt_embeds
    if adapter.prompt_offsets is not None:
        embeds = embeds + adapter.prompt_offsets[sample_inputs.rows].astype(embeds.dtype)
    difficulty = requested_difficulty(adapter, sample_inputs)
    if difficulty is not None:
        for params, place in (
            (adapter.difficulty_offset, add_difficulty),
            (adapter.difficulty_encoder, append_difficulty),
        ):
            if params is not None:
                token = partial(place, difficulty_encoder_of(params), params)
                embeds = token(embeds, sample_inputs.labels, difficulty)
                negative = token(negative, sample_inputs.labels, 1 - difficulty)
    return dataclasses.replace(condition, prompt_embeds=embeds, negative_prompt_embeds=negative), latents


def adapter_denoiser(sd: StableDiffusion, adapter: Adapter, condition: Condition, guidance_scale: float) -> Denoiser:
    """The UNet with the adapter's LoRA and classifier-free guidance, for a condition from `apply_adapter`."""
    apply_unet, guidance_scale = unet_with_guidance(sd, adapter_loras(adapter), guidance_scale)
    return guided(apply_unet, guidance_scale=guidance_scale, **condition.branches())


def difficulty_encoder_of(params: Params) -> DifficultyEncoder:
    """The difficulty encoder of these parameters; their shapes say its sizes."""
    first, last = params["linear_1"]["kernel"], params["linear_3"]["kernel"]
    return DifficultyEncoder(first.shape[0] - 1, last.shape[1], first.shape[1])


def generate_images(
    sd: StableDiffusion,
    adapter: Adapter,
    sample_inputs: SampleInputs,
    sampling: SamplingConfig,
    num_differentiable_steps: int | None = 1,
) -> jax.Array:
    """Generates images with the adapter; pure, jittable, differentiable in the adapter.

    Gradients flow through the decoder and the last `num_differentiable_steps` calls of the UNet. One is the cheap case,
    and with a few-step generator ('lcm', 1 to 4 steps) most of the way; None for all, which the noise offsets need.

    Args:
        sd: the checkpoint.
        adapter: what is trained.
        sample_inputs: of M images.
        sampling: see `sampling.sample`.
        num_differentiable_steps: see `sampling.sample`.

    Returns:
        Float32 [M, H, W, 3] in [-1, 1].
    """
    condition, latents = apply_adapter(adapter, sample_inputs)
    return sample(
        sd,
        condition,
        latents,
        sampling,
        loras=adapter_loras(adapter),
        keys=sample_inputs.keys,
        clean_latents=sample_inputs.clean_latents,
        num_differentiable_steps=num_differentiable_steps,
    )


def generate_images_beside(
    sd: StableDiffusion,
    adapter: Adapter,
    sample_inputs: SampleInputs,
    sampling: SamplingConfig,
    num_differentiable_steps: int | None,
    others: tuple[SampleInputs, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """`generate_images`, with what the adapted UNet predicts of other noisy latents: its last call is for both.

    Args:
        sd, adapter, sample_inputs, sampling, num_differentiable_steps: see `generate_images`; from pure noise.
        others: of noisy latents, which are the inputs' own, and their timesteps, int32 [N].

    Returns:
        (images float32 [M, H, W, 3] in [-1, 1], predictions without guidance [N, h, w, C]).
    """
    condition, latents = apply_adapter(adapter, sample_inputs)
    other_condition, other_latents = apply_adapter(adapter, others[0])
    inputs = UNetInputs(other_latents, others[1], other_condition.prompt_embeds, other_condition.class_labels)
    return sample_beside(
        sd,
        condition,
        latents,
        sampling,
        inputs,
        loras=adapter_loras(adapter),
        keys=sample_inputs.keys,
        num_differentiable_steps=num_differentiable_steps,
    )


def make_generate(
    generate_images: GenerateImages,
    to_examples: Callable[[jax.Array, jax.Array], Examples],
    similarity: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Callable[[Adapter, SampleInputs], Examples]:
    """Makes the function that `bilevel.make_bilevel_update` calls for its synthetic examples.

    Args:
        generate_images: (adapter, sample inputs) -> images: the function of this module with the other arguments given.
            The checkpoint should be a traced argument of the jitted function around it; otherwise its weights become
            constants of the program.
        to_examples: (images, labels) -> examples, such as `ClassifierInput.examples`.
        similarity: (images, `clip_anchors`) -> cosine [M], see `clip_similarity`; for a weighting that uses it.

    Returns:
        generate(adapter, sample inputs) -> examples, with requested difficulty and similarity, if there are any.
    """

    def generate(adapter: Adapter, sample_inputs: SampleInputs) -> Examples:
        images = generate_images(adapter, sample_inputs)
        return dataclasses.replace(
            to_examples(images, sample_inputs.labels),
            difficulty=requested_difficulty(adapter, sample_inputs),
            similarity=None if similarity is None else similarity(images, sample_inputs.anchors()),
        )

    return generate

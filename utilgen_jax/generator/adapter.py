"""What may be trained of a generator whose weights stay frozen, and images as a differentiable function of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.data.images import resize, set_channels
from utilgen_jax.diffusion.samplers import Denoiser, guided
from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.generator.difficulty_token import append_difficulty_token
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.loading import Generator, Params, component_variables
from utilgen_jax.generator.sampling import sample
from utilgen_jax.models.difficulty import DifficultyEncoder
from utilgen_jax.models.lora import Lora, init_lora


@struct.dataclass
class Adapter:
    """All that is trained of the generator; every leaf is float32, and a part that is None is not there.

    The tables have N rows, one a class or one an image, as whoever makes the sample inputs likes.

    Attributes:
        unet_lora: low-rank factors of the UNet, as in `Lora.factors`. Their scale is 1 and no leaf: it is not trained.
        difficulty_encoder: parameters of a `DifficultyEncoder`; its token is put behind the prompt.
        difficulty_logits: [N], the sigmoid of which is the difficulty that is asked for.
        prompt_offsets: [N, T, D], added to the prompt's text states.
        noise_offsets: [N, h, w, C], added to the starting noise. Gradients reach them where all steps are
            differentiable, see `generate_images`.
    """

    unet_lora: Mapping[str, Any] | None = None
    difficulty_encoder: Params | None = None
    difficulty_logits: jax.Array | None = None
    prompt_offsets: jax.Array | None = None
    noise_offsets: jax.Array | None = None


GenerateImages = Callable[[Adapter, SampleInputs], jax.Array]


def init_adapter(
    params: Params,
    sample_inputs: SampleInputs,
    key: jax.Array,
    *,
    lora_rank: int | None = None,
    lora_targets: Sequence[str] = ("attention",),
    num_prompts: int | None = None,
    num_noises: int | None = None,
    num_classes: int | None = None,
    difficulties: Sequence[float] | np.ndarray | None = None,
) -> Adapter:
    """An adapter that changes nothing yet, of the parts that are asked for.

    Only a difficulty token is no neutral part: a generator that was not trained with it sees one more word.

    Args:
        params: the generator's.
        sample inputs: whose shapes the tables get.
        key: PRNG key of LoRA and difficulty encoder.
        lora_rank: of a LoRA on the UNet; its product is zero.
        lora_targets: which layers get it, see `models.lora.init_lora`.
        num_prompts: N of a table of prompt offsets, all zero.
        num_noises: N of a table of noise offsets, all zero.
        num_classes: of a difficulty encoder, with random weights.
        difficulties: N, each in (0, 1), what is asked of the encoder first; needed with `num_classes`.

    Raises:
        InputError: a difficulty is 0 or 1 or beyond, or comes without an encoder, or the encoder without it; or see
            `init_lora`.
    """
    if (num_classes is None) != (difficulties is None):
        raise InputError("init_adapter: a difficulty encoder needs num_classes and difficulties, both")
    lora = encoder = logits = None
    if lora_rank is not None:
        lora = init_lora(params["unet"], jax.random.fold_in(key, 0), rank=lora_rank, targets=lora_targets).factors
    if num_classes is not None:
        asked = np.asarray(difficulties, np.float32)
        if not ((asked > 0) & (asked < 1)).all():
            raise InputError(f"init_adapter: difficulties={asked.tolist()} must be above 0 and below 1: 0.5 is a start")
        logits = jax.scipy.special.logit(jnp.asarray(asked))
        module = DifficultyEncoder(num_classes, sample_inputs.condition.prompt_embeds.shape[-1])
        encoder = module.init(jax.random.fold_in(key, 1), sample_inputs.labels[:1], logits[:1])["params"]

    def table(rows: int | None, like: jax.Array) -> jax.Array | None:
        return None if rows is None else jnp.zeros((rows, *like.shape[1:]))

    return Adapter(
        unet_lora=lora,
        difficulty_encoder=encoder,
        difficulty_logits=logits,
        prompt_offsets=table(num_prompts, sample_inputs.condition.prompt_embeds),
        noise_offsets=table(num_noises, sample_inputs.latents),
    )


def adapter_loras(adapter: Adapter) -> dict[str, Lora]:
    """The adapter's LoRA as `sample` and `weights.lora_files.save_lora` take it, by component; empty without one."""
    if adapter.unet_lora is None:
        return {}
    layers = {path[:-1] for path in flatten_dict(adapter.unet_lora)}
    scales = unflatten_dict({(*path, "scale"): jnp.float32(1.0) for path in sorted(layers)})
    return {"unet": Lora(factors=adapter.unet_lora, scales=scales)}


def unscaled_factors(lora: Lora) -> dict[str, Any]:
    """The factors of any LoRA of the UNet for `Adapter.unet_lora`: its scales are multiplied into `up`."""
    flat, scales = flatten_dict(lora.factors), flatten_dict(lora.scales)
    return unflatten_dict(
        {path: leaf * scales[*path[:-1], "scale"] if path[-1] == "up" else leaf for path, leaf in flat.items()}
    )


def requested_difficulty(adapter: Adapter, sample_inputs: SampleInputs) -> jax.Array | None:
    """The difficulty that the adapter asks of each image, float32 [M] in [0, 1]; None where it asks for none."""
    if adapter.difficulty_logits is None:
        return None
    return jax.nn.sigmoid(adapter.difficulty_logits[sample_inputs.rows])


def apply_adapter(adapter: Adapter, sample_inputs: SampleInputs) -> tuple[Condition, jax.Array]:
    """Condition and starting noise [M, h, w, C] as the adapter makes them.

    Where the conditional branch gets the token of a difficulty s, the unconditional one gets that of 1 - s: guidance
    then leads away from the opposite difficulty as it leads towards the words [ours]. (Digits without Mixup: Spearman's
    correlation of what is asked with what an independent classifier measures is 0.53 so, 0.48 with padding in its
    place.)
    """
    condition, latents = sample_inputs.condition, sample_inputs.latents
    if adapter.noise_offsets is not None:
        latents = latents + adapter.noise_offsets[sample_inputs.rows]
    embeds, negative = condition.prompt_embeds, condition.negative_prompt_embeds
    if adapter.prompt_offsets is not None:
        embeds = embeds + adapter.prompt_offsets[sample_inputs.rows].astype(embeds.dtype)
    difficulty = requested_difficulty(adapter, sample_inputs)
    if difficulty is not None:
        token = partial(append_difficulty_token, difficulty_encoder_of(adapter.difficulty_encoder))
        embeds = token(adapter.difficulty_encoder, embeds, sample_inputs.labels, difficulty)
        negative = token(adapter.difficulty_encoder, negative, sample_inputs.labels, 1 - difficulty)
    return dataclasses.replace(condition, prompt_embeds=embeds, negative_prompt_embeds=negative), latents


def adapter_denoiser(
    generator: Generator, params: Params, adapter: Adapter, condition: Condition, guidance_scale: float
) -> Denoiser:
    """The UNet with the adapter's LoRA and classifier-free guidance, for a condition that `apply_adapter` has made."""
    return guided(
        partial(generator.unet.apply, component_variables(params, adapter_loras(adapter), "unet")),
        condition.prompt_embeds,
        condition.negative_prompt_embeds,
        condition.class_labels,
        guidance_scale,
    )


def difficulty_encoder_of(params: Params) -> DifficultyEncoder:
    """The encoder whose parameters these are: all its sizes are theirs."""
    first, last = params["linear_1"]["kernel"], params["linear_3"]["kernel"]
    return DifficultyEncoder(first.shape[0] - 1, last.shape[1], first.shape[1])


def generate_images(
    generator: Generator,
    params: Params,
    adapter: Adapter,
    sample_inputs: SampleInputs,
    *,
    num_steps: int,
    guidance_scale: float,
    scheduler: str = "ddim",
    num_differentiable_steps: int | None = 1,
    strength: float = 1.0,
    eta: float = 0.0,
) -> jax.Array:
    """The images that the adapter makes of the sample inputs; pure, jittable, differentiable in the adapter.

    Gradients flow through the decoder and the last `num_differentiable_steps` calls of the UNet. One is the cheap case,
    and with a few-step generator ('lcm', 1 to 4 steps) most of the way; None for all, which the noise offsets need.

    Args:
        generator: the checkpoint's architecture (static).
        params: its weights.
        adapter: what is trained.
        sample inputs: M images.
        num_steps, guidance_scale, scheduler, num_differentiable_steps, strength, eta: see `sampling.sample`.

    Returns:
        Float32 [M, H, W, 3] in [-1, 1].
    """
    condition, latents = apply_adapter(adapter, sample_inputs)
    return sample(
        generator,
        params,
        condition,
        latents,
        num_steps=num_steps,
        guidance_scale=guidance_scale,
        scheduler=scheduler,
        loras=adapter_loras(adapter),
        keys=sample_inputs.keys,
        clean_latents=sample_inputs.clean_latents,
        strength=strength,
        eta=eta,
        num_differentiable_steps=num_differentiable_steps,
    )


def labelled_examples(
    images: jax.Array,
    labels: jax.Array,
    *,
    num_classes: int,
    image_size: int,
    channels: int,
    label_smoothing: float = 0.0,
) -> Examples:
    """Generated images as a classifier is trained on them; differentiable in the images.

    Args:
        images: float32 [M, S, S, 3] in [-1, 1].
        labels: int [M].
        num_classes: K.
        image_size: pixels a side that the classifier sees.
        channels: 1 or 3, likewise.
        label_smoothing: share of the targets [M, K] that is spread over all classes.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, num_classes), label_smoothing)
    return Examples(inputs=set_channels(resize(images, image_size), channels), targets=targets)


def make_generate(
    generate_images: GenerateImages,
    to_examples: Callable[[jax.Array, jax.Array], Examples],
    similarity: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Callable[[Adapter, SampleInputs], Examples]:
    """Makes what `bilevel.make_bilevel_update` calls for its synthetic examples.

    Args:
        generate: the function of this module with all but adapter and sample inputs given. Frozen weights of any size
            should be traced arguments of the jitted function in which this is called, or they become constants of the
            program.
        to_examples: (images, labels) -> examples, e.g. `labelled_examples` with its settings given.
        similarity: (images, the sample inputs' `clip_anchors`) -> cosine [M], see `clip_similarity`; for a weighting
            that looks at it.

    Returns:
        generate(adapter, sample inputs) -> examples, with the difficulty that is asked for, if any, and the similarity.
    """

    def generate(adapter: Adapter, sample_inputs: SampleInputs) -> Examples:
        images = generate_images(adapter, sample_inputs)
        return dataclasses.replace(
            to_examples(images, sample_inputs.labels),
            difficulty=requested_difficulty(adapter, sample_inputs),
            similarity=None if similarity is None else similarity(images, sample_inputs.anchors()),
        )

    return generate

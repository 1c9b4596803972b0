"""Times text to images: the sampler with classifier-free guidance, all its steps, and the decoder.

  python -m utilgen_jax.bench sampling --architecture=sd15 --steps=30 --batch_sizes=1,8 --dtype=bfloat16

Weights and text states are random. Beside images a second stand operations, those of matrix products and convolutions,
and memory of the compiled program. --against has no effect here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from utilgen_jax.bench import peaks, sides
from utilgen_jax.bench.compiled import prepare_compiled
from utilgen_jax.bench.jax_unet import random_params
from utilgen_jax.bench.timing import Prepared
from utilgen_jax.config.schema import choice_problems
from utilgen_jax.generator.architectures import ARCHITECTURES
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.generator.config import SCHEDULERS, SamplingConfig
from utilgen_jax.generator.find_architecture import find_architecture
from utilgen_jax.generator.sampling import initial_latents, sample, step_keys
from utilgen_jax.generator.stable_diffusion import StableDiffusion, expected_params

_DTYPES = ("float32", "bfloat16")


def define_flags(values: flags.FlagValues) -> None:
    """Adds this benchmark's flags."""
    names = ", ".join(ARCHITECTURES)
    flags.DEFINE_string("architecture", "sd15", f"of the generator: {names}, or glyphs", flag_values=values)
    flags.DEFINE_integer("image_size", None, "in pixels; default the architecture's", lower_bound=8, flag_values=values)
    flags.DEFINE_list("batch_sizes", ["1"], "one or several", flag_values=values)
    flags.DEFINE_integer("steps", 30, "denoising steps", lower_bound=1, flag_values=values)
    flags.DEFINE_string("scheduler", "dpmsolver++", "sampler", flag_values=values)
    flags.DEFINE_float("guidance_scale", 7.5, "1: none", lower_bound=0.0, flag_values=values)
    flags.DEFINE_string("dtype", "float32", f"of weights and activations: {', '.join(_DTYPES)}", flag_values=values)


def check_settings(settings: Mapping[str, Any]) -> list[str]:
    """Lists what is wrong with the flags' values."""
    problems = choice_problems("architecture", settings["architecture"], (*ARCHITECTURES, "glyphs"))
    problems += choice_problems("scheduler", settings["scheduler"], SCHEDULERS)
    problems += choice_problems("dtype", settings["dtype"], _DTYPES)
    problems += sides.check_batch_sizes(settings["batch_sizes"])
    return problems + ([] if settings["against"] == "none" else ["--against: there is no other side here"])


def run(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Times what the flags say.

    Args:
        settings: values of all flags, checked.

    Returns:
        A table for people, and all figures, JSON-ready.
    """
    name, dtype = settings["architecture"], settings["dtype"]
    published = ARCHITECTURES.get(name)
    architecture, _ = find_architecture(name, None, name if published else None, dtype=jnp.dtype(dtype))
    used = {part: architecture.modules[part] for part in ("unet", "vae")}
    params = {part: random_params(expected_params(module), dtype) for part, module in used.items()}
    sd = StableDiffusion(architecture, params)
    latent_size = published["unet"]["sample_size"] if published else 8
    size = settings["image_size"] or latent_size * architecture.vae_scale_factor
    peak = peaks.find_peak(dtype, [functools.partial(peaks.jax_matmul, dtype)])
    results = []
    for batch_size in map(int, settings["batch_sizes"]):
        sampling = SamplingConfig(
            scheduler=settings["scheduler"],
            steps=settings["steps"],
            guidance_scale=settings["guidance_scale"],
            image_size=size,
            batch_size=batch_size,
        )
        prepare = {"ours": functools.partial(_prepare, sd, sampling)}
        label = f"{settings['steps']} steps, batch {batch_size}"
        measured = sides.measure(prepare, settings["repeats"], settings["warmup"], peak, label)
        speed = batch_size / measured["ours"]["median_seconds"]
        results.append({"pass": "sample", "batch_size": batch_size, "images_per_second": speed, **measured})
    machine = sides.describe_machine(with_torch=False)
    names = ("architecture", "steps", "scheduler", "guidance_scale", "dtype", "repeats")
    figures = {
        "benchmark": "sampling",
        **{flag: settings[flag] for flag in names},
        "image_size": size,
        **machine,
        "results": results,
    }
    speeds = ", ".join(f"{each['images_per_second']:.2f} at batch {each['batch_size']}" for each in results)
    title = f"{name}, {size} pixels, {settings['steps']} steps, {dtype}, on {machine['device']}:"
    return f"{title}\n\n{sides.format_results(results)}\n\nimages a second: {speeds}\n", figures


def _prepare(sd: StableDiffusion, sampling: SamplingConfig) -> Prepared:
    """Compiles the sampler and runs it once."""
    rng, number, unet = np.random.default_rng(0), sampling.batch_size, sd.architecture.unet
    seeds = np.arange(number)
    tokens = sd.architecture.text_encoder.max_position_embeddings

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal((number, *shape), np.float32), unet.dtype)

    embeds = normal(tokens, unet.cross_attention_dim)
    labels = None if unet.label_width is None else normal(unet.label_width).astype(jnp.float32)
    condition = Condition(embeds, -embeds, labels, negative_class_labels=labels)
    arguments = (sd, condition, initial_latents(sd.architecture, seeds, sampling.size))
    keys = step_keys(seeds)
    return prepare_compiled(
        lambda: sample.trace(*arguments, sampling, keys=keys), lambda compiled: compiled(*arguments, keys=keys)
    )

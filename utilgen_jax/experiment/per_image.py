"""What gives each image of a batch a prompt and a noise of its own (UtilGen's instance level), as one program."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct

from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.clip_similarity import clip_similarity
from utilgen_jax.generator.clip_towers import ImageTower
from utilgen_jax.generator.config import PerImageConfig, SamplingConfig
from utilgen_jax.generator.inputs import SampleInputs
from utilgen_jax.generator.per_image import AnchoredUtility, add_golden_noise, optimize_prompts
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.runtime.loops import map_in_parts
from utilgen_jax.types import Params
from utilgen_jax.valuation.config import ValuationConfig
from utilgen_jax.valuation.cross_fit import predict_weights


@struct.dataclass
class FoldModels:
    """What predicts the weight of an image: the network, and each fold's parameters, see `PoolValues.fold_models`."""

    classifier: Classifier
    params: dict[str, Params]


@dataclasses.dataclass(frozen=True)
class PerImageProgram:
    """What the compiled function depends on; static.

    Attributes:
        noise: whether each image gets a golden noise.
        config: of prompt ascent and golden noise.
        sampling: of the images.
        valuation: of the weighting.
        weighting: its name, that the fold models were trained with.
        classifier_input: what the classifiers see of an image.
        label_smoothing: of the classifiers' training.
    """

    noise: bool
    config: PerImageConfig
    sampling: SamplingConfig
    valuation: ValuationConfig
    weighting: str
    classifier_input: ClassifierInput
    label_smoothing: float


@partial(jax.jit, static_argnums=0)
def refine_batch(
    program: PerImageProgram,
    sd: StableDiffusion,
    models: FoldModels | None,
    tower: ImageTower | None,
    adapter: Adapter,
    inputs: SampleInputs,
) -> Adapter:
    """The adapter with a prompt and a noise for each image; a part of the batch at a time where the config says so."""

    def refine(part: tuple[SampleInputs, jax.Array]) -> tuple[jax.Array | None, jax.Array | None]:
        # Each part has rows of its own in the adapter's tables; requested difficulties stand in one already.
        of_part, rows = part
        own = adapter
        if adapter.difficulty_logits is not None:
            own = dataclasses.replace(adapter, difficulty_logits=adapter.difficulty_logits[rows])
        own_rows = jnp.arange(len(rows), dtype=jnp.int32)
        refined = _refine_part(program, sd, models, tower, own, dataclasses.replace(of_part, rows=own_rows))
        return refined.prompt_offsets, refined.noise_offsets

    batch = inputs, jnp.arange(len(inputs.labels))
    prompts, noises = map_in_parts(refine, batch, program.config.micro_batch_size)
    return dataclasses.replace(adapter, prompt_offsets=prompts, noise_offsets=noises)


def _refine_part(
    program: PerImageProgram,
    sd: StableDiffusion,
    models: FoldModels | None,
    tower: ImageTower | None,
    adapter: Adapter,
    inputs: SampleInputs,
) -> Adapter:
    if models is not None:
        similarity = None if tower is None else partial(clip_similarity, tower)
        objective = AnchoredUtility(partial(_utility, program, models), similarity, program.config.clip_weight)
        adapter = optimize_prompts(sd, adapter, inputs, objective, program.config, program.sampling)
    if program.noise:
        adapter = add_golden_noise(sd, adapter, inputs, program.config, program.sampling)
    return adapter


def _utility(program: PerImageProgram, models: FoldModels, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The weights that the fold models give to images, float32 [M]."""
    examples = program.classifier_input.examples(images, labels, program.label_smoothing)
    return predict_weights(models.classifier, program.weighting, program.valuation, models.params, examples)

"""What `import utilgen_jax as ug` offers beside the bilevel update: the package's parts with plain arguments.

Images are uint8, or float32 in [-1, 1], [N, H, W, C]; what comes back is float32 in [-1, 1]. Fields of a config are
keyword arguments, such as `steps=25` of `SamplingConfig`; `python -m utilgen_jax.main --help` describes them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy.special import softmax

from utilgen_jax.bilevel.examples import Examples, labelled
from utilgen_jax.checkpoints import resolve_checkpoint
from utilgen_jax.checkpoints.lora_files import save_lora as save_lora_file
from utilgen_jax.classifier.config import ClassifierConfig, synthetic_fraction
from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.model import make_classifier as classifier_of_config
from utilgen_jax.classifier.train import init_classifier, predict_logits
from utilgen_jax.classifier.train import train_classifier as train_classifier_of_config
from utilgen_jax.config.command_line import read_config
from utilgen_jax.data.image_folder import load_for_training
from utilgen_jax.data.images import to_float
from utilgen_jax.data.splits import cross_fit_folds
from utilgen_jax.generator.adapter import (
    Adapter,
    AdapterConfig,
    adapter_loras,
    generate_images,
    init_adapter,
    make_generate,
)
from utilgen_jax.generator.conditioning import encode_prompts
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.generator.finetune.config import LoraConfig
from utilgen_jax.generator.finetune.denoising import DenoisingSet
from utilgen_jax.generator.finetune.lora import train_lora as train_lora_of_config
from utilgen_jax.generator.inputs import SampleInputs, make_sample_inputs
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.generator.sampling import encode_to_latents
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.tokens import tokenize_prompts
from utilgen_jax.pool.difficulty_sheets import difficulty_sheets
from utilgen_jax.pool.generate import generate_batches
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.types import Array, Params
from utilgen_jax.valuation.config import EnsembleConfig, ValuationConfig
from utilgen_jax.valuation.cross_fit import PoolValues, cross_fit
from utilgen_jax.valuation.difficulty import difficulty as difficulty_of_logits
from utilgen_jax.valuation.ensemble import ensemble_labels

_ENCODED_AT_ONCE = 16


def load_checkpoint(name: str = "glyphs", dtype: str = "float32", revision: str | None = None) -> StableDiffusion:
    """Loads a Stable Diffusion checkpoint.

    Args:
        name: "glyphs" (the embedded one, of printed digits), a published one such as "sd15" or "sd-turbo", a hub id, or
            a folder in diffusers' format.
        dtype: of weights and activations, "float32" or "bfloat16".
        revision: branch, tag or commit of a hub id.

    Raises:
        InputError: it is not found, or cannot be read.
    """
    return load_stable_diffusion(resolve_checkpoint(name, revision), jnp.dtype(dtype))


def sample_images(
    sd: StableDiffusion,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    adapter: Adapter | None = None,
    labels: Sequence[int] | None = None,
    difficulty: float | None = None,
    **sampling: Any,
) -> np.ndarray:
    """Generates an image of each prompt, with the seeds `seed`, `seed + 1`, ...

    Args:
        sd: the checkpoint.
        prompts: N, one an image.
        seed: of the first image.
        adapter: what was trained, by `train_lora` or a bilevel update; None: the checkpoint alone.
        labels: the classes, int [N], for an adapter that knows difficulty.
        difficulty: requested of it, in [0, 1].
        **sampling: fields of `SamplingConfig`; the image's size is the checkpoint's unless it is given.

    Returns:
        Float32 [N, H, W, 3] in [-1, 1].
    """
    config = _sampling(sd, sampling)
    classes = [0] * len(prompts) if labels is None else labels
    records = [
        PoolRecord(label=int(label), prompt=prompt, seed=seed + place, requested_difficulty=difficulty)
        for place, (prompt, label) in enumerate(zip(prompts, classes, strict=True))
    ]
    return np.concatenate([*generate_batches(sd, records, adapter or Adapter(), config)])


def train_lora(
    sd: StableDiffusion,
    images: Array,
    labels: Array,
    prompts: Sequence[str],
    *,
    difficulties: Array | None = None,
    seed: int = 0,
    loop: TrainingLoop | None = None,
    **config: Any,
) -> Adapter:
    """Fits a LoRA to images by the denoising loss.

    Args:
        sd: the checkpoint, which stays as it is.
        images: [N, S, S, 3], of the size at which the checkpoint generates.
        labels: int [N], the class of each.
        prompts: K, one a class.
        difficulties: of the images, float [N] in [0, 1]; with them an encoder of difficulty is trained too.
        seed: of start and batches.
        loop: tells of the steps; None: silently.
        **config: fields of `LoraConfig`, such as `steps` and `rank`.

    Returns:
        An adapter, for `sample_images` and `save_lora`.
    """
    settings = LoraConfig(**{"prior_fraction": 0.0} | config).of_images(len(images))
    pixels = _as_float(images)
    parts = [
        encode_to_latents(sd, jnp.asarray(pixels[start : start + _ENCODED_AT_ONCE]))
        for start in range(0, len(pixels), _ENCODED_AT_ONCE)
    ]
    known = None if difficulties is None else jnp.asarray(difficulties, jnp.float32)
    examples = DenoisingSet(jnp.concatenate(parts), jnp.asarray(labels, jnp.int32), known)
    with_tokens = settings.text_encoder_rank > 0
    table = jnp.asarray(tokenize_prompts(sd, prompts)) if with_tokens else encode_prompts(sd, prompts)
    return train_lora_of_config(sd, table, examples, None, settings, jax.random.key(seed), loop or TrainingLoop())


def save_lora(adapter: Adapter, folder: str | Path) -> Path:
    """Writes an adapter's LoRA as `pytorch_lora_weights.safetensors`, for diffusers and `sample`; returns its path."""
    return save_lora_file(Path(folder), adapter_loras(adapter))


def show_difficulty(
    sd: StableDiffusion, adapter: Adapter, class_names: Sequence[str], prompts: Sequence[str], **sampling: Any
) -> dict[str, Image.Image]:
    """Draws what an encoder of difficulty has learnt.

    Args:
        sd: the checkpoint.
        adapter: by `train_lora` with difficulties.
        class_names: K of them.
        prompts: K, one a class.
        **sampling: fields of `SamplingConfig`.

    Returns:
        "difficulty_sweep", a row a class, from easy to hard; and "hard_factors", by the difficulty token alone.
    """
    return difficulty_sheets(sd, adapter, _sampling(sd, sampling), tuple(class_names), list(prompts))


def trainable_generator(
    sd: StableDiffusion,
    prompts: Sequence[str],
    labels: Sequence[int],
    like: Examples,
    *,
    seed: int = 0,
    rank: int = 4,
    **sampling: Any,
) -> tuple[Adapter, Any, Callable[[Adapter, Any], Examples]]:
    """The generator as `make_bilevel_update` trains it: a function of its adapter.

    Args:
        sd: the checkpoint.
        prompts: M, one an image.
        labels: int [M], their classes.
        like: examples of the classifier, as which the images are scaled and labelled.
        seed: of the first image, and of the LoRA's start.
        rank: of a LoRA on the UNet.
        **sampling: fields of `SamplingConfig`.

    Returns:
        An adapter that changes nothing yet; inputs, a pytree with the checkpoint in it; and generate(adapter, inputs)
        -> M examples, differentiable in the adapter through the last step of sampling.
    """
    config = _sampling(sd, sampling)
    _, size, _, channels = like.inputs.shape
    sees = ClassifierInput(like.num_classes or like.targets.shape[-1], size, channels)
    seeds = np.arange(seed, seed + len(prompts))
    inputs = make_sample_inputs(sd, prompts, labels, seeds, config)
    adapter = init_adapter(sd.params, inputs, AdapterConfig(lora_rank=rank), jax.random.key(seed))

    def generate(adapter: Adapter, of_checkpoint: tuple[StableDiffusion, SampleInputs]) -> Examples:
        checkpoint, own = of_checkpoint

        def images(adapter: Adapter, own: SampleInputs) -> jax.Array:
            return generate_images(checkpoint, adapter, own, config)

        return make_generate(images, sees.examples)(adapter, own)

    return adapter, (sd, inputs), generate


def load_images(folder: str | Path, image_size: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Reads a folder of images, or of a folder for each class.

    Args:
        folder: as of `python -m utilgen_jax.finetune --images`.
        image_size: side of the squares that are cut from their middles.
        channels: 3, or 1 for grey.

    Returns:
        Images uint8 [N, S, S, C], labels int32 [N], and K class names.

    Raises:
        InputError: it is no such folder, or an image cannot be decoded.
    """
    source = load_for_training(str(folder), image_size, channels)
    return source.read(np.arange(len(source.labels))), source.labels, list(source.class_names)


def labelled_images(images: Array, labels: Array, num_classes: int, image_size: int, channels: int = 3) -> Examples:
    """Makes the examples on which classifiers train.

    Args:
        images: [N, H, W, C'], of any size and channels.
        labels: int [N].
        num_classes: K.
        image_size, channels: of what the classifier sees; the images are scaled to it.
    """
    sees = ClassifierInput(num_classes, image_size, channels)
    return labelled(sees.images(_as_float(images)), np.asarray(labels), num_classes)


def make_classifier(
    num_classes: int, image_size: int, channels: int = 3, *, seed: int = 0, **config: Any
) -> tuple[Callable[[Params, jax.Array], jax.Array], Params]:
    """Makes a network for one's own loop.

    Args:
        num_classes: K.
        image_size, channels: of its images.
        seed: of its start.
        **config: fields of `ClassifierConfig`, such as `name="resnet18"`.

    Returns:
        apply(params, images) -> logits [B, K]; and the parameters at the start.
    """
    classifier = classifier_of_config(ClassifierConfig(**config), num_classes, image_size, channels)
    return classifier.apply, init_classifier(classifier, (image_size, image_size, channels), jax.random.key(seed))


@dataclasses.dataclass(frozen=True)
class TrainedClassifier:
    """A network and its parameters.

    Attributes:
        classifier: the network.
        params: trained.
    """

    classifier: Classifier
    params: Params

    def __call__(self, images: Array) -> np.ndarray:
        """The probabilities of the classes, float32 [N, K]; images as in the examples it was trained on."""
        return softmax(self._logits(images), axis=-1)

    def accuracy(self, examples: Examples) -> float:
        """The share of examples whose class it finds."""
        return float((self._logits(examples.inputs).argmax(-1) == np.asarray(examples.labels)).mean())

    def difficulty(self, examples: Examples) -> np.ndarray:
        """How hard it finds each example: 1 less the probability of its class, float32 [N]."""
        return difficulty_of_logits(self._logits(examples.inputs), np.asarray(examples.labels))

    def _logits(self, images: Array) -> np.ndarray:
        return predict_logits(self.classifier, self.params, _as_float(images), 500)


def train_classifier(
    real: Examples, synthetic: Examples | None = None, *, seed: int = 0, loop: TrainingLoop | None = None, **config: Any
) -> TrainedClassifier:
    """Trains a classifier on real images, and on synthetic ones if there are any.

    Args:
        real: see `labelled_images`.
        synthetic: with `weights` and soft `targets`, if they have any.
        seed: of start, batches and augmentation.
        loop: tells of the steps; None: silently.
        **config: fields of `ClassifierConfig`, such as `name`, `steps` and `synthetic_fraction`.
    """
    settings, classifier = _classifier(real, config)
    key = jax.random.key(seed)
    return TrainedClassifier(
        classifier, train_classifier_of_config(classifier, settings, real, synthetic, key, loop or TrainingLoop())
    )


def value_pool(
    real: Examples,
    pool: Examples,
    *,
    weighting: str = "loss_network",
    folds: int = 2,
    members: int = 3,
    seed: int = 0,
    loop: TrainingLoop | None = None,
    **config: Any,
) -> PoolValues:
    """Values synthetic images: a weight by a cross-fitted weight network, and a soft label by ensembles.

    Args:
        real: the few real images, two or more a class.
        pool: the synthetic ones, the classes in turn.
        weighting: "loss_network" (UtilGen's) or "feature_network".
        folds: of the real images, each of which is validation once.
        members: classifiers of the real images alone, among those that give the labels.
        seed: of all that is random.
        loop: tells of the steps; None: silently.
        **config: fields of `ClassifierConfig`.

    Returns:
        `weights` float32 [N] in [0, 1], `soft_labels` float32 [N, K], and `agreement`: what the weights have to do with
        what the images do for held-out ones.
    """
    settings, classifier = _classifier(real, config)
    key, told = jax.random.key(seed), loop or TrainingLoop()
    parts = cross_fit_folds(np.asarray(real.labels), folds, seed)
    values = cross_fit(
        classifier, settings, ValuationConfig(), weighting, real, pool, parts, jax.random.fold_in(key, 0), told
    )
    ensemble = EnsembleConfig(members=members)
    labels = ensemble_labels(classifier, settings, ensemble, real, pool, jax.random.fold_in(key, 1), told)
    return dataclasses.replace(values, soft_labels=labels.soft_labels)


def run(config: str, workdir: str | Path, **fields: Any) -> dict[str, Any]:
    """Runs the main job, or continues it, see `python -m utilgen_jax.main`.

    Args:
        config: name of a config or a file, with a variant after a colon: "digits:method=vanilla,shots=5".
        workdir: for all that the run writes.
        **fields: of the config, with two underscores for the dot: `classifier__steps=100`.

    Returns:
        The contents of `summary.json`.

    Raises:
        InputError: lists what is wrong with the config or the data.
    """
    from utilgen_jax import pipeline

    overrides = [(name.replace("__", "."), str(value)) for name, value in fields.items()]
    return pipeline.run(read_config(config, overrides), workdir)


def _as_float(images: Array) -> Array:
    return to_float(images) if np.issubdtype(images.dtype, np.integer) else images


def _sampling(sd: StableDiffusion, fields: dict[str, Any]) -> SamplingConfig:
    side = sd.unet.sample_size or 64
    height, width = side if isinstance(side, tuple) else (side, side)
    own = {"height": height * sd.architecture.vae_scale_factor, "width": width * sd.architecture.vae_scale_factor}
    return SamplingConfig(**({} if "image_size" in fields else own) | fields)


def _classifier(real: Examples, fields: dict[str, Any]) -> tuple[ClassifierConfig, Classifier]:
    settings = ClassifierConfig(**fields)
    if settings.synthetic_fraction == 0:
        fraction = synthetic_fraction(len(real) / real.num_classes)
        settings = dataclasses.replace(settings, synthetic_fraction=fraction)
    _, height, _, channels = real.inputs.shape
    return settings, classifier_of_config(settings, real.num_classes, height, channels)

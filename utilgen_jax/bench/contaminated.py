"""A pool of which a known part shows the wrong class: what a valuation should find."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct

from utilgen_jax import checkpoints
from utilgen_jax.bilevel.examples import Examples, labelled
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.classifier.model import Classifier, make_classifier
from utilgen_jax.config.schema import Config
from utilgen_jax.data.images import to_float
from utilgen_jax.data.sources import load_source
from utilgen_jax.data.splits import Fold, LabelledImages, cross_fit_folds, few_shot
from utilgen_jax.errors import InputError
from utilgen_jax.experiment.setup import classifier_config
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.pool.generate import generate_batches
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.prompts.templates import class_prompts
from utilgen_jax.valuation.cross_fit import weighting_folds

# Digits that look alike. Classes of other data sets are taken in pairs, in their order.
PARTNERS: Mapping[str, tuple[int, ...]] = {"digits": (8, 7, 3, 2, 9, 6, 5, 1, 0, 4)}


@struct.dataclass
class Contaminated:
    """The shots of a seed, and a pool.

    Attributes:
        classifier: with its training's config; both as a run of the config has them.
        config: of the classifier.
        real: the shots.
        pool: with the labels that the images came with, the classes in turn.
        folds: of the shots.
        weighting_folds: the same, for weightings.
        is_right: whether an image shows its label's class, bool [N]; for evaluation alone.
    """

    classifier: Classifier
    config: ClassifierConfig = struct.field(pytree_node=False)
    real: Examples
    pool: Examples
    folds: list[Fold] = struct.field(pytree_node=False)
    weighting_folds: list[Fold] = struct.field(pytree_node=False)
    is_right: np.ndarray


def draw_truth(labels: np.ndarray, wrong: float, noise: str, dataset: str, rng: np.random.Generator) -> np.ndarray:
    """The classes that images should show.

    Args:
        labels: that they come with, int [N].
        wrong: share of each class's images that show another class.
        noise: "pairs": each class has one other, see `PARTNERS`; "uniform": any other.
        dataset: name of the data set.
        rng: NumPy's generator.

    Returns:
        Int [N].
    """
    num_classes = int(labels.max()) + 1
    truth = labels.copy()
    for label in range(num_classes):
        places = np.flatnonzero(labels == label)
        places = rng.permutation(places)[: round(wrong * len(places))]
        if noise == "uniform":
            truth[places] = (label + rng.integers(1, num_classes, len(places))) % num_classes
        else:
            neighbour = (label ^ 1) if (label ^ 1) < num_classes else label - 1
            truth[places] = PARTNERS.get(dataset, ())[label] if dataset in PARTNERS else neighbour
    return truth


def contaminate(config: Config, settings: Mapping[str, Any]) -> Contaminated:
    """Draws shots and pool of a config's seed.

    Args:
        config: data, shots, seed, generator, classifier.
        settings: `wrong` and `noise` as in `draw_truth`; `images_per_class`; `pool`: "generator" makes the images from
            the prompts of the classes that they should show, "real" takes them from the test images.

    Raises:
        InputError: there are too few test images of a class.
    """
    split = few_shot(load_source(config.data), config.data.shots, config.seed)
    names = split.real.class_names
    labels = np.arange(settings["images_per_class"] * len(names)) % len(names)
    rng = np.random.default_rng([config.seed, 1])
    truth = draw_truth(labels, settings["wrong"], settings["noise"], config.data.name, rng)
    view = ClassifierInput(len(names), config.data.image_size, config.data.channels)
    if settings["pool"] == "real":
        images = jnp.asarray(_real_images(split.test, truth, rng))
    else:
        images = view.images(_generated_images(config, names, labels, truth, rng))
    return Contaminated(
        classifier=make_classifier(config.classifier, len(names), view.image_size, view.channels),
        config=classifier_config(config, split.real),
        real=labelled(jnp.asarray(to_float(split.real.images)), split.real.labels, len(names)),
        pool=labelled(images, labels, len(names)),
        folds=cross_fit_folds(split.real.labels, config.valuation.folds, config.seed),
        weighting_folds=weighting_folds(config.valuation, split.real.labels, config.seed),
        is_right=truth == labels,
    )


def _real_images(images: LabelledImages, truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Images of the classes `truth`, none twice."""
    chosen = np.empty(len(truth), int)
    for label in np.unique(truth):
        places = np.flatnonzero(truth == label)
        candidates = np.flatnonzero(images.labels == label)
        if len(candidates) < len(places):
            name = images.class_names[label]
            raise InputError(
                f"--images_per_class: {len(places)} images of {name} are needed, there are {len(candidates)}"
            )
        chosen[places] = rng.permutation(candidates)[: len(places)]
    return to_float(images.images[chosen])


def _generated_images(
    config: Config, names: tuple[str, ...], labels: np.ndarray, truth: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    folder = checkpoints.resolve_checkpoint(config.generator.checkpoint, config.generator.revision or None)
    sd = load_stable_diffusion(folder, jnp.dtype(config.generator.dtype))
    prompts = class_prompts(config.prompts.template, names)
    seeds = rng.integers(0, 2**31, len(labels))
    records = [
        PoolRecord(label=int(label), prompt=prompts[shown], seed=int(seed))
        for label, shown, seed in zip(labels, truth, seeds, strict=True)
    ]
    sampling = dataclasses.replace(config.generator, strength=1.0)
    return np.concatenate([*generate_batches(sd, records, Adapter(), sampling)])

"""What all stages of a run need to know, read and checked before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from utilgen_jax import checkpoints, data
from utilgen_jax.classifier import train as classification
from utilgen_jax.classifier.model import Classifier, make_classifier
from utilgen_jax.config.schema import nearest
from utilgen_jax.data.label_noise import add_label_noise
from utilgen_jax.data.long_tail import long_tail_counts, long_tail_indices
from utilgen_jax.diffusion.samplers import make_sampler
from utilgen_jax.errors import InputError
from utilgen_jax.experiment.stages import Stages
from utilgen_jax.experiment.workdir import open_workdir
from utilgen_jax.generator.image_mixing import find_way
from utilgen_jax.generator.loading import read_architecture
from utilgen_jax.methods import METHODS, Generation
from utilgen_jax.prompts.attributes import PromptAttributes
from utilgen_jax.runtime import sharding

# Each use of randomness folds its own number into the run's key. All classifiers share theirs: rows are paired.
CLASSIFIER_KEY, VALUE_KEY, ADAPTATION_KEY, SOURCES_KEY, INVERSION_KEY, PREFERENCE_KEY = range(1, 7)
STEERING_KEY, PHRASES_KEY, ENSEMBLE_KEY = range(7, 10)


@dataclasses.dataclass(frozen=True)
class Shared:
    """Where runs of a comparison, which differ in method alone, keep what they have in common.

    Attributes:
        stages: folder for the results of stages.
        pools: folder for pools that the shots have a part in.
        shotless_pools: for the others and the stages that make them; runs that differ in shots too can share it.
    """

    stages: Path
    pools: Path
    shotless_pools: Path


@dataclasses.dataclass(frozen=True)
class Job:
    """A run's settings and input.

    Attributes:
        config: checked.
        rows: methods to train, "real" first.
        split: shots and test images.
        folds: of the shots, for cross-fitting; empty where nothing is synthetic.
        prompts: one a class.
        checkpoint: the generator's folder; None where nothing is synthetic.
        classifier: what is trained on each row's images.
        classifier_config: how.
        mesh: of devices.
        stages: results on disk.
        workdir: the run's folder.
        shared: see there; None for a run of its own.
    """

    config: ConfigDict
    rows: tuple[str, ...]
    split: data.FewShotSplit
    folds: list[data.Fold]
    prompts: list[str]
    checkpoint: Path | None
    classifier: Classifier
    classifier_config: classification.ClassifierConfig
    mesh: jax.sharding.Mesh
    stages: Stages
    workdir: Path
    shared: Shared | None

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return jax.process_index() == 0

    def config_of_row(self, row: str) -> classification.ClassifierConfig:
        """How the classifier of a row is trained: like all others, but for what makes the row."""
        own = {name: getattr(METHODS[row], name) for name in ("augmentation", "mixing")}
        return dataclasses.replace(self.classifier_config, **{name: value for name, value in own.items() if value})

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.split.real.class_names)

    def key(self, use: int) -> jax.Array:
        """The PRNG key of one use of randomness."""
        return jax.random.fold_in(jax.random.key(self.config.seed), use)

    def pool_folder(self, generation: Generation, round_number: int = 0) -> Path:
        """Where a pool is kept: the method's own in `pool/round_RR`, another one beside it under its name."""
        name = f"round_{round_number:02d}"
        if self.shared is not None:
            return (self.shotless_folder(generation) or self.shared.pools) / generation.name / name
        own = METHODS[self.config.method].generation == generation
        return self.workdir / "pool" / ("" if own else generation.name) / name

    def shotless_folder(self, generation: Generation) -> Path | None:
        """Where a pool that the shots have no part in is shared, and the stage that makes it; None: it is not."""
        return None if self.shared is None or generation.uses_shots else self.shared.shotless_pools


def asked_of_classes(entries: Sequence[str], class_names: Sequence[str]) -> dict[str, float]:
    """Reads `difficulty.by_class`, such as 'three=0.7': the mean difficulty by name of the class.

    Raises:
        InputError: an entry names no class, or no number in [0, 1].
    """
    means = {}
    for entry in entries:
        name, _, text = entry.partition("=")
        if name not in class_names:
            near = nearest(name, class_names)
            raise InputError(f"config.difficulty.by_class: {name!r} is none of the classes; the nearest is {near!r}")
        try:
            means[name] = float(text)
        except ValueError:
            means[name] = -1.0
        if not 0 <= means[name] <= 1:
            raise InputError(f"config.difficulty.by_class: {entry!r} should be such as '{name}=0.7', from 0 to 1")
    return means


def _long_tail(real: data.LabelledImages, config: ConfigDict) -> data.LabelledImages:
    """The shots of which later classes have fewer and fewer, in the order in which they stood."""
    counts = long_tail_counts(config.data.shots, len(real.class_names), config.data.imbalance_factor)
    return real.take(np.sort(long_tail_indices(real.labels, counts, config.seed)))


def _with_label_noise(real: data.LabelledImages, config: ConfigDict) -> data.LabelledImages:
    """The shots with some wrong labels, which all stages take for right; InputError where a class is left with none."""
    labels = add_label_noise(real.labels, len(real.class_names), config.data.label_noise, config.seed)
    lost = np.setdiff1d(real.labels, labels)
    if len(lost):
        names = ", ".join(real.class_names[label] for label in lost)
        raise InputError(f"config.data.label_noise leaves no shot of {names}; take more shots or another seed")
    return dataclasses.replace(real, labels=labels)


def config_of(kind: type[Any], section: ConfigDict) -> Any:
    """A classifier_config, some dataclass, of the fields of that name in a section of the config."""
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in section.items() if name in names})


def _classifier_config(config: ConfigDict, real: data.LabelledImages) -> classification.ClassifierConfig:
    classifier_config: classification.ClassifierConfig = config_of(classification.ClassifierConfig, config.classifier)
    if classifier_config.synthetic_fraction > 0:
        return classifier_config
    return dataclasses.replace(
        classifier_config, synthetic_fraction=synthetic_fraction(len(real.labels) / len(real.class_names))
    )


def synthetic_fraction(shots: float) -> float:
    """The synthetic part of a batch that suits so many real images a class: 3 / (3 + shots), at least 0.2.

    As if a class's synthetic images, however many, were worth three real ones. From accuracies on held-out digits:
    with 1 image a class 0.75 is better than 0.5 and 0.25, with 4 or 8 it is worse than both. The least is what
    DataDream's public code gives 16 shots (Kim et al. 2024, arXiv 2407.10910; the real images' lambda_1 is 0.8).

    Args:
        shots: real images a class, on average.
    """
    return max(3 / (3 + shots), 0.2)


def prepare(config: ConfigDict, workdir: Path, shared: Shared | None) -> Job:
    """Reads all input and opens the folder.

    Raises:
        InputError: data, checkpoint or workdir do not suit; nothing has been written then.
    """
    baselines = config.baselines if METHODS[config.method].generation else ()
    rows: Sequence[str] = list(dict.fromkeys(["real", *baselines, config.method]))
    generations = {METHODS[row].generation for row in rows} - {None}
    split = data.few_shot(data.load_source(config.data), config.data.shots, config.seed, config.data.max_test)
    if config.data.imbalance_factor > 1:
        split = dataclasses.replace(split, real=_long_tail(split.real, config))
    if config.data.label_noise > 0:
        split = dataclasses.replace(split, real=_with_label_noise(split.real, config))
    real = split.real
    classifier = make_classifier(config.classifier, len(real.class_names), config.data.image_size, config.data.channels)
    folds, checkpoint = [], None
    if generations:
        folds = data.cross_fit_folds(real.labels, config.utility.folds, config.seed)
        checkpoint = checkpoints.resolve_checkpoint(config.generator.checkpoint, config.generator.revision or None)
        generator = read_architecture(checkpoint, jnp.dtype(config.generator.dtype))
        generator.check_image_size(config.generator.image_size)
        if any(generation is not None and generation.start == "shots" for generation in generations):
            find_way(config.conditioning.way, generator.image_encoder is not None)
        if any(generation is not None and generation.prompt == "phrases" for generation in generations):
            PromptAttributes.parse(config.generator.phrases)
        asked_of_classes(config.difficulty.by_class, real.class_names)
        make_sampler(config.generator.scheduler, generator.schedule, config.generator.steps)
    mesh = sharding.make_mesh(config.parallel.data, config.parallel.fsdp)
    with jax.set_mesh(mesh):
        classifier = sharding.replicate(classifier)
    open_workdir(workdir, config)
    return Job(
        config=config,
        rows=tuple(rows),
        split=split,
        folds=folds,
        prompts=data.class_prompts(config.generator.prompt, real.class_names),
        checkpoint=checkpoint,
        classifier=classifier,
        classifier_config=_classifier_config(config, real),
        mesh=mesh,
        stages=Stages(shared.stages if shared else workdir / "checkpoints"),
        workdir=workdir,
        shared=shared,
    )

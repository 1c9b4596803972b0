"""Sets an experiment up: reads and checks all input before anything is written."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax.checkpoints import resolve_checkpoint
from utilgen_jax.checkpoints.component import check_component
from utilgen_jax.classifier.config import ClassifierConfig, synthetic_fraction
from utilgen_jax.classifier.model import make_classifier
from utilgen_jax.config.schema import Config, flatten
from utilgen_jax.data.image_source import Sources
from utilgen_jax.data.label_noise import add_label_noise
from utilgen_jax.data.long_tail import long_tail_counts, long_tail_indices
from utilgen_jax.data.sources import load_source
from utilgen_jax.data.splits import FewShotSplit, LabelledImages, cross_fit_folds, few_shot
from utilgen_jax.data.streamed_images import IN_MEMORY, Reading
from utilgen_jax.data.words import class_words
from utilgen_jax.diffusion.samplers import make_sampler
from utilgen_jax.errors import InputError
from utilgen_jax.experiment.experiment import Experiment, GeneratorSource, SharedDirs, reading_of
from utilgen_jax.experiment.inputs import fingerprint_files
from utilgen_jax.experiment.workdir import check_config
from utilgen_jax.generator.loading import read_architecture
from utilgen_jax.generator.stable_diffusion import Architecture, expected_params
from utilgen_jax.methods.base import Method, PoolSpec
from utilgen_jax.prompts.templates import class_prompts
from utilgen_jax.prompts.words import ClassWords
from utilgen_jax.runtime.folder_lock import check_unlocked
from utilgen_jax.runtime.notes import warn
from utilgen_jax.runtime.sharding import make_mesh, replicate


def set_up(
    config: Config,
    workdir: Path,
    shared: SharedDirs | None,
    methods: Sequence[Method],
    split: FewShotSplit | None = None,
) -> Experiment:
    """Reads all input and checks it and the workdir; the experiment's block writes.

    Args:
        config: checked.
        workdir: the run's folder.
        shared: for a run that is part of a comparison.
        methods: "real" first; the last is the one that the run is about.
        split: what `read_split` returns, where it has been read before.

    Raises:
        InputError: data, checkpoint or workdir do not suit, or another process uses the workdir.
    """
    if jax.process_index() == 0:  # it locks the folder, perhaps before the others come here
        check_unlocked(workdir)
    check_config(workdir, config)
    split = split or read_split(config, load_source(config.data), reading_of(config))
    _check_validation(config, methods, split)
    real = split.real
    words = ClassWords(class_words(config.data.class_names, real.class_names))
    classifier = make_classifier(config.classifier, len(real.class_names), config.data.image_size, config.data.channels)
    pools = [method.pool for method in methods if method.pool is not None]
    folds, generator, word_prompts = [], None, []
    if pools:
        word_prompts = class_prompts(config.prompts.template, words.names)
        _warn_of_shared_prompts(word_prompts, words, real.class_names)
        folds = cross_fit_folds(real.labels, config.valuation.folds, config.seed)
        checkpoint = resolve_checkpoint(config.generator.checkpoint, config.generator.revision or None)
        generator = GeneratorSource(checkpoint, _read_architecture(config, checkpoint, pools))
    mesh = make_mesh(config.parallel.data, config.parallel.fsdp)
    with jax.set_mesh(mesh):
        classifier = replicate(classifier)
    experiment = Experiment(
        config=config,
        methods=methods,
        split=split,
        folds=folds,
        words=words,
        word_prompts=word_prompts,
        generator_source=generator,
        classifier=classifier,
        classifier_config=classifier_config(config, real),
        mesh=mesh,
        workdir=workdir,
        shared=shared,
        inputs={
            **split.fingerprints,
            **fingerprint_files(config, None if generator is None else generator.checkpoint),
        },
    )
    experiment.check_folders()
    for pool in pools:
        pool.check(experiment)
    if any(pool.captions for pool in pools):
        experiment.pools.check_captions()
    if generator is not None:
        _check_weights(generator)  # seconds for a large checkpoint, so what else is missing has been told before
    return experiment


def _check_validation(config: Config, methods: Sequence[Method], split: FewShotSplit) -> None:
    """Raises InputError where steps are to see held-out images all at once, and memory does not hold them."""
    fields = {method.validation_field for method in methods if method.validation_field} if split.is_streamed else set()
    for field in sorted(name for name in fields if not flatten(config)[name]):
        raise InputError(
            f"config.{field}: at 0 each step sees all held-out real images, which config.data.memory_gib="
            f"{config.data.memory_gib:g} does not hold; give a number, such as --config.{field}=256, or more memory"
        )


def _warn_of_shared_prompts(prompts: Sequence[str], words: ClassWords, class_names: Sequence[str]) -> None:
    """Warns of classes that the generator cannot tell apart, as tokenizers know no capitals."""
    classes = defaultdict(set)
    for prompt, label in zip(prompts, words.labels, strict=True):
        classes[" ".join(prompt.lower().split())].add(int(label))
    shared = {prompt: labels for prompt, labels in classes.items() if len(labels) > 1}
    if shared:
        prompt, labels = next(iter(shared.items()))
        names = ", ".join(class_names[label] for label in sorted(labels))
        warn(
            f"{len(set().union(*shared.values()))} classes share their prompt with another class, such as {prompt!r} "
            f"({names}); their synthetic images are alike; give them other names by config.data.class_names"
        )


def read_split(config: Config, sources: Sources, reading: Reading = IN_MEMORY) -> FewShotSplit:
    """Reads the few-shot and the test images of a run; InputError if they do not suit."""
    split = few_shot(sources, config.data.shots, config.seed, config.data.max_test, reading)
    if config.data.imbalance_factor > 1:
        split = dataclasses.replace(split, real=_long_tail(split.real, config))
    if config.data.label_noise > 0:
        split = dataclasses.replace(split, real=_with_label_noise(split.real, config))
    return split


def _long_tail(real: LabelledImages, config: Config) -> LabelledImages:
    """The shots, of which later classes have fewer and fewer, in the order in which they stood."""
    counts = long_tail_counts(config.data.shots, len(real.class_names), config.data.imbalance_factor)
    return real.take(np.sort(long_tail_indices(real.labels, counts, config.seed)))


def _with_label_noise(real: LabelledImages, config: Config) -> LabelledImages:
    """The shots with some wrong labels, which all stages take for right; InputError where a class is left with none."""
    labels = add_label_noise(real.labels, len(real.class_names), config.data.label_noise, config.seed)
    lost = np.setdiff1d(real.labels, labels)
    if len(lost):
        names = ", ".join(real.class_names[label] for label in lost)
        raise InputError(f"config.data.label_noise leaves no shot of {names}; take more shots or another seed")
    return dataclasses.replace(real, labels=labels)


def _read_architecture(config: Config, checkpoint: Path, pools: Sequence[PoolSpec]) -> Architecture:
    """Reads a checkpoint's architecture, and checks the sampling settings against it."""
    architecture = read_architecture(
        checkpoint,
        jnp.dtype(config.generator.dtype),
        gradient_checkpointing=config.generator.gradient_checkpointing,
    )
    architecture.check_image_size(config.generator.image_size)
    for sampling in {config.generator, *(pool.sampling(config) for pool in pools)}:
        make_sampler(sampling.scheduler, architecture.schedule, sampling.steps)
    return architecture


def _check_weights(generator: GeneratorSource) -> None:
    """Checks the headers of a checkpoint's weights against its architecture."""
    for name, module in generator.architecture.modules.items():
        check_component(generator.checkpoint / name, expected_params(module))


def classifier_config(config: Config, real: LabelledImages) -> ClassifierConfig:
    """The classifier's training, with the synthetic fraction that suits the shots where the config names none."""
    if 0 < config.classifier.synthetic_fraction < 1:
        return config.classifier
    fraction = synthetic_fraction(len(real.labels) / len(real.class_names))
    return dataclasses.replace(config.classifier, synthetic_fraction=fraction)

"""The stages of a run, in the order in which they happen, on one page.

split → classifier on real pictures → difficulty → synthetic pool → value of the pool → classifier on real and synthetic
pictures → evaluation → summary and report. The result of each stage is on disk; a run that is started again continues
after the last finished one (see `stages`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from utilgen_jax import classification, data, parallel, report, weights
from utilgen_jax.classification import TrainingSet
from utilgen_jax.data.images import resize, set_channels, to_float
from utilgen_jax.diffusion.samplers import make_sampler
from utilgen_jax.generator.checkpoint import load_generator, read_architecture
from utilgen_jax.generator.pool_generation import generate_pool, plan_pool
from utilgen_jax.methods import METHODS
from utilgen_jax.models.classifiers import build_classifier
from utilgen_jax.results import log_stage, print_table, write_results
from utilgen_jax.stages import Stages
from utilgen_jax.utility.difficulty import difficulty
from utilgen_jax.valuation import WeightRecipe, value_pool
from utilgen_jax.workdir import open_workdir, versions, write_summary

Params = Any

# Each use of randomness folds its own number into the run's key. All classifiers share theirs: rows are paired.
_CLASSIFIER_KEY, _VALUE_KEY = 1, 2


@dataclasses.dataclass(frozen=True)
class Shared:
    """Where runs of a comparison, which differ in method alone, keep what they have in common.

    Attributes:
      stages: folder for the results of stages.
      pool: folder for the synthetic pool; runs that differ in shots too can share it.
    """

    stages: Path
    pool: Path


def run(config: ConfigDict, workdir: str | Path, shared: Shared | None = None) -> dict[str, Any]:
    """Runs a method and its baselines from config to report, and prints the table.

    Args:
      config: checked, see `cli.read_config`.
      workdir: for everything that the run writes.
      shared: for a run that is part of a comparison. It writes its summary, but no report and no table, and notes no
        weights in the pool.

    Returns:
      What `summary.json` holds.

    Raises:
      InputError: data, checkpoint or workdir do not suit; nothing has been written then.
      FloatingPointError: a loss or a picture is not finite.
    """
    workdir = Path(workdir)
    rows = list(dict.fromkeys(["real", *config.baselines, config.method]))
    if not METHODS[config.method].synthetic:
        rows = ["real"]
    job = _prepare(config, workdir, rows, shared)
    pool, values = None, {}
    with jax.set_mesh(job.mesh), report.MetricsWriter(workdir, enabled=job.is_first) as metrics:
        real = _training_set(to_float(job.split.real.images), job.split.real.labels)
        classifiers = {"real": _train(job, metrics, "real", real, None)}
        real_difficulty = _measure_difficulty(job, classifiers["real"], real)
        if job.checkpoint is not None:
            pool = _generate(job, job.checkpoint)
            synthetic = _training_set(_as_classifier_input(config, pool.images), pool.labels)
            for row in rows[1:]:
                values[row] = _value(job, metrics, row, real, synthetic, classifiers["real"])
                weighted = dataclasses.replace(synthetic, weights=_relative(values[row]["weight"]))
                classifiers[row] = _train(job, metrics, row, real, weighted)
            if shared is None:
                pool = _note_values(job, values[config.method])
        accuracy = {row: _evaluate(job, row, params) for row, params in classifiers.items()}

    summary = {
        "method": config.method,
        "dataset": config.data.name,
        "shots": config.data.shots,
        "seed": config.seed,
        "accuracy": {"real_only": accuracy["real"]}
        | ({"vanilla": accuracy["vanilla"]} if "vanilla" in accuracy else {})
        | {"final": accuracy[config.method]},
        "num_real": len(job.split.real),
        "num_synthetic": 0 if pool is None else len(pool.labels),
        "num_test": len(job.split.test),
        "seconds": job.stages.seconds,
        "versions": versions(),
    }
    if job.is_first and shared is None:
        page = write_results(workdir, config, summary, job.split.real, pool, real_difficulty, values.get(config.method))
        print_table(summary)
        print(f"report: {page}")
    if job.is_first:
        # Last: a summary says that the run is whole.
        write_summary(workdir, summary)
    return summary


@dataclasses.dataclass(frozen=True)
class _Job:
    """What all stages of a run need to know."""

    config: ConfigDict
    split: data.FewShotSplit
    folds: list[data.Fold]
    prompts: list[str]
    checkpoint: Path | None
    classifier: Any
    recipe: classification.Recipe
    mesh: jax.sharding.Mesh
    stages: Stages
    pool_folder: Path

    @property
    def is_first(self) -> bool:
        return jax.process_index() == 0

    def key(self, use: int) -> jax.Array:
        return jax.random.fold_in(jax.random.key(self.config.seed), use)


def _prepare(config: ConfigDict, workdir: Path, rows: list[str], shared: Shared | None) -> _Job:
    """Reads all input and finds what is wrong with it, before anything is written."""
    split = data.few_shot(data.load_source(config.data), config.data.shots, config.seed, config.data.max_test)
    real = split.real
    classifier = build_classifier(
        config.classifier.name,
        len(real.class_names),
        config.classifier.width,
        config.data.image_size,
        jnp.dtype(config.classifier.dtype),
    )
    folds, checkpoint = [], None
    if len(rows) > 1:
        folds = data.cross_fit_folds(real.labels, config.utility.folds, config.seed)
        checkpoint = weights.resolve_checkpoint(config.generator.checkpoint, config.generator.revision or None)
        generator = read_architecture(checkpoint, jnp.dtype(config.generator.dtype))
        generator.check_image_size(config.generator.image_size)
        make_sampler(config.generator.scheduler, generator.schedule, config.generator.steps)
    mesh = parallel.make_mesh(config.parallel.data, config.parallel.fsdp)
    open_workdir(workdir, config)
    return _Job(
        config=config,
        split=split,
        folds=folds,
        prompts=data.class_prompts(config.generator.prompt, real.class_names),
        checkpoint=checkpoint,
        classifier=classifier,
        recipe=classification.Recipe(**{key: value for key, value in config.classifier.items() if key in _RECIPE}),
        mesh=mesh,
        stages=Stages(shared.stages if shared else workdir / "checkpoints"),
        pool_folder=(shared.pool if shared else workdir / "pool") / "round_00",
    )


_RECIPE = {field.name for field in dataclasses.fields(classification.Recipe)}
_WEIGHT_RECIPE = {field.name for field in dataclasses.fields(WeightRecipe)}


def _train(
    job: _Job, metrics: report.MetricsWriter, row: str, real: TrainingSet, synthetic: TrainingSet | None
) -> Params:
    """The classifier of one row of the table, on real and, if any, synthetic pictures."""
    name = f"classifier_{row}"

    def compute() -> dict[str, np.ndarray]:
        with log_stage(metrics, name, job.recipe.steps, job.config.log_every_steps) as on_step:
            params = classification.train_classifier(
                job.classifier, job.recipe, real, synthetic, job.key(_CLASSIFIER_KEY), on_step
            )
        return {path: parallel.to_host(leaf) for path, leaf in flatten_dict(params, sep="/").items()}

    return unflatten_dict(job.stages.run(name, compute), sep="/")


def _predict(job: _Job, params: Params, images: Any) -> np.ndarray:
    return classification.predict_logits(job.classifier, params, images, job.config.classifier.eval_batch_size)


def _measure_difficulty(job: _Job, params: Params, real: TrainingSet) -> np.ndarray:
    """How hard the classifier of the real pictures finds each of them."""

    def compute() -> dict[str, np.ndarray]:
        return {"real": difficulty(_predict(job, params, real.images), job.split.real.labels)}

    return job.stages.run("difficulty", compute)["real"]


def _generate(job: _Job, checkpoint: Path) -> data.Pool:
    """The synthetic pool; one that was broken off is gone on with."""
    config, class_names = job.config, job.split.real.class_names
    records = plan_pool(job.prompts, config.pool.images_per_class, config.seed, round_number=0)

    def compute() -> dict[str, np.ndarray]:
        writer = data.PoolWriter(job.pool_folder, class_names)
        if len(writer) < len(records):
            dtype = jnp.dtype(config.generator.dtype)
            generator, params = load_generator(checkpoint, dtype, sharding_for=parallel.sharding_for(job.mesh))
            progress = report.Progress("generate", len(records), "image", initial=len(writer), enabled=job.is_first)
            with progress:
                generate_pool(
                    generator,
                    params,
                    writer,
                    records,
                    scheduler=config.generator.scheduler,
                    num_steps=config.generator.steps,
                    guidance_scale=config.generator.guidance_scale,
                    negative_prompt=config.generator.negative_prompt,
                    image_size=config.generator.image_size,
                    batch_size=config.generator.batch_size,
                    on_images=progress.update,
                )
        return {"num_images": np.array(len(records))}

    job.stages.run("pool", compute)
    return data.read_pool(job.pool_folder, class_names)


def _value(
    job: _Job, metrics: report.MetricsWriter, row: str, real: TrainingSet, synthetic: TrainingSet, params: Params
) -> dict[str, np.ndarray]:
    """What each picture of the pool is worth to one row: "weight", "difficulty" and, if weighed, "loss"; [M] each."""
    config = job.config
    name = f"value_{row}"

    def compute() -> dict[str, np.ndarray]:
        hard = difficulty(_predict(job, params, synthetic.images), np.asarray(synthetic.labels))
        if METHODS[row].weighting == "uniform":
            return {"difficulty": hard, "weight": np.ones_like(hard)}
        recipe = WeightRecipe(**{key: value for key, value in config.utility.items() if key in _WEIGHT_RECIPE})
        with log_stage(metrics, name, recipe.steps * len(job.folds), config.log_every_steps) as on_step:
            value = value_pool(
                job.classifier,
                job.recipe,
                recipe,
                real,
                synthetic,
                job.folds,
                job.key(_VALUE_KEY),
                lambda step, seen: on_step(
                    step, seen.train_loss, seen.first_nonfinite, validation_loss=seen.validation_loss
                ),
            )
        return {"difficulty": hard, "weight": value.weights, "loss": value.losses}

    return job.stages.run(name, compute)


def _note_values(job: _Job, values: dict[str, np.ndarray]) -> data.Pool:
    """Writes weights and difficulties beside the pool's pictures, for a person to read."""
    if job.is_first:
        columns = {name: values[name].tolist() for name in ("difficulty", "weight")}
        data.update_records(job.pool_folder, **columns)
    return data.read_pool(job.pool_folder, job.split.real.class_names)


def _evaluate(job: _Job, row: str, params: Params) -> float:
    """The accuracy on the test pictures, which nothing but this reads."""

    def compute() -> dict[str, np.ndarray]:
        logits = _predict(job, params, to_float(job.split.test.images))
        return {"accuracy": np.array((logits.argmax(-1) == job.split.test.labels).mean())}

    return float(job.stages.run(f"evaluation_{row}", compute)["accuracy"])


def _as_classifier_input(config: ConfigDict, images: np.ndarray) -> jax.Array:
    """Pictures of the pool uint8 [N, H, W, 3] in the size and channels that the classifier sees, float32 in [-1, 1]."""
    return set_channels(resize(to_float(images), config.data.image_size), config.data.channels)


def _training_set(images: Any, labels: np.ndarray) -> TrainingSet:
    """A training set on the mesh, all weights 1."""
    return parallel.replicate(TrainingSet(images, jnp.asarray(labels), jnp.ones(len(labels))))


def _relative(sample_weights: np.ndarray) -> jax.Array:
    """Weights of mean 1, so that the pool as a whole counts the same in every row."""
    return parallel.replicate(sample_weights / sample_weights.mean())

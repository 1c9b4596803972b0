"""Of a pool with more images than are wanted, those that teach the most, as a pool of their own."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.stats import entropy

from utilgen_jax import data, report
from utilgen_jax.classifier.train import TrainingSet
from utilgen_jax.data.images import to_float
from utilgen_jax.experiment.appraisal import Params, appraise, pool_training_set
from utilgen_jax.experiment.setup import Job
from utilgen_jax.experiment.synthesis import Made, images_per_class
from utilgen_jax.methods import Generation
from utilgen_jax.valuation.ensemble import ensemble_labels


def choose_useful(
    job: Job,
    metrics: report.MetricsWriter,
    generation: Generation,
    made: Made,
    real: TrainingSet,
    real_classifier: Params,
) -> Made:
    """The images of each class to which a weight network, trained by the bilevel update, gives the most weight.

    Args:
        job: the run.
        metrics: its writer.
        generation: how the new pool comes about.
        made: the pool before.
        real: the shots, as the classifier sees them.
        real_classifier: of the shots alone.
    """
    synthetic = pool_training_set(job, generation, made.pool)
    name = f"value_{generation.name}_{made.round}"
    weights = appraise(job, metrics, name, "joint", real, synthetic, real_classifier)["weight"]
    return _choose(job, generation, made, weights)[0]


def choose_uncertain(
    job: Job, metrics: report.MetricsWriter, generation: Generation, made: Made, real: TrainingSet
) -> Made:
    """The images of each class of which several classifiers together are the least sure, with what they say of them.

    Uncertainty sampling (Lewis and Gale 1994, arXiv cmp-lg/9407020) by a committee's entropy; a generator's images
    cost no label, as the committee itself gives it.

    Args:
        job, metrics, generation, made, real: see `choose_useful`.
    """
    synthetic = pool_training_set(job, generation, made.pool)
    said = ensemble_labels(job, metrics, generation, real, synthetic)
    chosen, places = _choose(job, generation, made, entropy(said, axis=1))
    return dataclasses.replace(chosen, soft_labels=said[places])


def _choose(job: Job, generation: Generation, made: Made, scores: np.ndarray) -> tuple[Made, np.ndarray]:
    """The images of each class with the highest scores [N], as a pool, and their places in the one before."""
    number = made.round + 1
    folder, class_names = job.pool_folder(generation, number), job.split.real.class_names

    def compute() -> dict[str, np.ndarray]:
        wanted = images_per_class(job, generation)
        ranked = np.argsort(-scores, kind="stable")
        chosen = np.sort(
            np.concatenate([ranked[made.pool.labels[ranked] == label][:count] for label, count in enumerate(wanted)])
        )
        writer = data.PoolWriter(folder, class_names)
        rest = chosen[len(writer) :]
        if job.is_first and rest.size:
            writer.append(to_float(made.pool.images[rest]), [made.pool.records[place] for place in rest])
        return {"chosen": chosen}

    chosen = job.stages.run(f"pool_{generation.name}_{made.round}", compute)["chosen"]
    return Made(data.read_pool(folder, class_names), made.adapter, number), chosen

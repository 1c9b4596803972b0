"""The stages that a run will have, and what each costs, before any of them has run: for the progress line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from utilgen_jax.generator.config import PerImageConfig
from utilgen_jax.generator.finetune.config import DpoConfig, TextualInversionConfig
from utilgen_jax.joint.config import JointConfig
from utilgen_jax.methods.datadream import DataDreamConfig
from utilgen_jax.methods.difficulty import DifficultyConfig
from utilgen_jax.report.job import Cost
from utilgen_jax.valuation.config import EnsembleConfig
from utilgen_jax.valuation.cross_fit import weighting_folds
from utilgen_jax.valuation.ensemble import ensemble_steps

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Experiment

_STEP = 3  # passes forward that a training step takes for an image, its gradient included


def outline(experiment: Experiment) -> dict[str, Cost]:
    """The stages of a run in their order, with their costs."""
    return {name: _cost(experiment, name) for name in stage_names(experiment)}


def stage_names(experiment: Experiment) -> list[str]:
    """The stages of a run, in their order, as far as they are known before it."""
    config, names = experiment.config, []
    num_classes = experiment.classifier_input.num_classes
    has_both = config.also_synthetic_only and not config.classifier.is_synthetic_only
    for method in experiment.methods:
        if method.pool is not None:
            if experiment.word_choice.is_needed:
                names += ["pool_words", "words"]
            names += [*method.pool.stages(config, num_classes), *method.stages]
        name = method.name
        endings = ["", "_synthetic_only"] if method.pool is not None and has_both else [""]
        names += [f"classifier_{name}{ending}" for ending in endings]
        names += [f"evaluation_{name}", *method.stages_of_update]
        names += [f"evaluation_{name}{ending}" for ending in endings[1:]]
    of_report = ["difficulty", "image_map"]
    if experiment.shared is None:
        return list(dict.fromkeys([*names, *of_report]))
    return [name for name in dict.fromkeys(names) if name != "difficulty_sheets"]


def _cost(experiment: Experiment, name: str) -> Cost:
    """By the longest beginning of its name that is known; a stage that is known by none costs nothing of note."""
    known = [beginning for beginning in _COSTS if name.startswith(beginning)]
    return _COSTS[max(known, key=len)](experiment) if known else Cost()


def _training(experiment: Experiment, trainings: float = 1.0) -> Cost:
    config = experiment.classifier_config
    return Cost(passes=_STEP * config.steps * config.batch_size * trainings)


def _pool(experiment: Experiment) -> Cost:
    sampling = experiment.config.generator
    guided = 2 if sampling.guidance_scale > 1 else 1
    return Cost(calls=float(experiment.pools.images_per_class().sum()) * sampling.num_calls * guided)


def _per_image(experiment: Experiment) -> Cost:
    config, images = experiment.config.section(PerImageConfig), float(experiment.pools.images_per_class().sum())
    return Cost(calls=_pool(experiment).calls + images * config.steps * (config.sampler_steps + _STEP))


def _ensemble(experiment: Experiment) -> Cost:
    config = experiment.classifier_config
    steps = ensemble_steps(config, experiment.config.section(EnsembleConfig))
    return _training(experiment, steps / config.steps)


def _value(experiment: Experiment) -> Cost:
    config, valuation = experiment.classifier_config, experiment.config.valuation
    folds = weighting_folds(valuation, experiment.split.real.labels, experiment.config.seed)
    return Cost(passes=_STEP * valuation.total_steps(config, len(folds)) * config.batch_size)


def _finetuning(section: type) -> Callable[[Experiment], Cost]:
    def cost(experiment: Experiment) -> Cost:
        config: Any = experiment.config.section(section)
        of_images = getattr(config, "of_images", None)
        steps = of_images(len(experiment.split.real)).steps if of_images else config.steps
        return Cost(calls=float(_STEP * steps * config.batch_size))

    return cost


def _joint(experiment: Experiment) -> Cost:
    joint, config = experiment.config.section(JointConfig), experiment.classifier_config
    plain = len(experiment.folds) * joint.plain_steps * config.batch_size
    images = joint.steps * joint.num_generated
    return Cost(passes=float(_STEP * plain), calls=float(images * 2 * (joint.sampler_steps + _STEP)))


def _gate(experiment: Experiment) -> Cost:
    joint, config = experiment.config.section(JointConfig), experiment.classifier_config
    images = joint.gate_images * experiment.classifier_input.num_classes
    passes = 2 * len(experiment.folds) * joint.gate_steps * config.batch_size
    sampled = _pool(experiment).calls / max(float(experiment.pools.images_per_class().sum()), 1.0)
    return Cost(passes=float(_STEP * passes), calls=images * sampled)


_COSTS: Mapping[str, Callable[[Experiment], Cost]] = {
    "classifier_": _training,
    "practice_": _training,
    "difficulty_of_shots": lambda experiment: _training(experiment, len(experiment.folds)),
    "ensemble_": _ensemble,
    "value_utilgen": _value,
    "pool_": _pool,
    "pool_utilgen": _per_image,
    "pool_utilgen_dpo_": _pool,
    "pool_words": lambda experiment: Cost(),
    "lora_datadream": _finetuning(DataDreamConfig),
    "lora_difficulty": _finetuning(DifficultyConfig),
    "class_tokens": _finetuning(TextualInversionConfig),
    "dpo_": _finetuning(DpoConfig),
    "joint_": _joint,
    "gate_": _gate,
}

"""Measures how well each valuation tells right images from wrong ones in a pool of which a known part is wrong.

  python -m utilgen_jax.bench valuation --config=configs/digits.py:shots=5
  python -m utilgen_jax.bench valuation --config=configs/digits.py:shots=5 --wrong=0
  python -m utilgen_jax.bench valuation --config=configs/pneumoniamnist.py:shots=10,path=DATA.npz --pool=real

A part --wrong of each class's images shows another class; all keep the label of their class. The figure is the area
under the ROC curve (AUC) for telling the right ones by a score: 0.5 is a guess, 1 perfect, below 0.5 upside down. With
--wrong=0 there is nothing to find; then the figure is the deviation of the score, divided by its mean, which should be
small. The scores:

  shots            probability of the label, by classifiers of the shots alone: what any valuation should beat
  loss_network     weight as a learnt function of the loss (UtilGen)
  feature_network  weight as a learnt function of loss, margin, entropy and class
  saflex           SAFLEX's soft label, the mean over the training: what it leaves on the label
  ensemble         the ensembles' posterior of the label (`joint`)

A weighting that contradicts what the images do gives no weights; its AUC is 0.5 then, and the table says so. Nothing is
timed: --repeats and --warmup say nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import jax
import numpy as np
from absl import flags
from sklearn.metrics import roc_auc_score

from utilgen_jax.bench.contaminated import Contaminated, contaminate
from utilgen_jax.config.schema import Config, choice_problems
from utilgen_jax.config.validation import with_fields
from utilgen_jax.report.progress import Progress
from utilgen_jax.report.table import format_table
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.valuation.config import EnsembleConfig, SaflexConfig
from utilgen_jax.valuation.cross_fit import PoolValues, cross_fit
from utilgen_jax.valuation.ensemble import EnsembleLabels, ensemble_labels, ensemble_steps
from utilgen_jax.valuation.saflex import SaflexProgram, train_saflex

_CHOICES = {"pool": ("generator", "real"), "noise": ("pairs", "uniform")}


def define_flags(values: flags.FlagValues) -> None:
    """Adds this benchmark's flags."""
    flags.DEFINE_string("config", "configs/digits.py:shots=5", "config file; FILE:VARIANT", flag_values=values)
    flags.DEFINE_list("scores", list(SCORES), f"which, of {', '.join(SCORES)}", flag_values=values)
    flags.DEFINE_string(
        "pool", "generator", "whose images: generator's, or real ones of the test set", flag_values=values
    )
    flags.DEFINE_float("wrong", 0.5, "share of the images that show another class", 0.0, 0.95, flag_values=values)
    flags.DEFINE_string("noise", "pairs", "'pairs': each class has one other; 'uniform': any", flag_values=values)
    flags.DEFINE_integer("images_per_class", 50, "of the pool", lower_bound=2, flag_values=values)
    flags.DEFINE_integer("seeds", 2, "how many, from the config's on", lower_bound=1, flag_values=values)


def check_settings(settings: Mapping[str, Any]) -> list[str]:
    """Lists what is wrong with the flags' values."""
    problems = choice_problems("scores", settings["scores"], SCORES)
    for name, valid in _CHOICES.items():
        problems += choice_problems(name, settings[name], valid)
    if settings["against"] != "none":
        problems.append("--against: nothing is timed here; the score 'shots' is what the others are held against")
    return problems


def run(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Values the contaminated pool of each seed by each score.

    Args:
        settings: values of all flags, checked; `config` is the `Config`.

    Returns:
        A table for people, and all figures, JSON-ready.

    Raises:
        InputError: data or checkpoint cannot be read.
    """
    config: Config = settings["config"]
    results: dict[str, list[float]] = {name: [] for name in settings["scores"]}
    contradictory = 0
    seeds = range(config.seed, config.seed + settings["seeds"])
    for seed in seeds:
        seed_config = with_fields(config, {"seed": seed})
        case = contaminate(seed_config, settings)
        found = _Valuations(seed_config, case)
        for name in settings["scores"]:
            score = SCORES[name](found, name)
            results[name].append(_figure(score, case.is_right))
            contradictory += len(score) > 1 and not np.ptp(score)
    figure = "AUC" if settings["wrong"] else "deviation / mean"
    rows = [[name, *(f"{value:.3f}" for value in values), f"{np.mean(values):.3f}"] for name, values in results.items()]
    note = f"\n{contradictory} times the weights contradicted what the images do" if contradictory else ""
    figures = {
        "benchmark": "valuation",
        **{name: settings[name] for name in ("pool", "wrong", "noise", "images_per_class")},
        "dataset": config.data.name,
        "shots": config.data.shots,
        "seeds": list(seeds),
        "figure": figure,
        "results": results,
        "contradictory": contradictory,
    }
    table = format_table(rows, ["score", *(f"seed {seed}" for seed in seeds), "mean"])
    title = f"{config.data.name}, {config.data.shots} shots, {settings['wrong']:.0%} wrong: {figure}"
    return f"{title}\n\n{table}{note}\n", figures


def _figure(score: np.ndarray, is_right: np.ndarray) -> float:
    if is_right.all():
        return float(np.std(score) / np.mean(score))
    return float(roc_auc_score(is_right, score))


class _Valuations:
    """What is known of one case; the ensembles are trained once."""

    def __init__(self, config: Config, case: Contaminated) -> None:
        self.config, self.case = config, case
        self.labels = np.asarray(case.pool.labels)

    def own(self, probabilities: np.ndarray) -> np.ndarray:
        return probabilities[np.arange(len(self.labels)), self.labels]

    @cached_property
    def ensemble(self) -> EnsembleLabels:
        config, case = self.config, self.case
        ensemble = config.section(EnsembleConfig)
        with Progress(f"ensembles, seed {config.seed}", ensemble_steps(case.config, ensemble)) as progress:
            loop, key = _reporting(progress), jax.random.key(config.seed)
            return ensemble_labels(case.classifier, case.config, ensemble, case.real, case.pool, key, loop)

    def cross_fit(self, name: str) -> PoolValues:
        config, case = self.config, self.case
        total = config.valuation.total_steps(case.config, len(case.weighting_folds))
        with Progress(f"{name}, seed {config.seed}", total) as progress:
            return cross_fit(
                case.classifier,
                case.config,
                config.valuation,
                name,
                case.real,
                case.pool,
                case.weighting_folds,
                jax.random.key(config.seed),
                _reporting(progress),
            )


def _reporting(progress: Progress) -> TrainingLoop:
    return TrainingLoop(lambda step, loss, **scalars: progress.update(step))


def _of_shots(found: _Valuations, name: str) -> np.ndarray:
    return found.own(found.ensemble.of_shots)


def _posterior(found: _Valuations, name: str) -> np.ndarray:
    return found.own(found.ensemble.posterior(found.labels).probabilities)


def _weights(found: _Valuations, name: str) -> np.ndarray:
    return found.cross_fit(name).weights


def _soft_label(found: _Valuations, name: str) -> np.ndarray:
    config, case = found.config, found.case
    program = SaflexProgram(case.config, config.section(SaflexConfig))
    shots = case.real, case.folds
    with Progress(f"{name}, seed {config.seed}", case.config.steps) as progress:
        key, loop = jax.random.key(config.seed), _reporting(progress)
        trained = train_saflex(case.classifier, program, shots, case.pool, key, loop)
    return found.own(trained.soft_labels)


# name -> (what is known of a case, name) -> score of each image, higher where it looks right: float [N]
SCORES: Mapping[str, Callable[[_Valuations, str], np.ndarray]] = {
    "shots": _of_shots,
    "loss_network": _weights,
    "feature_network": _weights,
    "saflex": _soft_label,
    "ensemble": _posterior,
}

"""A run on one page: each method's training data, its classifier, its accuracy; then summary and report.

The result of each step is on disk; a run that is started again continues where it was cut off.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utilgen_jax.config.schema import Config
from utilgen_jax.experiment.experiment import SharedDirs
from utilgen_jax.experiment.setup import set_up
from utilgen_jax.methods import METHODS, Method
from utilgen_jax.runtime.working_folder import working_folder


def run(config: Config, workdir: str | Path, shared: SharedDirs | None = None) -> dict[str, Any]:
    """Trains the classifier on each method's training data and tests it.

    Args:
        config: checked, see `config.command_line.read_config`.
        workdir: for everything that the run writes; a folder, or one in a bucket.
        shared: for a run that is part of a comparison. It writes its summary, but no report and no table, and notes no
            weights in the pool.

    Returns:
        The contents of `summary.json`.

    Raises:
        InputError: data, checkpoint or workdir do not suit; nothing has been written then.
        FloatingPointError: a loss or an image is not finite.
    """
    methods = methods_of(config)
    accuracy = {}
    with working_folder(workdir) as folder, set_up(config, folder, shared, methods) as experiment:
        for method in methods:
            data = method.training_data(experiment)
            accuracy[method.name] = experiment.train_and_test(method, data)
        return experiment.finish(accuracy)


def methods_of(config: Config) -> list[Method]:
    """The methods of a run: real images only, baselines where anything is synthetic, and the config's own, last."""
    baselines = config.baselines if METHODS[config.method].pool else ()
    names = dict.fromkeys(["real", *baselines, config.method])
    # The config's method comes last, also where it is a baseline.
    return [METHODS[name] for name in names if name != config.method] + [METHODS[config.method]]

"""Reads runs of other folders, such as another machine's, from their `compare.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utilgen_jax.compare.statistics import Run
from utilgen_jax.config.schema import Config, diff_configs, flatten, from_flat, from_json
from utilgen_jax.errors import InputError

# Types of the fields of a run. bool, a subclass of int, is rejected.
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "method": str,
    "shots": int,
    "seed": int,
    "accuracy": (int, float),
    "seconds": (int, float),
    "num_synthetic": int,
    "seconds_by_stage": dict,
    "images_per_shot": int,
    "accuracy_synthetic_only": (int, float, type(None)),
}
PLAN_FIELDS = ("method", "seed", "data.shots", "baselines")


def shared_settings(config: Config) -> dict[str, Any]:
    """Returns the config without the fields in which the runs of a comparison differ, JSON-ready."""
    common = {path: value for path, value in flatten(config).items() if path not in PLAN_FIELDS}
    return from_flat(common).to_dict()


def read_runs(file: Path, config: Config) -> list[Run]:
    """Reads the runs in the `compare.json` of a comparison with this config.

    Args:
        file: file written by `report.write_comparison`.
        config: config of the comparison; its method, seed and number of shots are ignored.

    Raises:
        InputError: the file is missing, damaged or has another config (names the fields that differ).
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        before = from_json(json.dumps(content["config"]))
        runs = [_run(entry) for entry in content["runs"]]
    except (OSError, ValueError, KeyError, TypeError, InputError) as error:
        raise InputError(f"--join: {file} cannot be read as a compare.json ({error!r})") from None
    now = flatten(config)
    same = {path: now[path] for path in PLAN_FIELDS if path in now}
    if differing := diff_configs(before | same, now):
        fields = "\n  ".join(differing)
        raise InputError(f"--join: {file} has another config. The fields that differ:\n  {fields}")
    return runs


def _run(entry: Any) -> Run:
    return checked(Run(**entry))


def checked(run: Run) -> Run:
    """Returns the run; ValueError if a field of it cannot be as it is."""
    for name, kind in _TYPES.items():
        value = getattr(run, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name}={value!r}")
    if not all(isinstance(seconds, int | float) for seconds in run.seconds_by_stage.values()):
        raise ValueError(f"seconds_by_stage={run.seconds_by_stage!r}")
    for name in ("accuracy", "accuracy_synthetic_only"):
        value = getattr(run, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r}")
    return run

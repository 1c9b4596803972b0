"""A run's folder: the config that it belongs to, and the summary that closes it."""

from __future__ import annotations

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from utilgen_jax import __version__
from utilgen_jax.config.schema import FIELDS, Config, diff_configs, flatten, from_json, to_json
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import write_text

_LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")


def open_workdir(folder: Path, config: Config) -> None:
    """Makes the folder and notes the config, or checks that the run in it is of the same config.

    Raises:
        InputError: see `check_config`.
    """
    check_config(folder, config)
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.json", to_json(config))


def check_config(folder: Path, config: Config) -> None:
    """Checks that the run in the folder, if there is any, is of this config.

    Raises:
        InputError: the folder holds a run of another config (names the fields that differ), or a damaged one.
    """
    file = folder / "config.json"
    if file.is_file():
        try:
            before = from_json(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(
                f"{file}: no config of a run ({error}); take another folder, or remove this one"
            ) from error
        if differing := diff_configs(before, flatten(config)):
            fields = "\n  ".join(differing)
            raise InputError(
                f"--workdir: {folder} holds a run of another config; take another folder, or remove this one. "
                f"The fields that differ:\n  {fields}"
            )


def identity_of(config: Config) -> dict[str, str]:
    """What the results of a run depend on beside its states: versions, and a digest of the config."""
    fixed = {path: value for path, value in flatten(config).items() if not FIELDS[path].may_change}
    digest = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
    return {"config": digest[:16], **versions()}


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Writes `summary.json`."""
    write_text(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that shape a result."""
    return {"utilgen_jax": __version__, **{name: metadata.version(name) for name in _LIBRARIES}}

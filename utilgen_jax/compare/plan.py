"""The runs of a comparison: which there are, their configs and their folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from utilgen_jax.config.schema import Config
from utilgen_jax.config.validation import with_fields
from utilgen_jax.methods import METHODS

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import SharedDirs


class PlannedRun(NamedTuple):
    """One run of a comparison.

    Attributes:
        shots: labelled images per class.
        seed: seed of the run.
        method: key of `methods.METHODS`.
        images_per_shot: synthetic images for each real one; 0: the config's number of synthetic images, or none.
    """

    shots: int
    seed: int
    method: str
    images_per_shot: int = 0


def plan_runs(
    seeds: Sequence[int], all_shots: Sequence[int], methods: Sequence[str], sizes: Sequence[int]
) -> list[PlannedRun]:
    """Plans the runs in the order in which they run.

    Args:
        seeds: of the runs.
        all_shots: numbers of labelled images per class.
        methods: keys of `methods.METHODS`.
        sizes: numbers of synthetic images for each real one; empty: the config's number of synthetic images. A method
            without synthetic images runs once for all of them.
    """
    # Seeds outermost: an interrupted sweep has all methods, at fewer seeds.
    return [
        PlannedRun(shots, seed, method, size)
        for seed in seeds
        for shots in all_shots
        for method in methods
        for size in (sizes if METHODS[method].pool and sizes else [0])
    ]


def config_of(config: Config, entry: PlannedRun) -> Config:
    """Returns the config of one run of a comparison with this config."""
    fields = {"method": entry.method, "seed": entry.seed, "data.shots": entry.shots, "baselines": ()}
    if entry.images_per_shot:
        fields["pool.images_per_shot"] = entry.images_per_shot
    return with_fields(config, fields)


def folder_of(workdir: Path, entry: PlannedRun) -> Path:
    """Returns the folder of a run."""
    return _folder(workdir, entry) / entry.method


def shared_dirs(config: Config, workdir: Path, entry: PlannedRun, plan: Sequence[PlannedRun]) -> SharedDirs:
    """Returns where a run keeps what it shares with others.

    Args:
        config: of the comparison.
        workdir: of the comparison.
        entry: the run.
        plan: all runs of the comparison.
    """
    # A pool that is larger or smaller can hold a part of this one's.
    others = {other._replace(method="") for other in plan if other.seed == entry.seed} - {entry._replace(method="")}
    sizes = [_shared(config, workdir, other) for other in sorted(others)]
    return dataclasses.replace(_shared(config, workdir, entry), other_sizes=sizes)


def _shared(config: Config, workdir: Path, entry: PlannedRun) -> SharedDirs:
    from utilgen_jax.experiment.experiment import SharedDirs

    folder = _folder(workdir, entry)
    # Where the number of synthetic images follows from the shots, runs of other shots have other pools.
    follows_shots = entry.images_per_shot or config.pool.images_per_shot or config.pool.fill_to
    return SharedDirs(
        stages=folder / "stages",
        pools=folder / "pool",
        shotless_pools=folder / "pool" if follows_shots else workdir / "pool" / f"seed_{entry.seed}",
        real_stages=_folder(workdir, entry._replace(images_per_shot=0)) / "stages",
    )


def _folder(workdir: Path, entry: PlannedRun) -> Path:
    size = [f"images_per_shot_{entry.images_per_shot}"] if entry.images_per_shot else []
    return workdir.joinpath(*size, f"shots_{entry.shots}", f"seed_{entry.seed}")

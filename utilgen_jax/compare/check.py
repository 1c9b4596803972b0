"""Checks all that the runs of a comparison read, before the first of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import numpy as np

from utilgen_jax.compare.plan import PlannedRun, config_of, folder_of, shared_dirs
from utilgen_jax.config.schema import Config
from utilgen_jax.data.image_source import ImageSource, Sources
from utilgen_jax.data.sources import load_source
from utilgen_jax.experiment.inputs import check_inputs
from utilgen_jax.experiment.setup import read_split, set_up
from utilgen_jax.pipeline import methods_of


def check_plan(config: Config, workdir: Path, plan: Sequence[PlannedRun]) -> None:
    """Reads the images of all runs, and sets each method up once.

    Args:
        config: shared by the runs.
        workdir: of the comparison.
        plan: the runs.

    Raises:
        InputError: images, checkpoint or a method's settings do not suit, or runs of before have read other input.
    """
    sources = load_source(config.data)
    if sources.test is not None:
        sources = Sources(sources.train, cast(ImageSource, _Remembered(sources.test)))
    checked: set[str] = set()
    of_split = attrgetter("shots", "seed")
    for _, entries in groupby(sorted(plan, key=of_split), of_split):
        split = None
        for entry in entries:
            own, shared = config_of(config, entry), shared_dirs(config, workdir, entry, plan)
            split = split or read_split(own, sources)
            check_inputs(shared.stages, split.fingerprints)
            if entry.method not in checked:
                set_up(own, folder_of(workdir, entry), shared, methods_of(own), split)
                checked.add(entry.method)


class _Remembered:
    """An image source that keeps what it has read last: test images are the same for all runs.

    Args:
        source: of the images.
    """

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._last: tuple[bytes, np.ndarray] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """See `ImageSource.read`."""
        key = np.asarray(indices, np.int64).tobytes()
        if self._last is None or self._last[0] != key:
            self._last = key, self._source.read(indices)
        return self._last[1]

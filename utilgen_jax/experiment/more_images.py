"""More images from what a finished run has trained: its adapter, prompts, class tokens, difficulties and noises.

The method builds its pool once more, by the same steps. Trainings are read from the run; plans have other numbers of
images and other seeds; and what would be generated is noted, to be generated a part at a time.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utilgen_jax.errors import InputError
from utilgen_jax.experiment.experiment import Experiment
from utilgen_jax.experiment.keys import Key
from utilgen_jax.experiment.pools import GeneratedPool, PoolSteps
from utilgen_jax.experiment.stages import Result, StageCache, read_result
from utilgen_jax.generator.adapter import Adapter, ClassAdapters
from utilgen_jax.methods.base import Method, PoolSpec
from utilgen_jax.pool.generate import ConditionOn, RefineBatch, generate_batches
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.pool.storage import Pool
from utilgen_jax.report.metrics import MetricsWriter
from utilgen_jax.valuation.cross_fit import PoolValues


class FinishedStages(StageCache):
    """The results of a finished run: they are read, and nothing is computed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._finished = folder

    def run(self, name: str, kind: type[Result], compute: Callable[[], Result], folder: Path | None = None) -> Result:
        """Returns a stage's result; InputError where the run has none."""
        if name not in self._results:
            file = self._finished / f"{name}.safetensors"
            if not file.is_file():
                raise InputError(f"{file} is missing: run the main job on this folder once more, which computes it")
            self._results[name] = read_result(file, kind)
        return self._results[name]


@dataclasses.dataclass(frozen=True)
class Request:
    """How images are to be generated, see `PoolSteps.generate`."""

    spec: PoolSpec
    records: Sequence[PoolRecord]
    adapter: Adapter | ClassAdapters
    condition_on: ConditionOn | None
    refine: RefineBatch | None
    strength: float


class MorePools(PoolSteps):
    """Plans other images than the run's, and notes how they are to be generated.

    Args:
        experiment: of a finished run.
        counts: images of each class, int [K].
        seed: of these images, beside the run's own.
    """

    def __init__(self, experiment: Experiment, counts: np.ndarray, seed: int) -> None:
        super().__init__(experiment)
        self.requests: list[Request] = []
        self._counts, self._seed = counts, seed
        # What a spec builds from: its own pool is planned here, other pools and all trainings are the run's.
        self._view = copy.copy(experiment)
        vars(self._view).update(pools=self, pool=experiment.pool)

    @property
    def seed(self) -> tuple[int, ...]:
        """Of the run, and of these images."""
        return (self.experiment.config.seed, self._seed, Key.MORE_IMAGES)

    def images_per_class(self) -> np.ndarray:
        """How many images of each class there are to be: int [K]."""
        return self._counts

    def build(self, spec: PoolSpec) -> GeneratedPool:
        """Notes how the images of a spec are to be generated."""
        return spec.build(self._view)

    def generate(
        self,
        spec: PoolSpec,
        records: Sequence[PoolRecord],
        adapter: Adapter | ClassAdapters | None = None,
        *,
        condition_on: ConditionOn | None = None,
        refine: RefineBatch | None = None,
        strength: float = 1.0,
    ) -> GeneratedPool:
        """Notes the request; the pool that it returns has records, but no images."""
        if self.requests and self.requests[-1].records[0].round != records[0].round:
            self.requests.clear()  # a new pool in each round: the last one counts
        adapter = adapter or Adapter()
        self.requests.append(Request(spec, records, adapter, condition_on, refine, strength))
        planned = Pool(np.zeros((0, 0, 0, 3), np.uint8), np.array([record.label for record in records]), tuple(records))
        own = adapter if isinstance(adapter, Adapter) else Adapter()
        return GeneratedPool(spec, planned, own, records[0].round or 0)

    def adopt(self, spec: PoolSpec, pool: GeneratedPool) -> GeneratedPool:
        """Notes the request of the other pool's spec: its images are taken."""
        return dataclasses.replace(self.build(pool.spec), spec=spec)


class MoreImages:
    """The images that a finished run's method is to generate, and their values.

    Args:
        experiment: of the run, as `setup.set_up` makes it; its block, which writes, is not entered.
        counts: images of each class, int [K].
        seed: of these images.

    Raises:
        InputError: the run lacks the result of a stage.
    """

    def __init__(self, experiment: Experiment, counts: np.ndarray, seed: int) -> None:
        experiment.stages = FinishedStages(experiment.workdir / "checkpoints")
        experiment.metrics = MetricsWriter(experiment.workdir, enabled=False)
        self._experiment = experiment
        assert self.method.pool is not None  # a method without one has no images
        pools = MorePools(experiment, counts, seed)
        pools.build(self.method.pool)
        self._requests = pools.requests

    @property
    def method(self) -> Method:
        """The run's."""
        return self._experiment.methods[-1]

    @property
    def records(self) -> Sequence[PoolRecord]:
        """What is known of each image beforehand."""
        return self._requests[-1].records

    def check_values(self) -> None:
        """Reads what `value` needs, so that what is missing is told before anything is generated; InputError."""
        experiment, method = self._experiment, self.method
        assert method.pool is not None
        experiment.classifiers.real()
        method.value(experiment, experiment.pool(method.pool))

    def generate(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Generates the images of the records from `start` to before `stop`, see `generate_batches`."""
        experiment, done = self._experiment, 0
        for request in self._requests:
            first, last = max(start, done), min(stop, len(request.records))
            done = len(request.records)
            if first >= last:
                continue
            yield from generate_batches(
                experiment.adapters.sd_of(request.spec),
                self.records,  # in a pool that grows, a request's own are the first of them
                request.adapter,
                dataclasses.replace(request.spec.sampling(experiment.config), strength=request.strength),
                condition_on=request.condition_on,
                refine=request.refine,
                first=first,
                stop=last,
            )

    def value(self, images: np.ndarray, records: Sequence[PoolRecord]) -> PoolValues:
        """Weights, soft labels and difficulties by the run's valuation.

        Args:
            images: uint8 [N, H, W, 3].
            records: N of them.
        """
        assert self.method.pool is not None
        labels = np.array([record.label for record in records], np.int32)
        pool = GeneratedPool(self.method.pool, Pool(images, labels, tuple(records)))
        return self.method.predict_values(self._experiment, pool)


def values_of_records(values: PoolValues, records: Sequence[PoolRecord]) -> list[PoolRecord]:
    """The records with their values."""
    columns: dict[str, Any] = {
        "weight": values.weights,
        "difficulty": values.difficulty,
        "soft_label": values.soft_labels,
    }
    known = {name: np.asarray(column, float).tolist() for name, column in columns.items() if column is not None}
    return [
        dataclasses.replace(record, **{name: _hashable(column[place]) for name, column in known.items()})
        for place, record in enumerate(records)
    ]


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

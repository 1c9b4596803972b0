"""Experiments on scikit-learn's digits, two classes of two shots, with settings that compile and run quickly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import DIGITS, TINY
from utilgen_jax.config.command_line import read_config
from utilgen_jax.experiment import pools
from utilgen_jax.experiment.experiment import Experiment, SharedDirs
from utilgen_jax.experiment.pools import GeneratedPool
from utilgen_jax.experiment.setup import set_up
from utilgen_jax.methods.base import PoolSpec
from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.pipeline import methods_of
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.pool.storage import Pool

MakeExperiment = Callable[..., Experiment]


@pytest.fixture(scope="session")
def quick_checkpoint(tmp_path_factory) -> Path:
    """An unCLIP checkpoint that torch's diffusers wrote, not to be changed."""
    from tests.diffusers_checkpoint import write_quick_stable_diffusion  # torch is slow to import

    return write_quick_stable_diffusion(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def make_experiment(tmp_path) -> Iterator[MakeExperiment]:
    """(method, workdir, shared, settings with `__` for the dot) -> an experiment, open until the test ends.

    Its checkpoint is the embedded one, of which nothing is loaded unless a test generates. `is_open=False`: as it was
    set up, before its block.
    """
    with ExitStack() as stack:

        def make(
            method: str = "vanilla",
            workdir: Path | None = None,
            shared: SharedDirs | None = None,
            is_open: bool = True,
            **settings: Any,
        ) -> Experiment:
            own = {"generator.checkpoint": "glyphs"}
            own |= {name.replace("__", "."): str(value) for name, value in settings.items()}
            config = read_config(f"{DIGITS}:method={method}", (*TINY, *own.items()))
            experiment = set_up(config, workdir or tmp_path / "run", shared, methods_of(config))
            return stack.enter_context(experiment) if is_open else experiment

        yield make


@dataclasses.dataclass(frozen=True)
class NamedPool(PoolSpec):
    """A spec of any name.

    Attributes:
        of_shots: whether the shots have a part in it.
        holds_attributes: whether its prompts do.
    """

    label: str = "named"
    of_shots: bool = True
    holds_attributes: bool = False

    @property
    def name(self) -> str:
        return self.label

    @property
    def uses_shots(self) -> bool:
        return self.of_shots

    @property
    def attributes(self) -> bool:
        return self.holds_attributes


def random_pool(num_images: int, spec: PoolSpec | None = None, size: int = 16, **fields: Any) -> GeneratedPool:
    """A pool of random images, the two classes in turn, that stands on no disk; fields of `GeneratedPool`."""
    labels = np.arange(num_images, dtype=np.int32) % 2
    images = np.random.default_rng(num_images).integers(0, 256, (num_images, size, size, 3), np.uint8)
    records = tuple(PoolRecord(label=int(label), prompt=f"prompt {place}") for place, label in enumerate(labels))
    return GeneratedPool(spec or PlainPool(), Pool(images, labels, records), **fields)


def image_of(record, size=4):
    """What `generated` makes of a record, float [S, S, 3]."""
    return np.random.default_rng([record.label, record.seed or 0]).uniform(-1, 1, (size, size, 3)).astype(np.float32)


@pytest.fixture
def generated(monkeypatch):
    """How `generate_pool` was called; it takes no time, an image follows from its record's label and seed."""
    calls = []

    def generate(sd, writer, records, adapter, sampling, on_images, *, condition_on=None, refine=None):
        calls.append(
            {"sd": sd, "done": len(writer), "adapter": adapter, "sampling": sampling, "folder": writer.folder}
            | {"condition_on": condition_on, "refine": refine}
        )
        missing = records[len(writer) :]
        writer.append(np.stack([image_of(record) for record in missing]), missing)
        writer.finish()
        on_images(len(records))

    monkeypatch.setattr(pools, "generate_pool", generate)
    return calls


def with_fake_sd(experiment):
    """Stands in for the checkpoint, which then is not loaded."""
    experiment.adapters.__dict__ |= {"sd": "the checkpoint", "sd_with_tokens": "the checkpoint with tokens"}
    return experiment

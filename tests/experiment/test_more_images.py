"""More images of a finished run: by the same generator as its own, whichever method it is of."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.experiment.conftest import NamedPool
from tests.tiny import DIGITS, TINY
from utilgen_jax.config.command_line import read_config
from utilgen_jax.data.images import to_uint8
from utilgen_jax.errors import InputError
from utilgen_jax.experiment.more_images import MoreImages, MorePools, values_of_records
from utilgen_jax.experiment.setup import set_up
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.pipeline import methods_of
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.valuation.cross_fit import PoolValues


def unwritten(records):
    return [dataclasses.replace(record, file_name="", class_name="") for record in records]


# With settings. The two train every part of the generator that there is.
METHODS = {"joint_without_gate": {}, "utilgen": {"per_image__clip_weight": 0}}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_with_the_runs_own_seed_they_are_the_runs_own_images(
    name, make_experiment, quick_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(PoolValues, "contradictory", False)
    settings = METHODS[name] | {"generator__checkpoint": quick_checkpoint}
    experiment = make_experiment(name, **settings)
    method = experiment.methods[-1]
    pool = experiment.pool(method.pool)
    values = method.value(experiment, pool)
    written = {path: path.stat().st_mtime_ns for path in experiment.workdir.rglob("*")}

    again = set_up(experiment.config, experiment.workdir, None, experiment.methods)
    monkeypatch.setattr(MorePools, "seed", (0,))
    more = MoreImages(again, np.array([4, 4]), seed=7)
    assert unwritten(more.records) == unwritten(pool.records)
    first, second = (to_uint8(np.concatenate([*more.generate(*span)])) for span in ((0, 3), (3, 8)))
    # Other images in a batch may round a value to the next grey level.
    np.testing.assert_allclose(np.concatenate([first, second]).astype(int), pool.images, atol=1)
    predicted = more.value(pool.images, pool.records)
    np.testing.assert_allclose(predicted.weights, values.weights, atol=1e-6)
    np.testing.assert_allclose(predicted.difficulty, values.difficulty, atol=1e-6)
    assert (np.std(predicted.weights) > 0) == method.has_weights
    assert (predicted.soft_labels is not None) == method.has_soft_labels
    if method.has_soft_labels:
        np.testing.assert_allclose(predicted.soft_labels.sum(1), 1, atol=1e-5)
    assert {path: path.stat().st_mtime_ns for path in experiment.workdir.rglob("*")} == written


def test_other_seeds_and_numbers_give_other_plans(make_experiment):
    experiment = make_experiment()

    def planned(counts, seed):
        pools = MorePools(experiment, np.array(counts), seed)
        pools.build(experiment.methods[-1].pool)
        return pools.requests[-1].records

    records = planned([3, 2], 0)
    assert [record.label for record in records] == [0, 1, 0, 1, 0]
    assert [record.prompt for record in records[:2]] == [prompts[0] for prompts in experiment.pools.class_prompts()]
    assert planned([3, 2], 0) == records and planned([0, 2], 0)[0].label == 1
    seeds = {tuple(record.seed for record in found) for found in (records, planned([3, 2], 1))}
    seeds.add(tuple(record.seed for record in experiment.pools.plan(experiment.pools.class_prompts())[:5]))
    assert len(seeds) == 3


@dataclasses.dataclass(frozen=True)
class Rounds(NamedPool):
    """A pool anew in each of two rounds, or one that grows."""

    grows: bool = False

    def build(self, experiment):
        pools = experiment.pools
        if self.grows:
            rounds = pools.plan_rounds(pools.class_prompts(), [0.5, 1.0])
            return [pools.generate(self, records, f"adapter {place}") for place, records in enumerate(rounds)][-1]
        return [pools.generate(self, pools.plan(pools.class_prompts(), n), f"adapter {n}") for n in range(2)][-1]


def test_the_last_of_several_rounds_counts(make_experiment):
    pools = MorePools(make_experiment(), np.array([2, 2]), 0)
    assert pools.build(Rounds()).round == 1
    (request,) = pools.requests
    assert request.adapter == "adapter 1" and request.records[0].round == 1


def test_of_a_pool_that_grows_each_part_is_generated_as_it_was(make_experiment, monkeypatch):
    experiment = make_experiment()
    spec = Rounds(grows=True)
    experiment.methods = [dataclasses.replace(experiment.methods[-1], pool=spec)]
    experiment.adapters.__dict__["sd"] = "the checkpoint"
    calls = []

    def generate(sd, records, adapter, sampling, *, condition_on, refine, first, stop):
        calls.append((adapter, len(records), first, stop))
        yield from ()

    monkeypatch.setattr("utilgen_jax.experiment.more_images.generate_batches", generate)
    more = MoreImages(experiment, np.array([2, 2]), 0)
    assert [*more.generate(1, 4)] == []
    assert calls == [("adapter 0", 4, 1, 2), ("adapter 1", 4, 2, 4)]


def test_a_closed_gate_gives_more_plain_images(make_experiment):
    experiment = make_experiment()
    pools = MorePools(experiment, np.array([2, 2]), 0)

    @dataclasses.dataclass(frozen=True)
    class Gated(NamedPool):
        def build(self, seen):
            return seen.pools.adopt(self, plain)

    plain = pools.generate(experiment.methods[-1].pool, [PoolRecord(label=0, round=0)])
    pools.requests.clear()
    assert pools.build(Gated()).spec == Gated()
    assert len(pools.requests[-1].records) == 4 and pools.requests[-1].adapter == Adapter()


def test_a_stage_that_the_run_lacks_is_named(tmp_path):
    config = read_config(f"{DIGITS}:method=datadream", (*TINY, ("generator.checkpoint", "glyphs")))
    experiment = set_up(config, tmp_path / "run", None, methods_of(config))
    with pytest.raises(InputError, match=r"(pool_plain|lora_datadream)\.safetensors is missing: run the main job"):
        MoreImages(experiment, np.array([1, 1]), 0)
    assert not (tmp_path / "run").exists()


def test_records_get_the_values_that_are_known():
    records = [PoolRecord(label=0), PoolRecord(label=1)]
    values = PoolValues(np.float32([0.5, 1]), soft_labels=np.float32([[0.25, 0.75], [1, 0]]))
    first, second = values_of_records(values, records)
    assert (first.weight, first.soft_label, first.difficulty) == (0.5, (0.25, 0.75), None)
    assert second == PoolRecord(label=1, weight=1.0, soft_label=(1.0, 0.0))

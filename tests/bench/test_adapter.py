"""The command as it is run, in a toy domain that compiles in seconds; and what the glyph domain gives it."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from tests.generator import toy
from utilgen_jax.bench import adapter, glyph_adapter
from utilgen_jax.bench.__main__ import main
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.config.schema import Config
from utilgen_jax.data.images import to_float
from utilgen_jax.data.sources import load_source
from utilgen_jax.data.splits import few_shot
from utilgen_jax.diffusion.samplers import make_sampler
from utilgen_jax.generator.adapter import Adapter


class ToyDomain(glyph_adapter.GlyphDomain):
    """The toy generator and a classifier of its images, with drawn parameters; all else is the glyph domain's."""

    def __init__(self):
        self.config = Config()
        self.sd = toy.make_toy()
        self.sampler = make_sampler("ddim", self.sd.schedule, glyph_adapter.NUM_STEPS, eta=glyph_adapter.ETA)
        self.classifier = SimpleNamespace(apply=toy.toy_classifier)
        self.to_examples = toy.to_examples
        self.value = jax.jit(self._value)

    def make_task(self, seed):
        validation = Examples(toy.normal(seed, 9, toy.SIDE, toy.SIDE, 1), np.eye(3, dtype=np.float32)[np.arange(9) % 3])
        return glyph_adapter.Task(self.sd, toy.toy_classifier_params(), validation)

    def make_sample_inputs(self, number, rng):
        return toy.toy_requests(number, seed=int(rng.integers(1000)))


@pytest.mark.slow
@pytest.mark.parametrize("objective", adapter.OBJECTIVES)
def test_updates_beat_random_directions(monkeypatch, capsys, objective):
    monkeypatch.setattr(adapter, "GlyphDomain", ToyDomain)
    assert main(["bench", "adapter", f"--objective={objective}", "--seeds=2", "--updates=60"]) == 0
    output = capsys.readouterr()
    figures = json.loads(output.out.splitlines()[-1])
    assert figures["wins"] == 2 and "2 of 2 won" in output.out and "120/120 updates" in output.err
    for result in figures["results"]:
        assert result["after"] < min(result["before"], result["random"])
        assert result["random"] != result["before"]


@pytest.mark.slow
def test_the_glyph_domain_validates_on_shots_that_it_did_not_train_on(monkeypatch):
    monkeypatch.setattr(glyph_adapter, "CLASSIFIER_STEPS", 40)
    domain = glyph_adapter.GlyphDomain()
    task = domain.make_task(seed=3)
    shots = few_shot(load_source(domain.config.data), 2, seed=3).real
    distances = [np.abs(to_float(shots.images) - image).max((1, 2, 3)) for image in task.validation.inputs]
    validation = np.argmin(distances, axis=1)
    trained = np.setdiff1d(np.arange(20), validation)
    assert len(set(validation)) == 10 and sorted(shots.labels[validation]) == sorted(shots.labels[trained])
    np.testing.assert_array_equal(task.validation.targets.argmax(-1), shots.labels[validation])
    right = np.asarray(domain.apply(task.theta, to_float(shots.images)).argmax(-1)) == shots.labels
    assert right[trained].mean() > 0.9 > right[validation].mean()

    first, second = (domain.make_sample_inputs(20, np.random.default_rng(seed)) for seed in (0, 1))
    assert first.labels.tolist() == [*range(10)] * 2 and np.abs(first.latents - second.latents).max() > 1
    moved = jax.tree.leaves(domain.init_adapter(first, seed=0))
    assert len(moved) > 2 and all(np.isfinite(leaf).all() for leaf in moved)


def test_a_random_step_has_the_length_that_is_asked_for_and_its_own_direction():
    start = Adapter(prompt_offsets=np.ones((300, 4, 5), np.float32))
    steps = [
        jax.tree.map(np.subtract, adapter._step_at_random(start, jax.random.key(seed), 0.25), start) for seed in (0, 1)
    ]
    np.testing.assert_allclose([optax.tree.norm(step) for step in steps], 0.25, rtol=1e-4)
    assert abs(optax.tree.vdot(*steps)) < 0.01


def test_what_cannot_be_run_is_told(capsys):
    assert main(["bench", "adapter", "--objective=pathwize", "--against=torch"]) == 2
    told = capsys.readouterr().err
    assert "--objective=pathwize" in told and "the nearest is pathwise" in told and "--against" in told

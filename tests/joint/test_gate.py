import dataclasses

import jax
import numpy as np
import pytest

from tests.toy_images import CONFIG, TinyClassifier, draw_set
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.data.splits import cross_fit_folds
from utilgen_jax.joint.gate import Gate, _losses, compare_pools
from utilgen_jax.runtime.training_loop import TrainingLoop


@pytest.mark.parametrize(("gains", "is_open"), [([0.1, 0.3, 0.2], True), ([0.5, -0.4, 0.0], False), ([-1, -2], False)])
def test_it_opens_where_the_gain_exceeds_its_standard_error(gains, is_open):
    gate = Gate(np.array(gains))
    np.testing.assert_allclose(gate.mean, np.mean(gains))
    np.testing.assert_allclose(gate.standard_error, np.std(gains, ddof=1) / np.sqrt(len(gains)))
    assert gate.is_open == is_open


@pytest.mark.slow
def test_right_images_are_preferred_to_wrong_ones_and_neither_to_itself():
    real = draw_set(4, seed=0)[0]
    right, wrong = draw_set(20, seed=1)[0], draw_set(20, seed=1, wrong=0.9)[0]
    config, folds = dataclasses.replace(CONFIG, steps=40), cross_fit_folds(np.asarray(real.labels), 2, 0)
    seen = []

    def compare(*pools):
        return compare_pools(
            Classifier(TinyClassifier()),
            config,
            real,
            pools,
            folds,
            jax.random.key(0),
            TrainingLoop(lambda step, loss: seen.append(step)),
        )

    gate = compare(wrong, right)
    assert gate.is_open and gate.gains.shape == (16,) and (gate.gains != 0).all()
    assert seen == list(range(1, 161))
    assert not compare(right, wrong).is_open
    np.testing.assert_array_equal(compare(right, right).gains, 0)


def test_with_balanced_softmax_the_frequencies_of_a_long_tail_are_no_error():
    """A classifier that has learnt nothing else has the entropy of the shots' frequencies for its mean loss."""
    counts, classifier = np.array([6, 3, 2, 1]), Classifier(TinyClassifier())
    shots = draw_set(6, seed=0)[0]
    shots = shots.take(np.flatnonzero(np.arange(24) % 6 < counts[np.arange(24) // 6]))
    config = dataclasses.replace(CONFIG, loss="balanced_softmax", label_smoothing=0.0)
    params = jax.tree.map(np.zeros_like, classifier.module.init(jax.random.key(0), shots.inputs)["params"])
    losses = _losses(classifier, config, counts, params, shots)
    np.testing.assert_allclose(losses, -np.log(counts / 12)[shots.labels], rtol=1e-5)

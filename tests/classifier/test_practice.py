import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cut_off import assert_goes_on
from utilgen_jax.bilevel.examples import labelled
from utilgen_jax.classifier import practice
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.model import make_classifier
from utilgen_jax.classifier.practice import Patience, train_until_stall
from utilgen_jax.classifier.train import train_classifier
from utilgen_jax.runtime.training_loop import TrainingLoop

CONFIG = ClassifierConfig(name="mlp", width=8, steps=40, batch_size=8, max_shift=0, mixing="none")
LABELS = np.arange(12) % 2
IMAGES = jnp.asarray(np.where(LABELS, 0.8, -0.8)[:, None, None, None] * np.ones((12, 8, 8, 1)), jnp.float32)
EXAMPLES = labelled(IMAGES, LABELS, 2)
KEY = jax.random.key(0)


def run(patience, params=None, accuracies=None, monkeypatch=None, loop=None):
    classifier, heard = make_classifier(CONFIG, 2, 8, 1), []
    if accuracies is not None:
        given = iter(accuracies)
        logits = {True: np.eye(2)[LABELS], False: np.eye(2)[1 - LABELS]}
        monkeypatch.setattr(practice, "predict_logits", lambda *args: logits[next(given)])
    loop = loop or TrainingLoop(lambda step, loss: heard.append(step))
    result = train_until_stall(classifier, CONFIG, patience, (EXAMPLES, EXAMPLES, EXAMPLES), params, KEY, loop)
    return result, heard


def test_it_ends_when_so_many_looks_have_brought_no_new_best(monkeypatch):
    accuracies = [False, True, True, False, True, True]
    result, heard = run(Patience(check_every=5, checks=3), accuracies=accuracies, monkeypatch=monkeypatch)
    # Best at the second look; the third, fourth and fifth are no better.
    assert heard == list(range(1, 26)) and result.accuracies.tolist() == [0, 1, 1, 0, 1]


def test_it_ends_with_the_steps_where_nothing_stalls():
    result, heard = run(Patience(check_every=100, checks=1))
    assert heard == list(range(1, 41)) and len(result.accuracies) == 0
    # The same steps as of any training.
    expected = train_classifier(make_classifier(CONFIG, 2, 8, 1), CONFIG, EXAMPLES, EXAMPLES, KEY, TrainingLoop())
    jax.tree.map(np.testing.assert_array_equal, result.params, expected)
    assert run(Patience(check_every=40, checks=1))[0].accuracies == pytest.approx([1.0])


def test_it_goes_on_from_parameters_and_leaves_them_whole():
    first, _ = run(Patience(check_every=100, checks=1))
    second, _ = run(Patience(check_every=5, checks=2), first.params)
    assert len(second.accuracies) == 3 and np.all(second.accuracies == 1)  # learnt before
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first.params))


@pytest.mark.parametrize("cut_after", [12, 15])
def test_a_training_that_was_cut_off_ends_at_the_same_look(tmp_path, cut_after):
    patience = Patience(check_every=5, checks=2)
    assert_goes_on(lambda loop: run(patience, loop=loop)[0], tmp_path, cut_after)

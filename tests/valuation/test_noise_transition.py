import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import roc_auc_score

from utilgen_jax.valuation.noise_transition import class_posterior, match_prior

PARTNERS = np.array([1, 0, 3, 2])


def predictions(truth, certainty, bias=(0.0, 0.0, 0.0, 0.0), seed=0):
    """What a noisy classifier with a preference says of images of these classes, float [N, 4]."""
    noise = np.random.default_rng(seed).normal(size=(len(truth), 4))
    return softmax(certainty * np.eye(4)[truth] + noise + np.asarray(bias), axis=-1)


def test_predictions_get_the_prior_and_keep_their_odds_within_a_class():
    found = predictions(np.arange(200) % 4, 2.0, bias=(2.0, 0.0, -1.0, 0.0))
    prior = np.array([0.4, 0.3, 0.2, 0.1])
    matched = match_prior(found, prior)
    np.testing.assert_allclose(matched.sum(-1), 1, rtol=1e-9)
    np.testing.assert_allclose(matched.mean(0), prior, atol=1e-4)
    # p'_k / p_k is b_k over a sum of the image's own: of two classes the odds change by one factor for all images.
    factor = (matched[:, 0] / matched[:, 1]) / (found[:, 0] / found[:, 1])
    np.testing.assert_allclose(factor, factor[0], rtol=1e-6)
    np.testing.assert_allclose(match_prior(matched, prior), matched, atol=1e-4)


def test_a_class_without_images_gets_no_probability():
    matched = match_prior(np.full((6, 3), 1 / 3), np.array([0.5, 0.5, 0.0]))
    np.testing.assert_allclose(matched, [[0.5, 0.5, 0.0]] * 6)


@pytest.mark.parametrize("wrong", [0.0, 0.25, 0.5])
def test_the_transition_is_found_though_the_classifier_has_preferences(wrong):
    labels = np.arange(800) % 4
    is_wrong = np.arange(800) // 4 % 4 < 4 * wrong
    truth = np.where(is_wrong, PARTNERS[labels], labels)
    found = class_posterior(predictions(truth, 4.0, bias=(1.5, 0.0, -1.0, 0.0)), labels)
    expected = (1 - wrong) * np.eye(4) + wrong * np.eye(4)[PARTNERS]
    np.testing.assert_allclose(found.transition, expected, atol=0.1)
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, rtol=1e-5)
    assert found.probabilities.dtype == found.transition.dtype == np.float32


def test_it_tells_right_labels_from_wrong_ones_better_than_the_prediction():
    labels = np.arange(400) % 4
    is_wrong = np.arange(400) // 4 % 2 == 0
    truth = np.where(is_wrong, PARTNERS[labels], labels)
    said = predictions(truth, 2.0, bias=(2.0, 0.0, -1.0, 0.0))
    own = [array[np.arange(400), labels] for array in (said, class_posterior(said, labels).probabilities)]
    before, after = (roc_auc_score(~is_wrong, score) for score in own)
    assert before < 0.88 and after > before + 0.05


def test_a_label_without_images_has_the_identitys_row():
    found = class_posterior(predictions(np.arange(90) % 3, 3.0), np.arange(90) % 3)
    np.testing.assert_allclose(found.transition[3], [0, 0, 0, 1])
    assert np.isfinite(found.probabilities).all() and (found.probabilities[:, 3] == 0).all()

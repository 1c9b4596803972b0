"""The command as it is run, on real images and a classifier that is quickly compiled; and the pool that it makes."""

import json

import numpy as np
import pytest

from tests.tiny import DIGITS
from utilgen_jax.bench import contaminated, valuation
from utilgen_jax.bench.__main__ import main
from utilgen_jax.config.command_line import read_config

QUICK = [
    "--config.classifier.name=mlp",
    "--config.classifier.width=32",
    "--config.classifier.steps=100",
    "--config.valuation.plain_steps=60",
    "--config.valuation.steps=30",
]


@pytest.mark.parametrize("noise", ["pairs", "uniform"])
@pytest.mark.parametrize(("dataset", "num_classes"), [("digits", 10), ("other", 5)])
def test_the_same_part_of_each_class_shows_another_one(noise, dataset, num_classes):
    labels = np.arange(20 * num_classes) % num_classes
    truth = contaminated.draw_truth(labels, 0.25, noise, dataset, np.random.default_rng(0))
    wrong = truth != labels
    assert np.bincount(labels[wrong]).tolist() == [5] * num_classes
    shown = {(int(a), int(b)) for a, b in zip(labels[wrong], truth[wrong], strict=True)}
    assert (len(shown) == num_classes) == (noise == "pairs")
    if (noise, dataset) == ("pairs", "digits"):
        assert {(0, 8), (8, 0), (4, 9)} <= shown
    if (noise, dataset) == ("pairs", "other"):
        assert shown == {(0, 1), (1, 0), (2, 3), (3, 2), (4, 3)}


def test_partners_are_mutual():
    for partners in contaminated.PARTNERS.values():
        assert [partners[partner] for partner in partners] == list(range(len(partners)))
        assert all(place != partner for place, partner in enumerate(partners))


@pytest.mark.slow
def test_scores_of_real_images_are_told_and_beat_chance(capsys):
    scores = ["shots", "ensemble", "loss_network"]
    command = [f"--config={DIGITS}:shots=10", "--pool=real", "--images_per_class=20", "--seeds=1", *QUICK]
    assert main(["bench", "valuation", *command, f"--scores={','.join(scores)}"]) == 0
    output = capsys.readouterr().out
    figures = json.loads(output.splitlines()[-1])
    assert list(figures["results"]) == scores and figures["figure"] == "AUC" and figures["seeds"] == [0]
    assert "digits, 10 shots, 50% wrong: AUC" in output
    for name in ("shots", "ensemble"):
        assert figures["results"][name][0] > 0.8


@pytest.mark.slow
def test_where_nothing_is_wrong_the_deviation_is_told(capsys):
    command = [f"--config={DIGITS}:shots=5", "--pool=real", "--images_per_class=10", "--seeds=1", *QUICK]
    assert main(["bench", "valuation", *command, "--wrong=0", "--scores=shots"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["figure"] == "deviation / mean" and 0 < figures["results"]["shots"][0] < 2


@pytest.mark.slow
def test_generated_images_are_of_the_class_that_they_should_show():
    config = read_config(f"{DIGITS}:shots=2", [("generator.steps", "4")])
    settings = {"pool": "generator", "wrong": 0.5, "noise": "pairs", "images_per_class": 2}
    case = contaminated.contaminate(config, settings)
    clean = contaminated.contaminate(config, settings | {"wrong": 0.0})
    assert case.is_right.sum() == 10 and clean.is_right.all() and len(case.pool) == 20
    np.testing.assert_array_equal(case.pool.labels, clean.pool.labels)
    assert case.pool.inputs.shape == (20, 8, 8, 1)
    # The seeds are the same: an image of the right prompt is the same image.
    same = np.abs(np.asarray(case.pool.inputs - clean.pool.inputs)).max((1, 2, 3)) < 1e-5
    np.testing.assert_array_equal(same, case.is_right)


def test_bad_flags_are_told_at_once(capsys):
    command = ["--config=configs/digits.py", "--scores=shot", "--pool=reel", "--noise=pair", "--config.data.shot=2"]
    assert main(["bench", "valuation", *command]) == 2
    told = capsys.readouterr().err
    for word in ("--scores=shot", "--pool=reel", "--noise=pair", "config.data.shot"):
        assert word in told


def test_a_constant_score_is_worth_nothing():
    assert valuation._figure(np.ones(4), np.array([True, False, True, False])) == 0.5
    assert valuation._figure(np.ones(4), np.ones(4, bool)) == 0

"""The command on a toy data set: its results, resuming, and error messages."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.cut_off import assert_goes_on
from tests.toy_images import NUM_CLASSES, TinyClassifier, draw_images
from utilgen_jax.data.augment.augmentation import AUGMENTATIONS
from utilgen_jax.data.images import to_uint8
from utilgen_jax.errors import InputError
from utilgen_jax.noisy_labels import __main__ as noisy_labels
from utilgen_jax.noisy_labels import report as noisy_label_report
from utilgen_jax.noisy_labels.draws import pack, unpack
from utilgen_jax.noisy_labels.train import WEIGHTINGS, NoisyTrainingConfig, train_and_evaluate
from utilgen_jax.runtime.training_loop import TrainingLoop

NAMES = "one,two,three,four"
CLASSES = np.arange(400) % NUM_CLASSES
TEST_CLASSES = np.arange(60) % NUM_CLASSES


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """The command line of a run that takes seconds, on images whose class is the bright quadrant."""
    monkeypatch.setattr(noisy_label_report, "build_classifier", lambda name, num_classes, width, size: TinyClassifier())
    images, test_images = (to_uint8(draw_images(k, seed)) for k, seed in ((CLASSES, 0), (TEST_CLASSES, 1)))
    file = tmp_path / "toy.npz"
    np.savez(file, x_train=images, y_train=CLASSES, x_test=test_images, y_test=TEST_CLASSES)
    flags = {
        "data": "npz",
        "data_path": file,
        "class_names": NAMES,
        "image_size": 8,
        "channels": 1,
        "num_validation": 60,
    }
    flags |= {
        "augment": "none",
        "steps": 60,
        "plain_steps": 20,
        "batch_size": 32,
        "learning_rate": 0.1,
        "outer_every": 1,
    }
    flags |= {"outer_learning_rate": 0.003, "workdir": tmp_path / "run"}
    return ["noisy_labels", *(f"--{name}={value}" for name, value in flags.items())]


def last_line(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_weightings_detect_wrong_labels_and_a_second_run_resumes(arguments, tmp_path, capsys, monkeypatch):
    assert noisy_labels.main([*arguments, "--weightings=uniform,loss_network"]) == 0
    first = last_line(capsys)
    assert [result["weighting"] for result in first["results"]] == ["uniform", "loss_network"]
    assert (first["num_train"], first["num_validation"], first["num_test"]) == (340, 60, 60)
    assert 0.2 < first["share_wrong"] < 0.4
    uniform, learnt = first["results"]
    assert uniform["auc_weight"] is None and "minus_uniform" not in uniform and uniform["auc_loss"] > 0.8
    assert learnt["auc_weight"] > 0.9 and learnt["accuracy"] > 0.8
    mean, low, high = learnt["minus_uniform"]
    assert low <= mean <= high and mean == pytest.approx(100 * (learnt["accuracy"] - uniform["accuracy"]))

    trained = []
    monkeypatch.setattr(
        noisy_label_report,
        "train_and_evaluate",
        lambda module, name, *rest: trained.append(name) or train_and_evaluate(module, name, *rest),
    )
    assert noisy_labels.main([*arguments, "--weightings=uniform,loss_network,feature_network,saflex"]) == 0
    assert trained == ["feature_network", "saflex"]
    second = last_line(capsys)
    assert second["results"][:2] == first["results"]
    features, saflex = second["results"][2:]
    assert features["auc_weight"] > 0.9
    assert saflex["auc_soft_label"] > 0.6 and saflex["accuracy"] > 0.8

    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text())["results"] == second["results"]
    with Image.open(run / "weights.png") as image:
        assert image.format == "PNG"
    stages = {json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()}
    assert stages == set(WEIGHTINGS)

    assert noisy_labels.main([*arguments, "--noise=0.3", "--seed=1"]) == 2
    message = capsys.readouterr().err
    assert "--noise: 0.4 before, 0.3 now" in message and "--seed: 0 before, 1 now" in message


def small_data(images):
    labels = CLASSES[:64].astype(np.int32)
    names = tuple(NAMES.split(","))
    everything = noisy_label_report.LabelledImages(images, labels, tuple(map(str, range(64))), names)
    return noisy_label_report.NoisyData(
        train=everything.take(range(32)),
        is_wrong=np.zeros(32, bool),
        validation=everything.take(range(32, 64)),
        test=everything.take(range(8)),
    )


def short_training(**changes):
    rates = {"learning_rate": 0.1, "weight_decay": 0.0, "outer_learning_rate": 1e-3}
    sizes = {"steps": 4, "plain_steps": 0, "batch_size": 16, "validation_batch_size": 16, "outer_every": 1}
    others = {"label_probability": 0.5, "temperature": 0.5, "augment": "none", "seed": 0}
    return NoisyTrainingConfig(**sizes | rates | others | changes)


@pytest.mark.slow
def test_only_uniform_trains_on_the_validation_images(monkeypatch):
    images = to_uint8(draw_images(CLASSES[:64], 0))
    data, config, seen = small_data(images), short_training(), []
    monkeypatch.setitem(AUGMENTATIONS, "none", lambda images, rng: seen.extend(images) or images)
    for name, expected in (("uniform", images), ("loss_network", images[:32])):
        seen.clear()
        train_and_evaluate(TinyClassifier(), name, config, data, TrainingLoop())
        assert {image.tobytes() for image in seen} == {image.tobytes() for image in expected}


def test_auc_is_the_probability_of_the_right_order():
    rng = np.random.default_rng(0)
    scores, is_wrong = rng.integers(0, 5, 40) / 4, rng.random(40) < 0.4
    pairs = scores[~is_wrong][:, None] - scores[is_wrong][None]
    expected = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    assert noisy_label_report.auc(scores, is_wrong) == pytest.approx(expected)
    assert noisy_label_report.auc(1.0 - is_wrong, is_wrong) == 1.0
    assert noisy_label_report.auc(np.ones(40), is_wrong) is None
    assert noisy_label_report.auc(scores, np.zeros(40, bool)) is None


def test_all_input_errors_are_reported_at_once(capsys):
    mistakes = ["--data=", "--classifier=resnet21", "--weightings=unifrom", "--noise=2", "--channels=2", "--stepz=3"]
    assert noisy_labels.main(["noisy_labels", *mistakes]) == 2
    message = capsys.readouterr().err
    for part in (
        "--data: required, e.g. --data=cifar10",
        "--workdir: required",
        "the nearest is resnet20",
        "the nearest is uniform",
        "noise",
        "--channels=2: is 1 or 3",
        "--stepz=3: no such flag; the nearest is --steps",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--num_validation=390"], "too few for --num_validation=390 and 32"),
        (["--num_train=350"], "too few for --num_validation=60 and 350"),
        (["--num_train=31"], "less than a batch"),
        (["--plain_steps=60"], "leaves no step of --steps=60"),
        (["--data_path=nowhere.npz"], "--data_path='nowhere.npz' is not a file"),
        (["--class_names="], "set --class_names, in the order of the labels"),
        (["--weightings="], "--weightings: name at least one"),
    ],
)
def test_invalid_input_is_refused(arguments, capsys, changes, message):
    assert noisy_labels.main([*arguments, *changes]) == 2
    assert message in capsys.readouterr().err


def test_a_run_goes_on_with_its_own_images_only(tmp_path, capsys):
    folder = tmp_path / "run"
    settings = {"noise": 0.4, "data_path": "mine.npz", "weightings": ["uniform"], "workdir": str(folder)}
    before = {"pixels of the test images": "1", "labels of the training images": "2"}
    noisy_label_report._open(folder, settings, before)
    noisy_label_report._open(folder, settings | {"data_path": "./mine.npz", "weightings": ["saflex"]}, before)
    with pytest.raises(InputError, match="pixels of the test images: other content now"):
        noisy_label_report._open(folder, settings, before | {"pixels of the test images": "3"})
    with pytest.raises(InputError, match="--data_path: ./mine.npz before, other.npz now"):
        noisy_label_report._open(folder, settings | {"data_path": "other.npz"}, before)


def test_help_names_all_choices(capsys):
    assert noisy_labels.main(["noisy_labels", "--help"]) == 0
    text = capsys.readouterr().out
    assert not [name for name in (*WEIGHTINGS, *AUGMENTATIONS) if name not in text]


@pytest.mark.parametrize("name", ["loss_network", "saflex"])
def test_a_training_that_was_cut_off_goes_on_with_the_same_bits(tmp_path, name):
    data = small_data(to_uint8(draw_images(CLASSES[:64], 0)))
    # Two batches an epoch: the order of one that has begun is kept, and where NumPy's generators stand.
    config = short_training(steps=6, plain_steps=1, outer_every=2, augment="flip_crop")
    assert_goes_on(lambda loop: train_and_evaluate(TinyClassifier(), name, config, data, loop), tmp_path, cut_after=4)


def test_a_generator_goes_on_where_it_stood():
    rng = np.random.default_rng((3, 1))
    rng.integers(5, size=3, dtype=np.int32)  # leaves half of a 64-bit number for the next
    again = unpack(pack(rng))
    assert (
        rng.integers(2**31, size=5, dtype=np.int32).tolist() == again.integers(2**31, size=5, dtype=np.int32).tolist()
    )
    assert rng.random() == again.random()

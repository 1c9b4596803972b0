"""The evaluate command on a toy data set that is labelled by the network in torch."""

import json

import numpy as np
import pytest

from tests.torch_parity import torch_state
from tests.torch_resnets import torch_cifar_resnet
from utilgen_jax import evaluate
from utilgen_jax.models.resnet import build_resnet

NUM_TEST, NUM_WRONG, CLASSES = 30, 7, 10
CHANNELS = {"none": (0.5, 0.5), "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Folder with ResNet-20's random weights and, for each normalisation, a data set with 23 of torch's 30 labels."""
    folder = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_TEST, 8, 8, 3)).astype(np.uint8)
    state = torch_state(build_resnet("resnet20", CLASSES, "batch"), np.zeros((1, 8, 8, 3), np.float32))
    names = {"class_names": [f"class {index}" for index in range(CLASSES)]}
    for kind, (mean, deviation) in CHANNELS.items():
        seen = ((images / 255 - mean) / deviation).astype(np.float32)
        answers = torch_cifar_resnet(state, seen, (3, 3, 3)).argmax(-1)
        assert len(set(answers)) > 1
        labels = np.where(np.arange(NUM_TEST) < NUM_WRONG, (answers + 1) % CLASSES, answers)
        np.savez(
            folder / f"{kind}.npz",
            x_train=images[:CLASSES],
            y_train=np.arange(CLASSES),
            x_test=images,
            y_test=labels,
            **names,
        )
    np.savez(folder / "resnet20.npz", **{f"module.{name}": tensor.numpy() for name, tensor in state.items()})
    return folder


def score(folder, *arguments):
    flags = ["--data=npz", f"--data_path={folder}/imagenet.npz", "--image_size=8", f"--weights={folder}/resnet20.npz"]
    return evaluate.main(["evaluate", *flags, "--normalization=imagenet", *arguments])


def test_accuracy_and_wilsons_interval(toy, capsys):
    assert score(toy, "--batch_size=8") == 0
    text, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert (found["num_correct"], found["num_test"]) == (NUM_TEST - NUM_WRONG, NUM_TEST)
    share, z = found["accuracy"], 1.959964
    assert share == pytest.approx(23 / 30)
    # Wilson 1927.
    middle = (share + z**2 / 60) / (1 + z**2 / 30)
    half = z / (1 + z**2 / 30) * (share * (1 - share) / 30 + z**2 / 3600) ** 0.5
    assert (found["low"], found["high"]) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert "76.7%" in text and "30 test images" in text


def test_images_are_normalized_as_requested(toy, capsys):
    assert score(toy, f"--data_path={toy}/none.npz", "--normalization=none") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_correct"] == NUM_TEST - NUM_WRONG
    assert score(toy, "--normalization=none") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["num_correct"] != NUM_TEST - NUM_WRONG


def test_all_input_errors_are_reported_at_once(capsys):
    mistakes = ["--classifier=resnet21", "--normalization=imagnet", "--channels=2", "--wieghts=x.npz"]
    assert evaluate.main(["evaluate", *mistakes]) == 2
    message = capsys.readouterr().err
    for part in (
        "--data: required, e.g. --data=cifar10",
        "--weights: required",
        "--classifier=resnet21: is not one of small_cnn",
        "the nearest is resnet20",
        "the nearest is imagenet",
        "--channels=2: is 1 or 3",
        "--wieghts=x.npz: no such flag; the nearest is --weights",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--channels=1"], "--normalization=imagenet: needs --channels=3"),
        (["--data=digits"], "--data=digits: has no test split"),
        (["--data_path=nowhere.npz"], "--data_path='nowhere.npz' is not a file"),
        (["--weights=nowhere.npz"], "nowhere.npz: no such file"),
        (["--classifier=resnet32"], "missing layer1.3.conv1.weight"),
    ],
)
def test_invalid_input_is_refused(toy, capsys, changes, message):
    assert score(toy, *changes) == 2
    assert message in capsys.readouterr().err


def test_help_names_the_classifiers(capsys):
    assert evaluate.main(["evaluate", "--help"]) == 0
    assert "mobilenet_v2" in capsys.readouterr().out

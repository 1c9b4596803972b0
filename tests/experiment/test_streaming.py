"""A run whose images memory does not hold ends as one whose images it holds."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.experiment.conftest import with_fake_sd
from utilgen_jax.data.streamed_images import StreamedImages


def run(experiment) -> dict:
    """Runs its methods; returns the summary."""
    experiment = with_fake_sd(experiment)
    accuracy = {
        method.name: experiment.train_and_test(method, method.training_data(experiment))
        for method in experiment.methods
    }
    return experiment.finish(accuracy)


@pytest.mark.slow
def test_a_streamed_run_has_the_weights_the_values_and_the_accuracies_of_one_in_memory(
    make_experiment, generated, tmp_path
):
    folders = {"memory": tmp_path / "memory", "streamed": tmp_path / "streamed"}
    held = run(make_experiment("vanilla", folders["memory"]))
    experiment = make_experiment(
        "vanilla", folders["streamed"], data__memory_gib=0, data__workers=0, pool__format="arrayrecord"
    )
    streamed = run(experiment)

    pool = experiment.pool(experiment.methods[-1].pool).pool
    parts = (experiment.split.real.images, experiment.split.test.images, pool.images)
    assert all(isinstance(images, StreamedImages) for images in parts)
    assert streamed["accuracy"] == held["accuracy"]
    stages = {
        folder: {file.name: load_file(file) for file in (folder / "checkpoints").glob("*")}
        for folder in folders.values()
    }
    ours, theirs = stages.values()
    assert "classifier_vanilla.safetensors" in ours and ours.keys() == theirs.keys()
    # The report's map of the images, whose batches are padded otherwise, is that of a classifier to rounding.
    mapped, expected = (found.pop("image_map.safetensors") for found in (ours, theirs))
    for key, array in mapped.items():
        np.testing.assert_allclose(array, expected[key], atol=1e-4)
    for name, arrays in ours.items():
        assert all(np.array_equal(array, theirs[name][key]) for key, array in arrays.items()), name


def test_methods_that_need_all_images_at_once_hold_them_and_it_is_told(make_experiment, capsys):
    experiment = make_experiment("utilgen", data__memory_gib=0)
    assert isinstance(experiment.split.real.images, np.ndarray)
    assert "more than data.memory_gib allows: the method utilgen needs them all at once" in capsys.readouterr().err

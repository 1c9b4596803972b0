"""A run whose images memory does not hold ends as one whose images it holds."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from utilgen_jax.data.streamed_images import StreamedImages
from utilgen_jax.errors import InputError


def run(experiment) -> dict:
    """Runs its methods; returns the summary."""
    accuracy = {
        method.name: experiment.train_and_test(method, method.training_data(experiment))
        for method in experiment.methods
    }
    return experiment.finish(accuracy)


SETTINGS = {"valuation__validation_batch_size": 2, "saflex__validation_batch_size": 2, "dpo__rounds": 1}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["saflex", "joint", "utilgen", "difficulty"])
def test_a_streamed_run_has_the_weights_the_values_and_the_accuracies_of_one_in_memory(
    make_experiment, quick_checkpoint, tmp_path, method
):
    folders = {"memory": tmp_path / "memory", "streamed": tmp_path / "streamed"}
    settings = {**SETTINGS, "generator__checkpoint": quick_checkpoint}
    held = run(make_experiment(method, folders["memory"], **settings))
    streaming = {"data__memory_gib": 0, "data__workers": 0, "pool__format": "arrayrecord"}
    experiment = make_experiment(method, folders["streamed"], **settings, **streaming)
    streamed = run(experiment)

    pool = experiment.pool(experiment.methods[-1].pool).pool
    parts = (experiment.split.real.images, experiment.split.test.images, pool.images, experiment.generator_shots)
    assert all(isinstance(images, StreamedImages) for images in parts)
    assert streamed["accuracy"] == held["accuracy"]
    stages = {
        folder: {file.name: load_file(file) for file in (folder / "checkpoints").glob("*.safetensors")}
        for folder in folders.values()
    }
    ours, theirs = stages.values()
    assert f"classifier_{method}.safetensors" in ours and ours.keys() == theirs.keys()
    # The report's map of the images, whose batches are padded otherwise, is that of a classifier to rounding.
    mapped, expected = (found.pop("image_map.safetensors") for found in (ours, theirs))
    for key, array in mapped.items():
        np.testing.assert_allclose(array, expected[key], atol=1e-4)
    differing = {
        f"{name} {key}": np.abs(array - theirs[name][key]).max()
        for name, arrays in ours.items()
        for key, array in arrays.items()
        if not np.array_equal(array, theirs[name][key])
    }
    assert not differing


@pytest.mark.parametrize("method", ["saflex", "utilgen", "joint"])
def test_all_held_out_images_in_each_step_are_refused_where_memory_does_not_hold_them(make_experiment, method):
    field = ("saflex" if method == "saflex" else "valuation") + ".validation_batch_size"
    with pytest.raises(InputError, match=rf"config.{field}: at 0 each step .* does not hold; .*--config.{field}=256"):
        make_experiment(method, data__memory_gib=0)

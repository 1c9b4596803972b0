"""`import utilgen_jax as ug`: light until a function is used; what README.md shows beside the rest."""

import importlib
import subprocess
import sys

import numpy as np
import pytest

import utilgen_jax as ug
from utilgen_jax.errors import InputError


def test_the_import_is_free_of_jax():
    code = "import sys, utilgen_jax as ug; dir(ug); print('jax' in sys.modules, 'numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


def test_every_name_is_there_and_has_a_docstring():
    assert len(ug._FACE) >= 12 and set(ug._FACE) <= set(dir(ug))
    for name, module in ug._FACE.items():
        assert getattr(ug, name) is getattr(importlib.import_module(module), name)
        assert getattr(ug, name).__doc__


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'sample_image'"):
        _ = ug.sample_image


def test_a_folder_of_images_is_read(tmp_path):
    from PIL import Image

    for name, value in (("wren", 10), ("robin", 200)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (12, 8), (value,) * 3).save(tmp_path / name / "1.png")
    images, labels, class_names = ug.load_images(tmp_path, 4)
    assert images.shape == (2, 4, 4, 3) and images.dtype == np.uint8 and class_names == ["robin", "wren"]
    assert labels.tolist() == [0, 1] and [image.mean() for image in images] == [200, 10]
    with pytest.raises(InputError, match="is no folder"):
        ug.load_images(tmp_path / "none", 4)


def test_images_are_scaled_to_what_the_classifier_sees():
    images = np.full((3, 8, 8, 3), 255, np.uint8)
    examples = ug.labelled_images(images, [0, 1, 1], num_classes=2, image_size=4, channels=1)
    assert examples.inputs.shape == (3, 4, 4, 1) and examples.labels.tolist() == [0, 1, 1]
    np.testing.assert_allclose(examples.inputs, 1)
    same = ug.labelled_images(np.ones((3, 8, 8, 3), np.float32), [0, 1, 1], num_classes=2, image_size=4, channels=1)
    np.testing.assert_allclose(same.inputs, examples.inputs)


def test_a_classifier_learns_from_real_and_weighted_synthetic_images():
    rng = np.random.default_rng(0)
    labels = np.arange(20) % 2
    images = np.uint8(rng.integers(0, 80, (20, 8, 8, 1)) + 150 * labels[:, None, None, None])
    real = ug.labelled_images(images, labels, num_classes=2, image_size=8, channels=1)
    trained = ug.train_classifier(real, real, name="mlp", steps=40, width=8, mixing="none", seed=1)
    assert trained.accuracy(real) == 1.0
    probabilities = trained(images)
    np.testing.assert_allclose(trained.difficulty(real), 1 - probabilities[np.arange(20), labels], atol=1e-6)
    apply, params = ug.make_classifier(2, image_size=8, channels=1, name="mlp", width=8)
    logits = apply(params, real.inputs)
    assert logits.shape == (20, 2)


def test_a_run_takes_fields_of_the_config(tmp_path, monkeypatch):
    from utilgen_jax import pipeline

    monkeypatch.setattr(pipeline, "run", lambda config, workdir: (config.classifier.steps, config.method, workdir))
    assert ug.run("digits:method=vanilla", tmp_path, classifier__steps=7) == (7, "vanilla", tmp_path)
    with pytest.raises(InputError, match="classifier.step"):
        ug.run("digits", tmp_path, classifier__step=7)

"""Classifier weights of torch, timm, torchvision and akamaster's repository, and mismatches."""

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.torch_parity import random_images, torch_state, variables_from_torch
from utilgen_jax.checkpoints.classifier_files import HEADS, head_name, load_classifier_variables, open_classifier_file
from utilgen_jax.errors import InputError
from utilgen_jax.models.classifiers import build_classifier
from utilgen_jax.models.resnet import ResNet

CLASSES = 5
MODULE = ResNet(CLASSES, (1, 1), width=8, norm="batch")
STATE = torch_state(MODULE, random_images(8))


def expected_variables(num_classes=CLASSES):
    module = ResNet(num_classes, (1, 1), width=8, norm="batch")
    return jax.eval_shape(module.init, jax.random.key(0), random_images(8))


def write(folder, state, kind=".npz"):
    path = folder / f"model{kind}"
    if kind == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()})
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize("kind", [".npz", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_of_torch_tensors_is_read(tmp_path, kind, prefix):
    state = {prefix + name: tensor for name, tensor in STATE.items()}
    state |= {f"{prefix}bn1.num_batches_tracked": torch.tensor(7)}
    file = open_classifier_file(write(tmp_path, state, kind))
    assert file.norm == "batch" and dict(file.shapes) == {name: tuple(value.shape) for name, value in STATE.items()}
    variables, replaced = load_classifier_variables(file, expected_variables())
    assert not replaced
    expected = variables_from_torch(STATE)
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_half_precision_becomes_float32(tmp_path):
    file = open_classifier_file(
        write(tmp_path, {name: tensor.half() for name, tensor in STATE.items()}, ".safetensors")
    )
    variables, _ = load_classifier_variables(file, expected_variables())
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    np.testing.assert_array_equal(variables["params"]["linear"]["bias"], STATE["linear.bias"].half().float())


def test_all_mismatches_are_reported_at_once(tmp_path):
    state = dict(STATE)
    del state["bn1.running_var"], state["layer1.0.conv2.weight"]
    state["layer3.0.conv1.weight"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(16, 3, 3, 3)
    path = write(tmp_path, state)
    with pytest.raises(InputError) as error:
        load_classifier_variables(open_classifier_file(path), expected_variables(7), may_replace_head=False)
    first, *lines = str(error.value).splitlines()
    assert first == f"{path}: the weights do not fit the classifier:"
    assert {line.strip() for line in lines} == {
        "missing bn1.running_var",
        "missing layer1.0.conv2.weight",
        "unexpected layer3.0.conv1.weight",
        "conv1.weight has shape (16, 3, 3, 3), the model (8, 3, 3, 3)",
        "linear.weight has shape (5, 16), the model (7, 16)",
        "linear.bias has shape (5,), the model (7,)",
    }


def test_a_head_of_other_classes_is_left_out_where_it_may(tmp_path):
    full = variables_from_torch(STATE)
    bare = {name: tensor for name, tensor in STATE.items() if not name.startswith("linear")}
    for state in (STATE, bare):
        file = open_classifier_file(write(tmp_path, state))
        variables, replaced = load_classifier_variables(file, expected_variables(7), may_replace_head=True)
        assert replaced and set(variables["params"]) == set(full["params"]) - {"linear"}
        np.testing.assert_array_equal(variables["params"]["conv1"]["kernel"], full["params"]["conv1"]["kernel"])
    file = open_classifier_file(write(tmp_path, STATE))
    variables, replaced = load_classifier_variables(file, expected_variables(), may_replace_head=True)
    assert not replaced
    np.testing.assert_array_equal(variables["params"]["linear"]["kernel"], full["params"]["linear"]["kernel"])


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("small_cnn", "head"),
        ("resnet20", "linear"),
        ("resnet18", "fc"),
        ("mobilenet_v2", "classifier.1"),
        ("vit_s", "head"),
    ],
)
def test_every_kind_of_classifier_has_a_head(name, head):
    module = build_classifier(name, CLASSES, 8, 16)
    params = jax.eval_shape(module.init, jax.random.key(0), random_images(16))["params"]
    assert head_name(params) == head and len(set(params) & set(HEADS)) == 1
    assert params[head]["kernel"].shape[-1] == CLASSES


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    np.savez(tmp_path / "pickled.npz", weight=np.array({"a": 1}, dtype=object))
    torch.save({}, tmp_path / "model.pth")
    for name, message in {
        "absent.npz": "no such file",
        "cut.npz": "not a .npz file",
        "pickled.npz": "cannot be read as a .npz file of plain arrays",
        "absent.safetensors": "no such file",
        "model.pth": "a pickle, which can run arbitrary code",
    }.items():
        with pytest.raises(InputError, match=f"{name}: .*{message}"):
            open_classifier_file(tmp_path / name)

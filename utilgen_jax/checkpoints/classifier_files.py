"""Trained classifiers from torch: one safetensors or .npz file, under the names of timm, torchvision or akamaster."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utilgen_jax.checkpoints import torch_names
from utilgen_jax.checkpoints.component import checked_targets
from utilgen_jax.checkpoints.safetensors_io import open_file
from utilgen_jax.errors import InputError

# What `models` call the layer that gives the logits, as torch's networks do.
HEADS = ("linear", "fc", "head", "classifier.1")
# What torch.nn.DataParallel puts before every name.
_PREFIX = "module."
# Of torch's batch norm, beside the statistics; no part in inference.
_COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class ClassifierFile:
    """A file of weights, opened.

    Attributes:
        path: the file.
        shapes: torch's shape of every tensor by name, less a prefix `module.`; counters of batches are left out.
        read: a tensor of that name, in torch's layout.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]

    @property
    def norm(self) -> str:
        """The key of `models.norms.NORMS` that the weights were trained with: "batch" if there are statistics."""
        return "batch" if any(name.endswith("running_mean") for name in self.shapes) else "group"


def open_classifier_file(path: Path | str) -> ClassifierFile:
    """Opens a `.safetensors` or `.npz` file; InputError if it is missing, broken, or holds pickles."""
    path = Path(path)
    if path.suffix == ".npz":
        arrays = _read_npz(path)
        shapes: Mapping[str, tuple[int, ...]] = {name: array.shape for name, array in arrays.items()}
        read: Callable[[str], np.ndarray] = arrays.__getitem__
    else:
        files = open_file(path)
        shapes, read = files.shapes, files.read
    stored = {name.removeprefix(_PREFIX): name for name in shapes if not name.endswith(_COUNTER)}
    return ClassifierFile(path, {name: shapes[stored[name]] for name in stored}, lambda name: read(stored[name]))


def load_classifier_variables(
    file: ClassifierFile, expected: Mapping[str, Any], may_replace_head: bool = False
) -> tuple[dict[str, Any], bool]:
    """Reads all variables of a classifier, once every name and shape has been held against the file.

    Args:
        file: from `open_classifier_file`.
        expected: variables of a linen classifier, {"params": ...} and perhaps {"batch_stats": ...}: arrays or their
            shapes, as `jax.eval_shape` of its init gives them.
        may_replace_head: a file whose head is of another number of classes, or that has none, is read all the same.

    Returns:
        (variables, replaced): float32 in host memory, nested as `expected`; whether the head is left out of them.

    Raises:
        InputError: lists all missing, unexpected and misshapen tensors under torch names, with torch's shapes.
    """
    collections = {path[1:]: path[0] for path in torch_names.flatten(expected)}
    leaves = {path[1:]: leaf for path, leaf in torch_names.flatten(expected).items()}
    shapes = dict(file.shapes)
    head = head_name(expected["params"])
    (num_classes,) = leaves[head, "bias"].shape
    replaced = may_replace_head and shapes.get(f"{head}.bias") != (num_classes,)
    if replaced:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(f"{head}.")}
        leaves = {path: leaf for path, leaf in leaves.items() if path[0] != head}
    targets = checked_targets(shapes, leaves, f"{file.path}: the weights do not fit the classifier")
    variables: dict[str, Any] = {collection: {} for collection in expected}
    for name, (path, shape) in targets.items():
        scope = variables[collections[path]]
        for piece in path[:-1]:
            scope = scope.setdefault(piece, {})
        tensor = torch_names.to_linen_layout(file.read(name), path[-1]).reshape(shape)
        scope[path[-1]] = np.ascontiguousarray(tensor, np.float32)
    return variables, replaced


def head_name(params: Collection[str]) -> str:
    """Which of a classifier's scopes is the layer that gives the logits."""
    return next(name for name in HEADS if name in params)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not a .npz file, or cut off; np.savez(path, **arrays_by_torch_name) makes one")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as a .npz file of plain arrays: {error}") from error

"""Reads trained torch classifiers from safetensors or .npz files, with names of timm, torchvision or akamaster."""

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

# Names of the layer that gives the logits, in torch's networks and in `models`.
HEADS = ("linear", "fc", "head", "classifier.1")
# Prefix of torch.nn.DataParallel.
_PREFIX = "module."
# A counter of torch's batch norm that inference does not use.
_COUNTER = "num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class ClassifierFile:
    """An open file of weights.

    Attributes:
        path: path of the file.
        shapes: torch shapes by tensor name, without the prefix `module.` and without batch counters.
        read: reads a tensor by name, in torch's layout.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]

    @property
    def norm(self) -> str:
        """Key of `models.norms.NORMS` of the network: "batch" if the file has batch statistics."""
        return "batch" if any(name.endswith("running_mean") for name in self.shapes) else "group"


def open_classifier_file(path: Path | str) -> ClassifierFile:
    """Opens a `.safetensors` or `.npz` file; InputError if it is missing, damaged or pickled."""
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
    """Reads all variables of a classifier, after checking all names and shapes.

    Args:
        file: from `open_classifier_file`.
        expected: variables of a linen classifier, {"params": ...} and possibly {"batch_stats": ...}, as arrays or
            `jax.ShapeDtypeStruct`.
        may_replace_head: whether to accept a file without a head, or with another number of classes.

    Returns:
        (variables, replaced): float32 in host memory, nested as `expected`; whether the head is omitted.

    Raises:
        InputError: tensors are missing, unexpected or have wrong shapes; lists all with torch names and shapes.
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
    """Returns the name of the layer that gives a classifier's logits."""
    return next(name for name in HEADS if name in params)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not a .npz file, or truncated; np.savez(path, **arrays_by_torch_name) makes one")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as a .npz file of plain arrays: {error}") from error

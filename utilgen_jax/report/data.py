"""What a run keeps for its report beside its pool: `report/data.npz`, from which the page can be made anew."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utilgen_jax.data.splits import LabelledImages
from utilgen_jax.data.streamed_images import in_memory
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.atomic_write import replace_file

FILE = Path("report") / "data.npz"
MAX_SIDE = 96  # pixels; larger images are shrunk to it
_REAL_OF_A_CLASS, _REAL_IMAGES = 20, 5000  # that are kept, at most
_FACTS = "facts"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """What the training of a generator found; None: not looked for.

    Attributes:
        gate_gains: by how much the loss on each held-out shot falls with the adapter's images, float [N].
        attributes: of the prompts: (values of the attribute, one of them or "" for none, probability before, after).
        requested_difficulty: that is requested for each class, float [K].
        real_difficulty: of the few-shot images, for classifiers that were not trained on them, float [N].
        plain_difficulty: of images of the generator as it is, float [M].
    """

    gate_gains: np.ndarray | None = None
    attributes: Sequence[tuple[str, str, float, float]] | None = None
    requested_difficulty: np.ndarray | None = None
    real_difficulty: np.ndarray | None = None
    plain_difficulty: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData(Findings):
    """What a report shows beside summary, metrics and pool; None: a run has it not.

    Attributes:
        class_names: K words.
        real_images: few-shot images, shrunk to `MAX_SIDE`, uint8 [n, h, w, C], some of each class.
        real_labels: of them, int [n].
        real_ids: of them.
        num_real: few-shot images of each class, int [K].
        test_labels: int [T].
        predicted: class of each test image, int [T], by row of the summary's accuracies.
        losses: of the pool's images, the weight network's input, float [M].
        map_real, map_synthetic: places of images in the plane of two principal components, float [n, 2], [m, 2].
        map_real_labels, map_synthetic_labels: of these images, int [n], [m].
        map_explained: share of the variance along each axis, float [2].
        flops: operations by what they were spent on.
        pool: folder of the synthetic images below the workdir; "": there are none.
        changed: fields of the config that differ from the defaults: (field, default, value).
        inputs: fingerprints of all that the run has read.
        command: that made the run.
    """

    class_names: Sequence[str]
    real_images: np.ndarray
    real_labels: np.ndarray
    real_ids: Sequence[str]
    num_real: np.ndarray
    test_labels: np.ndarray | None = None
    predicted: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    losses: np.ndarray | None = None
    map_real: np.ndarray | None = None
    map_synthetic: np.ndarray | None = None
    map_real_labels: np.ndarray | None = None
    map_synthetic_labels: np.ndarray | None = None
    map_explained: np.ndarray | None = None
    flops: dict[str, float] = dataclasses.field(default_factory=dict)
    pool: str = ""
    changed: Sequence[tuple[str, str, str]] = ()
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    command: str = ""


def shown_real(real: LabelledImages) -> dict[str, Any]:
    """The fields of `RunData` that show the few-shot images."""
    count = np.bincount(real.labels, minlength=len(real.class_names))
    of_class = min(_REAL_OF_A_CLASS, max(1, _REAL_IMAGES // len(real.class_names)))
    rows = np.sort(np.concatenate([np.flatnonzero(real.labels == label)[:of_class] for label in range(len(count))]))
    return {
        "class_names": real.class_names,
        "real_images": shrink(in_memory(real.images[rows]), MAX_SIDE),
        "real_labels": real.labels[rows],
        "real_ids": [real.ids[row] for row in rows],
        "num_real": count,
    }


def shrink(images: np.ndarray, side: int) -> np.ndarray:
    """Images uint8 [N, H, W, C] as [N, h, w, C], h and w at most `side`."""
    height, width = images.shape[1:3]
    if max(height, width) <= side or not len(images):
        return images
    size = max(1, round(width * side / max(height, width))), max(1, round(height * side / max(height, width)))
    grey = images.shape[-1] == 1
    shrunk = [
        np.asarray(Image.fromarray(image[..., 0] if grey else image).resize(size, Image.Resampling.LANCZOS))
        for image in images
    ]
    return np.stack(shrunk)[..., None] if grey else np.stack(shrunk)


def save(workdir: Path, data: RunData) -> None:
    """Writes `FILE` below a run's folder."""
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        if isinstance(value, np.ndarray):
            arrays[field.name] = value
        elif field.name == "predicted":
            arrays |= {f"predicted/{row}": classes for row, classes in value.items()}
        elif value is not None:
            facts[field.name] = value
    arrays[_FACTS] = np.array(json.dumps(facts, ensure_ascii=False))
    path = workdir / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load(workdir: Path) -> RunData:
    """Reads what `save` has written.

    Raises:
        InputError: it is not there, or damaged.
    """
    path = workdir / FILE
    if not path.is_file():
        raise InputError(
            f"{path} is missing: the run is not finished, or of an earlier version; the command that made it writes it"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        fields: dict[str, Any] = json.loads(str(arrays.pop(_FACTS)))
        fields["predicted"] = {
            name.removeprefix("predicted/"): arrays.pop(name) for name in list(arrays) if name.startswith("predicted/")
        }
        return RunData(**fields, **arrays)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({error}); the command that made the run writes it anew") from error

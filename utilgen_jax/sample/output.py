"""A folder of generated images: one PNG each, all of them in one grid and in one array, and how they were made."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utilgen_jax.data.images import to_uint8
from utilgen_jax.report.contact_sheet import contact_sheet
from utilgen_jax.runtime.atomic_write import named_in_errors

_MIN_GRID_SIDE = 128  # pixels; smaller images are enlarged in the grid by a whole factor


class ImageFolder:
    """Writes images as they come, so that those of a run that is cut off are there.

    Args:
        folder: made if missing; files of the same name are replaced.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._images: list[np.ndarray] = []

    def __len__(self) -> int:
        """The number of images so far."""
        return len(self._images)

    def append(self, images: np.ndarray) -> None:
        """Writes `000.png`, `001.png`, ... of float [B, H, W, 3] in [-1, 1], counting on from the last call."""
        for image in images:
            file = self.folder / self._file_name(len(self))
            with named_in_errors(file):
                Image.fromarray(to_uint8(image)).save(file)
            self._images.append(image)

    def finish(self, columns: int, settings: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> None:
        """Writes what shows all images.

        Args:
            columns: images in a row of `grid.png`.
            settings: what all images have in common, for `sample.json`.
            records: what each has of its own; its file name is added.
        """
        images = np.stack(self._images)
        np.save(self.folder / "images.npy", (images + 1.0) / 2.0)  # float32 [N, H, W, 3] in [0, 1]
        scale = math.ceil(_MIN_GRID_SIDE / min(images.shape[1:3]))
        contact_sheet(to_uint8(images), columns, scale=scale).save(self.folder / "grid.png")
        listed = [{"file": self._file_name(index), **record} for index, record in enumerate(records)]
        text = json.dumps({"settings": settings, "images": listed}, indent=2, ensure_ascii=False)
        (self.folder / "sample.json").write_text(text + "\n", encoding="utf-8")

    def _file_name(self, index: int) -> str:
        return f"{index:03d}.png"

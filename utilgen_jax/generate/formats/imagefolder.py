"""A folder of images for each class and metadata.jsonl, as torchvision and `datasets` read them.

The lines of metadata.jsonl are those of a pool, in the order of the set; they are written when all parts are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utilgen_jax.generate.formats.base import PARTS, Example, Format
from utilgen_jax.generate.plan import Part
from utilgen_jax.pool.records import METADATA, to_line
from utilgen_jax.runtime.atomic_write import write_bytes, write_text

_OPENING = (
    '`torchvision.datasets.ImageFolder(".")`, which numbers the classes by their folders\' alphabet, and\n'
    '`datasets.load_dataset("imagefolder", data_dir=".")` open this folder.'
)
_READING = """\
import json
from pathlib import Path
import numpy as np
from PIL import Image

lines = [json.loads(line) for line in Path("metadata.jsonl").read_text().splitlines()]
rows = {name: [line[name] for line in lines] for name in lines[0]}
images = np.stack([Image.open(name).convert("RGB") for name in rows["file_name"]])"""


class ImageFolderFormat(Format):
    """See the module."""

    opening = _OPENING
    reading = _READING

    def file(self, part: Part) -> Path:
        """Its lines of metadata; once the set is closed, those of all."""
        whole = self.out / METADATA
        return whole if whole.is_file() else self.out / PARTS / f"{part.name}.jsonl"

    def write(self, part: Part, examples: Sequence[Example]) -> None:
        """See `Format.write`."""
        for example in examples:
            path = self.out / example.record.file_name
            path.parent.mkdir(exist_ok=True)
            write_bytes(path, example.png)
        self.file(part).parent.mkdir(exist_ok=True)
        write_text(self.file(part), "".join(to_line(example.record) for example in examples), fsync=True)

    def close(self, parts: Sequence[Part], description: str) -> None:
        """Joins the lines of all parts."""
        if not (self.out / METADATA).is_file():
            lines = [self.file(part).read_text(encoding="utf-8") for part in parts]
            write_text(self.out / METADATA, "".join(lines), fsync=True)


FORMAT = ImageFolderFormat

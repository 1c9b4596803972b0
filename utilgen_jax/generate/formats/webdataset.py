"""Tar files for webdataset: of each image `KEY.png`, `KEY.cls` and `KEY.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utilgen_jax.generate.formats.base import Example, Format
from utilgen_jax.generate.plan import Part
from utilgen_jax.pool.packed import Entry, write_tar

_OPENING = (
    '`webdataset.WebDataset` and `datasets.load_dataset("webdataset", data_files="train-*.tar")` open these files.'
)
_READING = """\
from glob import glob
import numpy as np
import webdataset

files = sorted(glob("train-*.tar"))
samples = [*webdataset.WebDataset(files, shardshuffle=False).decode("rgb8")]
rows = {name: [sample["json"][name] for sample in samples] for name in samples[0]["json"]}
rows["label"] = [sample["cls"] for sample in samples]
images = np.stack([sample["png"] for sample in samples])"""


class WebDatasetFormat(Format):
    """See the module."""

    opening = _OPENING
    reading = _READING

    def file(self, part: Part) -> Path:
        """See `Format.file`."""
        return self.out / f"train-{part.name}.tar"

    def write(self, part: Part, examples: Sequence[Example]) -> None:
        """See `Format.write`."""
        write_tar(self.file(part), (Entry(each.key, each.png, each.record.label, each.fields) for each in examples))

    def close(self, parts: Sequence[Part], description: str) -> None:
        """The files are all there is."""


FORMAT = WebDatasetFormat

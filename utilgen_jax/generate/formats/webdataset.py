"""Tar files for webdataset: of each image `KEY.png`, `KEY.cls` and `KEY.json`."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

from utilgen_jax.generate.formats.base import Example, Format
from utilgen_jax.generate.plan import Part
from utilgen_jax.runtime.atomic_write import replace_file

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
        with replace_file(self.file(part), fsync=True) as partial, tarfile.open(partial, "w") as tar:
            for example in examples:
                text = json.dumps(example.fields, ensure_ascii=False, allow_nan=False)
                members = {"png": example.png, "cls": str(example.record.label).encode(), "json": text.encode()}
                for suffix, content in members.items():
                    info = tarfile.TarInfo(f"{example.key}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))

    def close(self, parts: Sequence[Part], description: str) -> None:
        """The files are all there is."""


FORMAT = WebDatasetFormat

"""Parquet files as the Hugging Face hub has them, for `datasets`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utilgen_jax.errors import InputError
from utilgen_jax.generate.formats.base import Example, Format
from utilgen_jax.generate.plan import Part
from utilgen_jax.runtime.atomic_write import replace_file

_OPENING = '`datasets.load_dataset(".")` opens this folder, and that of a hub it is uploaded to.'
_READING = """\
from glob import glob
import numpy as np
from datasets import load_dataset

rows = load_dataset("parquet", data_files=sorted(glob("train-*.parquet")), split="train")
images = np.stack([image.convert("RGB") for image in rows["image"]])"""


class ParquetFormat(Format):
    """See the module."""

    opening = _OPENING
    reading = _READING

    def __init__(self, out: Path, class_names: Sequence[str]) -> None:
        super().__init__(out, class_names)
        try:
            import datasets
            import pyarrow.parquet
        except ImportError as error:
            raise InputError("--format=parquet needs `datasets`: pip install 'utilgen_jax[hf]'") from error
        self._parquet, self._pyarrow = pyarrow.parquet, pyarrow
        features: dict[str, Any] = {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(self.class_names)),
            **{name: datasets.Value("string") for name in ("class_name", "prompt", "word")},
            **{name: datasets.Value("int64") for name in ("seed", "round")},
            **{name: datasets.Value("float32") for name in ("weight", "difficulty", "requested_difficulty")},
            "soft_label": datasets.List(datasets.Value("float32")),
            "conditioned_on": datasets.List(datasets.Value("string")),
        }
        self._schema = datasets.Features(features).arrow_schema

    def file(self, part: Part) -> Path:
        """See `Format.file`."""
        return self.out / f"train-{part.name}.parquet"

    def write(self, part: Part, examples: Sequence[Example]) -> None:
        """See `Format.write`."""
        rows = [
            {"image": {"bytes": example.png, "path": f"{example.key}.png"}, "label": example.record.label}
            | example.fields
            for example in examples
        ]
        table = self._pyarrow.Table.from_pylist(rows, schema=self._schema)
        with replace_file(self.file(part), fsync=True) as partial:
            self._parquet.write_table(table, partial, row_group_size=100)

    def close(self, parts: Sequence[Part], description: str) -> None:
        """The files are all there is."""


FORMAT = ParquetFormat

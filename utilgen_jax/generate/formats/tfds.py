"""ArrayRecord files with the metadata of tensorflow-datasets, which reads and here writes them without TensorFlow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utilgen_jax.generate.formats.base import Example, Format
from utilgen_jax.generate.plan import Part
from utilgen_jax.pool.packed import write_array_record

_NAME, _VERSION = "synthetic_images", "1.0.0"
_TEXTS, _INTEGERS = ("class_name", "prompt", "word"), ("seed", "round")
_FLOATS = ("weight", "difficulty", "requested_difficulty")

_OPENING = '`tfds.builder_from_directory(".").as_data_source("train")` opens this folder, without TensorFlow.'
_READING = """\
import numpy as np
import tensorflow_datasets as tfds

data = [*tfds.builder_from_directory(".").as_data_source("train")]
rows = {name: [row[name] for row in data] for name in data[0]}
images = np.stack(rows["image"])"""


class TfdsFormat(Format):
    """See the module. What is not known of an image is "", -1, NaN, a soft label of NaN, or an empty list."""

    opening = _OPENING
    reading = _READING

    def __init__(self, out: Path, class_names: Sequence[str]) -> None:
        super().__init__(out, class_names)
        import tensorflow_datasets as tfds

        self._tfds = tfds
        features: dict[str, Any] = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=self.class_names),
            **{name: tfds.features.Text() for name in _TEXTS},
            **dict.fromkeys(_INTEGERS, np.int64),
            **dict.fromkeys(_FLOATS, np.float32),
            "soft_label": tfds.features.Tensor(shape=(len(self.class_names),), dtype=np.float32),
            "conditioned_on": tfds.features.Sequence(tfds.features.Text()),
        }
        self._features = tfds.features.FeaturesDict(features)

    def file(self, part: Part) -> Path:
        """See `Format.file`."""
        return self.out / f"{_NAME}-train.array_record-{part.name}"

    def write(self, part: Part, examples: Sequence[Example]) -> None:
        """See `Format.write`."""
        serializer = self._tfds.core.example_serializer.ExampleSerializer(self._features.get_serialized_info())
        encoded = (self._features.encode_example(self._row(example)) for example in examples)
        write_array_record(self.file(part), map(serializer.serialize_example, encoded))

    def _row(self, example: Example) -> dict[str, Any]:
        fields, unknown = example.fields, (np.nan,) * len(self.class_names)
        row = {"image": io.BytesIO(example.png), "label": example.record.label}
        row |= {name: fields[name] or "" for name in _TEXTS}
        row |= {name: -1 if fields[name] is None else fields[name] for name in _INTEGERS}
        row |= {name: np.float32(np.nan if fields[name] is None else fields[name]) for name in _FLOATS}
        soft_label = unknown if fields["soft_label"] is None else fields["soft_label"]
        sources = list(fields["conditioned_on"] or ())
        return row | {"soft_label": np.array(soft_label, np.float32), "conditioned_on": sources}

    def close(self, parts: Sequence[Part], description: str) -> None:
        """Writes dataset_info.json and features.json."""
        core = self._tfds.core
        template = core.ShardedFileTemplate(dataset_name=_NAME, data_dir=self.out, filetype_suffix="array_record")
        split = core.SplitInfo(
            name="train",
            shard_lengths=[part.stop - part.start for part in parts],
            num_bytes=sum(self.file(part).stat().st_size for part in parts),
            filename_template=template.replace(split="train"),
        )
        self._tfds.folder_dataset.write_metadata(
            data_dir=str(self.out),
            features=self._features,
            split_infos=[split],
            version=_VERSION,
            filename_template=template,
            description=description,
            check_data=False,
        )


FORMAT = TfdsFormat

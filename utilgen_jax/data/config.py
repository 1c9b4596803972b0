"""The config section `data`."""

from __future__ import annotations

import dataclasses

from utilgen_jax.fields import setting

SOURCES = ("digits", "tfds", "hf", "imagefolder", "npz")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the real images come from, and which of them a run may use."""

    source: str = setting("digits", "where images come from", choices=SOURCES)
    name: str = setting("digits", "of the data set (tfds, hf); for other sources the name shown in tables")
    path: str = setting(
        "",
        "tfds: data_dir; imagefolder: folder with train/<class>/; npz: the file; hf: folder; also gs://…, s3://…",
        is_path=True,
    )
    image_column: str = setting("", "hf: of the images; empty: found by its type")
    label_column: str = setting("", "hf: of the labels; empty: found by its type")
    shots: int = setting(2, "labelled images a class, the others are test or unused; 0: all of train", minimum=0)
    imbalance_factor: float = setting(1.0, "long tail: shots of the first class over those of the last", minimum=1.0)
    image_size: int = setting(8, "height and width that the classifier sees, in pixels", minimum=4, maximum=1024)
    channels: int = setting(1, "1: grey, 3: RGB", choices=(1, 3))
    class_names: tuple[str, ...] = setting(
        (), "words for the prompts, by label; several of a class as 'crane bird|crane'; empty: the data set's own"
    )
    classes_file: str = setting(
        "", "text file with the classes to use, one a line: its name in the data set, words", is_path=True
    )
    max_classes: int = setting(0, "use only so many classes, the first ones; 0: all", minimum=0)
    exclude: str = setting(
        "", "text file with ids of train images to leave out, e.g. those the generator was taught", is_path=True
    )
    label_noise: float = setting(0.0, "fraction of the shots' labels to draw at random", minimum=0.0, maximum=1.0)
    memory_gib: float = setting(
        2.0,
        "images that take more, as bytes, are read as they are needed, and not held in memory",
        minimum=0.0,
        may_change=True,
    )
    workers: int = setting(
        -1,
        "processes that read such images; 0: threads of the run's own; -1: as many as there are cores",
        minimum=-1,
        may_change=True,
    )
    max_test: int = setting(0, "use at most so many test images; 0: all", minimum=0)

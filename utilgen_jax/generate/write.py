"""The work of `python -m utilgen_jax.generate` once its arguments are read."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax

from utilgen_jax.config.schema import Config, from_flat, from_json
from utilgen_jax.config.validation import checked
from utilgen_jax.data.sources import load_source
from utilgen_jax.data.streamed_images import in_memory
from utilgen_jax.errors import InputError
from utilgen_jax.experiment.more_images import MoreImages, values_of_records
from utilgen_jax.experiment.setup import read_split, set_up
from utilgen_jax.experiment.workdir import identity_of
from utilgen_jax.generate.card import CardSource, data_card
from utilgen_jax.generate.formats.base import PARTS, Example, Format, make_format
from utilgen_jax.generate.plan import Part, claim_folder, class_counts, split_in_parts
from utilgen_jax.generate.png import to_png
from utilgen_jax.pipeline import methods_of
from utilgen_jax.pool.generate import open_pool
from utilgen_jax.pool.records import class_folders
from utilgen_jax.pool.storage import read_pool
from utilgen_jax.report.progress import Progress
from utilgen_jax.runtime.atomic_write import write_text
from utilgen_jax.runtime.distributed import agree, check_terminated, wait_for_all
from utilgen_jax.runtime.folder_lock import locked_folder

CARD = "README.md"


def generate(settings: dict[str, Any], workdir: Path) -> str:
    """Generates the images that are missing, and closes the set if it was the last to come.

    Args:
        settings: values of the command's flags.
        workdir: folder of the run.

    Returns:
        What has become of it, for a person.

    Raises:
        InputError: the run, the classes or the folder do not suit; nothing has been written.
        FloatingPointError: an image is not finite.
    """
    out = Path(settings["out"])
    config = _read_config(workdir)
    methods = methods_of(config)
    if methods[-1].pool is None:
        raise InputError(f"--workdir: the run's method, {config.method}, generates no images")
    split = read_split(config, load_source(config.data))
    names = split.real.class_names
    counts = class_counts(settings, names)
    shard, num_shards = (int(number) for number in settings["shard"].split("/"))
    parts = split_in_parts(int(counts.sum()), settings["images_per_file"], num_shards)
    identity = {
        "run": identity_of(config)["config"],
        "class_counts": {name: int(count) for name, count in zip(names, counts, strict=True)},
        "seed": settings["seed"],
        "format": settings["format"],
        "images_per_file": parts[0].stop,
    }
    claim_folder(out, identity, write=False)
    data_format = make_format(settings["format"], out, names)
    if agree((out / CARD).is_file()):
        return f"all {counts.sum()} images are there: {out}"

    experiment = set_up(config, workdir, None, methods, split)
    if settings["batch_size"]:
        sampling = dataclasses.replace(config.generator, batch_size=settings["batch_size"])
        experiment.config = dataclasses.replace(config, generator=sampling)
    with jax.set_mesh(experiment.mesh):
        more = MoreImages(experiment, counts, settings["seed"])
        more.check_values()
        if experiment.is_first:
            claim_folder(out, identity, write=True)
        wait_for_all("the folder is made")
        writing = _Writing(more, data_format, names, config.generator.checkpoint)
        writing.write(parts[shard::num_shards])
    if not experiment.is_first:
        return f"written by the first process: {out}"
    card = CardSource(
        config=config,
        method=more.method,
        checkpoint=experiment.generator.checkpoint,
        class_names=names,
        records=more.records,
        command=_command(settings),
        seed=settings["seed"],
        opening=data_format.opening,
        reading=data_format.reading,
    )
    return _close(data_format, parts, card)


def _read_config(workdir: Path) -> Config:
    file = workdir / "config.json"
    try:
        return checked(from_flat(from_json(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: no config of a run of this version ({error})") from error


def _command(settings: dict[str, Any]) -> list[str]:
    """The command line of the whole set, without what does not decide its images."""
    asked = {"num": settings["num"]} if settings["num"] else {"class_counts": ",".join(settings["class_counts"])}
    given = {"workdir": settings["workdir"], **asked, "seed": settings["seed"], "format": settings["format"]}
    return [
        "python",
        "-m",
        "utilgen_jax.generate",
        *(f"--{name}={value}" for name, value in given.items()),
        "--out=OUT",
    ]


@dataclasses.dataclass(frozen=True)
class _Writing:
    """Writes parts.

    Attributes:
        more: generates and values images.
        format: of the files.
        class_names: K of the run.
        checkpoint: what the generator is loaded from.
    """

    more: MoreImages
    format: Format
    class_names: Sequence[str]
    checkpoint: str

    def write(self, parts: Sequence[Part]) -> None:
        """Writes the parts that are missing, one after the other."""
        missing = [part for part in parts if not agree(self.format.file(part).is_file())]
        total = sum(part.stop - part.start for part in parts)
        done = total - sum(part.stop - part.start for part in missing)
        if not missing:
            return
        with Progress("generate", total, "image", initial=done, enabled=jax.process_index() == 0) as progress:
            for part in missing:
                self._write_part(part, progress, done)
                done += part.stop - part.start

    def _write_part(self, part: Part, progress: Progress, done: int) -> None:
        """Generates a part as a pool of its own, which the next command continues; then values and writes it."""
        folder, is_first = self.format.out / PARTS / part.name, jax.process_index() == 0
        with locked_folder(folder) if is_first else nullcontext():
            writer = open_pool(folder, self.class_names)
            place = part.start + len(writer)
            for images in self.more.generate(place, part.stop):
                if is_first:
                    writer.append(images, self.more.records[place : place + len(images)])
                place += len(images)
                progress.update(done + place - part.start)
                check_terminated()
            wait_for_all("the part is generated")
            pool = read_pool(folder, self.class_names)
            images = in_memory(pool.images)
            records = values_of_records(self.more.value(images, pool.records), pool.records)
            if is_first:
                folders = class_folders(tuple(self.class_names))
                named = [
                    dataclasses.replace(record, file_name=f"{folders[record.label]}/{part.start + row:05d}.png")
                    for row, record in enumerate(records)
                ]
                examples = [
                    Example(part.start + row, to_png(pixels, record, self.checkpoint), record)
                    for row, (pixels, record) in enumerate(zip(images, named, strict=True))
                ]
                self.format.write(part, examples)
            wait_for_all("the part is written")
        if is_first:
            shutil.rmtree(folder)


def _close(data_format: Format, parts: Sequence[Part], card: CardSource) -> str:
    """Closes the set where all parts are there; says what has become of it."""
    out = data_format.out
    with locked_folder(out, patience=60.0):  # shards may end at the same time
        missing = [part for part in parts if not data_format.file(part).is_file()]
        if missing:
            return f"this shard is whole; {len(missing)} of {len(parts)} files of other shards are missing: {out}"
        if not (out / CARD).is_file():
            first_line = f"{len(card.records)} synthetic images by {card.method.name} of utilgen_jax"
            data_format.close(parts, first_line)
            shutil.rmtree(out / PARTS, ignore_errors=True)
            write_text(out / CARD, data_card(card), fsync=True)
    return f"{len(card.records)} images: {out}; {out / CARD} tells of them"

"""Makes a data set of ImageNet's form, and measures how it streams: images a second, and the memory of a whole run.

  python -m tests.synthetic_imagenet make --folder=/tmp/imagenet --number=200000
  python -m tests.synthetic_imagenet rate --folder=/tmp/imagenet --workers=2
  python -m tests.synthetic_imagenet run --folder=/tmp/imagenet

`make` writes JPEGs of 256×256 pixels and about 17 kB in 1,000 classes, as tensorflow-datasets prepares them
(ArrayRecord); 5,000 of them differ, the others are copies of these. `rate` decodes batches and trains nothing. `run` is
the main job, method vanilla, with a ResNet-18 at 64×64; it prints the largest memory of its process and of the
processes that read.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
NAME, NUM_CLASSES, SIDE = "synthetic_imagenet", 1000, 256
DISTINCT, NUM_TEST = 5000, 2000
_A_SHARD = 20_000  # images


@cache
def jpeg(number: int) -> bytes:
    """An image of coloured clouds, of its class's colour, and noise: of a photograph's size as a file."""
    rng = np.random.default_rng(number)
    colour = np.random.default_rng(number % NUM_CLASSES).uniform(60, 200, 3)
    clouds = np.clip(colour + rng.normal(0, 40, (12, 12, 3)), 0, 255).astype(np.uint8)
    pixels = np.asarray(Image.fromarray(clouds).resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
    noise = rng.integers(-14, 15, (SIDE // 2, SIDE // 2, 1), np.int16).repeat(2, 0).repeat(2, 1)
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(file, "jpeg", quality=85)
    return file.getvalue()


def make(folder: Path, number: int) -> None:
    """Writes the data set; a split that is there is left as it is."""
    import tensorflow_datasets
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    place = folder / NAME / "1.0.0"
    place.mkdir(parents=True, exist_ok=True)
    features = tensorflow_datasets.features
    names = [f"class {label}" for label in range(NUM_CLASSES)]
    image = features.Image(shape=(None, None, 3), encoding_format="jpeg")
    features.FeaturesDict({"image": image, "label": features.ClassLabel(names=names)}).save_config(place)
    infos = []
    for split, first, count in (("train", 0, number), ("test", number, NUM_TEST)):
        shards = -(-count // _A_SHARD)
        lengths = [len(part) for part in np.array_split(np.arange(count), shards)]
        for shard, (start, length) in enumerate(zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True)):
            file = place / f"{NAME}-{split}.array_record-{shard:05d}-of-{shards:05d}"
            if file.exists():
                continue
            partial = file.with_name(f".{file.name}")
            writer = ArrayRecordWriter(str(partial), "group_size:1")
            for each in range(first + start, first + start + length):
                example = tf_example_pb2.Example()
                example.features.feature["image"].bytes_list.value.append(jpeg(int(each) % DISTINCT))
                example.features.feature["label"].int64_list.value.append(int(each) % NUM_CLASSES)
                writer.write(example.SerializeToString())
            writer.close()
            partial.rename(file)
            print(f"{split}: shard {shard + 1} of {shards}", flush=True)
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        infos.append(
            {"name": split, "filepathTemplate": template, "numBytes": "1", "shardLengths": list(map(str, lengths))}
        )
    info = {"name": NAME, "version": "1.0.0", "fileFormat": "array_record", "splits": infos}
    (place / "dataset_info.json").write_text(json.dumps(info))


def rate(folder: Path, workers: int, image_size: int, batches: int) -> None:
    """Prints images a second, after the first batches."""
    from utilgen_jax.data import tfds
    from utilgen_jax.data.streamed_images import StreamedImages

    start, cpu = time.perf_counter(), 0.0
    train = tfds.load(NAME, str(folder), image_size, 3).train
    print(f"opened {len(train.labels)} images in {time.perf_counter() - start:.1f} s")
    images = StreamedImages(train, np.arange(len(train.labels)), (image_size, image_size, 3), workers)
    places = np.random.default_rng(0).integers(0, len(images), (batches + 10, 128))
    for number, _ in enumerate(images.batches(places)):
        if number == 9:
            start, cpu = time.perf_counter(), time.process_time()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(f"{image_size} pixels, {workers} workers: {128 * batches / seconds:.0f} images/s")
    if not workers:
        print(f"{128 * batches / cpu:.0f} images for each second of a core")


@dataclasses.dataclass
class Memory:
    """The largest resident memory so far, MiB, of a process and of those that it has started, together."""

    own: float = 0.0
    others: float = 0.0

    def look(self, process: int) -> None:
        """Looks at both."""
        parents = {}
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            except OSError:  # it has ended
                continue
            resident = float(fields.get("VmRSS", "0 kB").split()[0]) / 1024
            parents[int(fields["Pid"])] = int(fields["PPid"]), resident
        family = {process}
        while more := {pid for pid, (parent, _) in parents.items() if parent in family} - family:
            family |= more
        self.own = max(self.own, parents.get(process, (0, 0.0))[1])
        self.others = max(self.others, sum(parents[pid][1] for pid in family - {process} if pid in parents))


def run(folder: Path, workers: int, job: list[str]) -> int:
    """Runs the main job and prints its memory; returns its status."""
    settings = {
        "data.source": "tfds",
        "data.name": NAME,
        "data.path": folder,
        "data.shots": 0,
        "data.image_size": 64,
        "data.workers": workers,
        "classifier.name": "resnet18",
        "classifier.steps": 100,
        "classifier.batch_size": 128,
        "classifier.flip": True,
        "generator.checkpoint": "glyphs",
        "generator.image_size": 32,
        "generator.steps": 1,
        "pool.images_per_class": 1,
        "also_synthetic_only": False,
        "baselines": "",
    }
    command = [sys.executable, "-m", "utilgen_jax.main", "--config=imagenet:method=vanilla"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    running, memory = subprocess.Popen([*command, *job], env=os.environ | {"PYTHONPATH": _python_path()}), Memory()
    while running.poll() is None:
        memory.look(running.pid)
        time.sleep(0.5)
    print(f"largest memory: {memory.own:.0f} MiB; of the {workers} that read: {memory.others:.0f} MiB")
    return running.returncode


def _python_path() -> str:
    return os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])


def main() -> int:
    """Reads the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.synthetic_imagenet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("make", "rate", "run"))
    parser.add_argument("--folder", type=Path, required=True, help="of the data set")
    parser.add_argument("--number", type=int, default=200_000, help="make: of images to train on")
    parser.add_argument("--workers", type=int, default=2, help="processes that read; 0: threads")
    parser.add_argument("--image_size", type=int, default=64, help="rate: in pixels")
    parser.add_argument("--batches", type=int, default=40, help="rate: of 128 images")
    settings, job = parser.parse_known_args()
    if settings.command == "run":
        return run(settings.folder, settings.workers, job)
    if settings.command == "make":
        make(settings.folder, settings.number)
    else:
        rate(settings.folder, settings.workers, settings.image_size, settings.batches)
    return 0


if __name__ == "__main__":
    sys.exit(main())

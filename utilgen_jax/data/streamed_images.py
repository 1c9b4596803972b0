"""Images that memory does not hold: decoded when a step needs them, in other processes, ahead of it.

A step's images are the same as they would be from memory, bit for bit: it draws the same rows, and what depends on a
key is done on the device to both alike. Only decoding and scaling to the fixed size are done here.
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

import jax
import numpy as np

from utilgen_jax.data.decoding import quietly
from utilgen_jax.data.images import scaled
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.sharding import batch_sharding, held_rows, place_rows
from utilgen_jax.runtime.threads import num_cores

# Batches that each worker has ready, and batches on the device before the step that needs them.
_AHEAD, _AHEAD_ON_DEVICE = 2, 2


class Readable(Protocol):
    """What decodes images; it travels to other processes."""

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, C]; InputError names those that cannot be decoded."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedImages:
    """Stands where an array uint8 [N, H, W, C] does: `images[3]` decodes one, `images[places]` is some, not decoded.

    Attributes:
        source: decodes them.
        rows: which of the source, int [N].
        image_shape: H, W and C of what the source reads.
        workers: processes that decode; 0: threads of this one; -1: as many processes as there are cores.
        seen_as: size and channels that the classifier sees, see `scaled`; None: those of `image_shape`.
    """

    source: Readable
    rows: np.ndarray
    image_shape: tuple[int, int, int]
    workers: int = 0
    seen_as: tuple[int, int] | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the images as the classifier sees them."""
        height, width, channels = self.image_shape
        size, channels = self.seen_as or (height, channels)
        return len(self), size, size if self.seen_as else width, channels

    def __getitem__(self, places: Any) -> Any:
        """uint8 [H, W, C] for a number, decoded; else those of the images, which are not decoded yet."""
        if isinstance(places, int | np.integer):
            return self.source.read([self.rows[places]])[0]
        return dataclasses.replace(self, rows=self.rows[places if isinstance(places, slice) else np.asarray(places)])

    def batches(self, places: np.ndarray) -> Iterator[jax.Array]:
        """Reads batches ahead of their use, each process those rows that its devices hold.

        Args:
            places: of the images of each batch, int [n, B].

        Yields:
            Images [B, size, size, channels], uint8 or where they are scaled float32 in [-1, 1], split over the mesh of
            `jax.set_mesh` where it divides them.

        Raises:
            InputError: an image cannot be decoded.
        """
        sharding = batch_sharding(places.shape[1])
        held = held_rows(sharding, places.shape[1])
        waiting: deque[jax.Array] = deque()
        for images in _read(self, self.rows[places[:, held]]):
            placed = place_rows(images, held, places.shape[1], sharding)
            waiting.append(scaled(placed, *self.seen_as) if self.seen_as else placed)
            if len(waiting) > _AHEAD_ON_DEVICE:
                yield waiting.popleft()
        yield from waiting


def _read(images: StreamedImages, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Batches uint8 [B, H, W, C] of rows of the source int [n, B], by grain."""
    import grain  # slow to import
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain reads flags of its own
    workers = num_cores() if images.workers < 0 else images.workers
    with _unnamed_file() as (opened, file):
        np.save(opened, rows.astype(np.int32))
        opened.flush()
        threads = 1 if workers else num_cores()
        batches: Any = grain.MapDataset.source(_Batches(images.source, file, len(rows))).to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_AHEAD * threads)
        )
        if workers:
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
            batches = batches.mp_prefetch(options, _start_worker)
        for read, problem in batches:
            if problem:
                raise InputError(problem)
            yield np.array(read)  # a copy, so that the memory which it shares with a worker is free at once


@contextmanager
def _unnamed_file() -> Iterator[tuple[IO[bytes], Path]]:
    """A file for the workers, and its path; where the system can, one that is gone when this process is killed."""
    has_paths = Path("/proc/self/fd").is_dir()
    with tempfile.TemporaryFile() if has_paths else tempfile.NamedTemporaryFile() as file:
        yield file, Path(f"/proc/{os.getpid()}/fd/{file.fileno()}" if has_paths else file.name)


def _start_worker(number: int, workers: int) -> None:
    """Makes a worker live as long as the run: SIGTERM and Ctrl-C, which reach all processes, are the run's affair."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    run = multiprocessing.parent_process()
    if run is not None:
        run.join()
        os._exit(1)  # it was killed: else it would have ended this process


class _Batches:
    """A source of grain's, an element a batch; the rows are in a file, which workers map.

    Args:
        source: decodes.
        file: of rows, int [n, B].
        number: n.
    """

    def __init__(self, source: Readable, file: Path, number: int) -> None:
        self._source = source
        self._file = file
        self._number = number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, place: int) -> tuple[np.ndarray, str]:
        rows = np.load(self._file, mmap_mode="r")[place]
        try:
            with quietly():
                return self._source.read(rows), ""
        except InputError as error:  # as an exception it would lose its kind on the way
            return np.empty(0, np.uint8), str(error)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What of images is held in memory.

    Attributes:
        memory: bytes that images may take; more are streamed.
        workers: see `StreamedImages`.
    """

    memory: float = math.inf
    workers: int = 0

    def images(self, source: Readable, rows: np.ndarray, shape: tuple[int, ...]) -> Images:
        """Images of a source, read or to be streamed.

        Args:
            source: decodes them.
            rows: which ones.
            shape: H, W and C of each.
        """
        if len(rows) * math.prod(shape) <= self.memory:
            return source.read(rows)
        height, width, channels = shape
        return StreamedImages(source, np.asarray(rows), (height, width, channels), self.workers)


IN_MEMORY = Reading()
Images: TypeAlias = np.ndarray | StreamedImages


def in_memory(images: Images) -> np.ndarray:
    """The images themselves, uint8 [N, H, W, C]: few enough for memory."""
    return images.source.read(images.rows) if isinstance(images, StreamedImages) else images

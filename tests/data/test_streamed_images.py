"""Images that are read when they are needed: the same bits, in the order asked for, from this process or others."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from utilgen_jax.data.image_source import ArraySource
from utilgen_jax.data.streamed_images import Reading, StreamedImages
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.sharding import make_mesh

ROOT = Path(__file__).parents[2]
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)


@dataclasses.dataclass(frozen=True)
class Broken:
    """A source of which one image cannot be decoded."""

    def read(self, indices):
        if 3 in indices:
            raise InputError("image 3 cannot be decoded; replace it")
        return PIXELS[np.asarray(indices)]


def source() -> ArraySource:
    labels = np.arange(20, dtype=np.int32) % 2
    return ArraySource("toy", ("a", "b"), labels, tuple(map(str, range(20))), PIXELS, image_size=8, channels=3)


def streamed(**changes) -> StreamedImages:
    return dataclasses.replace(StreamedImages(source(), np.arange(20), (8, 8, 3)), **changes)


def test_what_takes_more_than_the_memory_is_streamed():
    rows, bytes_needed = np.arange(5, 15), 10 * 8 * 8 * 3
    held = Reading(bytes_needed).images(source(), rows, (8, 8, 3))
    left = Reading(bytes_needed - 1).images(source(), rows, (8, 8, 3))
    assert isinstance(held, np.ndarray) and isinstance(left, StreamedImages)
    assert left.shape == held.shape and np.array_equal(left[3], held[3])
    assert left[:4].shape == (4, 8, 8, 3) and np.array_equal(left[np.array([7, 2])][1], held[2])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_come_in_order_with_the_bits_of_images_in_memory(workers):
    places = np.random.default_rng(1).integers(0, 10, (9, 4))
    images = streamed(rows=np.arange(10, 20), workers=workers)
    for batch, expected in zip(images.batches(places), places, strict=True):
        assert np.array_equal(batch, PIXELS[10:][expected])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_broken_image_is_told_as_from_memory(workers):
    images = streamed(source=Broken(), workers=workers)
    with pytest.raises(InputError, match="^image 3 cannot be decoded; replace it$"):
        list(images.batches(np.arange(8).reshape(4, 2)))


@pytest.mark.slow
def test_sigterm_leaves_the_workers_alone_which_end_with_the_run_however_it_ends(tmp_path):
    code = """
import multiprocessing, os, signal
import numpy as np
from tests.data.test_streamed_images import streamed

if __name__ == "__main__":
    batches = streamed(workers=1).batches(np.zeros((1000, 4), int))
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    for _ in range(20):
        next(batches)
    print(worker.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "killed.py").write_text(code)
    paths = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        [sys.executable, tmp_path / "killed.py"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    worker = int(done.stdout)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert done.returncode == -signal.SIGKILL and not Path(f"/proc/{worker}").exists()


def test_a_batch_is_split_over_the_devices_that_divide_it():
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        (batch,) = streamed().batches(np.arange(2 * mesh.size)[None])
        (odd,) = streamed().batches(np.arange(2 * mesh.size + 1)[None])
    assert {shard.data.shape[0] for shard in batch.addressable_shards} == {2}
    assert odd.sharding.is_fully_replicated
    assert np.array_equal(batch, PIXELS[: 2 * mesh.size])

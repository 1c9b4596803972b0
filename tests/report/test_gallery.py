"""The gallery's index and sheets, and what counts as a near-duplicate."""

import base64
import io
from dataclasses import replace

import numpy as np
from PIL import Image

from tests.report.conftest import Elements, pool_of, real_images, real_of, run_data
from utilgen_jax.data.streamed_images import Reading, StreamedImages
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.pool.storage import PoolWriter, read_pool
from utilgen_jax.report.duplicates import near_duplicates
from utilgen_jax.report.gallery import gallery


def shown(pool=None, data=None):
    return Elements("".join(gallery(data or run_data(), pool)))


def sheet(elements, name):
    with Image.open(io.BytesIO(base64.b64decode(elements.blocks[name]))) as opened:
        return opened.format, np.asarray(opened)


def test_the_useful_images_of_a_class_come_first(tmp_path):
    weights = np.random.default_rng(0).permutation(30) / 30
    index = shown(pool_of(weights.tolist())).index
    assert index["synthetic"]["number"] == np.argsort(-weights).tolist()
    assert [index["prompts"][place] for place in index["synthetic"]["prompt"][:2]] == [
        f"prompt {number}" for number in np.argsort(-weights)[:2]
    ]
    assert [name for name, _ in index["sorts"]] == ["weight", "number"] and "seed" not in index["synthetic"]
    assert index["stats"] == ["30 synthetic, mean weight 0.48, mean difficulty 0.25", "0 synthetic"]


def test_soft_labels_tell_their_largest_probabilities_and_how_they_disagree():
    pool = pool_of([1.0, 1.0])
    soft = ((0.75, 0.25), (0.125, 0.875))
    records = tuple(replace(record, soft_label=own) for record, own in zip(pool.records, soft, strict=True))
    index = shown(replace(pool, records=records)).index
    assert index["synthetic"]["top"] == [[[0, 0.75], [1, 0.25]], [[1, 0.875], [0, 0.125]]]
    assert index["synthetic"]["disagreement"] == [0.25, 0.875]
    assert [name for name, _ in index["sorts"]] == ["disagreement", "number"]


def test_an_image_names_the_real_ones_that_it_was_made_from():
    pool = pool_of([1.0, 1.0])
    records = (replace(pool.records[0], conditioned_on=("id 1", "id 0", "id 9")), pool.records[1])
    assert shown(replace(pool, records=records)).index["synthetic"]["sources"] == [[1, 0], None]


def test_small_images_keep_their_pixels():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    found = shown(data=run_data(real_of(images, [0, 1])))
    kind, pixels = sheet(found, "real-0")
    assert kind == "PNG" and found.index["real"]["pixelated"] and pixels.shape == (80, 80)
    np.testing.assert_array_equal(pixels[:8, 8:16], images[1, ..., 0])


def test_large_images_are_shrunk_and_a_hundred_share_a_sheet():
    found = shown(pool_of(np.linspace(1, 0, 101).tolist(), side=200))
    assert not found.index["synthetic"]["pixelated"] and "synthetic-1" in found.blocks
    kind, pixels = sheet(found, "synthetic-0")
    assert kind == "JPEG" and pixels.shape == (960, 960, 3)


def test_of_many_real_images_some_of_each_class_are_kept():
    found = shown(data=run_data(real_of(np.zeros((50, 8, 8, 3), np.uint8), [0] * 45 + [1] * 5))).index["real"]
    assert found["label"] == [0] * 20 + [1] * 5 and found["count"] == [45, 5]


def test_of_a_very_large_pool_a_part_is_shown_by_its_own_numbers(monkeypatch):
    monkeypatch.setattr("utilgen_jax.report.gallery.MOST_SHOWN", 3)
    found = shown(pool_of([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert found.index["synthetic"]["number"] == [4, 2, 0] and "3 of 5 images are shown." in found.text
    assert found.index["synthetic"]["file"] == ["a/4.png", "a/2.png", "a/0.png"]
    assert found.index["stats"][0].startswith("5 synthetic")


def test_images_that_memory_does_not_hold_are_shown_too(tmp_path):
    writer = PoolWriter(tmp_path, ("zero", "one"))
    images = np.random.default_rng(0).uniform(-1, 1, (4, 200, 200, 3))
    writer.append(images, [PoolRecord(label=place % 2, weight=1 - place / 8) for place in range(4)])
    streamed, held = (read_pool(tmp_path, reading=Reading(memory)) for memory in (1, 2**30))
    assert isinstance(streamed.images, StreamedImages) and isinstance(held.images, np.ndarray)
    assert gallery(run_data(), streamed) == gallery(run_data(), held)


def test_near_duplicates_are_of_the_same_class_and_come_later():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 32, 32, 3), np.uint8)
    images[3] = np.clip(images[1].astype(int) + rng.integers(-5, 6, images[1].shape), 0, 255)
    images[4] = images[5] = images[1]
    labels = np.array([0, 0, 0, 0, 1, 0])
    assert near_duplicates(images, labels, images, labels, is_same=True).tolist() == [-1, -1, -1, 1, -1, 1]
    originals = images[[0, 4]][..., :1].repeat(3, -1)
    assert near_duplicates(images, labels, originals, np.array([0, 1]), is_same=False).tolist() == [-1] * 6
    assert near_duplicates(images, labels, images[[0, 4]], np.array([0, 1]), is_same=False)[[0, 4]].tolist() == [0, 1]


def test_near_duplicates_are_counted_and_marked():
    pool, real = pool_of([0.5, 0.75, 0.25]), real_images()
    pool.images[1], pool.images[2] = pool.images[0], 0  # the real images are black
    found = shown(pool, run_data(real))
    assert "marked: 1 of an earlier image of the class, 1 of a real image, among 3." in found.text
    assert found.index["synthetic"]["number"] == [1, 0, 2]
    assert found.index["synthetic"]["same"] == [0, None, None]
    assert found.index["synthetic"]["copy"] == [None, None, 0]

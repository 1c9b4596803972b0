"""The caption cache: an interrupted run resumes, captions no image twice and loses none."""

import json

import numpy as np
import pytest

from utilgen_jax.data.splits import LabelledImages
from utilgen_jax.errors import InputError
from utilgen_jax.pretraining import glyphs
from utilgen_jax.prompts.captions import (
    caption_images,
    caption_labelled_images,
    check_captions,
    make_captioner,
    read_captions,
)
from utilgen_jax.prompts.glyph_vocabulary import DIGIT_NAMES

IMAGES = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
IDS = tuple(f"train/{row}" for row in range(5))
LABELS = np.array([0, 1, 0, 1, 0])


class Recorder:
    """A captioner that names the brightness of images, and is interrupted after `last` images."""

    def __init__(self, last=100):
        self.last = last
        self.batches = []

    def __call__(self, images, class_names):
        self.batches.append([int(image.max()) for image in images])
        if sum(map(len, self.batches)) > self.last:
            raise KeyboardInterrupt
        return [f" grey {level}\n{name}. " for level, name in zip(self.batches[-1], class_names, strict=True)]


def run(captioner, cache_file, seen=None, ids=IDS):
    on_images = (lambda count: None) if seen is None else seen.append
    labelled = LabelledImages(IMAGES, LABELS, ids, ("cat", "dog"))
    return caption_images(captioner, labelled, cache_file, on_images, batch_size=2)


EXPECTED = ["grey 0 cat", "grey 1 dog", "grey 2 cat", "grey 3 dog", "grey 4 cat"]


def test_captions_come_in_batches_and_are_cached(tmp_path):
    cache_file, captioner, seen = tmp_path / "new" / "captions.jsonl", Recorder(), []
    assert run(captioner, cache_file, seen) == EXPECTED
    assert captioner.batches == [[0, 1], [2, 3], [4]] and seen == [2, 4, 5]
    assert run(captioner, cache_file) == EXPECTED and len(captioner.batches) == 3
    assert read_captions(cache_file, IDS[::-1]) == EXPECTED[::-1]


def test_an_interrupted_run_resumes(tmp_path):
    cache_file = tmp_path / "captions.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(Recorder(last=2), cache_file)
    with open(cache_file, "a") as cache:
        cache.write('{"id": "train/2", "capt')
    captioner, seen = Recorder(), []
    assert run(captioner, cache_file, seen) == EXPECTED
    assert captioner.batches == [[2, 3], [4]] and seen == [2, 4, 5]
    assert [json.loads(line)["id"] for line in cache_file.read_text().splitlines()] == list(IDS)


def test_images_are_identified_by_their_ids(tmp_path):
    cache_file, captioner = tmp_path / "captions.jsonl", Recorder()
    run(captioner, cache_file)
    assert run(captioner, cache_file, ids=(*IDS[:3], "train/new", IDS[4])) == EXPECTED
    assert captioner.batches[3:] == [[3]]


def test_a_damaged_cache_is_named(tmp_path):
    cache_file = tmp_path / "captions.jsonl"
    cache_file.write_text('{"id": "train/0", "caption": "a"}\nhello\n')
    with pytest.raises(InputError, match=r"captions.jsonl, line 2: is not JSON.*remove the file"):
        run(Recorder(), cache_file)


def test_images_are_captioned_by_name_and_by_file(tmp_path):
    images, _, labels = glyphs.corpus(5, seed=0)
    labelled = LabelledImages(images[..., None], labels, IDS, DIGIT_NAMES)
    cache_file, file = tmp_path / "captions.jsonl", tmp_path / "mine.jsonl"
    captions = caption_labelled_images("glyphs", labelled, cache_file, lambda count: None)
    assert captions == make_captioner("glyphs")(labelled.images, DIGIT_NAMES[:5]) and len(set(captions)) > 2
    # Cached captions need no captioner; this one does not exist.
    assert caption_labelled_images("no/such-model", labelled, cache_file, lambda count: None) == captions
    file.write_text("".join(f'{{"id": "{name}", "caption": "of {name}"}}\n' for name in IDS))
    assert caption_labelled_images(str(file), labelled, cache_file, lambda count: None) == [
        f"of {name}" for name in IDS
    ]


def test_captions_are_found_by_id_or_file_name(tmp_path):
    file = tmp_path / "mine.jsonl"
    lines = [
        '{"file_name": "train/b.jpg", "caption": "Zwei  Vögel\\nim Baum.", "label": 3}',
        "",
        '{"id": "train/a.jpg", "caption": "a \\"red\\" bird"}',
        '{"id": "train/other.jpg", "caption": ""}',
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    assert read_captions(file, ["train/a.jpg", "train/b.jpg"]) == ['a "red" bird', "Zwei Vögel im Baum"]


def test_all_problems_of_a_caption_file_are_reported_at_once(tmp_path):
    file = tmp_path / "mine.jsonl"
    lines = [
        '{"id": "a", "caption": "one"}',
        "hello",
        '{"caption": "two"}',
        '{"id": "b"}',
        '["c"]',
        '{"id": "a", "caption": "another"}',
    ]
    file.write_bytes("\n".join(lines).encode() + b'\n{"id": "\xff", "caption": "x"}\n')
    with pytest.raises(InputError) as caught:
        read_captions(file, ["a", "b", "c"])
    lines = str(caught.value).splitlines()
    starts = [f"{file}, line {number}: " for number in (2, 3, 4, 5, 6, 7)] + [f"{file}: no caption of the image"] * 2
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * 8
    assert "'b'" in lines[-2] and "'c'" in lines[-1] and "'a'" in lines[4]
    with pytest.raises(InputError) as caught:
        read_captions(file, [f"new/{row}" for row in range(50)])
    assert len(str(caught.value).splitlines()) == 11 and "and 46 more problems" in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        read_captions(tmp_path / "none.jsonl", ["a"])


def test_what_cannot_be_captioned_is_told_beforehand(tmp_path):
    cache, file = tmp_path / "cache.jsonl", tmp_path / "mine.jsonl"
    file.write_text('{"id": "one", "caption": "red"}\n')
    for source in ("glyphs", "tones"):
        check_captions(source, ["one", "two"], cache)
    check_captions(str(file), ["one"], cache)
    with pytest.raises(InputError, match="no caption of the image 'two'"):
        check_captions(str(file), ["one", "two"], cache)
    with pytest.raises(InputError, match=r"nobody/nothing' cannot be loaded: .*hf download.*or a file of captions"):
        check_captions("nobody/nothing", ["one"], cache)
    # Where all images have been captioned before, no captioner is needed.
    cache.write_text(file.read_text())
    check_captions("nobody/nothing", ["one"], cache)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["cache.jsonl", "mine.jsonl"]

"""An image domain: its training images and captions, disjoint from the few-shot images."""

import numpy as np
import pytest

from utilgen_jax import checkpoints
from utilgen_jax.config.command_line import read_config
from utilgen_jax.config.validation import with_fields
from utilgen_jax.data.sources import load_source
from utilgen_jax.data.splits import few_shot
from utilgen_jax.errors import InputError
from utilgen_jax.pretraining.images import CAPTIONS_PER_IMAGE, image_domain
from utilgen_jax.pretraining.tokenizer import write_tokenizer
from utilgen_jax.prompts.captions.tones import caption_tones

CONFIG = "configs/pneumoniamnist.py"
CLASSES = ("normal", "pneumonia")


@pytest.fixture
def npz(tmp_path):
    """Twelve images of one class and eight of the other; the grey level identifies each image."""
    images = np.arange(20, dtype=np.uint8)[:, None, None] * np.full((1, 28, 28), 10, np.uint8)
    labels = np.arange(20) >= 12
    np.savez(
        tmp_path / "lungs.npz", x_train=images, y_train=labels.astype(int), x_test=images, y_test=labels.astype(int)
    )
    return tmp_path / "lungs.npz"


@pytest.fixture
def config(npz):
    return read_config(CONFIG, [("data.path", str(npz)), ("data.shots", "2")])


def test_a_share_of_each_class_is_captioned_by_class_and_tones(config, tmp_path):
    domain, taught = image_domain(config, share=0.5, seed=1)
    assert len(taught) == len(set(taught)) == 10
    assert sum(each < "train/00012" for each in taught) == 6
    assert domain.prompts == {name: f"a chest X-ray, {name}" for name in CLASSES}
    write_tokenizer(tmp_path / "tokenizer", domain.words)
    tokenizer = checkpoints.load_tokenizer(tmp_path / "tokenizer")
    corpus = domain.make_corpus(tokenizer)
    assert len(corpus.captions) == CAPTIONS_PER_IMAGE * 10 and corpus.images.shape == (
        CAPTIONS_PER_IMAGE * 10,
        32,
        32,
        3,
    )
    for image, caption in zip(corpus.images, corpus.captions, strict=True):
        level = int(image.max()) // 10
        assert f"train/{level:05d}" in taught
        prompt, *values = caption.split(", ")[1:]
        assert prompt == CLASSES[level >= 12]
        assert set(values) <= set(caption_tones(image[None], [""])[0].split(", "))
    assert len(set(corpus.captions)) > 4
    # Each word is one token, with one at the start and one at the end.
    longest = max(corpus.captions, key=len)
    assert len(tokenizer(longest).input_ids) == len(longest.replace(",", " ,").replace("-", " - ").split()) + 2


def test_training_images_are_no_few_shot_images(config, tmp_path):
    _, taught = image_domain(config, share=0.5, seed=1)
    (tmp_path / "taught.txt").write_text("\n".join(taught))
    config = with_fields(config, {"data.exclude": str(tmp_path / "taught.txt")})
    sources = load_source(config.data)
    assert set(sources.train.ids).isdisjoint(taught) and len(sources.train.ids) == 10
    assert len(sources.test.ids) == 20
    split = few_shot(sources, 4, seed=0)
    assert set(split.real.ids).isdisjoint(taught)
    for label, image in zip(split.real.labels, split.real.images, strict=True):
        assert label == (int(image.max()) // 10 >= 12)


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_share_that_leaves_nothing_is_refused(config, share):
    with pytest.raises(InputError, match="--share"):
        image_domain(config, share, seed=0)


@pytest.mark.parametrize(("text", "message"), [("train/99999\n", "train/99999"), (None, "cannot be read")])
def test_a_wrong_list_of_images_is_refused(config, tmp_path, text, message):
    if text:
        (tmp_path / "taught.txt").write_text(text)
    config = with_fields(config, {"data.exclude": str(tmp_path / "taught.txt")})
    with pytest.raises(InputError, match=message):
        load_source(config.data)

"""What the generator and the captioner see of a labelled image is its original, not what the classifier sees of it."""

import numpy as np
import pytest
from PIL import Image

from utilgen_jax.data.images import to_uint8
from utilgen_jax.experiment import adapters, pools
from utilgen_jax.methods import METHODS
from utilgen_jax.prompts.captions import captioning

SIDE = 512
CHECKERBOARD = (np.indices((SIDE, SIDE)).sum(0) % 2 * 255).astype(np.uint8)


@pytest.fixture
def checkerboards(tmp_path):
    """A folder with two classes of two shots, squares of one pixel; in the smaller ones there is nothing but grey."""
    for label, split, number in [(k, split, n) for k in "ab" for split in ("train", "test") for n in range(2)]:
        folder = tmp_path / "images" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(CHECKERBOARD if label == "a" else 255 - CHECKERBOARD).save(folder / f"{number}.png")
    return tmp_path / "images"


class SeenError(Exception):
    """Ends a method's steps where its generator sees what it should."""


def is_sharp(images) -> bool:
    images = to_uint8(np.asarray(images)) if np.asarray(images).dtype != np.uint8 else images
    boards = [np.repeat(board[..., None], 3, axis=-1) for board in (CHECKERBOARD, 255 - CHECKERBOARD)]
    return all(any((image == board).all() for board in boards) for image in images)


# Methods whose generator or captioner is shown the shots; `joint` where it starts with difficulty's adapter.
SHOWN = ("captions", "augcond", "datadream", "difficulty", "utilgen", "joint")


def test_the_generators_of_other_methods_are_shown_no_shots():
    with_pool = {name for name, method in METHODS.items() if method.pool and not method.only_in_ablations}
    # The last one's images are led by a classifier, which sees what classifiers see.
    assert with_pool - set(SHOWN) == {"vanilla", "saflex", "deliberate_practice"}
    assert not METHODS["vanilla"].pool.uses_shots and METHODS["saflex"].pool == METHODS["vanilla"].pool


@pytest.mark.parametrize("name", SHOWN)
def test_every_methods_generator_sees_the_original(name, make_experiment, checkerboards, monkeypatch, generated):
    settings = {"source": "imagefolder", "path": checkerboards, "image_size": 8, "shots": 2}
    settings = {f"data__{field}": value for field, value in settings.items()} | {"joint__start": "difficulty"}
    experiment = make_experiment(name, generator__image_size=SIDE, prompts__captions="glyphs", **settings)
    assert np.ptp(experiment.split.real.images) < 3  # grey

    def look(images, *arguments):
        # Prior images are of the generator itself.
        if np.shape(images)[1] == SIDE:
            assert is_sharp(images)
            raise SeenError
        return np.zeros((len(images), 4, 4, 4), np.float32)

    monkeypatch.setattr(adapters, "encode_to_latents", lambda sd, images: look(images))
    monkeypatch.setattr(pools, "condition_on_images", lambda sd, condition, strategy, first, *rest: look(first))
    monkeypatch.setattr(captioning, "make_captioner", lambda source: look)
    monkeypatch.setattr(adapters, "initial_embeds", lambda sd, names: np.zeros((len(names), 1)))
    experiment.adapters.__dict__["sd"] = experiment.adapters.__dict__["sd_with_tokens"] = "the checkpoint"
    if name == "augcond":
        records = experiment.pools.plan(experiment.pools.class_prompts())
        with pytest.raises(SeenError):
            experiment.pools.mixed_shots(records, "cutmix")[1]("by text", np.arange(4))
        return
    with pytest.raises(SeenError):
        METHODS[name].pool.build(experiment)

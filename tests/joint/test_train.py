"""The joint update, with a generator of two matrices: which option of what is asked for is useful, and the LoRA."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generator import toy
from tests.toy_images import CONFIG, NUM_CLASSES, TinyClassifier, draw_set
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.data.splits import cross_fit_folds
from utilgen_jax.joint.train import JointConfig, Prompts, SamplingConfig, train_jointly

JOINT = JointConfig(
    steps=160,
    learning_rate=0.05,
    weight_decay=1e-3,
    generated=4,
    lora_rank=2,
    lora_learning_rate=0.01,
    sampler_steps=2,
    differentiable_steps=1,
)
GENERATING = SamplingConfig(
    guidance_scale=2.0,
    scheduler="ddim",
    latent_shape=(toy.SIDE, toy.SIDE, toy.CHANNELS),
    image_size=8,
    channels=1,
)


def train(levels, config=JOINT, seed=0):
    real, _ = draw_set(6, seed=10)
    pool, is_wrong = draw_set(40, seed=20, wrong=0.5)
    pool = dataclasses.replace(pool, attributes=jax.nn.one_hot(jnp.asarray(is_wrong, int), 2))
    generator, params = toy.make_toy()
    prompts = Prompts(
        embeds=toy.normal(1, NUM_CLASSES, toy.WORDS, toy.WIDTH),
        negative=jnp.zeros((1, toy.WORDS, toy.WIDTH)),
        of_images=jnp.asarray(pool.labels),
    )
    classifier_config = dataclasses.replace(CONFIG, batch_size=32, synthetic_fraction=0.5, learning_rate=0.02)
    seen = []
    logits, adapter = train_jointly(
        Classifier(TinyClassifier()),
        classifier_config,
        config,
        GENERATING,
        levels,
        generator,
        params,
        NUM_CLASSES,
        real,
        pool,
        prompts,
        cross_fit_folds(real.labels, 2, 0),
        jax.random.key(seed),
        lambda step, metrics: seen.append((step, float(metrics.validation_loss))),
    )
    return logits, adapter, seen


@pytest.mark.slow
def test_what_makes_useless_images_is_asked_for_less():
    logits, adapter, seen = train(("phrases",))
    assert logits[1] < logits[0] - 0.3
    assert adapter.unet_lora is None
    assert [step for step, _ in seen] == list(range(1, 161))
    assert np.mean([loss for _, loss in seen[-20:]]) < np.mean([loss for _, loss in seen[:20]])


@pytest.mark.slow
def test_the_adapter_over_the_unet_learns_in_the_same_step():
    config = dataclasses.replace(JOINT, steps=6)
    logits, adapter, _ = train(("phrases", "lora"), config)
    assert np.abs(logits).max() > 0
    ups = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(adapter.unet_lora) if "up" in str(path[-1])]
    # They start at zero; what moves them is the validation loss, through classifier, decoder and sampler.
    assert ups and all(np.abs(up).max() > 1e-4 for up in ups)
    logits, adapter, _ = train(("lora",), config)
    assert not logits.any() and adapter.unet_lora is not None

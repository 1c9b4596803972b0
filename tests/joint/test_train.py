"""The bilevel update at work, with a generator of two matrices: which attribute is useful, and the LoRA."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generator import toy
from tests.toy_images import CONFIG, NUM_CLASSES, TinyClassifier, draw_set
from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.data.splits import cross_fit_folds
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.joint.config import JointConfig
from utilgen_jax.joint.train import JointData, JointProgram, train_jointly

JOINT = JointConfig(
    steps=160,
    learning_rate=0.05,
    weight_decay=1e-3,
    num_generated=4,
    lora_rank=2,
    lora_learning_rate=0.01,
    sampler_steps=2,
    differentiable_steps=1,
)
PROGRAM = JointProgram(
    config=dataclasses.replace(CONFIG, batch_size=32, synthetic_fraction=0.5, learning_rate=0.02),
    joint=JOINT,
    sampling=SamplingConfig(guidance_scale=2.0, scheduler="ddim"),
    classifier_input=ClassifierInput(NUM_CLASSES, image_size=8, channels=1),
    latent_shape=(toy.SIDE, toy.SIDE, toy.CHANNELS),
    num_attributes=2,
)


def train(seed=0, **changes):
    real, _ = draw_set(6, seed=10)
    pool, is_wrong = draw_set(40, seed=20, wrong=0.5)
    data = JointData(
        real=real,
        # The second attribute value is that of the images with a wrong label.
        pool=dataclasses.replace(pool, attributes=jax.nn.one_hot(jnp.asarray(is_wrong, int), 2)),
        prompt_embeds=toy.normal(1, NUM_CLASSES, toy.WORDS, toy.WIDTH),
        negative_prompt_embeds=jnp.zeros((1, toy.WORDS, toy.WIDTH)),
        prompt_of_image=jnp.asarray(pool.labels),
    )
    seen = []
    logits, adapter = train_jointly(
        Classifier(TinyClassifier()),
        dataclasses.replace(PROGRAM, **changes),
        toy.make_toy(),
        data,
        cross_fit_folds(np.asarray(real.labels), 2, 0),
        jax.random.key(seed),
        lambda step, metrics: seen.append((step, float(metrics.validation_loss))),
    )
    return logits, adapter, seen


@pytest.mark.slow
def test_the_attribute_of_useless_images_becomes_less_probable():
    logits, adapter, seen = train(train_lora=False)
    assert logits[1] < logits[0] - 0.3
    assert adapter.unet_lora is None
    assert [step for step, _ in seen] == list(range(1, 161))
    assert np.mean([loss for _, loss in seen[-20:]]) < np.mean([loss for _, loss in seen[:20]])


@pytest.mark.slow
def test_the_lora_learns_in_the_same_step():
    joint = dataclasses.replace(JOINT, steps=6)
    logits, adapter, _ = train(joint=joint)
    assert np.abs(logits).max() > 0
    ups = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(adapter.unet_lora) if "up" in str(path[-1])]
    # They start at zero; what moves them is the validation loss, through classifier, decoder and sampler.
    assert ups and all(np.abs(up).max() > 1e-4 for up in ups)
    logits, adapter, _ = train(joint=joint, train_attributes=False)
    assert not logits.any() and adapter.unet_lora is not None

"""The joint update's parts, small: tiny images, a classifier of two layers and a generator of two matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from tests.generator import toy
from tests.toy_images import CONFIG, NUM_CLASSES, VALUATION, TinyClassifier, draw_set
from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.generator.config import SamplingConfig
from utilgen_jax.joint.config import JointConfig
from utilgen_jax.joint.program import JointData, JointProgram
from utilgen_jax.joint.regularizers import make_anchor_set
from utilgen_jax.joint.step import first_inputs
from utilgen_jax.valuation.cross_fit import init_state

JOINT = JointConfig(
    plain_steps=2,
    inner_learning_rate=1e-3,
    steps=6,
    num_generated=8,
    lora_rank=2,
    lora_learning_rate=0.01,
    encoder_learning_rate=0.01,
    difficulty_learning_rate=0.1,
    sampler_steps=2,
)
PROGRAM = JointProgram(
    config=dataclasses.replace(CONFIG, batch_size=16, synthetic_fraction=0.5),
    valuation=VALUATION,
    joint=JOINT,
    sampling=SamplingConfig(guidance_scale=2.0, scheduler="ddim"),
    classifier_input=ClassifierInput(NUM_CLASSES, image_size=8, channels=1),
    latent_shape=(toy.SIDE, toy.SIDE, toy.CHANNELS),
    num_attributes=2,
)
CLASSIFIER = Classifier(TinyClassifier())


def make_examples(wrong=0.5):
    """Real images, and a pool."""
    real, _ = draw_set(6, seed=10)
    pool, is_wrong = draw_set(40, seed=20, wrong=wrong)
    known = {"attributes": jnp.zeros((len(real), 2)), "difficulty": jnp.zeros(len(real))}
    # The second attribute is that of the images with a wrong label.
    attributes = jax.nn.one_hot(jnp.asarray(is_wrong, int), 2)
    pool = dataclasses.replace(pool, attributes=attributes, difficulty=jnp.full(len(pool), 0.5))
    return dataclasses.replace(real, **known), pool


def make_data():
    latents, labels = toy.normal(2, 40, toy.SIDE, toy.SIDE, toy.CHANNELS), np.asarray(make_examples()[1].labels)
    return JointData(
        anchors=make_anchor_set(
            toy.make_toy(),
            lambda rows: latents[rows],
            labels,
            toy.normal(1, NUM_CLASSES, toy.WORDS, toy.WIDTH),
            (24, 8),
            jax.random.key(7),
        ),
        prompt_embeds=toy.normal(3, 2 * NUM_CLASSES, toy.WORDS, toy.WIDTH),
        prompt_labels=jnp.arange(2 * NUM_CLASSES, dtype=jnp.int32) % NUM_CLASSES,
        prompt_attributes=jax.nn.one_hot(jnp.arange(2 * NUM_CLASSES) // NUM_CLASSES, 2),
        negative_prompt_embeds=jnp.zeros((1, toy.WORDS, toy.WIDTH)),
    )


def make_state(program, sd, data, images, key, disturb=lambda outer: outer):
    """The bilevel state before the first update, of the dtype of the images."""
    outer = disturb(program.init_outer(sd.params, first_inputs(program, sd, data), None, key))
    params = CLASSIFIER.module.init(key, images[:1])["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(images.dtype), params)
    return init_state(params, program.optimizer, outer, program.outer_optimizer, JOINT.ema_decay)

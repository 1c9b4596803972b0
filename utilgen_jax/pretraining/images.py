"""A domain from a data set: a share of its training images, captioned by class and tones.

The generator is thus pretrained on other images of the same kind, as Stable Diffusion is. The ids of its training
images are listed, so that experiments can exclude them (`config.data.exclude`).
"""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from typing import Any

import numpy as np

from utilgen_jax import checkpoints
from utilgen_jax.config.schema import Config
from utilgen_jax.data.image_source import ImageSource
from utilgen_jax.data.sources import load_source
from utilgen_jax.data.splits import stratified_order
from utilgen_jax.errors import InputError
from utilgen_jax.pretraining.corpus import Corpus
from utilgen_jax.pretraining.domain import Domain
from utilgen_jax.pretraining.sizes import IMAGE_SIZE
from utilgen_jax.prompts.captions.tones import BANDS, caption_tones
from utilgen_jax.prompts.glyph_vocabulary import KEEP_ATTRIBUTE, TEMPLATE_ONLY
from utilgen_jax.prompts.templates import class_prompts

CAPTIONS_PER_IMAGE = 4
# How CLIP's tokenizer splits a text: words, single digits, punctuation.
_PIECES = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_")


def image_domain(config: Config, share: float, seed: int) -> tuple[Domain, list[str]]:
    """Makes a domain from a config's data set.

    Args:
        config: config with the data set and the prompt.
        share: fraction of the data set's training images to pretrain on, in (0, 1).
        seed: random seed of the choice.

    Returns:
        The domain, and the ids of the chosen images.

    Raises:
        InputError: the data cannot be read, or the share leaves a class without images on either side.
    """
    train = load_source(dataclasses.replace(config.data, image_size=IMAGE_SIZE, channels=3)).train
    chosen = np.sort(stratified_order(train.labels, seed)[: int(share * len(train.labels))])
    classes = range(len(train.class_names))
    if not all(0 < np.sum(train.labels[chosen] == each) < np.sum(train.labels == each) for each in classes):
        raise InputError(f"--share={share}: each class of {train.name} needs images to use and images to leave out")
    prompts = class_prompts(config.prompts.template, train.class_names)
    values = [value for bands in BANDS.values() for value, _ in bands]
    words = [piece for text in [*prompts, ",", *values] for piece in _PIECES.findall(text.lower())]
    domain = Domain(
        words=tuple(dict.fromkeys(words)),
        make_corpus=partial(_make_corpus, train, chosen, prompts, seed),
        prompts=dict(zip(train.class_names, prompts, strict=True)),
        endings=("", *values),
    )
    return domain, [train.ids[int(place)] for place in chosen]


def _make_corpus(source: ImageSource, chosen: np.ndarray, prompts: list[str], seed: int, tokenizer: Any) -> Corpus:
    images, labels = source.read(chosen), source.labels[chosen]
    rng = np.random.default_rng(seed)
    captions = []
    for label, tones in zip(labels, caption_tones(images, [""] * len(images)), strict=True):
        for _ in range(CAPTIONS_PER_IMAGE):
            kept = rng.random(len(BANDS)) < KEEP_ATTRIBUTE * (rng.random() >= TEMPLATE_ONLY)
            values = [value for value, is_kept in zip(tones.split(", "), kept, strict=True) if is_kept]
            captions.append(", ".join([prompts[label], *values]))
    return Corpus.of(np.repeat(images, CAPTIONS_PER_IMAGE, axis=0), captions, partial(checkpoints.tokenize, tokenizer))

"""A domain of one's own images: a share of a data set's train images, with captions by class and by tones.

The generator has then seen other images of the same kind, as Stable Diffusion has seen flowers and birds. Those that
it was taught are listed, so that no shot is taken from them (`config.data.exclude`).
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
from utilgen_jax.pretraining.vocabulary import KEEP_PHRASE, TEMPLATE_ONLY
from utilgen_jax.prompts.captions.tones import BANDS, caption_tones
from utilgen_jax.prompts.templates import class_prompts

CAPTIONS_EACH = 4  # of an image, of different phrases
# As CLIP's tokenizer parts a text before it looks for tokens: words, single figures, marks.
_PIECES = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_")


def image_domain(config: Config, share: float, seed: int) -> tuple[Domain, list[str]]:
    """A domain of a config's data set.

    Args:
        config: says the data set and the prompt.
        share: of the train images that are taught, in (0, 1); each class keeps at least one for itself.
        seed: chooses them.

    Returns:
        The domain, and the ids of the images that are taught.

    Raises:
        InputError: the data cannot be had, or the share leaves nothing.
    """
    train = load_source(dataclasses.replace(config.data, image_size=IMAGE_SIZE, channels=3)).train
    taught = np.sort(stratified_order(train.labels, seed)[: int(share * len(train.labels))])
    classes = range(len(train.class_names))
    if not all(0 < np.sum(train.labels[taught] == each) < np.sum(train.labels == each) for each in classes):
        raise InputError(f"--share={share}: each class of {train.name} needs images both to teach and to leave")
    prompts = class_prompts(config.prompts.template, train.class_names)
    phrases = [phrase for bands in BANDS.values() for phrase, _ in bands]
    words = [piece for text in [*prompts, ",", *phrases] for piece in _PIECES.findall(text.lower())]
    domain = Domain(
        words=tuple(dict.fromkeys(words)),
        make_corpus=partial(_make_corpus, train, taught, prompts, seed),
        prompts=dict(zip(train.class_names, prompts, strict=True)),
        endings=("", *phrases),
    )
    return domain, [train.ids[int(place)] for place in taught]


def _make_corpus(source: ImageSource, taught: np.ndarray, prompts: list[str], seed: int, tokenizer: Any) -> Corpus:
    images, labels = source.read(taught), source.labels[taught]
    rng = np.random.default_rng(seed)
    captions = []
    for label, said in zip(labels, caption_tones(images, [""] * len(images)), strict=True):
        for _ in range(CAPTIONS_EACH):
            kept = rng.random(len(BANDS)) < KEEP_PHRASE * (rng.random() >= TEMPLATE_ONLY)
            phrases = [phrase for phrase, is_kept in zip(said.split(", "), kept, strict=True) if is_kept]
            captions.append(", ".join([prompts[label], *phrases]))
    return Corpus.of(np.repeat(images, CAPTIONS_EACH, axis=0), captions, partial(checkpoints.tokenize, tokenizer))

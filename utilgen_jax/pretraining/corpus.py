"""The training corpus in memory: images and the token ids of their captions, in batches by step number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from utilgen_jax import checkpoints
from utilgen_jax.pretraining import glyphs
from utilgen_jax.pretraining.fit import batch_indices
from utilgen_jax.report.progress import Progress

_CHUNK = 1000  # images between two updates of the progress line


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Images and their captions.

    Attributes:
        images: uint8 [N, 32, 32] grey, or [N, 32, 32, 3] RGB.
        input_ids: token ids of the captions, int32 [N, T].
        captions: N captions.
        empty_ids: token ids of the empty prompt, int32 [T].
    """

    images: np.ndarray
    input_ids: np.ndarray
    captions: list[str]
    empty_ids: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray, captions: list[str], tokenize: Callable[[list[str]], Any]) -> Corpus:
        """Builds a corpus from images and captions; tokenises each distinct caption once."""
        distinct = sorted(set(captions))
        ids = dict(zip(distinct, tokenize(distinct), strict=True))
        return cls(
            images=images,
            input_ids=np.stack([ids[caption] for caption in captions]).astype(np.int32),
            captions=captions,
            empty_ids=np.asarray(tokenize([""]))[0].astype(np.int32),
        )

    def float_images(self, indices: np.ndarray) -> np.ndarray:
        """Returns images in the generator's format: float32 [B, 32, 32, 3] in [-1, 1]."""
        chosen = self.images[indices].astype(np.float32) / 127.5 - 1.0
        return chosen if chosen.ndim == 4 else np.repeat(chosen[..., None], 3, axis=-1)

    def batch(self, seed: int, step: int, batch_size: int) -> dict[str, Any]:
        """Returns the images and token ids of a step; they depend on seed and step only."""
        indices = batch_indices(seed, step, len(self.images), batch_size)
        return {"images": self.float_images(indices), "input_ids": self.input_ids[indices]}


def make_corpus(size: int, seed: int, tokenizer: Any) -> Corpus:
    """Renders `size` glyphs and tokenises their captions; deterministic in the seed."""
    images, captions = [], []
    with Progress("pretraining: corpus", size, unit="image") as progress:
        for start in range(0, size, _CHUNK):
            some_images, some_captions, _ = glyphs.corpus(min(_CHUNK, size - start), seed, start)
            images.append(some_images)
            captions += some_captions
            progress.update(len(captions))
    return Corpus.of(np.concatenate(images), captions, partial(checkpoints.tokenize, tokenizer))

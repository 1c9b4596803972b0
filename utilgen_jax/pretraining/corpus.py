"""The training corpus in memory: images, their captions' token ids, and batches by step number."""

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
    """Images and what is said of them.

    Attributes:
        images: uint8 [N, 32, 32], or [N, 32, 32, 3] in colours.
        input_ids: int32 [N, T], tokens of the captions.
        captions: N strings.
        empty_ids: int32 [T], tokens of the empty prompt.
    """

    images: np.ndarray
    input_ids: np.ndarray
    captions: list[str]
    empty_ids: np.ndarray

    @classmethod
    def of(cls, images: np.ndarray, captions: list[str], tokenize: Callable[[list[str]], Any]) -> Corpus:
        """Images and their captions, each different one of which is tokenised once."""
        distinct = sorted(set(captions))
        ids = dict(zip(distinct, tokenize(distinct), strict=True))
        return cls(
            images=images,
            input_ids=np.stack([ids[caption] for caption in captions]).astype(np.int32),
            captions=captions,
            empty_ids=np.asarray(tokenize([""]))[0].astype(np.int32),
        )

    def float_images(self, indices: np.ndarray) -> np.ndarray:
        """The images as a generator sees them: float32 [B, 32, 32, 3] in [-1, 1]."""
        chosen = self.images[indices].astype(np.float32) / 127.5 - 1.0
        return chosen if chosen.ndim == 4 else np.repeat(chosen[..., None], 3, axis=-1)

    def batch(self, seed: int, step: int, batch_size: int) -> dict[str, Any]:
        """One step's images and token ids, chosen by seed and step alone."""
        indices = batch_indices(seed, step, len(self.images), batch_size)
        return {"images": self.float_images(indices), "input_ids": self.input_ids[indices]}


def make_corpus(size: int, seed: int, tokenizer: Any) -> Corpus:
    """Renders `size` glyphs and tokenises their captions; the same seed gives the same corpus."""
    images, captions = [], []
    with Progress("foundation: corpus", size, unit="image") as progress:
        for start in range(0, size, _CHUNK):
            some_images, some_captions, _ = glyphs.corpus(min(_CHUNK, size - start), seed, start)
            images.append(some_images)
            captions += some_captions
            progress.update(len(captions))
    return Corpus.of(np.concatenate(images), captions, partial(checkpoints.tokenize, tokenizer))

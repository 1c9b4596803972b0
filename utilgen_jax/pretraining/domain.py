"""A domain to pretrain on: its vocabulary, its corpus and the prompts of its gallery."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from utilgen_jax.pretraining import sizes
from utilgen_jax.pretraining.corpus import Corpus, make_corpus
from utilgen_jax.prompts import glyph_vocabulary


@dataclasses.dataclass(frozen=True)
class Domain:
    """A domain to pretrain a small Stable Diffusion on.

    Attributes:
        words: vocabulary; each word becomes a token.
        make_corpus: tokenizer -> corpus.
        prompts: prompts of the gallery's columns, by title.
        endings: attributes appended to the prompts in the gallery's rows.
    """

    words: tuple[str, ...]
    make_corpus: Callable[[Any], Corpus]
    prompts: dict[str, str]
    endings: tuple[str, ...]


GLYPH_ENDINGS = (
    "",
    "thin",
    "bold",
    "leaning left",
    "leaning right",
    "narrow",
    "wide",
    "small",
    "to the right",
    "grainy",
    "blurred",
    "bold, leaning right, serif",
)


def glyph_domain(seed: int, shrink: int) -> Domain:
    """Returns the domain of printed digits; `shrink` divides the size of the corpus."""
    size = max(sizes.CORPUS_SIZE // shrink, 1000)
    return Domain(
        words=glyph_vocabulary.vocabulary_words(),
        make_corpus=lambda tokenizer: make_corpus(size, seed, tokenizer),
        prompts={name: glyph_vocabulary.class_prompt(digit) for digit, name in enumerate(glyph_vocabulary.DIGIT_NAMES)},
        endings=GLYPH_ENDINGS,
    )

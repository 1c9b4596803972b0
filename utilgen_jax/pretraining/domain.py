"""What a checkpoint is made from: the words it knows, the corpus it learns, and what its gallery shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from utilgen_jax.pretraining import sizes, vocabulary
from utilgen_jax.pretraining.corpus import Corpus, make_corpus


@dataclasses.dataclass(frozen=True)
class Domain:
    """A domain that a small Stable Diffusion can be taught.

    Attributes:
        words: each becomes one token.
        make_corpus: tokenizer -> images and captions.
        prompts: of the gallery's columns, by title.
        endings: what is said behind the prompts in the gallery's rows.
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
    """Printed digits; `shrink` divides the corpus."""
    size = max(sizes.CORPUS_SIZE // shrink, 1000)
    return Domain(
        words=vocabulary.vocabulary_words(),
        make_corpus=lambda tokenizer: make_corpus(size, seed, tokenizer),
        prompts={name: vocabulary.class_prompt(digit) for digit, name in enumerate(vocabulary.DIGIT_NAMES)},
        endings=GLYPH_ENDINGS,
    )

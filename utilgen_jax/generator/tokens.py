"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): new words for the prompt, each a few learned embeddings."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax import checkpoints
from utilgen_jax.errors import InputError
from utilgen_jax.generator.loading import Generator, Params


def add_learned_embeds(
    generator: Generator, params: Params, learned: Path | str | tuple[str, np.ndarray | jax.Array]
) -> tuple[Generator, Params]:
    """Adds a learned token to the tokenizer and its embeddings to the text encoder, as diffusers does.

    A token of n vectors becomes the tokens `<tok>`, `<tok>_1` ... `<tok>_{n-1}`; in a prompt `<tok>` alone stands for
    them all (see `checkpoints.tokenize`).

    Args:
        generator: left as it is.
        params: left as they are.
        learned: a file or folder for `checkpoints.load_learned_embeds`; or the token and its embeddings,
            float [D] or [n, D].

    Returns:
        A new generator, and weights that share all arrays but the text encoder's table of tokens.

    Raises:
        InputError: the file is no learned token, its width is another model's, or the token is already known.
    """
    where = f"{learned}: " if isinstance(learned, (str, Path)) else ""
    token, embeds = checkpoints.load_learned_embeds(learned) if isinstance(learned, (str, Path)) else learned
    embeds = jnp.atleast_2d(embeds)
    width = generator.text_encoder.hidden_size
    if embeds.ndim != 2 or embeds.shape[1] != width:
        raise InputError(
            f"{where}the embeddings of {token!r} have shape {list(embeds.shape)}, the text encoder is {width} wide; "
            "a learned token serves only the Stable Diffusion version that it was trained with"
        )
    tokens = [token, *(f"{token}_{index}" for index in range(1, len(embeds)))]
    vocabulary = generator.tokenizer.get_vocab()
    known = [name for name in (*tokens, f"{token}_1") if name in vocabulary]
    if known:
        raise InputError(f"{where}the tokenizer already knows {known[0]!r}; give the learned token another name")
    return add_tokens(generator, params, tokens, embeds)


def add_tokens(
    generator: Generator, params: Params, tokens: Sequence[str], embeds: jax.Array
) -> tuple[Generator, Params]:
    """Adds words that the tokenizer does not know yet, n in number, with their embeddings float [n, D]."""
    tokenizer = copy.deepcopy(generator.tokenizer)
    first = len(tokenizer)
    tokenizer.add_tokens(list(tokens))
    text_encoder = generator.text_encoder.clone(
        vocab_size=first + len(tokens),
        # Stated, as the legacy setting takes the largest id for it (see `clip_text.end_of_text_position`).
        eos_token_id=tokenizer.eos_token_id,
    )
    return (
        dataclasses.replace(generator, tokenizer=tokenizer, text_encoder=text_encoder),
        params | {"text_encoder": with_rows(params["text_encoder"], first, embeds)},
    )


def with_rows(text_encoder: Params, first: int, rows: jax.Array) -> Params:
    """The text encoder's weights with rows [n, D] in its table of tokens from `first` on; what was there is dropped."""

    def replace(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> jax.Array:
        if path[-2:] != (jax.tree_util.DictKey("token_embedding"), jax.tree_util.DictKey("embedding")):
            return leaf
        return jnp.concatenate([leaf[:first], rows.astype(leaf.dtype)])

    return jax.tree_util.tree_map_with_path(replace, text_encoder)

"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): new words for the prompt, each a few learned embeddings."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax import checkpoints
from utilgen_jax.errors import InputError
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.types import Params


def add_learned_embeds(
    sd: StableDiffusion, learned: Path | str | tuple[str, np.ndarray | jax.Array]
) -> StableDiffusion:
    """Adds a learned token to the tokenizer and its embeddings to the text encoder, as diffusers does.

    A token of n vectors becomes the tokens `<tok>`, `<tok>_1` ... `<tok>_{n-1}`; in a prompt `<tok>` alone stands for
    them all (see `checkpoints.tokenize`).

    Args:
        sd: the checkpoint; it stays as it is.
        learned: a file or folder for `checkpoints.load_learned_embeds`; or the token and its embeddings,
            float [D] or [n, D], D the width of the text encoder, or of both side by side.

    Returns:
        A checkpoint that shares all arrays but the text encoders' tables of tokens.

    Raises:
        InputError: the file is no learned token, its width is another model's, or the token is already known.
    """
    where = f"{learned}: " if isinstance(learned, (str, Path)) else ""
    token, embeds = checkpoints.load_learned_embeds(learned) if isinstance(learned, (str, Path)) else learned
    embeds = jnp.atleast_2d(embeds)
    width = sd.architecture.text_width
    if embeds.ndim != 2 or embeds.shape[1] != width:
        raise InputError(
            f"{where}the embeddings of {token!r} have shape {list(embeds.shape)}, the text encoder is {width} wide "
            "(XL's two together); a learned token serves only the Stable Diffusion version that it was trained with"
        )
    tokens = [token, *(f"{token}_{index}" for index in range(1, len(embeds)))]
    vocabularies = [tokenizer.get_vocab() for _, tokenizer in sd.architecture.text_encoders.values()]
    known = [name for name in (*tokens, f"{token}_1") if any(name in vocabulary for vocabulary in vocabularies)]
    if known:
        raise InputError(f"{where}the tokenizer already knows {known[0]!r}; give the learned token another name")
    return add_tokens(sd, tokens, embeds)


def tokenize_prompts(sd: StableDiffusion, prompts: Sequence[str]) -> np.ndarray:
    """Returns `checkpoints.tokenize` of prompts, int32 [B, T], or [B, 2, T] of two text encoders.

    Raises:
        InputError: a text encoder lacks a token.
    """
    parts = []
    for module, tokenizer in sd.architecture.text_encoders.values():
        parts.append(checkpoints.tokenize(tokenizer, prompts))
        check_token_rows(tokenizer, parts[-1], module.vocab_size)
    return parts[0] if len(parts) == 1 else np.stack(parts, axis=1)


def check_token_rows(tokenizer: Any, input_ids: np.ndarray, vocab_size: int) -> None:
    """Raises InputError where token ids have no row in a text encoder's table."""
    beyond = sorted(set(input_ids[input_ids >= vocab_size].tolist()))
    if beyond:
        raise InputError(
            f"tokenizer: {', '.join(repr(tokenizer.convert_ids_to_tokens(one)) for one in beyond)} has no row in the "
            f"text_encoder, whose config.json says vocab_size={vocab_size}; leave it out of the prompts, or give its "
            "learned embedding by --embeds and take it out of the tokenizer's added_tokens.json"
        )


def add_tokens(sd: StableDiffusion, tokens: Sequence[str], embeds: jax.Array) -> StableDiffusion:
    """Adds n tokens that the tokenizers do not know yet; for their embeddings [n, D] see `add_learned_embeds`."""
    changed: dict[str, Any] = {}
    for name, (module, tokenizer) in sd.architecture.text_encoders.items():
        if len(tokenizer) > module.vocab_size:
            raise InputError(
                f"tokenizer: knows {len(tokenizer)} tokens, but the {name} has rows for {module.vocab_size} alone; "
                "take the tokens without a row out of the tokenizer's added_tokens.json"
            )
        changed[name] = module.clone(
            vocab_size=len(tokenizer) + len(tokens),
            # Stated, as the legacy setting takes the largest id for it (see `clip_text.end_of_text_position`).
            eos_token_id=tokenizer.eos_token_id,
        )
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_tokens(list(tokens))
        changed[name.replace("text_encoder", "tokenizer")] = tokenizer
    return with_last_rows(StableDiffusion(dataclasses.replace(sd.architecture, **changed), sd.params), embeds)


def with_last_rows(sd: StableDiffusion, embeds: jax.Array) -> StableDiffusion:
    """Replaces the last n rows of the text encoders' tables by embeddings float [n, D], see `add_learned_embeds`."""
    modules = {name: module for name, (module, _) in sd.architecture.text_encoders.items()}
    parts = jnp.split(embeds, np.cumsum([module.hidden_size for module in modules.values()])[:-1], axis=1)
    return sd.with_params(
        **{
            name: with_rows(sd.params[name], module.vocab_size - len(embeds), part)
            for (name, module), part in zip(modules.items(), parts, strict=True)
        }
    )


def with_rows(text_encoder: Params, first: int, rows: jax.Array) -> Params:
    """Replaces the text encoder's table of tokens from row `first` on by rows [n, D]."""

    def replace(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> jax.Array:
        if path[-2:] != (jax.tree_util.DictKey("token_embedding"), jax.tree_util.DictKey("embedding")):
            return leaf
        return jnp.concatenate([leaf[:first], rows.astype(leaf.dtype)])

    return jax.tree_util.tree_map_with_path(replace, text_encoder)

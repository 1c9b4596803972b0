"""Prompts as web interfaces read them: words with weights, and of any length.

`(word)` has the weight 1.1, `[word]` 1 / 1.1, `(word:1.3)` 1.3; brackets inside others multiply, and a backslash makes
a bracket a character. A prompt longer than the text encoder's input is encoded in parts, whose states are joined. A
weight multiplies a token's state, after which the prompt's mean is what it was; as in diffusers' community pipeline
`lpw_stable_diffusion`. With two text encoders a weight moves a token's state away from the last of its part, as in
`lpw_stable_diffusion_xl`; the pooled state is that of the first part, as in web interfaces.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax import checkpoints
from utilgen_jax.generator.conditioning import encode_tokens
from utilgen_jax.generator.stable_diffusion import StableDiffusion
from utilgen_jax.generator.text_states import PooledStates, TextStates
from utilgen_jax.generator.tokens import check_token_rows
from utilgen_jax.models.lora import Lora

_BRACKETS = {"(": 1.1, "[": 1 / 1.1}
_CLOSING = {")": "(", "]": "["}
_WEIGHT = re.compile(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)")


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """Returns the parts of a prompt with their weights; parts with the same weight are joined."""
    characters: list[str] = []
    weights: list[float] = []
    begun: dict[str, list[int]] = {bracket: [] for bracket in _BRACKETS}

    def end(bracket: str, weight: float) -> None:
        start = begun[bracket].pop()
        weights[start:] = [each * weight for each in weights[start:]]

    place = 0
    while place < len(prompt):
        character = prompt[place]
        stated = _WEIGHT.match(prompt, place) if begun["("] else None
        place += 1
        if character in _BRACKETS:
            begun[character].append(len(characters))
        elif stated:
            end("(", float(stated[1]))
            place = stated.end()
        elif character in _CLOSING and begun[_CLOSING[character]]:
            end(_CLOSING[character], _BRACKETS[_CLOSING[character]])
        else:
            if character == "\\" and prompt[place : place + 1] in (*"()[]\\",):
                character, place = prompt[place], place + 1
            characters.append(character)
            weights.append(1.0)
    for bracket, weight in _BRACKETS.items():  # that nothing has ended
        while begun[bracket]:
            end(bracket, weight)
    groups = itertools.groupby(zip(characters, weights, strict=True), key=lambda pair: pair[1])
    return [("".join(character for character, _ in group), weight) for weight, group in groups]


def encode_weighted_prompts(
    sd: StableDiffusion, prompts: Sequence[str], loras: Mapping[str, Lora] | None = None, clip_skip: int = 0
) -> TextStates:
    """CLIP text states of prompts that are read as this module's, [len(prompts), N T, D].

    Args:
        sd: the checkpoint.
        prompts: any; T tokens of the text encoder's input hold T - 2 of a prompt, and the longest needs N inputs.
        loras: see `encode_tokens`.
        clip_skip: see `encode_tokens`.
    """
    encoders = sd.architecture.text_encoders.values()
    distinct = sorted(set(prompts))
    rows = np.array([distinct.index(prompt) for prompt in prompts])
    weighted = [
        [_weighted_tokens(tokenizer, module.vocab_size, prompt) for prompt in distinct]
        for module, tokenizer in encoders
    ]
    room = sd.tokenizer.model_max_length - 2
    number = max(1, *(-(-len(ids) // room) for of_encoder in weighted for ids, _ in of_encoder))
    arrays = [_in_parts(tokenizer, each, number) for (_, tokenizer), each in zip(encoders, weighted, strict=True)]
    ids = np.concatenate([ids for ids, _ in arrays]) if len(arrays) == 1 else np.stack([ids for ids, _ in arrays], 1)
    states = encode_tokens(sd, jnp.asarray(ids), loras, clip_skip)
    if isinstance(states, PooledStates):
        widths = [module.hidden_size for module, _ in encoders]
        of_parts = [np.repeat(its[..., None], width, -1) for (_, its), width in zip(arrays, widths, strict=True)]
        moved = _away_from_last(states.states, np.concatenate(of_parts, axis=-1))
        pooled = states.pooled.reshape(len(distinct), number, -1)[:, 0]
        return PooledStates(moved.reshape(len(distinct), -1, moved.shape[-1]), pooled)[rows]
    weights = arrays[0][1].reshape(len(distinct), -1, 1)
    return _with_the_same_mean(states.reshape(len(distinct), weights.shape[1], -1), weights)[rows]


def _in_parts(
    tokenizer: Any, weighted: Sequence[tuple[list[int], list[float]]], number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int32 [P number, T] and weights float32 of that shape, each prompt in so many parts."""
    length = tokenizer.model_max_length
    ids = np.full((len(weighted), number, length), tokenizer.pad_token_id, np.int32)
    weights = np.ones((len(weighted), number, length), np.float32)
    for row, (tokens, its_weights) in enumerate(weighted):
        for part in range(number):
            kept = slice(part * (length - 2), (part + 1) * (length - 2))
            content = [tokenizer.bos_token_id, *tokens[kept], tokenizer.eos_token_id]
            ids[row, part, : len(content)] = content
            weights[row, part, 1 : len(content) - 1] = its_weights[kept]
    return ids.reshape(-1, length), weights.reshape(-1, length)


def _away_from_last(states: jax.Array, weights: np.ndarray) -> jax.Array:
    """States and weights [N, T, D]."""
    last = states[:, -1:]
    return jnp.where(weights == 1.0, states, last + (states - last) * weights.astype(states.dtype))


def _with_the_same_mean(states: jax.Array, weights: np.ndarray) -> jax.Array:
    """States [P, T, D] and weights [P, T, 1]."""
    scaled = states * weights.astype(states.dtype)
    means = [jnp.mean(each, axis=(1, 2), keepdims=True, dtype=jnp.float32) for each in (states, scaled)]
    is_weighted = (weights != 1.0).any(axis=(1, 2), keepdims=True)
    return jnp.where(is_weighted, scaled * (means[0] / means[1]).astype(states.dtype), states)


def _weighted_tokens(tokenizer: Any, vocab_size: int, prompt: str) -> tuple[list[int], list[float]]:
    """The token ids of a prompt, without start and end, and the weight of each."""
    ids, weights = [], []
    for text, weight in parse_weights(prompt):
        tokens = checkpoints.token_ids(tokenizer, text)
        ids += tokens
        weights += [weight] * len(tokens)
    check_token_rows(tokenizer, np.array(ids, np.int32), vocab_size)
    return ids, weights

"""Prompts as web interfaces read them: words with weights, and of any length.

`(word)` has the weight 1.1, `[word]` 1 / 1.1, `(word:1.3)` 1.3; brackets inside others multiply, and a backslash makes
a bracket a character. A prompt longer than the text encoder's input is encoded in parts, whose states are joined. A
weight multiplies a token's state, after which the prompt's mean is what it was; as in diffusers' community pipeline
`lpw_stable_diffusion`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from utilgen_jax import checkpoints
from utilgen_jax.generator.conditioning import encode_tokens
from utilgen_jax.generator.stable_diffusion import StableDiffusion
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
) -> jax.Array:
    """CLIP text states of prompts that are read as this module's: float [len(prompts), N T, D].

    Args:
        sd: the checkpoint.
        prompts: any; T tokens of the text encoder's input hold T - 2 of a prompt, and the longest needs N inputs.
        loras: see `encode_tokens`.
        clip_skip: see `encode_tokens`.
    """
    length = sd.tokenizer.model_max_length
    distinct = sorted(set(prompts))
    weighted = [_weighted_tokens(sd, prompt) for prompt in distinct]
    number = max(max(-(-len(ids) // (length - 2)) for ids, _ in weighted), 1)
    ids = np.full((len(distinct), number, length), sd.tokenizer.pad_token_id, np.int32)
    weights = np.ones((len(distinct), number, length), np.float32)
    for row, (tokens, its_weights) in enumerate(weighted):
        for part in range(number):
            kept = slice(part * (length - 2), (part + 1) * (length - 2))
            content = [sd.tokenizer.bos_token_id, *tokens[kept], sd.tokenizer.eos_token_id]
            ids[row, part, : len(content)] = content
            weights[row, part, 1 : len(content) - 1] = its_weights[kept]
    states = encode_tokens(sd, jnp.asarray(ids.reshape(-1, length)), loras, clip_skip)
    states = states.reshape(len(distinct), number * length, -1)
    scaled = states * weights.reshape(len(distinct), -1, 1).astype(states.dtype)
    means = [jnp.mean(each, axis=(1, 2), keepdims=True, dtype=jnp.float32) for each in (states, scaled)]
    is_weighted = (weights != 1.0).any(axis=(1, 2)).reshape(-1, 1, 1)
    scaled = jnp.where(is_weighted, scaled * (means[0] / means[1]).astype(states.dtype), states)
    return scaled[np.array([distinct.index(prompt) for prompt in prompts])]


def _weighted_tokens(sd: StableDiffusion, prompt: str) -> tuple[list[int], list[float]]:
    """The token ids of a prompt, without start and end, and the weight of each."""
    ids, weights = [], []
    for text, weight in parse_weights(prompt):
        tokens = checkpoints.token_ids(sd.tokenizer, text)
        ids += tokens
        weights += [weight] * len(tokens)
    check_token_rows(sd.tokenizer, np.array(ids, np.int32), sd.text_encoder.vocab_size)
    return ids, weights

"""Reads and writes checkpoints in diffusers' format; safetensors only, without torch."""

from utilgen_jax.checkpoints.checkpoint_folder import resolve_checkpoint, resolve_component
from utilgen_jax.checkpoints.component import load_component, load_config, save_component
from utilgen_jax.checkpoints.learned_embeds import load_learned_embeds, save_learned_embeds
from utilgen_jax.checkpoints.tokenizer import beyond_limit, load_tokenizer, token_ids, tokenize

__all__ = [
    "beyond_limit",
    "load_component",
    "load_config",
    "load_learned_embeds",
    "load_tokenizer",
    "resolve_checkpoint",
    "resolve_component",
    "save_component",
    "save_learned_embeds",
    "token_ids",
    "tokenize",
]

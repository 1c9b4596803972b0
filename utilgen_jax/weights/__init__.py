"""Checkpoints in diffusers' folder format, in and out: safetensors only, and torch is not needed."""

from utilgen_jax.weights.checkpoint_folder import resolve_checkpoint
from utilgen_jax.weights.component import check_params, load_component, load_config, save_component
from utilgen_jax.weights.tokenizer import load_tokenizer, tokenize

__all__ = [
    "check_params",
    "load_component",
    "load_config",
    "load_tokenizer",
    "resolve_checkpoint",
    "save_component",
    "tokenize",
]

"""CLIP's tokenizer."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utilgen_jax.checkpoints.checkpoint_folder import read_json
from utilgen_jax.errors import InputError
from utilgen_jax.models.json_fields import POSITIVE, Kind, only, read_fields

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# transformers uses about 1e30 for a missing limit.
_NO_LIMIT = 1_000_000
_CONFIG = "tokenizer_config.json"
# The fields of `tokenizer_config.json`, see `json_fields`; transformers reads the others, as for torch.
TOKENIZER_FIELDS: Mapping[str, Kind] = {
    "model_max_length": Kind(
        "a number from 3 up", lambda value: POSITIVE.accepts(value) and value >= 3, True
    ),  # start, token, end
    "tokenizer_class": only("CLIPTokenizer", "CLIPTokenizerFast"),
}


def load_tokenizer(folder: Path | str, max_length: int = 77) -> "CLIPTokenizer":
    """Loads the tokenizer of a local checkpoint without running code of the folder.

    Args:
        folder: folder such as checkpoint / 'tokenizer', with `tokenizer.json`, or `vocab.json` and `merges.txt`.
        max_length: tokens per prompt if `tokenizer_config.json` lacks `model_max_length`.

    Raises:
        InputError: files are missing or broken.
    """
    # transformers would advise on import to install PyTorch, which a tokenizer does not need.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Imported here: it takes more than a second, and no command needs it before its config has been checked.
    from transformers import CLIPTokenizer

    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder}: no tokenizer; {' and '.join(missing)} missing, and there is no tokenizer.json")
    if (folder / _CONFIG).is_file():
        config = read_json(folder / _CONFIG)
        read = {name: value for name, value in config.items() if name in TOKENIZER_FIELDS and value is not None}
        read_fields(str(folder / _CONFIG), TOKENIZER_FIELDS, read)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # The Rust tokenizer raises bare Exception for a file that it cannot parse.
        raise InputError(f"{folder}: the tokenizer cannot be read ({error})") from error
    if tokenizer.model_max_length > _NO_LIMIT:
        tokenizer.model_max_length = max_length
    return tokenizer


def tokenize(tokenizer: "CLIPTokenizer", prompts: Sequence[str]) -> np.ndarray:
    """Returns token ids of prompts with start and end tokens, padded or truncated to the tokenizer's length.

    Args:
        tokenizer: from `load_tokenizer`.
        prompts: B prompts; a learned token of several vectors (textual inversion) is expanded.

    Returns:
        int32 [B, model_max_length].
    """
    texts = [_expand_learned_tokens(tokenizer, prompt) for prompt in prompts]
    encoded = tokenizer(
        texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="np"
    )
    return np.asarray(encoded["input_ids"], np.int32)


def token_ids(tokenizer: "CLIPTokenizer", text: str) -> list[int]:
    """Returns the token ids of a text of any length, without start and end tokens."""
    ids: list[int] = tokenizer(
        _expand_learned_tokens(tokenizer, text), add_special_tokens=False, verbose=False
    ).input_ids
    return ids


def beyond_limit(tokenizer: "CLIPTokenizer", prompt: str) -> str:
    """Returns the part of a prompt that `tokenize` truncates; '' if it fits."""
    ids = tokenizer(_expand_learned_tokens(tokenizer, prompt), verbose=False).input_ids
    # The last token that fits is the end token, which also ends the full sequence.
    return str(tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1]))


def _expand_learned_tokens(tokenizer: "CLIPTokenizer", prompt: str) -> str:
    """Replaces '<tok>' by '<tok> <tok>_1 ... <tok>_{n-1}', as diffusers' `maybe_convert_prompt`."""
    added = tokenizer.added_tokens_encoder
    for token in sorted(added.keys() & tokenizer.tokenize(prompt)):
        row = [token]
        while f"{token}_{len(row)}" in added:
            row.append(f"{token}_{len(row)}")
        prompt = prompt.replace(token, " ".join(row))
    return prompt

"""CLIP's tokenizer: words -> token ids."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utilgen_jax.errors import InputError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

# transformers' stand-in for "no limit was written down" is about 1e30.
_NO_LIMIT = 1_000_000


def load_tokenizer(folder: Path | str) -> "CLIPTokenizer":
    """Loads the tokenizer of a checkpoint from this machine; runs no code that the folder may bring.

    Args:
      folder: e.g. checkpoint / 'tokenizer'; holds `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Raises:
      InputError: files are missing or broken, or `tokenizer_config.json` gives no `model_max_length`.
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
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # The Rust tokenizer raises bare Exception for a file that it cannot parse.
        raise InputError(f"{folder}: the tokenizer cannot be read ({error})") from error
    if tokenizer.model_max_length > _NO_LIMIT:
        raise InputError(f"{folder}/tokenizer_config.json: lacks 'model_max_length', the text encoder's positions")
    return tokenizer


def tokenize(tokenizer: "CLIPTokenizer", prompts: Sequence[str]) -> np.ndarray:
    """Token ids of prompts, each with start and end token, padded or cut (as in diffusers) to the tokenizer's length.

    Args:
      tokenizer: from `load_tokenizer`.
      prompts: B strings.

    Returns:
      int32 [B, model_max_length].
    """
    encoded = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="np"
    )
    return np.asarray(encoded["input_ids"], np.int32)

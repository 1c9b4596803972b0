"""Reads and writes textual inversion files, which hold the embeddings of a learned token.

For Stable Diffusion XL a file has an embedding for each text encoder: 'clip_l' and 'clip_g' in web interfaces' files
and in ours; diffusers' training script writes two files of one tensor each. Here they stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open

from utilgen_jax.checkpoints.safetensors_io import open_file, write_tensors
from utilgen_jax.errors import InputError

FILE_NAME = "learned_embeds.safetensors"
_SECOND_FILE_NAME = "learned_embeds_2.safetensors"
# Tensor name in files of the AUTOMATIC1111 web UI, whose token is the file name; and those of XL's two text encoders.
_A1111_NAME = "emb_params"
_XL_NAMES = ("clip_l", "clip_g")
_TOKEN = "token"  # in the header of our files, which would lose it otherwise


def load_learned_embeds(path: Path | str) -> tuple[str, np.ndarray]:
    """Reads a learned token.

    Args:
        path: safetensors file of diffusers (one tensor with the name of the token) or of the AUTOMATIC1111 web UI
            ('emb_params', or 'clip_l' and 'clip_g'), or a folder with `learned_embeds.safetensors`.

    Returns:
        The token, e.g. '<cat-toy>', and its embeddings float32 [n, D]: n consecutive vectors in the prompt, of XL those
        for both text encoders side by side.

    Raises:
        InputError: the file is missing, damaged, pickled, or of another kind.
    """
    path = Path(path)
    if path.is_dir():
        pickles = sorted(path.glob("learned_embeds.*"))
        if (path / FILE_NAME).is_file() and (path / _SECOND_FILE_NAME).is_file():
            (token, first), (_, second) = (load_learned_embeds(path / name) for name in (FILE_NAME, _SECOND_FILE_NAME))
            return token, _side_by_side(path, [first, second])
        path = path / FILE_NAME if (path / FILE_NAME).is_file() or not pickles else pickles[0]
    files = open_file(path)
    if files.shapes.keys() == {*_XL_NAMES}:
        parts = [np.atleast_2d(files.read(name).astype(np.float32)) for name in _XL_NAMES]
        with safe_open(path, framework="numpy") as file:
            token = (file.metadata() or {}).get(_TOKEN, path.stem)
        return token, _side_by_side(path, parts)
    names = list(files.shapes)
    name = _A1111_NAME if _A1111_NAME in names else names[0] if len(names) == 1 else None
    if name is None or len(files.shapes[name]) not in (1, 2):
        found = ", ".join(f"{name} {list(shape)}" for name, shape in files.shapes.items()) or "nothing"
        raise InputError(
            f"{path}: no learned token; expected one tensor [D] or [n, D] under the token's name, or 'emb_params', or "
            f"'clip_l' and 'clip_g'; the file has {found}"
        )
    embeds = np.atleast_2d(files.read(name).astype(np.float32))
    return path.stem if name == _A1111_NAME else name, embeds


def _side_by_side(path: Path, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Embeddings [n, D] of each text encoder as one array."""
    if any(part.ndim != 2 or len(part) != len(parts[0]) for part in parts):
        shapes = " and ".join(str(list(part.shape)) for part in parts)
        raise InputError(f"{path}: the embeddings for both text encoders differ in number: {shapes}")
    return np.concatenate(parts, axis=1)


def save_learned_embeds(folder: Path | str, token: str, embeds: np.ndarray, widths: Sequence[int] = ()) -> Path:
    """Writes `learned_embeds.safetensors` for diffusers' `load_textual_inversion`.

    Args:
        folder: output folder, created if missing.
        token: the token, e.g. '<cat-toy>'.
        embeds: its embeddings, float [n, D].
        widths: of each text encoder where there are two, so that D is their sum; the file then has the tensors 'clip_l'
            and 'clip_g', each of which `load_textual_inversion` takes with its text encoder and tokenizer.

    Returns:
        The path of the file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    embeds = np.asarray(embeds, np.float32)
    if len(widths) == 2:
        parts = dict(zip(_XL_NAMES, np.split(embeds, [widths[0]], axis=1), strict=True))
        write_tensors(folder / FILE_NAME, parts, metadata={_TOKEN: token})
    else:
        write_tensors(folder / FILE_NAME, {token: embeds})
    return folder / FILE_NAME

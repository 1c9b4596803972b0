"""Reads and writes textual inversion files, which hold the embeddings of a learned token."""

from pathlib import Path

import numpy as np

from utilgen_jax.checkpoints.safetensors_io import open_file, write_tensors
from utilgen_jax.errors import InputError

FILE_NAME = "learned_embeds.safetensors"
# Tensor name in files of the AUTOMATIC1111 web UI, whose token is the file name.
_A1111_NAME = "emb_params"


def load_learned_embeds(path: Path | str) -> tuple[str, np.ndarray]:
    """Reads a learned token.

    Args:
        path: safetensors file of diffusers (one tensor with the name of the token) or of the AUTOMATIC1111 web UI
            ('emb_params'), or a folder with `learned_embeds.safetensors`.

    Returns:
        The token, e.g. '<cat-toy>', and its embeddings float32 [n, D]: n consecutive vectors in the prompt.

    Raises:
        InputError: the file is missing, damaged, pickled, or of another kind.
    """
    path = Path(path)
    if path.is_dir():
        pickles = sorted(path.glob("learned_embeds.*"))
        path = path / FILE_NAME if (path / FILE_NAME).is_file() or not pickles else pickles[0]
    files = open_file(path)
    names = list(files.shapes)
    name = _A1111_NAME if _A1111_NAME in names else names[0] if len(names) == 1 else None
    if name is None or len(files.shapes[name]) not in (1, 2):
        raise InputError(
            f"{path}: no learned token; expected one tensor [D] or [n, D] under the token's name, or 'emb_params'; "
            f"the file has {', '.join(f'{name} {list(shape)}' for name, shape in files.shapes.items()) or 'nothing'}"
        )
    embeds = np.atleast_2d(files.read(name).astype(np.float32))
    return path.stem if name == _A1111_NAME else name, embeds


def save_learned_embeds(folder: Path | str, token: str, embeds: np.ndarray) -> Path:
    """Writes `learned_embeds.safetensors` for diffusers' `load_textual_inversion`.

    Args:
        folder: output folder, created if missing.
        token: the token, e.g. '<cat-toy>'.
        embeds: its embeddings, float [n, D].

    Returns:
        The path of the file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / FILE_NAME, {token: np.asarray(embeds, np.float32)})
    return folder / FILE_NAME

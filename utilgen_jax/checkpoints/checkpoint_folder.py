"""Finds checkpoints: the embedded one, a folder, or a repository on the Hugging Face hub."""

import json
import re
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from utilgen_jax.checkpoints.published import PUBLISHED, RETIRED
from utilgen_jax.checkpoints.weight_files import PICKLES, choose_weight_files, has_variant, pickle_advice
from utilgen_jax.errors import InputError
from utilgen_jax.runtime.buckets import local_copy
from utilgen_jax.runtime.hub import list_files

GLYPHS = Path(__file__).parents[1] / "assets" / "glyphs"
# The components whose weights are loaded; a repository may have others, such as a safety checker.
WEIGHTED_COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2", "image_encoder", "image_normalizer")

_INDEX, _CONFIG = "model_index.json", "config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TEXT_FILES = ["*.json", "*.txt"]
# (name of a folder or repository for messages, its files) -> weight files to read, or InputError
_Choose = Callable[[str, Collection[str]], list[str]]


def resolve_checkpoint(
    name: str, revision: str | None = None, variant: str | None = None, configs_only: bool = False
) -> Path:
    """Returns the folder of a Stable Diffusion checkpoint in diffusers' format; downloads it if necessary.

    Args:
        name: 'glyphs' for the embedded checkpoint, a name of `published.PUBLISHED` such as 'sd15', an existing folder,
            one in a bucket, or a hub id 'owner/name'.
        revision: branch, tag or commit of a hub id; None or '' for the newest, or that of a published name.
        variant: preferred weights, e.g. 'fp16'. Only weights that `load_component` reads are downloaded: by default
            those in full precision, or else fp16.
        configs_only: whether to skip the weights.

    Returns:
        The folder with `model_index.json`.

    Raises:
        InputError: the checkpoint is missing, invalid, lacks the variant, has only pickled weights, or cannot be
            downloaded.
    """
    if name == "glyphs":
        if not (GLYPHS / _INDEX).is_file():
            raise InputError(
                f"{GLYPHS}: the embedded checkpoint is missing; create it with `python -m utilgen_jax.pretraining`"
            )
        return GLYPHS
    if not name:
        raise InputError(
            "the checkpoint has no name: use 'glyphs', a folder in diffusers' format, or a hub id 'owner/name'"
        )
    if name in PUBLISHED:
        name, revision = PUBLISHED[name].hub_id, revision or PUBLISHED[name].revision
    return _resolve(name, revision, partial(_checkpoint_weights, variant=variant, configs_only=configs_only))


def resolve_component(name: str, revision: str | None = None, variant: str | None = None) -> Path:
    """Returns the folder of a single component, e.g. a separately published VAE; downloads it if necessary.

    Args:
        name: folder, or hub id 'owner/name', with `config.json` and weights.
        revision: see `resolve_checkpoint`.
        variant: see `resolve_checkpoint`.
    """
    return _resolve(name, revision, partial(_component_weights, variant=variant))


def read_json(path: Path) -> dict:
    """Reads a JSON object from a file; InputError if it is missing or invalid."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is {path.parent} a folder in diffusers' format?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be a JSON object, is {type(content).__name__}")
    return content


def _resolve(name: str, revision: str | None, choose: _Choose) -> Path:
    folder = Path(local_copy(name))
    if folder.is_dir():
        files = {path.relative_to(folder).as_posix() for pattern in ("*", "*/*") for path in folder.glob(pattern)}
        choose(str(folder), files)
        return folder
    if folder.exists():
        raise InputError(
            f"{folder}: a checkpoint is a folder in diffusers' format, this is a file; `python -m utilgen_jax.export "
            f"--checkpoint={folder} --out=FOLDER` makes one of a whole checkpoint in latent-diffusion's names"
        )
    if not _HUB_ID.fullmatch(name) or Path(name.split("/")[0]).is_dir():
        raise InputError(
            f"{name}: no such folder; use a folder in diffusers' format, a hub id 'owner/name', or one of "
            f"{', '.join(('glyphs', *PUBLISHED))}"
        )
    return _download(name, revision or None, choose)


def _checkpoint_weights(where: str, files: Collection[str], variant: str | None, configs_only: bool) -> list[str]:
    if _INDEX not in files and f"unet/{_CONFIG}" in files and f"vae/{_CONFIG}" not in files:
        raise InputError(
            f"{where}: has a UNet but no {_INDEX}, as training scripts leave it; give the checkpoint that the training "
            f"began with, and --unet={where}/unet to `sample` or `export`"
        )
    if _INDEX not in files:
        raise InputError(f"{where}: has no {_INDEX}, so it is no checkpoint in diffusers' format")
    prefixes = [f"{component}/" for component in WEIGHTED_COMPONENTS]
    return [] if configs_only else _choose_weights(where, files, prefixes, variant)


def _component_weights(where: str, files: Collection[str], variant: str | None) -> list[str]:
    if _CONFIG not in files:
        raise InputError(
            f"{where}: has no {_CONFIG}, so it is no component in diffusers' format; beside weights that a training "
            "script left, put the config of the component that it began with"
        )
    return _choose_weights(where, files, [""], variant)


def _choose_weights(where: str, files: Collection[str], prefixes: Sequence[str], variant: str | None) -> list[str]:
    """Chooses the weights of each component; InputError if one has only pickles, or none has the variant."""
    chosen, pickled = [], []
    for prefix in prefixes:
        names = {name.removeprefix(prefix) for name in files if name.startswith(prefix)}
        weights = choose_weight_files(names, variant)
        chosen += [prefix + name for name in weights]
        if not weights:
            pickled += [prefix + name for name in sorted(names) if "/" not in name and Path(name).suffix in PICKLES]
    if pickled:
        raise InputError(
            f"{where}: has no safetensors file in place of {', '.join(pickled)}: {pickle_advice(pickled[0])}"
        )
    if variant and not any(has_variant(name, variant) for name in chosen):
        found = ", ".join(chosen) or "none"
        raise InputError(f"{where}: has no weights of variant {variant!r}; leave the variant out (found: {found})")
    return chosen


def _download(hub_id: str, revision: str | None, choose: _Choose) -> Path:
    # Imported here, as only downloads need the hub.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    by_hand = f"`hf download {hub_id} --local-dir FOLDER` on a machine that can, then pass FOLDER as the checkpoint"
    try:
        files = list_files(hub_id, revision)
    except InputError as error:
        if hub_id in RETIRED:
            raise InputError(f"{hub_id}: is gone from the Hugging Face hub; use {_successor(hub_id)}") from error
        raise
    patterns = _TEXT_FILES if files is None else [*_TEXT_FILES, *choose(hub_id, files)]
    try:
        return Path(
            snapshot_download(hub_id, revision=revision, allow_patterns=patterns, local_files_only=files is None)
        )
    except LocalEntryNotFoundError as error:
        if hub_id in RETIRED:
            by_hand = f"it is gone from there, use {_successor(hub_id)}"
        raise InputError(
            f"{hub_id}: not on this machine, and the Hugging Face hub cannot be reached; {by_hand}"
        ) from error
    except Exception as error:  # the HTTP library depends on the version of huggingface_hub
        raise InputError(f"{hub_id}: the download failed ({error}); try again, or {by_hand}") from error


def _successor(retired: str) -> str:
    name = RETIRED[retired]
    return f"{name!r} ({PUBLISHED[name].hub_id})"

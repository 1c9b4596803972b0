"""Where a checkpoint is: the embedded one, a folder, or a repository on the Hugging Face hub; and its JSON files."""

import json
import re
from pathlib import Path

from utilgen_jax.errors import InputError

GLYPHS = Path(__file__).parents[1] / "assets" / "glyphs"

_INDEX = "model_index.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Only weights in a component's folder: the root may hold the whole model once more, in one file for other programs.
_ALLOW = ["*.json", "*.txt", "*/*.safetensors"]
_IGNORE = ["*.fp16.*", "*.non_ema.*", "safety_checker/*"]


def resolve_checkpoint(name: str, revision: str | None = None) -> Path:
    """Finds the folder of a Stable Diffusion checkpoint in diffusers' format, downloading it where need be.

    Args:
      name: 'glyphs' for the embedded checkpoint, else an existing folder, else a hub id 'owner/name'.
      revision: branch, tag or commit on the hub; None or '' for the newest. Only a hub id has one.

    Returns:
      The folder that holds `model_index.json`.

    Raises:
      InputError: there is no such folder, it is no checkpoint, or the hub cannot give it.
    """
    if name == "glyphs":
        if not (GLYPHS / _INDEX).is_file():
            raise InputError(
                f"{GLYPHS}: the embedded checkpoint is missing; make it with `python -m utilgen_jax.foundation`"
            )
        return GLYPHS
    if not name:
        raise InputError(
            "the checkpoint has no name: use 'glyphs', a folder in diffusers' format, or a hub id 'owner/name'"
        )
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _require_index(folder)
    if folder.exists():
        raise InputError(f"{folder}: a checkpoint is a folder in diffusers' format, this is a file")
    if not _HUB_ID.fullmatch(name) or Path(name.split("/")[0]).is_dir():
        raise InputError(
            f"{name}: no such folder; use 'glyphs', a folder in diffusers' format, or a hub id 'owner/name'"
        )
    return _require_index(_download(name, revision or None))


def read_json(path: Path) -> dict:
    """Reads a JSON file that holds one object; InputError naming the file if it is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is {path.parent} a folder in diffusers' format?") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: must hold a JSON object, holds {type(content).__name__}")
    return content


def _require_index(folder: Path) -> Path:
    if not (folder / _INDEX).is_file():
        raise InputError(f"{folder}: has no {_INDEX}, so it is no checkpoint in diffusers' format")
    return folder


def _download(hub_id: str, revision: str | None) -> Path:
    # Imported here, as the hub is asked only for checkpoints that are not on this machine.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    by_hand = f"`hf download {hub_id} --local-dir FOLDER` on a machine that can, then pass FOLDER as the checkpoint"
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=_ALLOW, ignore_patterns=_IGNORE))
    except GatedRepoError as error:
        way_out = f"accept its licence at https://huggingface.co/{hub_id}, then `hf auth login`"
        raise InputError(f"{hub_id}: the owner wants its licence accepted first; {way_out}") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{hub_id}: has no revision {revision!r} on the Hugging Face hub") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        private = "if it is private, `hf auth login` first"
        raise InputError(f"{hub_id}: neither a folder here nor a repository on the hub; {private}") from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"{hub_id}: not on this machine, and the Hugging Face hub cannot be reached; {by_hand}"
        ) from error
    except Exception as error:  # Which HTTP library raises here depends on the version of huggingface_hub.
        raise InputError(f"{hub_id}: the download failed ({error}); try again, or {by_hand}") from error

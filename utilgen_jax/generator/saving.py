"""A checkpoint written out as a folder that torch's diffusers opens: cast, with other parts, a LoRA merged in."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from utilgen_jax import __version__, checkpoints
from utilgen_jax.checkpoints.checkpoint_folder import WEIGHTED_COMPONENTS, read_json
from utilgen_jax.checkpoints.single_file import SingleFile
from utilgen_jax.errors import InputError
from utilgen_jax.generator.adapter_files import AdapterFiles
from utilgen_jax.generator.loading import component_folders, load_params
from utilgen_jax.generator.model_index import INDEX, read_model_index
from utilgen_jax.generator.stable_diffusion import Architecture
from utilgen_jax.models.lora import merge_lora
from utilgen_jax.runtime.atomic_write import replace_folder

# diffusers leaves keys alone that begin with an underscore.
_MARK = "_exported_by"


def check_export_target(folder: Path) -> None:
    """Raises InputError where a folder holds anything but an earlier export, which may be replaced."""
    if folder.is_file():
        raise InputError(f"{folder}: is a file; give a folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / INDEX).is_file() or _MARK not in read_json(folder / INDEX):
        raise InputError(f"{folder}: holds something else than an earlier export; give another folder, or empty it")


def exported_components(checkpoint: Path) -> list[str]:
    """Names of the components that an export holds: all that `model_index.json` names and the folder has.

    Safety checkers and the image encoders of IP-Adapters are left out.
    """
    index = read_model_index(checkpoint)
    left_out = {"safety_checker"} if index.is_unclip else {"safety_checker", "image_encoder"}
    return [name for name in index.classes if name not in left_out and (checkpoint / name).is_dir()]


@dataclasses.dataclass(frozen=True)
class ExportSource:
    """The checkpoint that is exported.

    Attributes:
        folder: the checkpoint's.
        architecture: its architecture, read with the same `components`.
        components: see `load_stable_diffusion`.
        variant: see `load_stable_diffusion`.
        single_file: has the weights of UNet, autoencoder and text encoder; the folder holds their configs.
    """

    folder: Path
    architecture: Architecture
    components: Mapping[str, Path] | None = None
    variant: str | None = None
    single_file: SingleFile | None = None


def write_diffusers_folder(
    out: Path,
    source: ExportSource,
    *,
    dtype: jnp.dtype | None = None,
    adapters: AdapterFiles | None = None,
    on_written: Callable[[str], None] = lambda name: None,
) -> None:
    """Writes the `exported_components` and their `model_index.json`.

    The host holds one component's weights at a time. The folder appears whole or not at all.

    Args:
        out: the folder; an earlier export is replaced.
        source: the checkpoint.
        dtype: weights are cast to it; None keeps each as it is stored.
        adapters: what is merged into the weights.
        on_written: called with the name of each component that is done.

    Raises:
        InputError: `out` holds something else, or the checkpoint's weights are broken or do not fit.
    """
    check_export_target(out)
    with replace_folder(out) as partial:
        folders = component_folders(source.folder, source.components)
        names = exported_components(source.folder)
        for name in names:
            folder = folders.get(name, source.folder / name)
            if name in WEIGHTED_COMPONENTS:
                config, params = _load(source, name, folder)
                if adapters is not None:
                    params = adapters.changed(name, params)
                    params = merge_lora(params, adapters.loras[name]) if name in adapters.loras else params
                checkpoints.save_component(partial / name, config, params, dtype)
            else:
                _copy_texts(folder, partial / name)
            on_written(name)
        index = read_json(source.folder / INDEX)
        for name, folder in (source.components or {}).items():
            if class_name := checkpoints.load_config(folder).get("_class_name"):
                index[name] = ["diffusers", class_name]
        index |= {name: [None, None] for name, kind in index.items() if isinstance(kind, list) and name not in names}
        if "safety_checker" in index:
            index["requires_safety_checker"] = False
        index[_MARK] = f"utilgen_jax {__version__}"
        (partial / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _load(source: ExportSource, name: str, folder: Path) -> tuple[dict[str, Any], Any]:
    module = getattr(source.architecture, name, None)
    if module is None:  # unCLIP's statistics of image embeddings, which are no module
        return checkpoints.load_component(folder, variant=source.variant)
    single_file = None if name in (source.components or {}) else source.single_file
    params = load_params(folder, module, None, variant=source.variant, single_file=single_file)
    return checkpoints.load_config(folder), params


def _copy_texts(source: Path, target: Path) -> None:
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".txt"):
            shutil.copyfile(path, target / path.name)

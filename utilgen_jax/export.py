"""Exports a checkpoint, or only a LoRA, for PyTorch's diffusers.

  python -m utilgen_jax.export --checkpoint=glyphs --out=exported
  python -m utilgen_jax.export --checkpoint=sd21 --dtype=float16 \\
      --lora=pytorch_lora_weights.safetensors --lora_scale=0.8 --out=exported
  python -m utilgen_jax.export --checkpoint=model.safetensors --configs=sd15 --out=exported
  python -m utilgen_jax.export --checkpoint=FOLDER --lora=old_lora.safetensors --lora_only --out=exported_lora

The folder gets `model_index.json` and all components, for `DiffusionPipeline.from_pretrained`. LoRAs are merged into
the weights. With --lora_only their sum is converted to `pytorch_lora_weights.safetensors`, for
`pipe.load_lora_weights`. An earlier export in --out is replaced; other files are never replaced. Exit status: 0 done,
2 bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from utilgen_jax.config import command_line
from utilgen_jax.config.lora_flags import define_lora_flags, lora_files, lora_problems
from utilgen_jax.config.schema import choice_problems
from utilgen_jax.errors import InputError

if TYPE_CHECKING:
    from utilgen_jax.checkpoints.single_file import SingleFile

_DTYPES = ("float32", "bfloat16", "float16")


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = flags.FlagValues()

    def text(name: str, help: str) -> None:
        flags.DEFINE_string(name, None, help, flag_values=values)

    text(
        "checkpoint",
        "'glyphs' (the embedded one), a folder in diffusers' format, a hub id owner/name, or a single file",
    )
    text("configs", "of a --checkpoint that is a single file: folder, name or hub id with its configs and tokenizer")
    text("revision", "branch, tag or commit of a hub id")
    text("variant", "variant of the weights to read, such as fp16")
    text("vae", "folder or hub id of an autoencoder to use instead of the checkpoint's")
    text("unet", "folder or hub id of a UNet trained alone, such as checkpoint-500/unet, to use instead of its own")
    define_lora_flags(values)
    flags.DEFINE_boolean("lora_only", False, "write only the LoRA file, no checkpoint", flag_values=values)
    text("dtype", f"dtype of the written weights: {', '.join(_DTYPES)}; default: as stored")
    text("out", "output folder; created if missing")
    flags.DEFINE_boolean("help", False, "show this help and exit", short_name="h", flag_values=values)
    return values


def check_arguments(settings: dict[str, Any], given: set[str]) -> list[str]:
    """Returns messages about invalid arguments; does not open the checkpoint.

    Args:
        settings: flag values by name.
        given: names of the flags on the command line.
    """
    examples = {"checkpoint": "glyphs", "out": "exported"}
    problems = [f"--{name}: required, e.g. --{name}={text}" for name, text in examples.items() if not settings[name]]
    problems += choice_problems("dtype", settings["dtype"], _DTYPES)
    problems += lora_problems(settings)
    if settings["lora_only"] and not settings["lora"]:
        problems.append("--lora_only: requires --lora")
    if settings["lora_only"]:
        problems += [f"--{name}: has no effect with --lora_only" for name in ("dtype", "unet", "vae") if settings[name]]
    return problems + command_line.folder_problems("out", settings["out"])


def export(settings: dict[str, Any]) -> Path:
    """Writes the folder, or the LoRA file.

    Args:
        settings: flag values by name.

    Returns:
        The path of the folder or file.

    Raises:
        InputError: the checkpoint or the LoRA cannot be read, they do not match, or the target has other files.
    """
    import jax.numpy as jnp

    from utilgen_jax import checkpoints
    from utilgen_jax.checkpoints.lora_files import LORA_FILE, save_lora
    from utilgen_jax.generator.adapter_files import load_adapter_files
    from utilgen_jax.generator.loading import read_architecture
    from utilgen_jax.generator.saving import (
        ExportSource,
        check_export_target,
        exported_components,
        write_diffusers_folder,
    )
    from utilgen_jax.report.progress import Progress

    out = Path(settings["out"])
    if settings["lora_only"] and (out / LORA_FILE).exists():
        raise InputError(f"--out: {out / LORA_FILE} already exists; choose another folder, or remove it")
    if not settings["lora_only"]:
        check_export_target(out)
    checkpoint, single_file = _find(settings)
    components = {
        name: checkpoints.resolve_component(settings[name]) for name in ("unet", "vae") if settings[name] is not None
    }
    architecture = read_architecture(checkpoint, components=components, may_inpaint=True)
    adapters = load_adapter_files(lora_files(settings), architecture)
    if settings["lora_only"] and adapters.changes:
        raise InputError(
            "--lora_only: DoRA, LoHa and LoKr are no plain LoRA; without --lora_only they are merged into the weights"
        )
    if settings["lora_only"]:
        return save_lora(out, adapters.loras)
    written: list[str] = []
    with Progress("exporting", len(exported_components(checkpoint)), "component") as progress:

        def on_written(name: str) -> None:
            written.append(name)
            progress.update(len(written))

        write_diffusers_folder(
            out,
            ExportSource(checkpoint, architecture, components, settings["variant"], single_file),
            dtype=jnp.dtype(settings["dtype"]) if settings["dtype"] else None,
            adapters=adapters,
            on_written=on_written,
        )
    return out


def _find(settings: dict[str, Any]) -> tuple[Path, SingleFile | None]:
    """The folder of the checkpoint; of a single file that of its configs, and the file."""
    from utilgen_jax import checkpoints
    from utilgen_jax.checkpoints.single_file import SingleFile

    file = Path(settings["checkpoint"])
    if not file.is_file():
        if settings["configs"]:
            raise InputError(f"--configs: is of use where --checkpoint is a file, and {file} is none")
        return checkpoints.resolve_checkpoint(settings["checkpoint"], settings["revision"], settings["variant"]), None
    single_file = SingleFile(file)
    configs = settings["configs"] or ("sdxl" if single_file.is_xl else None if single_file.is_version_2 else "sd15")
    if configs is None:
        raise InputError(
            f"--configs: {file} is of Stable Diffusion 2; say --configs=sd21, or sd21-768 if it predicts v"
        )
    return checkpoints.resolve_checkpoint(configs, settings["revision"], configs_only=True), single_file


def run(argv: Sequence[str]) -> None:
    """Parses the command line and writes the export.

    Args:
        argv: command line, including the program name.

    Raises:
        InputError: the user's input is invalid; nothing has been written.
    """
    settings = command_line.read_settings(__doc__ or "", define_flags(), argv, check_arguments)
    if settings is None:
        return
    print(f"written: {export(settings)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; argv=None is sys.argv."""
    interrupted = "nothing was replaced; the same command starts again"
    return command_line.exit_status(lambda: run(sys.argv if argv is None else argv), interrupted)


if __name__ == "__main__":
    sys.exit(main())

"""A checkpoint for PyTorch: a folder that torch's diffusers opens, or a LoRA file alone.

  python -m utilgen_jax.export --checkpoint=glyphs --out=exported
  python -m utilgen_jax.export --checkpoint=stabilityai/stable-diffusion-2-1-base --dtype=float16 \\
      --lora=pytorch_lora_weights.safetensors --lora_scale=0.8 --out=exported
  python -m utilgen_jax.export --checkpoint=FOLDER --lora=old_lora.safetensors --lora_only --out=exported_lora

The folder holds `model_index.json` and every component, for `DiffusionPipeline.from_pretrained`. A LoRA is merged into
its weights; with --lora_only it is written as `pytorch_lora_weights.safetensors` for `pipe.load_lora_weights`, whatever
program wrote the file that is read. An earlier export in --out is replaced, anything else is left alone. Exit status:
0 done, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from utilgen_jax.config import command_line
from utilgen_jax.config.schema import choice_problems

_DTYPES = ("float32", "bfloat16", "float16")


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = flags.FlagValues()

    def text(name: str, help: str) -> None:
        flags.DEFINE_string(name, None, help, flag_values=values)

    text("checkpoint", "'glyphs' (the embedded one), a folder in diffusers' format, or a hub id owner/name")
    text("revision", "of a hub id: branch, tag or commit")
    text("variant", "weights to read where a checkpoint has several, such as fp16")
    text("vae", "folder or hub id of an autoencoder published alone, in place of the checkpoint's")
    text("lora", "LoRA file or folder, as diffusers, peft or kohya's scripts write it")
    flags.DEFINE_float("lora_scale", 1.0, "of the LoRA's effect: 0 none, 1 as trained", flag_values=values)
    flags.DEFINE_boolean("lora_only", False, "write the LoRA file alone, no checkpoint", flag_values=values)
    text("dtype", f"to store the weights in: {', '.join(_DTYPES)}; default as they are stored")
    text("out", "folder to write; made if missing")
    flags.DEFINE_boolean("help", False, "show this and leave", short_name="h", flag_values=values)
    return values


def check_arguments(settings: dict[str, Any], given: set[str]) -> list[str]:
    """Lists what is wrong with the command line, as far as that can be told without opening the checkpoint.

    Args:
        settings: each flag's value.
        given: names of the flags that are on the command line.
    """
    examples = {"checkpoint": "glyphs", "out": "exported"}
    problems = [
        f"--{name}: say which, such as --{name}={text}" for name, text in examples.items() if not settings[name]
    ]
    problems += choice_problems("dtype", settings["dtype"], _DTYPES)
    if settings["lora"] and not Path(settings["lora"]).exists():
        problems.append(f"--lora: there is no {settings['lora']}")
    problems += [
        f"--{name}: is of use with --lora only"
        for name in ("lora_scale", "lora_only")
        if name in given and not settings["lora"]
    ]
    if settings["lora_only"]:
        problems += [f"--{name}: is of no use with --lora_only" for name in ("dtype", "vae") if settings[name]]
    out = Path(settings["out"] or ".")
    if any(part.exists() and not part.is_dir() for part in (out, *out.parents)):
        problems.append(f"--out: {out} is, or lies under, a file; give a folder")
    return problems


def export(settings: dict[str, Any]) -> Path:
    """Writes the folder, or the LoRA file.

    Args:
        settings: the value of each flag.

    Returns:
        What was written.

    Raises:
        InputError: the checkpoint or the LoRA cannot be read, they do not fit, or the target holds something else.
    """
    import jax.numpy as jnp

    from utilgen_jax import checkpoints
    from utilgen_jax.checkpoints.lora_files import COMPONENTS, LORA_FILE, load_lora, save_lora
    from utilgen_jax.errors import InputError
    from utilgen_jax.generator.loading import read_architecture
    from utilgen_jax.generator.saving import check_export_target, exported_components, write_diffusers_folder
    from utilgen_jax.generator.stable_diffusion import expected_params
    from utilgen_jax.models.lora import with_scale
    from utilgen_jax.report.progress import Progress

    out = Path(settings["out"]).expanduser()
    if settings["lora_only"] and (out / LORA_FILE).exists():
        raise InputError(f"--out: {out / LORA_FILE} is there already; give another folder, or remove it")
    if not settings["lora_only"]:
        check_export_target(out)
    checkpoint = checkpoints.resolve_checkpoint(settings["checkpoint"], settings["revision"], settings["variant"])
    components = {"vae": checkpoints.resolve_component(settings["vae"])} if settings["vae"] else None
    architecture = read_architecture(checkpoint, components=components)
    loras = {}
    if settings["lora"]:
        shapes = {name: expected_params(getattr(architecture, name)) for name in COMPONENTS}
        loras = load_lora(settings["lora"], shapes)
        loras = {name: with_scale(lora, settings["lora_scale"]) for name, lora in loras.items()}
    if settings["lora_only"]:
        return save_lora(out, loras)
    written: list[str] = []
    with Progress("exporting", len(exported_components(checkpoint)), "component") as progress:

        def on_written(name: str) -> None:
            written.append(name)
            progress.update(len(written))

        write_diffusers_folder(
            out,
            checkpoint,
            architecture,
            dtype=jnp.dtype(settings["dtype"]) if settings["dtype"] else None,
            components=components,
            variant=settings["variant"],
            loras=loras,
            on_written=on_written,
        )
    return out


def run(argv: Sequence[str]) -> None:
    """Reads the command line and writes what it asks for.

    Args:
        argv: The command line, its first entry the program.

    Raises:
        InputError: Something the user gave is wrong; nothing has been written.
    """
    values = define_flags()
    _, problems = command_line.parse_flags(values, argv)
    if values["help"].value:
        print(command_line.help_text(__doc__ or "", values))
        return
    settings = {name: values[name].value for name in values if len(name) > 1 and name != "help"}
    problems += check_arguments(settings, {name for name in settings if values[name].present})
    if problems:
        raise command_line.ConfigError(problems)
    print(f"written: {export(settings)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; argv=None is sys.argv."""
    interrupted = "nothing was replaced; the same command begins anew"
    return command_line.exit_status(lambda: run(sys.argv if argv is None else argv), interrupted)


if __name__ == "__main__":
    sys.exit(main())

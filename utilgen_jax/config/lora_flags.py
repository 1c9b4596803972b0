"""The flags `--lora` and `--lora_scale` of the commands that use LoRA files; both may be repeated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from absl import flags


def define_lora_flags(values: flags.FlagValues) -> None:
    """Defines both flags."""
    about = "LoRA file or folder, in the format of diffusers, peft or kohya; the effects of several add"
    flags.DEFINE_multi_string("lora", None, about, flag_values=values)
    about = "strength of each --lora in turn: 0 none, 1 as trained; default 1"
    flags.DEFINE_multi_float("lora_scale", None, about, flag_values=values)


def lora_problems(settings: dict[str, Any]) -> list[str]:
    """Says what is wrong with both flags, whose files are not opened."""
    files, scales = settings["lora"] or [], settings["lora_scale"] or []
    problems = [f"--lora: {file} does not exist" for file in files if not Path(file).exists()]
    problems += [f"--lora_scale={scale}: is no finite number" for scale in scales if not math.isfinite(scale)]
    if scales and not files:
        problems.append("--lora_scale: is of use with --lora only")
    elif scales and len(scales) != len(files):
        problems.append(
            f"--lora_scale: {len(scales)} for {len(files)} --lora; give one after each --lora, or none for 1"
        )
    return problems


def lora_files(settings: dict[str, Any]) -> list[tuple[Path, float]]:
    """Returns each file or folder and its strength."""
    files = settings["lora"] or []
    scales = settings["lora_scale"] or [1.0] * len(files)
    return [(Path(file), scale) for file, scale in zip(files, scales, strict=True)]

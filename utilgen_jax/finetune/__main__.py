"""Trains Stable Diffusion on a folder of images: a LoRA, one for each class, or a token for one subject.

  python -m utilgen_jax.finetune --checkpoint=sd15 --images=FOLDER --prompt="a photo of a {class}" --out=lora
  python -m utilgen_jax.finetune --checkpoint=sd15 --images=FOLDER --prompt="a photo of a {class}" --per_class \\
      --epochs=200 --text_encoder_rank=16 --out=loras
  python -m utilgen_jax.finetune --checkpoint=sd15 --images=FOLDER --prompt="a photo of <my-cat>" --token="<my-cat>" \\
      --initial=cat --steps=3000 --learning_rate=5e-4 --out=my_cat

FOLDER holds images, of any format that Pillow decodes, or a folder of images for each class, whose name stands for
{class}.
--out gets pytorch_lora_weights.safetensors, with --per_class one in a folder for each class, or with --token
learned_embeds.safetensors: files that diffusers opens, and `python -m utilgen_jax.sample` by --lora and --embeds.
Images are cropped to squares from their originals; the batches hold no others. A training that was cut off continues
with the same command. Exit status: 0 done, 2 bad input, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from utilgen_jax.config import command_line
from utilgen_jax.config.schema import choice_problems
from utilgen_jax.finetune.fields import training_fields

DTYPES = ("float32", "bfloat16")


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = flags.FlagValues()

    def text(name: str, default: str | None, help: str) -> None:
        flags.DEFINE_string(name, default, help, flag_values=values)

    text("checkpoint", None, "'glyphs', a published one such as sd15, a folder in diffusers' format, or a hub id")
    text("revision", None, "of a hub id: branch, tag or commit")
    text("images", None, "folder of images, or of a folder for each class")
    text("prompt", None, "of the images; {class} stands for the name of their folder")
    text("token", None, "textual inversion: the word to learn, such as '<my-cat>', which the prompt holds")
    text("initial", None, "with --token: words to start from")
    flags.DEFINE_boolean("per_class", False, "train a LoRA for each class, on its images alone", flag_values=values)
    text("out", None, "output folder; made if missing")
    flags.DEFINE_integer(
        "image_size", 512, "side of the squares to train on, in pixels", lower_bound=8, flag_values=values
    )
    text("dtype", "float32", f"of the frozen weights and of activations: {', '.join(DTYPES)}")
    flags.DEFINE_integer("seed", 0, "of the start, crops and batches", lower_bound=0, flag_values=values)
    for field in training_fields():
        default = field.default
        bounds: dict[str, Any] = {"lower_bound": field.minimum, "upper_bound": field.maximum, "flag_values": values}
        if isinstance(default, bool):
            flags.DEFINE_boolean(field.path, default, field.help, flag_values=values)
        elif isinstance(default, int):
            flags.DEFINE_integer(field.path, default, field.help, **bounds)
        else:
            flags.DEFINE_float(field.path, default, field.help, **bounds)
    flags.DEFINE_boolean("help", False, "show this and leave", short_name="h", flag_values=values)
    return values


def check_arguments(settings: dict[str, Any], given: set[str]) -> list[str]:
    """Lists what is wrong with the command line, as far as that can be told without opening a file.

    Args:
        settings: each flag's value.
        given: names of the flags that are on the command line.
    """
    examples = {"checkpoint": "sd15", "images": "my_images", "prompt": '"a photo of a {class}"', "out": "lora"}
    problems = [f"--{name}: required, such as --{name}={text}" for name, text in examples.items() if not settings[name]]
    problems += choice_problems("dtype", settings["dtype"], DTYPES)
    prompt, token = settings["prompt"] or "", settings["token"]
    if token:
        problems += [
            f"--{name}: has no effect with --token, which learns a word and no LoRA"
            for name in ("per_class", "rank", "text_encoder_rank")
            if name in given and settings[name]
        ]
        if prompt and token not in prompt:
            problems.append(f'--prompt: must hold the token, such as "a photo of {token}"')
        if not settings["initial"]:
            problems.append("--initial: say which words the token starts from, such as --initial=cat")
    elif "initial" in given:
        problems.append("--initial: is of use with --token only")
    return problems + command_line.folder_problems("out", settings["out"])


def run(argv: Sequence[str]) -> None:
    """Reads the command line, trains, and writes the files.

    Args:
        argv: The command line, its first entry the program.

    Raises:
        InputError: Something the user gave is wrong; nothing has been written.
    """
    settings = command_line.read_settings(__doc__ or "", define_flags(), argv, check_arguments)
    if settings is None:
        return

    # JAX's devices are touched only from here on.
    from utilgen_jax.finetune.train import train

    for file in train(settings):
        print(f"written: {file}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; argv=None is sys.argv."""
    interrupted = "the same command continues where the training was last saved, a minute ago at most"
    return command_line.training_exit_status(lambda: run(sys.argv if argv is None else argv), interrupted)


if __name__ == "__main__":
    sys.exit(main())

"""Images from words: any Stable Diffusion checkpoint (1.x, 2.x, XL) in diffusers' format, on CPU, GPU or TPU.

  python -m utilgen_jax.sample --checkpoint=glyphs --prompt="a photo of the digit seven" --out=images
  python -m utilgen_jax.sample --checkpoint=sd21 --dtype=bfloat16 \\
      --prompt="a red bicycle" --prompt="a blue bicycle" --num=8 --scheduler=dpmsolver++ --steps=25 --out=images
  python -m utilgen_jax.sample --checkpoint=FOLDER --prompt="a watercolour" --init_image=photo.jpg --strength=0.6 \\
      --lora=pytorch_lora_weights.safetensors --out=images

It writes --num images of each prompt in turn, 000.png, 001.png, ...; grid.png, a row a prompt; images.npy, all as
float32 [N, H, W, 3] in [0, 1]; and sample.json, all settings and the prompt and seed of each image. The images of a
prompt have the seeds --seed, --seed + 1, ...; an image follows from its prompt, its seed and the settings, whatever
else is in its batch. Exit status: 0 done, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from utilgen_jax.config import command_line
from utilgen_jax.config.lora_flags import define_lora_flags, lora_problems
from utilgen_jax.config.schema import choice_problems
from utilgen_jax.errors import InputError
from utilgen_jax.generator.config import SCHEDULERS

if TYPE_CHECKING:
    from utilgen_jax.sample.inputs import Inputs

_DTYPES = ("float32", "bfloat16", "float16")
_SPACINGS = ("leading", "linspace", "trailing")
_LAST_SEED = 2**64 - 1


def define_flags() -> flags.FlagValues:
    """Returns this command's flags, not yet parsed."""
    values = flags.FlagValues()

    def text(name: str, default: str | None, help: str) -> None:
        flags.DEFINE_string(name, default, help, flag_values=values)

    def whole(name: str, default: int | None, help: str, lower: int, upper: int | None = None) -> None:
        flags.DEFINE_integer(name, default, help, lower_bound=lower, upper_bound=upper, flag_values=values)

    def number(
        name: str, default: float | None, help: str, lower: float | None = None, upper: float | None = None
    ) -> None:
        flags.DEFINE_float(name, default, help, lower_bound=lower, upper_bound=upper, flag_values=values)

    text("checkpoint", None, "'glyphs' (the embedded one), a folder in diffusers' format, or a hub id owner/name")
    text("revision", None, "of a hub id: branch, tag or commit")
    text("variant", None, "weights to prefer where a checkpoint has several, such as fp16")
    text("vae", None, "folder or hub id of an autoencoder published alone, in place of the checkpoint's")
    text("unet", None, "folder or hub id of a UNet trained alone, such as checkpoint-500/unet, in place of its own")
    flags.DEFINE_multi_string("prompt", None, "what to generate", flag_values=values)
    text("negative_prompt", "", "what to stay away from")
    whole("num", None, "images of each prompt; default 4, or as many as --latents holds", 1)
    whole("seed", 0, "of each prompt's first image; the next have the next ones", 0, _LAST_SEED)
    text("scheduler", "checkpoint", f"{', '.join(SCHEDULERS)}; the last is what the checkpoint's files name")
    about = f"where its steps lie: {', '.join(_SPACINGS)}; default the checkpoint's; trailing for SDXL-Lightning"
    text("timestep_spacing", None, about)
    whole("steps", 30, "denoising steps", 1)
    number("guidance_scale", 7.5, "of classifier-free guidance; 1 or less is none, as turbo checkpoints want", 0.0)
    about = "how far the contrast is brought back to that without guidance: 0 not at all, 1 wholly"
    number("guidance_rescale", 0.0, about, 0.0, 1.0)
    whole("clip_skip", 0, "last layers of the text encoder to skip; 1 is 'clip skip 2' of web interfaces", 0)
    about = "read (word:1.2) and [word] as weights, and encode a prompt of any length, as web interfaces do"
    flags.DEFINE_boolean("weighted_prompts", False, about, flag_values=values)
    number("eta", 0.0, "noise of ddim's steps: 0 none, 1 as in ddpm", 0.0, 1.0)
    whole("height", None, "in pixels; default the checkpoint's, with --init_image the image's", 1)
    whole("width", None, "in pixels; default the checkpoint's, with --init_image the image's", 1)
    text("original_size", None, "for XL: height,width of the original that it takes the image for; default its own")
    text("crop", None, "for XL: top,left of the part of the original that it takes the image for; default 0,0")
    text("target_size", None, "for XL: height,width that it takes for the image's; default its own")
    text("latents", None, ".npy file of starting noise, float32 [num, h, w, channels], in place of the seeds'")
    text("init_image", None, "image to start from, scaled (not cropped) to height and width")
    about = "how far to go from --init_image: near 0 hardly at all, 1 as if from noise; default 0.8, with a mask 1"
    number("strength", None, about, 0.0, 1.0)
    text("mask_image", None, "for a checkpoint for inpainting: white where --init_image is to be generated anew")
    text("image_prompt", None, "image to generate variations of, with an unCLIP checkpoint; its middle square is seen")
    whole("noise_level", 0, "of the noise on --image_prompt's embedding; more lets the images differ more", 0)
    define_lora_flags(values)
    about = "textual inversion file (learned_embeds.safetensors), whose token then works in prompts"
    flags.DEFINE_multi_string("embeds", None, about, flag_values=values)
    text("dtype", "float32", f"to compute in: {', '.join(_DTYPES)}")
    text("weights_dtype", None, "to keep the weights in; default --dtype")
    text("vae_dtype", None, "for the autoencoder to compute in; default --dtype, or float32 where float16 overflows")
    whole("batch_size", 4, "images at once; fewer need less memory", 1)
    text("out", None, "folder for the images; made if missing, what is there of the same name is replaced")
    flags.DEFINE_boolean("help", False, "show this and leave", short_name="h", flag_values=values)
    return values


# Flags of two numbers -> the smallest.
SIZE_FLAGS = {"original_size": 1, "crop": 0, "target_size": 1}


def read_pair(text: str | None, smallest: int) -> tuple[int, int] | None:
    """Reads 'height,width'; ValueError unless it is two whole numbers from the smallest up."""
    if text is None:
        return None
    first, second = (int(part) for part in text.split(","))
    if min(first, second) < smallest:
        raise ValueError(text)
    return first, second


def check_arguments(settings: dict[str, Any], given: set[str]) -> list[str]:
    """Lists what is wrong with the command line, as far as that can be told without opening the checkpoint.

    Args:
        settings: each flag's value.
        given: names of the flags that are on the command line.
    """
    problems = []
    examples = {"checkpoint": "glyphs", "prompt": '"a photo of the digit seven"', "out": "images"}
    problems += [
        f"--{name}: say which, such as --{name}={text}" for name, text in examples.items() if not settings[name]
    ]
    choices = {"scheduler": SCHEDULERS, "timestep_spacing": _SPACINGS}
    choices |= dict.fromkeys(("dtype", "weights_dtype", "vae_dtype"), _DTYPES)
    for name, valid in choices.items():
        problems += choice_problems(name, settings[name], valid)
    needs = {"strength": "init_image", "mask_image": "init_image", "noise_level": "image_prompt"}
    problems += [
        f"--{name}: is of use with --{other} only"
        for name, other in needs.items()
        if name in given and not settings[other]
    ]
    if settings["strength"] == 0:
        problems.append("--strength=0: would leave --init_image as it is; give more than 0")
    for name, smallest in SIZE_FLAGS.items():
        try:
            settings[name] = read_pair(settings[name], smallest)
        except ValueError:
            problems.append(f"--{name}={settings[name]}: two whole numbers from {smallest} up, such as 1024,1024")
    problems += lora_problems(settings)
    problems += [f"--embeds: {file} does not exist" for file in settings["embeds"] or [] if not Path(file).exists()]
    if settings["seed"] + (settings["num"] or 1) - 1 > _LAST_SEED:
        problems.append(f"--seed={settings['seed']}: the last image's seed would pass {_LAST_SEED}")
    return problems + command_line.folder_problems("out", settings["out"])


def read_inputs(settings: dict[str, Any]) -> tuple[Inputs, list[str]]:
    """Reads the files that images start from: what could be read, and the problems with the rest."""
    from utilgen_jax.data.images import open_image
    from utilgen_jax.sample.inputs import Inputs, read_latents

    readers: dict[str, Callable[[Path, str], Any]] = {
        "latents": read_latents,
        "init_image": open_image,
        "mask_image": open_image,
        "image_prompt": open_image,
    }
    contents, problems = {}, []
    for name, reader in readers.items():
        if not (file := settings[name]):
            continue
        if not Path(file).is_file():
            problems.append(f"--{name}: there is no file {file}")
            continue
        try:
            contents[name] = reader(Path(file), file)
        except InputError as error:
            problems.append(f"--{name}: {error}")
    return Inputs(**contents), problems


def run(argv: Sequence[str]) -> None:
    """Reads the command line, generates, and writes the images.

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
    settings = command_line.flag_settings(values)
    problems += check_arguments(settings, {name for name in settings if values[name].present})
    inputs, unreadable = read_inputs(settings)
    problems += unreadable
    if problems:
        raise command_line.ConfigError(problems)

    # JAX's devices are touched only from here on.
    from utilgen_jax.sample.write import write_images

    write_images(settings, inputs)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status; argv=None is sys.argv."""
    interrupted = "the images that were finished are there; the same command begins anew and generates the same ones"
    return command_line.exit_status(lambda: run(sys.argv if argv is None else argv), interrupted)


if __name__ == "__main__":
    sys.exit(main())

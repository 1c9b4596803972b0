"""Loading and parity at full size, by hand: it takes minutes and up to 14 GiB of memory and 8 GB of disk.

    python -m tests.full_size write FOLDER sd15|sd21|sd21-unclip|sdxl [--dtype=bfloat16]   torch writes random weights
    python -m tests.full_size load FOLDER [--dtype=float16]                         seconds and peak memory of loading
    python -m tests.full_size parity FOLDER [--size=64]      one UNet step and one VAE decode against torch, in float32

Of `parity` the weights stay in memory as they are stored, and are float32 layer by layer: XL's UNet needs 5 GiB.

Each prints one JSON object. `load` and `parity` take any checkpoint folder.
"""

import argparse
import functools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GIB = 2**30
TIMESTEP = 500
PARTS = ("unet", "vae")


def write(folder: Path, name: str, dtype: str) -> dict[str, Any]:
    """Writes a randomly initialised checkpoint of a published architecture, one component after the other."""
    import diffusers
    import torch
    import transformers
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    from tests.diffusers_checkpoint import write_tiny_tokenizer
    from utilgen_jax.generator.architectures import ARCHITECTURES

    def from_transformers(model: Any, config: Any) -> Callable[[dict], torch.nn.Module]:
        return lambda settings: model(config(**settings))

    makers: dict[str, tuple[str, str, Callable[[dict], torch.nn.Module]]] = {
        "unet": ("diffusers", "UNet2DConditionModel", lambda settings: diffusers.UNet2DConditionModel(**settings)),
        "vae": ("diffusers", "AutoencoderKL", lambda settings: diffusers.AutoencoderKL(**settings)),
        "text_encoder": (
            "transformers",
            "CLIPTextModel",
            from_transformers(transformers.CLIPTextModel, transformers.CLIPTextConfig),
        ),
        "text_encoder_2": (
            "transformers",
            "CLIPTextModelWithProjection",
            from_transformers(transformers.CLIPTextModelWithProjection, transformers.CLIPTextConfig),
        ),
        "image_encoder": (
            "transformers",
            "CLIPVisionModelWithProjection",
            from_transformers(transformers.CLIPVisionModelWithProjection, transformers.CLIPVisionConfig),
        ),
        "image_normalizer": (
            "stable_diffusion",
            "StableUnCLIPImageNormalizer",
            lambda settings: StableUnCLIPImageNormalizer(**settings),
        ),
    }
    torch.manual_seed(0)
    architecture = {component: dict(settings) for component, settings in ARCHITECTURES[name].items()}
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "tokenizer": ["transformers", "CLIPTokenizer"]}
    if "image_encoder" in architecture:
        architecture["image_normalizer"] = {"embedding_dim": architecture["image_encoder"]["projection_dim"]}
        index["_class_name"] = "StableUnCLIPImg2ImgPipeline"
    if "text_encoder_2" in architecture:
        index |= {"_class_name": "StableDiffusionXLPipeline", "tokenizer_2": ["transformers", "CLIPTokenizer"]}
        write_tiny_tokenizer(folder / "tokenizer_2", pad_token="!")
    parameters = {}
    torch.set_default_dtype(getattr(torch, dtype))
    for component, settings in architecture.items():
        if component in makers:
            library, kind, make = makers[component]
            with torch.device("meta"):
                model = make(settings)
            model = fill(model.to_empty(device="cpu"))
            model.save_pretrained(folder / component)
            parameters[component] = sum(parameter.numel() for parameter in model.parameters())
            del model
        else:
            library, kind = "diffusers", settings["_class_name"]
            (folder / component).mkdir(parents=True, exist_ok=True)
            (folder / component / "scheduler_config.json").write_text(json.dumps(settings))
        index[component] = [library, kind]
    write_tiny_tokenizer(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return {"dtype": dtype, "parameters": parameters}


def fill(model: Any) -> Any:
    """Gives a torch model random weights, of a million draws over and over: its own would take minutes for XL."""
    import torch

    draws = torch.randn(1_000_003)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            times = -(-parameter.numel() // len(draws))
            values = draws.repeat(times)[: parameter.numel()].view(parameter.shape)
            fan_in = max(parameter[0].numel(), 1) if parameter.ndim > 1 else 100
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(values / fan_in**0.5 + (1 if is_norm else 0))
    return model


def load(folder: Path, dtype: str) -> dict[str, Any]:
    """Loads the checkpoint with weights and activations in `dtype` and says what that took, of the whole process."""
    import jax
    import jax.numpy as jnp

    from utilgen_jax.generator.loading import load_stable_diffusion

    start = time.monotonic()
    sd = load_stable_diffusion(folder, jnp.dtype(dtype))
    jax.block_until_ready(sd)
    seconds = time.monotonic() - start
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(sd))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "dtype": dtype,
        "load_seconds": round(seconds, 1),
        "weights_gib": round(size / GIB, 3),
        "peak_gib": round(peak / GIB, 3),
        "allowed_gib": round(1.3 * size / GIB + 1, 3),
        "peak_over_weights": round(peak / size, 2),
    }


def parity(folder: Path, size: int) -> dict[str, Any]:
    """Runs each framework on each part in a process of its own, so that memory holds one model at a time."""
    from tests.torch_parity import relative_error

    results: dict[str, Any] = {"latents": [1, 4, size, size]}
    with tempfile.TemporaryDirectory() as scratch:
        for part in PARTS:
            outputs = {}
            for framework in FRAMEWORKS:
                file = Path(scratch) / f"{framework}_{part}.npz"
                command = [sys.executable, "-m", "tests.full_size", framework, str(folder), part, f"--size={size}"]
                subprocess.run([*command, f"--out={file}"], check=True)
                stored = np.load(file)
                outputs[framework] = stored["result"]
                results[f"{part}_{framework}_seconds"] = round(float(stored["seconds"]), 2)
            results[f"{part}_relative_error"] = relative_error(outputs["jax"], outputs["torch"])
    return results


def example_inputs(folder: Path, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Latents [1, 4, size, size], text states [1, 77, D] and the UNet's class labels, if any; the same every time."""
    config = json.loads((folder / "unet" / "config.json").read_text())
    random = np.random.default_rng(0)
    latents = random.standard_normal((1, 4, size, size), np.float32)
    states = random.standard_normal((1, 77, config["cross_attention_dim"]), np.float32)
    width = config.get("projection_class_embeddings_input_dim")
    if config.get("addition_embed_type"):
        pooled = random.standard_normal((1, width - 6 * config["addition_time_embed_dim"]), np.float32)
        return (
            latents,
            states,
            np.concatenate([pooled, np.array([[1024, 768, 0, 16, 8 * size, 8 * size]], np.float32)], 1),
        )
    return latents, states, random.standard_normal((1, width), np.float32) if width else None


def run_torch(part: str, folder: Path, size: int) -> tuple[np.ndarray, float]:
    """A UNet step or a decode with torch's diffusers: the result [1, C, h, w], and seconds."""
    import diffusers
    import torch
    from safetensors import safe_open

    kind = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[part]
    latents, states, labels = (
        None if array is None else torch.from_numpy(array) for array in example_inputs(folder, size)
    )
    with safe_open(next((folder / part).glob("*.safetensors")), framework="pt") as file:
        stored = file.get_slice(next(iter(file.keys()))).get_dtype()  # as safetensors names it, such as BF16
    dtypes = {"BF16": torch.bfloat16, "F16": torch.float16}
    # The decoder would cast its activations to the dtype of its weights.
    dtype = dtypes.get(stored, torch.float32) if part == "unet" else torch.float32
    model = kind.from_pretrained(folder / part, torch_dtype=dtype)
    compute_in_float32(model)
    conditioning: dict[str, Any] = {"class_labels": labels}
    if labels is not None and getattr(model.config, "addition_embed_type", None):
        conditioning = {"added_cond_kwargs": {"text_embeds": labels[:, :-6], "time_ids": labels[:, -6:]}}
    compute = {
        "unet": lambda: model(latents, TIMESTEP, states, **conditioning).sample.numpy(),
        "vae": lambda: model.decode(latents).sample.numpy(),
    }
    with torch.inference_mode():
        return timed(compute[part])


def compute_in_float32(model: Any) -> None:
    """Makes each layer of a torch model float32 while it runs, and what it was afterwards."""
    import torch

    stored = next(model.parameters()).dtype

    def before(layer: torch.nn.Module, _: Any) -> None:
        layer.to(torch.float32)

    def after(layer: torch.nn.Module, *_: Any) -> None:
        layer.to(stored)

    for layer in model.modules():
        if not list(layer.children()):
            layer.register_forward_pre_hook(before)
            layer.register_forward_hook(after)


def run_jax(part: str, folder: Path, size: int) -> tuple[np.ndarray, float]:
    """The same with ours."""
    import jax
    import jax.numpy as jnp

    from utilgen_jax.generator.loading import load_params, read_architecture

    latents, states, labels = example_inputs(folder, size)
    latents = latents.transpose(0, 2, 3, 1)
    module = getattr(read_architecture(folder), part)
    variables = {"params": load_params(folder / part, module, None)}
    arguments = {"unet": (latents, jnp.array([TIMESTEP]), states, labels), "vae": (latents,)}[part]
    compute = functools.partial(module.apply, method="decode" if part == "vae" else None)
    # A compiled program may make all weights float32 at once.
    is_half = jax.tree.leaves(variables)[0].dtype != jnp.float32
    compute = compute if is_half and part == "unet" else jax.jit(compute)
    result, seconds = timed(lambda: np.asarray(compute(variables, *arguments)))
    return result.transpose(0, 3, 1, 2), seconds


def timed(function: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """The function's result, and the seconds of its second call; the first one may compile."""
    function()
    start = time.monotonic()
    result = function()
    return result, time.monotonic() - start


FRAMEWORKS: dict[str, Callable[[str, Path, int], tuple[np.ndarray, float]]] = {"torch": run_torch, "jax": run_jax}


def main() -> None:
    """Reads the command line and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("write", "load", "parity", *FRAMEWORKS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("what", nargs="?", default="sd15", help="architecture to write; of torch and jax, the part")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--size", type=int, default=64, help="of parity: height and width of the latents")
    parser.add_argument("--out", type=Path, help="of torch and jax, which parity runs")
    arguments = parser.parse_args()
    folder, what = arguments.folder, arguments.what
    if arguments.command in FRAMEWORKS:
        result, seconds = FRAMEWORKS[arguments.command](what, folder, arguments.size)
        np.savez(arguments.out, result=result, seconds=seconds)
        return
    commands: dict[str, Callable[[], dict[str, Any]]] = {
        "write": lambda: write(folder, what, arguments.dtype),
        "load": lambda: load(folder, arguments.dtype),
        "parity": lambda: parity(folder, arguments.size),
    }
    print(json.dumps({"command": arguments.command, "folder": str(folder), **commands[arguments.command]()}))


if __name__ == "__main__":
    main()

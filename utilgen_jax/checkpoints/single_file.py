"""Checkpoints in one safetensors file with the names of CompVis' latent-diffusion, as web interfaces keep them.

The file holds the weights of UNet, autoencoder and text encoder, but neither their configs nor a tokenizer. Names:

    diffusers                                      latent-diffusion
    unet: down_blocks.0.resnets.1.conv1.weight     model.diffusion_model.input_blocks.2.0.in_layers.2.weight
    vae: decoder.mid_block.resnets.0.norm1.bias    first_stage_model.decoder.mid.block_1.norm1.bias
    text_encoder: text_model...                    cond_stage_model.transformer.text_model...   (Stable Diffusion 1.x)
                                                   cond_stage_model.model..., OpenCLIP's names  (2.x)
                                                   conditioner.embedders.0.transformer.text_model...   (XL)
    text_encoder_2: text_model...                  conditioner.embedders.1.model..., OpenCLIP's names
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utilgen_jax.checkpoints.ldm_names import JOINED, UNetLayout, open_clip_name, unet_name, vae_name
from utilgen_jax.checkpoints.safetensors_io import open_file
from utilgen_jax.errors import InputError

_PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
_CLIP, _OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
_XL_CLIP, _XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
_REFINER = "conditioner.embedders.0.model."

# OpenCLIP has [in, out] where transformers has [out, in].
_TRANSPOSED = ("text_projection.weight",)


class ComponentTensors:
    """The tensors of one component under diffusers' names; stands for `safetensors_io.TensorFiles`.

    Attributes:
        shapes: torch shapes by diffusers' names, and by their own the tensors that the component should not have.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]):
        """Use `SingleFile.component`."""
        self.shapes = dict(shapes)
        self.read = read


class SingleFile:
    """A checkpoint in one file.

    Attributes:
        path: the file.
        is_version_2: whether its text encoder is OpenCLIP's, as in Stable Diffusion 2.x.
        is_xl: whether it has two text encoders, as Stable Diffusion XL.
    """

    def __init__(self, path: Path):
        """Opens the file; InputError if it is no such checkpoint, or a refiner of Stable Diffusion XL."""
        self.path = path
        self._files = open_file(path)
        names = self._files.shapes
        if any(name.startswith(_REFINER) for name in names):
            raise InputError(f"{path}: is a refiner of Stable Diffusion XL, which is not supported; its base is")
        absent = [prefix for prefix in _PREFIXES.values() if not any(name.startswith(prefix) for name in names)]
        self.is_version_2 = any(name.startswith(_OPEN_CLIP) for name in names)
        self.is_xl = any(name.startswith(_XL_OPEN_CLIP) for name in names)
        if not self.is_version_2 and not self.is_xl and not any(name.startswith(_CLIP) for name in names):
            absent.append(_CLIP)
        if absent:
            raise InputError(
                f"{path}: has no tensors {', '.join(f'{prefix}*' for prefix in absent)}, so it is no whole checkpoint "
                "in latent-diffusion's names; one component, a LoRA or a learned token has a flag of its own"
            )

    def component(self, component: str, config: Mapping[str, Any], names: Iterable[str]) -> ComponentTensors:
        """Returns the tensors of a component.

        Args:
            component: 'unet', 'vae', 'text_encoder' or 'text_encoder_2'.
            config: its parsed `config.json`.
            names: the names of diffusers that are expected; those that the file lacks are left out.
        """
        stored, shapes, names = self._files.shapes, {}, list(names)
        layout = UNetLayout.of(names)
        sources: dict[str, tuple[str, int | None]] = {}
        for name in names:
            source, part = self._source(component, name, config, layout)
            if source in stored:
                shape = stored[source]
                shapes[name] = shape if part is None else (shape[0] // len(JOINED), *shape[1:])
                shapes[name] = shapes[name][::-1] if name in _TRANSPOSED else shapes[name]
                sources[name] = source, part
        if component in _PREFIXES:
            used = {source for source, _ in sources.values()}
            shapes |= {
                name: shape
                for name, shape in stored.items()
                if name.startswith(_PREFIXES[component]) and name not in used
            }

        def read(name: str) -> np.ndarray:
            source, part = sources.get(name, (name, None))
            tensor = self._files.read(source)
            tensor = tensor if part is None else np.split(tensor, len(JOINED))[part]
            return tensor.T if name in _TRANSPOSED and source != name else tensor

        return ComponentTensors(shapes, read)

    def _source(
        self, component: str, name: str, config: Mapping[str, Any], layout: UNetLayout
    ) -> tuple[str, int | None]:
        """The name in the file, and which of the joined tensors it is, or None where they are apart."""
        if component == "unet":
            return _PREFIXES[component] + unet_name(name, layout), None
        if component == "vae":
            return _PREFIXES[component] + vae_name(name, len(config["block_out_channels"])), None
        if self.is_version_2 or component == "text_encoder_2":
            source, part = open_clip_name(name)
            return (_OPEN_CLIP if self.is_version_2 else _XL_OPEN_CLIP) + source, part
        prefix = _XL_CLIP if self.is_xl else _CLIP
        source = prefix + name
        return source if source in self._files.shapes else prefix + name.removeprefix("text_model."), None

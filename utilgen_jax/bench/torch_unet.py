"""Torch's side of `bench unet`: diffusers' UNet with peft's LoRA, given our weights.

The one module of the package that needs PyTorch; nothing but `--against=torch` imports it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from utilgen_jax.bench.jax_unet import LEARNING_RATE, Inputs, JaxUNet
from utilgen_jax.bench.timing import Prepared, Work
from utilgen_jax.checkpoints.torch_names import flatten, to_torch_layout, to_torch_name

_LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # our target 'attention'
_LORA_NAMES = {"down": "lora_A.default.weight", "up": "lora_B.default.weight"}


class TorchUNet:
    """The UNet and the LoRA of a `JaxUNet`.

    Weights are kept in `weights_dtype`; where `dtype` is another one, torch computes under autocast. The LoRA's factors
    are float32, as ours are. On a GPU torch is told to do what XLA does by itself: channels last, the fastest
    convolution by trial, TF32 for float32.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        ours: JaxUNet,
        *,
        platform: str,
        compile: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Keeps what models are made of.

        Args:
            config: diffusers' `config.json`.
            ours: gives weights, LoRA and settings.
            platform: JAX's name of the device, 'cpu' or 'gpu'.
            compile: by `torch.compile`; else run eagerly.
            gradient_checkpointing: compute the blocks again in the backward pass.
        """
        self._config, self._params, self._lora = dict(config), ours.params, ours.lora
        self._rank = ours.settings.rank
        self._device = torch.device("cuda" if platform == "gpu" else "cpu")
        self._dtype, self._weights_dtype = (
            getattr(torch, ours.settings.dtype),
            getattr(torch, ours.settings.weights_dtype),
        )
        self._compile, self._gradient_checkpointing = compile, gradient_checkpointing
        if self._device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            torch.set_float32_matmul_precision("high")

    def forward(self, inputs: Inputs) -> Prepared:
        """Prepares the forward pass; outputs 'prediction' [B, h, w, C]."""
        autocast = self._dtype != self._weights_dtype
        predict = self._predict(self._optimised(self._model()), inputs, autocast)

        @torch.no_grad()
        def run() -> dict[str, torch.Tensor]:
            return {"prediction": predict().permute(0, 2, 3, 1)}

        return self._prepare(run, self._count_flops(inputs, train=False))

    def lora_step(self, inputs: Inputs) -> Prepared:
        """Prepares the training step with AdamW; outputs 'loss' and 'grad_norm' of the first step.

        Its noise is drawn beforehand; ours draws it in every step.
        """
        model = self._model()
        _add_lora(model, self._rank)
        self._copy_lora(model)
        model.train()
        if self._gradient_checkpointing:
            model.enable_gradient_checkpointing()
        factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(factors, lr=LEARNING_RATE, weight_decay=1e-4)  # optax.adamw's default
        # Half-precision weights beside float32 factors take autocast, as in diffusers' training scripts.
        predict = self._predict(self._optimised(model), inputs, autocast=self._dtype != torch.float32)
        target = _tensor(inputs.target.transpose(0, 3, 1, 2), self._device)

        def run() -> dict[str, torch.Tensor]:
            loss = torch.nn.functional.mse_loss(predict().float(), target)
            loss.backward()
            grad_norm = torch.nn.utils.get_total_norm([factor.grad for factor in factors])
            optimizer.step()
            optimizer.zero_grad()
            return {"loss": loss.detach(), "grad_norm": grad_norm}

        return self._prepare(run, self._count_flops(inputs, train=True))

    def matmul(self, size: int) -> Work:
        """Torch's matrix product, for `peaks.measured_peak`."""
        matrix = torch.ones((size, size), dtype=self._dtype, device=self._device)
        return Work(lambda: matrix @ matrix, self._wait)

    def _model(self) -> Any:
        """The UNet with our weights, frozen."""
        with torch.device("meta"):
            model = UNet2DConditionModel.from_config(self._config)
        weights = {}
        for path, leaf in flatten(self._params).items():
            array = to_torch_layout(np.asarray(leaf, np.float32), path[-1])
            weights[to_torch_name(path)] = _tensor(array, self._device, self._weights_dtype)
        model.load_state_dict(weights, assign=True)
        if self._device.type == "cuda":
            model.to(memory_format=torch.channels_last)
        return model.requires_grad_(False)

    def _copy_lora(self, model: Any) -> None:
        parameters = dict(model.named_parameters())
        for (*scopes, leaf), factor in flatten(self._lora.factors).items():
            parameter = parameters[".".join((*scopes, _LORA_NAMES[leaf]))]
            parameter.data = _tensor(np.asarray(factor).T, self._device)

    def _optimised(self, model: Any) -> Any:
        return torch.compile(model) if self._compile else model

    def _predict(self, model: Any, inputs: Inputs, autocast: bool) -> Callable[[], torch.Tensor]:
        """The model's prediction [B, C, h, w] from its inputs, which are moved to the device now."""
        arguments = _arguments(inputs, self._device, torch.float32 if autocast else self._dtype)

        def predict() -> torch.Tensor:
            with torch.autocast(self._device.type, self._dtype, enabled=autocast):
                return model(**arguments, return_dict=False)[0]

        return predict

    def _prepare(self, run: Callable[[], dict[str, torch.Tensor]], flops: float) -> Prepared:
        begin = time.perf_counter()
        outputs = run()
        self._wait(outputs)
        return Prepared(
            work=Work(run, self._wait),
            outputs={name: output.float().cpu().numpy() for name, output in outputs.items()},
            first_seconds=time.perf_counter() - begin,
            flops=flops,
        )

    def _wait(self, result: Any) -> None:
        del result
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _count_flops(self, inputs: Inputs, train: bool) -> int:
        """Torch's own count of a forward pass, or of a training step, without computing anything.

        The fused attention is replaced by matrix products, as the counter does not know that of a processor, and counts
        what a GPU's computes again in the backward pass.
        """
        with torch.device("meta"):
            model = UNet2DConditionModel.from_config(self._config).requires_grad_(False)
            if train:
                _add_lora(model, self._rank)
        arguments = _arguments(inputs, torch.device("meta"), torch.float32)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            prediction = model(**arguments, return_dict=False)[0]
            if train:
                prediction.square().mean().backward()
        return counter.get_total_flops()


def _add_lora(model: Any, rank: int) -> None:
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=_LORA_TARGETS))


def _arguments(inputs: Inputs, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The model's arguments by name, NCHW."""
    labels, added = inputs.class_labels, None
    if labels is not None and inputs.num_sizes:
        pooled, sizes = np.split(labels, [-inputs.num_sizes], axis=1)
        added = {"text_embeds": _tensor(pooled, device, dtype), "time_ids": _tensor(sizes, device)}
        labels = None
    return {
        "sample": _tensor(inputs.noisy_latents.transpose(0, 3, 1, 2), device, dtype),
        "timestep": torch.tensor(inputs.timesteps, device=device),
        "encoder_hidden_states": _tensor(inputs.prompt_embeds, device, dtype),
        "class_labels": None if labels is None else _tensor(labels, device, dtype),
        "added_cond_kwargs": added,
    }


def _tensor(array: np.ndarray, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Copies an array. Torch would keep its strides, which after a transposition make everything slow."""
    return torch.tensor(np.ascontiguousarray(array), dtype=dtype, device=device)

"""Torch's side of `bench bilevel`: the textbook lookahead, `functional_call` and a graph of the gradient.

Given our parameters; nothing but `--against=torch` imports it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, pad, relu
from torch.utils.flop_counter import FlopCounterMode

from utilgen_jax.bench.jax_bilevel import (
    HIDDEN,
    IMAGE_SIZE,
    LEARNING_RATE,
    MOMENTUM,
    NUM_CLASSES,
    WEIGHT_DECAY,
    WEIGHTING_LEARNING_RATE,
    WIDTH,
    Inputs,
)
from utilgen_jax.bench.timing import Prepared, Work
from utilgen_jax.checkpoints.torch_names import flatten, to_torch_layout, to_torch_name

Tensors = dict[str, torch.Tensor]


class _MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(3 * IMAGE_SIZE**2, WIDTH), nn.Linear(WIDTH, WIDTH)])
        self.head = nn.Linear(WIDTH, NUM_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = images.permute(0, 2, 3, 1).flatten(1)  # pixels in the order that our parameters know
        for layer in self.hidden:
            hidden = relu(layer(hidden))
        return self.head(hidden)


def _conv(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 8, channels)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, stride), _norm(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs, 1), _norm(outputs)
        self.stride, self.margin = stride, (outputs - inputs) // 2

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.bn2(self.conv2(relu(self.bn1(self.conv1(inputs)))))
        shortcut = inputs[:, :, :: self.stride, :: self.stride]
        return relu(hidden + pad(shortcut, (0, 0, 0, 0, self.margin, self.margin)))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(inputs, outputs, stride), *(_Block(outputs, outputs, 1) for _ in range(2)))


class _ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 16, 1), _norm(16)
        self.layer1, self.layer2, self.layer3 = _stage(16, 16, 1), _stage(16, 32, 2), _stage(32, 64, 2)
        self.linear = nn.Linear(64, NUM_CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = relu(self.bn1(self.conv1(images)))
        for stage in (self.layer1, self.layer2, self.layer3):
            hidden = stage(hidden)
        return self.linear(hidden.mean((2, 3)))


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": _MLP, "resnet20": _ResNet20}


class TorchBilevel:
    """The classifier and the weight network of a `JaxBilevel`, which computes the same."""

    def __init__(self, model: str, params: Any, weighting_params: Any, platform: str) -> None:
        """Keeps what models are made of; `platform` is JAX's name of the device, 'cpu' or 'gpu'."""
        self._device = torch.device("cuda" if platform == "gpu" else "cpu")
        self._model = MODELS[model]().to(self._device)
        self._params, self._weighting_params = params, weighting_params

    def plain(self, inputs: Inputs) -> Prepared:
        """The classifier's step, by torch's own optimiser."""
        self._model.load_state_dict(self._tensors(self._params))
        optimizer = torch.optim.SGD(
            self._model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        images, labels, *_ = self._arguments(inputs)

        def step() -> Tensors:
            loss = cross_entropy(self._model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return {"train_loss": loss.detach()} | {"params": _norm_of(list(self._model.parameters()))}

        return self._prepare(step)

    def weight_network(self, inputs: Inputs) -> Prepared:
        """Meta-Weight-Net's step: the classifier's update stays in the graph, the validation loss goes through."""
        params = {name: tensor.requires_grad_() for name, tensor in self._tensors(self._params).items()}
        momentum = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        network = nn.Sequential(nn.Linear(1, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1), nn.Sigmoid()).to(self._device)
        start = self._tensors(self._weighting_params)
        names = {"0": "hidden", "2": "output"}
        network.load_state_dict({name: start[f"{names[name[0]]}{name[1:]}"] for name in network.state_dict()})
        before = [parameter.detach().clone() for parameter in network.parameters()]
        optimizer = torch.optim.Adam(network.parameters(), lr=WEIGHTING_LEARNING_RATE)
        images, labels, validation_images, validation_labels = self._arguments(inputs)

        def step() -> Tensors:
            nonlocal params, momentum
            losses = cross_entropy(functional_call(self._model, params, (images,)), labels, reduction="none")
            raw = network(losses.detach()[:, None])[:, 0]
            loss = (raw / raw.mean() * losses).mean()
            gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            velocity = {
                name: MOMENTUM * momentum[name] + gradient + WEIGHT_DECAY * params[name]
                for name, gradient in zip(params, gradients, strict=True)
            }
            moved = {name: params[name] - LEARNING_RATE * velocity[name] for name in params}
            validation_loss = cross_entropy(
                functional_call(self._model, moved, (validation_images,)), validation_labels
            )
            optimizer.zero_grad()
            for parameter, gradient in zip(
                network.parameters(), torch.autograd.grad(validation_loss, list(network.parameters())), strict=True
            ):
                parameter.grad = gradient
            optimizer.step()
            params = {name: tensor.detach().requires_grad_() for name, tensor in moved.items()}
            momentum = {name: tensor.detach() for name, tensor in velocity.items()}
            changes = [new.detach() - old for new, old in zip(network.parameters(), before, strict=True)]
            return {
                "train_loss": loss.detach(),
                "params": _norm_of(list(params.values())),
                "validation_loss": validation_loss.detach(),
                "weighting_change": _norm_of(changes),
            }

        return self._prepare(step)

    def matmul(self, size: int) -> Work:
        """Torch's matrix product, for `peaks.measured_peak`."""
        matrix = torch.ones((size, size), device=self._device)
        return Work(lambda: matrix @ matrix, self._wait)

    def _tensors(self, params: Any) -> Tensors:
        return {
            to_torch_name(path): torch.tensor(to_torch_layout(np.asarray(leaf), path[-1]), device=self._device)
            for path, leaf in flatten(params).items()
        }

    def _arguments(self, inputs: Inputs) -> list[torch.Tensor]:
        """Images NCHW and labels, on the device."""
        arrays = (inputs.images, inputs.labels, inputs.validation_images, inputs.validation_labels)
        return [
            torch.tensor(np.ascontiguousarray(array.transpose(0, 3, 1, 2) if array.ndim == 4 else array)).to(
                self._device, torch.float32 if array.ndim == 4 else torch.int64
            )
            for array in arrays
        ]

    def _prepare(self, step: Callable[[], Tensors]) -> Prepared:
        begin = time.perf_counter()
        with FlopCounterMode(display=False) as counter:
            outputs = step()
        self._wait(outputs)
        return Prepared(
            work=Work(step, self._wait),
            outputs={name: output.detach().cpu().numpy() for name, output in outputs.items()},
            first_seconds=time.perf_counter() - begin,
            flops=counter.get_total_flops(),
        )

    def _wait(self, result: Any) -> None:
        del result
        if self._device.type == "cuda":
            torch.cuda.synchronize()


def _norm_of(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.get_total_norm([tensor.detach() for tensor in tensors])

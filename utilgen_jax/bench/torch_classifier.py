"""Torch's side of `bench classifier`: transformers' ResNet, trained as its users train it for speed."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import ResNetConfig, ResNetForImageClassification

from utilgen_jax.bench.jax_classifier import LEARNING_RATE, NUM_CLASSES, WEIGHT_DECAY
from utilgen_jax.bench.timing import Prepared, Work

_BASIC, _BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
# Name -> blocks of each stage, their kind, and their channels.
_SIZES = {
    "resnet18": ((2, 2, 2, 2), "basic", _BASIC),
    "resnet34": ((3, 4, 6, 3), "basic", _BASIC),
    "resnet50": ((3, 4, 6, 3), "bottleneck", _BOTTLENECK),
    "resnet101": ((3, 4, 23, 3), "bottleneck", _BOTTLENECK),
}


def prepare_torch(name: str, dtype: str, images: np.ndarray, labels: np.ndarray, platform: str) -> Prepared:
    """Makes the training step and runs it once.

    Args:
        name: of the network.
        dtype: of activations.
        images: float32 [B, H, W, 3].
        labels: int [B].
        platform: JAX's name of the device, 'cpu' or 'gpu'.
    """
    device = torch.device("cuda" if platform == "gpu" else "cpu")
    if platform == "gpu":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    depths, kind, channels = _SIZES[name]
    config: Any = ResNetConfig(depths=list(depths), layer_type=kind, hidden_sizes=channels)
    config.num_labels = NUM_CLASSES
    model: Any = ResNetForImageClassification(config)
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=WEIGHT_DECAY)
    pixels = torch.tensor(images.transpose(0, 3, 1, 2), device=device).to(memory_format=torch.channels_last)
    targets = torch.tensor(labels, device=device)
    predict = torch.compile(model) if platform == "gpu" else model

    def step() -> torch.Tensor:
        with torch.autocast(device.type, getattr(torch, dtype), enabled=dtype != "float32"):
            loss = torch.nn.functional.cross_entropy(predict(pixels).logits, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def wait(loss: torch.Tensor) -> None:
        if platform == "gpu":
            torch.cuda.synchronize()

    begin = time.perf_counter()
    wait(step())
    first_seconds = time.perf_counter() - begin
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.cross_entropy(model(pixels).logits, targets).backward()
    optimizer.zero_grad()
    return Prepared(Work(step, wait), {}, first_seconds, counter.get_total_flops())

"""The data card: where the images come from, what is known of their limits, and how to train on them."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from utilgen_jax import __version__
from utilgen_jax.checkpoints.published import published_name
from utilgen_jax.config.schema import Config
from utilgen_jax.methods.base import Method
from utilgen_jax.pool.records import PoolRecord

_LICENCES: Mapping[str, str] = {
    "glyphs": "Apache-2.0; trained on renderings of the DejaVu, STIX and Computer Modern fonts",
    "sd14": "CreativeML Open RAIL-M",
    "sd15": "CreativeML Open RAIL-M",
    "sd21": "CreativeML Open RAIL++-M",
    "sd21-768": "CreativeML Open RAIL++-M",
    "sd21-unclip": "CreativeML Open RAIL++-M",
    "sd-turbo": "Stability AI Community License",
    "sdxl": "CreativeML Open RAIL++-M",
    "sdxl-turbo": "Stability AI Community License",
}
_UNKNOWN = "not known here; look at the checkpoint's own page before the images are used or passed on"
_MOST_PROMPTS = 20

_CARD = """\
---
tags: [synthetic, image-classification]
---

# {number} synthetic images of {num_classes} classes

No photograph: every image was generated. Each PNG says so (`Source: synthetic`), with checkpoint, prompt and seed.

## Origin

| | |
|---|---|
| generator | Stable Diffusion checkpoint `{checkpoint}`, {image_size} pixels, {steps} steps, guidance {guidance:g} |
| its licence | {licence} |
| method | `{method}` ({title}) of utilgen_jax {version} |
| fitted to | {shots} real images a class of `{dataset}`, seed {run_seed} |
| seed of these images | {seed}; each image has one of its own |

The same images again: `{command}`

## Content

{classes}

Beside image and label (0 to {last_label}, in this order) each has `class_name`, `prompt`, `seed`, `difficulty` (1 less
the probability of its class, by a classifier of the real images), `requested_difficulty`, `conditioned_on` (the real
images that it was made from, if any), and

- `weight`: {weights};
- `soft_label`: {soft_labels}.

Prompts, the most frequent ones:

{prompts}

## Known limits

- An image may show another class than its label, or none; `soft_label` and `weight` tell of some of these, not of all.
- The generator's training images decide what it shows and what it leaves out; their bias is in these images.
- The images may resemble the real ones that the generator was fitted to; the rules for those hold for them too.
- Nothing filtered the images for offence, persons or marks.
- They help beside real images of the same classes. Test on real images only.

## Training on them

{opening}

The lines below run in this folder. The whole set is read into memory, and the model is the smallest there is: put yours
in its place.

```python
{reading}

targets = {targets}
weights = np.array(rows["weight"], np.float32)
```

PyTorch:

```python
{torch}
```

JAX:

```python
{jax}
```
"""

_TORCH = """\
import torch

pixels = torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1
targets, weights = torch.tensor(targets), torch.tensor(weights)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(pixels[0].numel(), targets.shape[1]))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for epoch in range(10):
    for batch in torch.randperm(len(pixels)).split(64):
        losses = torch.nn.functional.cross_entropy(model(pixels[batch]), targets[batch], reduction="none")
        optimizer.zero_grad()
        (weights[batch] * losses).mean().backward()
        optimizer.step()"""

_JAX = """\
import jax
import optax

pixels = images.reshape(len(images), -1) / np.float32(127.5) - 1
params = {"kernel": np.zeros((pixels.shape[1], targets.shape[1]), np.float32), "bias": np.zeros(targets.shape[1])}
optimizer = optax.adamw(1e-3)
state = optimizer.init(params)
def loss(params, pixels, targets, weights):
    return (weights * optax.softmax_cross_entropy(pixels @ params["kernel"] + params["bias"], targets)).mean()
gradient, rng = jax.jit(jax.grad(loss)), np.random.default_rng(0)
for batch in [rng.integers(len(pixels), size=64) for step in range(10 * len(pixels) // 64 + 1)]:
    updates, state = optimizer.update(gradient(params, pixels[batch], targets[batch], weights[batch]), state, params)
    params = optax.apply_updates(params, updates)"""


@dataclasses.dataclass(frozen=True)
class CardSource:
    """What a data card tells of.

    Attributes:
        config: of the run.
        method: of the run.
        checkpoint: the generator's folder.
        class_names: K of the run.
        records: of all images.
        command: that makes them.
        seed: of these images.
        opening, reading: see `Format`.
    """

    config: Config
    method: Method
    checkpoint: Path
    class_names: Sequence[str]
    records: Sequence[PoolRecord]
    command: Sequence[str]
    seed: int
    opening: str
    reading: str


def data_card(source: CardSource) -> str:
    """Returns the text of the card, Markdown."""
    config, names = source.config, source.class_names
    counts = Counter(record.label for record in source.records)
    prompts = Counter(record.prompt or "" for record in source.records).most_common(_MOST_PROMPTS)
    sampling = source.method.pool.sampling(config) if source.method.pool else config.generator
    labelled = source.method.has_soft_labels
    return _CARD.format(
        number=len(source.records),
        num_classes=len(names),
        last_label=len(names) - 1,
        checkpoint=config.generator.checkpoint,
        image_size=config.generator.image_size,
        steps=sampling.steps,
        guidance=sampling.guidance_scale,
        licence=licence_of(config.generator.checkpoint, source.checkpoint),
        method=source.method.name,
        title=source.method.title.removeprefix("+ "),
        version=__version__,
        shots=config.data.shots or "all",
        dataset=config.data.name,
        run_seed=config.seed,
        seed=source.seed,
        command=shlex.join(source.command),
        classes=", ".join(f"{name} {counts[label]}" for label, name in enumerate(names)),
        weights="what it should count in training, by the run's valuation"
        if source.method.has_weights
        else "1 for all",
        soft_labels="probabilities of the classes, by the run's ensembles" if labelled else "none with this method",
        prompts="\n".join(f"- {_code(prompt)} ({times})" for prompt, times in prompts),
        opening=source.opening,
        reading=source.reading,
        targets='np.array(rows["soft_label"], np.float32)'
        if labelled
        else f'np.eye({len(names)}, dtype=np.float32)[rows["label"]]',
        torch=_TORCH,
        jax=_JAX,
    )


def licence_of(checkpoint: str, folder: Path) -> str:
    """The licence of a checkpoint: what its own card says, or what is known of published ones."""
    card = folder / "README.md"
    if card.is_file():
        found = re.search(r"\A---\n(?:.*\n)*?license(?:_name)?: *(\S.*)\n", card.read_text("utf-8", errors="replace"))
        if found is not None:
            return found[1].strip()
    return _LICENCES.get(published_name(checkpoint) or checkpoint, _UNKNOWN)


def _code(text: str) -> str:
    """Text as code in Markdown, on one line."""
    return "`" + " ".join(text.replace("`", "'").split()) + "`"

"""What one device computes and moves of a fixed batch, by the number of devices: compiled for them, not run.

  python -m utilgen_jax.bench scaling
  python -m utilgen_jax.bench scaling --classifier=resnet50 --image_size=224 --batch_size=512

The programs are a step of the classifier's training and a forward pass of the embedded generator's UNet. The devices
are parts of this machine's processor, for which XLA splits a program as it does for a TPU's chips. Nothing is timed:
--repeats and --warmup have no effect here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from utilgen_jax.classifier.config import CLASSIFIERS, ClassifierConfig
from utilgen_jax.classifier.model import make_classifier
from utilgen_jax.classifier.train import learning_step, make_init_optimizer
from utilgen_jax.config.schema import choice_problems
from utilgen_jax.errors import InputError
from utilgen_jax.generator.find_architecture import find_architecture
from utilgen_jax.generator.stable_diffusion import expected_params
from utilgen_jax.report.table import format_table
from utilgen_jax.runtime.sharding import make_mesh

NUM_CLASSES = 100
_UNET_SIZE = 32  # pixels of the generated images
# The machine code is not run; XLA's figures are of what stands before it.
_QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def define_flags(values: flags.FlagValues) -> None:
    """Adds this benchmark's flags."""
    flags.DEFINE_string("classifier", "resnet20", f"one of {', '.join(CLASSIFIERS)}", flag_values=values)
    flags.DEFINE_integer("image_size", 32, "of the classifier, in pixels", lower_bound=8, flag_values=values)
    flags.DEFINE_integer("batch_size", 256, "images of both programs, all devices together", flag_values=values)
    flags.DEFINE_integer("most_devices", 64, "a power of two", lower_bound=1, flag_values=values)


def check_settings(settings: Mapping[str, Any]) -> list[str]:
    """Lists what is wrong with the settings; nothing is touched."""
    problems = choice_problems("classifier", settings["classifier"], CLASSIFIERS)
    most = settings["most_devices"]
    if most & (most - 1):
        problems.append(f"--most_devices={most}: is no power of two")
    elif settings["batch_size"] % most:
        problems.append(f"--batch_size={settings['batch_size']}: does not divide among {most} devices")
    return problems


def run(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Compiles both programs for 1, 2, 4, ... devices; returns the table and the figures."""
    most = settings["most_devices"]
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", most)
    except RuntimeError:  # the devices have been made already
        pass
    if len(jax.devices("cpu")) < most:
        raise InputError(f"--most_devices={most}: this process has {len(jax.devices('cpu'))} devices already")
    programs: dict[str, Callable[[], tuple[Any, tuple, tuple]]] = {
        "classifier": partial(_classifier, settings),
        "unet": partial(_unet, settings["batch_size"]),
    }
    numbers = [2**power for power in range(most.bit_length())]
    figures: dict[str, Any] = {name: settings[name] for name in ("classifier", "image_size", "batch_size")}
    figures["devices"] = {}
    for number in numbers:
        mesh = make_mesh(devices=jax.devices("cpu")[:number])
        figures["devices"][number] = {name: _costs(mesh, *program()) for name, program in programs.items()}
    first = figures["devices"][1]
    rows = [
        [str(number), *(_cell(of_both[name], first[name], key) for name in programs for key in ("flops", "bytes"))]
        for number, of_both in figures["devices"].items()
    ]
    header = ["devices", *(f"{name}, {what}" for name in programs for what in ("GFLOP", "MB"))]
    return format_table(rows, header), figures


def _cell(costs: Mapping[str, float], alone: Mapping[str, float], key: str) -> str:
    """A device's own figure, and in brackets that of all devices over that of one alone."""
    return f"{costs[key] / (1e9 if key == 'flops' else 1e6):.4g} ({costs['devices'] * costs[key] / alone[key]:.2f})"


def _costs(mesh: Mesh, function: Any, whole: tuple, batch: tuple) -> dict[str, float]:
    """What XLA says of the program of one device: the first arguments are whole on each, the others split.

    Args:
        mesh: of the devices.
        function: jitted.
        whole, batch: its arguments, pytrees of shapes.
    """

    def placed(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    with jax.set_mesh(mesh):
        arguments = *placed(whole, PartitionSpec()), *placed(batch, PartitionSpec(("data", "fsdp")))
        analysis = function.lower(*arguments).compile(_QUICKLY).cost_analysis()
    return {"devices": mesh.size, "flops": analysis["flops"], "bytes": analysis["bytes accessed"]}


def _classifier(settings: Mapping[str, Any]) -> tuple[Any, tuple, tuple]:
    """A step of the classifier's training."""
    config = ClassifierConfig(name=settings["classifier"], batch_size=settings["batch_size"])
    shape = settings["image_size"], settings["image_size"], 3
    classifier = make_classifier(config, NUM_CLASSES, settings["image_size"], 3)
    params = jax.eval_shape(
        lambda key: classifier.module.init(key, jnp.zeros((1, *shape)))["params"], jax.random.key(0)
    )
    state = params, jax.eval_shape(make_init_optimizer(config.optimizer), params)
    batch = tuple(jax.ShapeDtypeStruct((config.batch_size, *of), jnp.float32) for of in (shape, (NUM_CLASSES,)))

    def step(params: Any, optimizer_state: Any, images: jax.Array, targets: jax.Array) -> Any:
        counts = jnp.ones(NUM_CLASSES)
        return learning_step(classifier, config, params, optimizer_state, images, targets, counts, 0.1)

    return jax.jit(step), state, batch


def _unet(batch_size: int) -> tuple[Any, tuple, tuple]:
    """A forward pass of the embedded generator's UNet."""
    architecture, _ = find_architecture("glyphs", None, None, dtype=jnp.float32)
    unet, encoder = architecture.unet, architecture.text_encoder

    def of(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    latents = of(*architecture.latent_shape((_UNET_SIZE, _UNET_SIZE)))
    states = of(encoder.max_position_embeddings, unet.cross_attention_dim)
    width = unet.projection_class_embeddings_input_dim
    labels = () if unet.class_embed_type is None else (of(width),)
    forward = jax.jit(lambda weights, *inputs: unet.apply({"params": weights}, *inputs))
    return forward, (expected_params(unet),), (latents, of(dtype=jnp.int32), states, *labels)

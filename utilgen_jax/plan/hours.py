"""How often a run calls each of its programs, and the hours that this takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

from utilgen_jax.config.schema import Config
from utilgen_jax.generator.finetune.config import DpoConfig, TextualInversionConfig
from utilgen_jax.joint.config import JointConfig
from utilgen_jax.methods.datadream import DataDreamConfig
from utilgen_jax.methods.deliberate_practice import DeliberatePracticeConfig
from utilgen_jax.methods.difficulty import DifficultyConfig
from utilgen_jax.runtime.chips import CHIPS, GPU_DOLLARS, GPUS, Chip
from utilgen_jax.valuation.config import EnsembleConfig

# Of a chip's peak; what a well-tuned run of such models reaches. No run of ours has been timed on an accelerator.
SHARE_OF_PEAK = 0.4
_GPUS_TOLD = ("A100", "H100")


@dataclasses.dataclass(frozen=True)
class RunSize:
    """A run, as far as the number of its steps depends on it.

    Attributes:
        config: of the run.
        num_classes: K.
        num_real: labelled images.
    """

    config: Config
    num_classes: int
    num_real: int

    @property
    def pool_size(self) -> int:
        """Images of a pool."""
        pool = self.config.pool
        if pool.fill_to:
            return max(self.num_classes * pool.fill_to - self.num_real, 0)
        return self.num_classes * pool.images_per_class

    def batches(self, images: float) -> int:
        """Calls of the sampler for so many images."""
        return -int(-images // self.config.generator.batch_size)

    @property
    def pools(self) -> float:
        """Pools that are sampled plainly, the method's own and those that it learns from."""
        method, config = self.config.method, self.config
        if method.startswith("deliberate_practice"):
            return config.section(DeliberatePracticeConfig).initial_fraction
        if method.startswith("utilgen"):
            # Of the tokens, of each model-level round, and of the refined prompts.
            return 2 + config.section(DpoConfig).rounds
        if method.startswith("datadream"):
            return 2 if config.section(DataDreamConfig).num_prior else 1
        return 2 if method.startswith(("difficulty", "joint")) else 1

    def lora_steps(self) -> int:
        """Steps of DataDream's training or trainings."""
        lora = self.config.section(DataDreamConfig)
        if not lora.per_class:
            return lora.of_images(self.num_real).steps
        return self.num_classes * lora.of_images(-(-self.num_real // self.num_classes)).steps

    def classifier_steps(self) -> int:
        """Steps of the method's classifiers; those that value a pool are not counted."""
        config = self.config
        trainings = 2 if config.also_synthetic_only else 1
        if config.method.startswith("joint"):
            ensemble = config.section(EnsembleConfig)
            trainings += ensemble.members + 4 * ensemble.pool_members
        return trainings * config.classifier.steps


# Program -> its calls.
_CALLS: Mapping[str, Callable[[RunSize], float]] = {
    "unet": lambda size: size.pools * size.batches(size.pool_size) * size.config.generator.num_calls,
    "sample": lambda size: size.batches(size.pools * size.pool_size),
    "guided_sample": lambda size: size.batches((1 - size.pools) * size.pool_size) if size.pools < 1 else 0,
    "per_image": lambda size: size.batches(size.pool_size),
    "lora": RunSize.lora_steps,
    "difficulty": lambda size: size.config.section(DifficultyConfig).of_images(size.num_real).steps,
    "textual_inversion": lambda size: size.config.section(TextualInversionConfig).of_images(size.num_real).steps,
    "dpo": lambda size: size.config.section(DpoConfig).rounds * size.config.section(DpoConfig).steps,
    "bilevel": lambda size: size.config.section(JointConfig).steps,
    "classifier": RunSize.classifier_steps,
}


def calls(program: str, size: RunSize) -> int:
    """How often a run calls a program.

    Args:
        program: a name of `plan.methods.ALL_PROGRAMS`.
        size: of the run.
    """
    return int(_CALLS[program](size))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What all calls of a program, or of several, take.

    Attributes:
        hours: on the planned chips.
        bottleneck: "products" or "memory", whichever takes longer.
    """

    hours: float
    bottleneck: str


def cost(calls: float, flops: float, moved_bytes: float, chip: Chip, chips: int) -> Cost:
    """The time of a program by the roofline: that of its products at `SHARE_OF_PEAK`, or that of its bytes if longer.

    Args:
        calls: of the program.
        flops: of a call, all chips together.
        moved_bytes: of a call, on one chip.
        chip: its kind.
        chips: their number.
    """
    products, memory = flops / (SHARE_OF_PEAK * chip.flops * chips), moved_bytes / chip.bandwidth
    return Cost(calls * max(products, memory) / 3600, "memory" if memory > products else "products")


def summary(flops: float, topology: str, hours: float, size: RunSize) -> str:
    """The hours and dollars of a run's programs, for people.

    Args:
        flops: of all calls of all programs.
        topology: the planned chips.
        hours: on them.
        size: of the run.
    """
    kind = topology.partition(":")[0]
    dollars = hours * num_chips(topology) * CHIPS[kind].dollars
    told = [f"{topology} {hours:.2g} h, ${dollars:,.0f}"]
    for name in _GPUS_TOLD:
        on_gpu = flops / (SHARE_OF_PEAK * GPUS[name]["bfloat16"] * 1e12) / 3600
        told.append(f"one {name} {on_gpu:.2g} h, ${on_gpu * GPU_DOLLARS[name]:,.0f}")
    return (
        f"{size.num_classes} classes, {size.num_real} labelled images, pools of {size.pool_size}: "
        f"{flops / 1e15:.4g} PFLOP; at {SHARE_OF_PEAK:.0%} of the peak, on demand: {'; '.join(told)}"
    )


def num_chips(topology: str) -> int:
    """How many chips a topology has: 16 of v5e:4x4."""
    return math.prod(int(side) for side in topology.partition(":")[2].split("x"))

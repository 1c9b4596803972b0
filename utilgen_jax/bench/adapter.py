"""Shows that the generator's gradient does its work: adapter updates against random directions of equal norm.

  python -m utilgen_jax.bench adapter --objective=pathwise
  python -m utilgen_jax.bench adapter --objective=policy_gradient
  python -m utilgen_jax.bench adapter --objective=dpo

In the embedded glyph domain. A classifier is trained on half of the shots, one digit a class, and then stays fixed. The
adapter is a LoRA on the UNet's attention, and all its images for updates come from fresh noise. The figure is the loss
on the other half of the shots after one step of the classifier on images of fixed sample inputs and noise, which no
update has seen: before any update, after them, and after as many steps of the same lengths in random directions. A seed
is won where `after` is below `random`; it decides on shots, classifier, noise, LoRA and directions. Nothing is timed:
--repeats and --warmup say nothing here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from absl import flags

from utilgen_jax.bench.glyph_adapter import GlyphDomain, Round, Task
from utilgen_jax.config.schema import choice_problems
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.finetune.dpo import preference_pairs
from utilgen_jax.report.progress import Progress
from utilgen_jax.report.table import format_table


@dataclasses.dataclass(frozen=True)
class Objective:
    """How the updates of one objective are taken; the numbers were found on seeds 0 to 3.

    Attributes:
        gradient: (domain, task, adapter, round, key) -> gradient.
        images: generated in each round, the classes in turn.
        updates_per_round: updates on them before the next round.
        learning_rate: of Adam.
    """

    gradient: Callable[[GlyphDomain, Task, Adapter, Round, jax.Array], Adapter]
    images: int
    updates_per_round: int
    learning_rate: float


OBJECTIVES: Mapping[str, Objective] = {
    "pathwise": Objective(GlyphDomain.pathwise, images=30, updates_per_round=1, learning_rate=5e-3),
    "policy_gradient": Objective(GlyphDomain.policy_gradient, images=30, updates_per_round=1, learning_rate=5e-3),
    "dpo": Objective(GlyphDomain.dpo, images=60, updates_per_round=5, learning_rate=2e-3),
}
_COLUMNS = ("before", "after", "random")


def define_flags(values: flags.FlagValues) -> None:
    """Adds this benchmark's flags."""
    flags.DEFINE_string("objective", "pathwise", f"one of {', '.join(OBJECTIVES)}", flag_values=values)
    flags.DEFINE_integer("seeds", 10, "how many, from 0 on", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("updates", 20, "of the adapter", lower_bound=1, flag_values=values)


def check_settings(settings: Mapping[str, Any]) -> list[str]:
    """Lists what is wrong with the flags' values."""
    problems = choice_problems("objective", settings["objective"], OBJECTIVES)
    if settings["against"] != "none":
        problems.append("--against: nothing is timed here; the updates are held against random directions")
    return problems


def run(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Runs all seeds.

    Args:
        settings: values of all flags, checked.

    Returns:
        A table for people, and all figures, JSON-ready.
    """
    domain, objective = GlyphDomain(), OBJECTIVES[settings["objective"]]
    gradient = jax.jit(objective.gradient, static_argnums=0)
    number, updates = settings["seeds"], settings["updates"]
    results = []
    with Progress(f"adapter, {settings['objective']}", number * updates, "update") as progress:
        for seed in range(number):

            def on_update(done: int, finished: int = seed * updates) -> None:
                progress.update(finished + done)

            results.append({"seed": seed} | _run_seed(domain, objective, gradient, seed, updates, on_update))
    won = [result["after"] < result["random"] for result in results]
    rows = [
        [result["seed"], *(f"{result[name]:.5f}" for name in _COLUMNS), "won" if is_won else "lost"]
        for result, is_won in zip(results, won, strict=True)
    ]
    figures = {
        "benchmark": "adapter",
        **{name: settings[name] for name in ("objective", "seeds", "updates")},
        **{name: getattr(objective, name) for name in ("images", "updates_per_round", "learning_rate")},
        "wins": sum(won),
        "results": results,
    }
    title = f"{settings['objective']}, {updates} updates: validation loss after the classifier's step"
    return f"{title}\n\n{format_table(rows, ['seed', *_COLUMNS, ''])}\n\n{sum(won)} of {number} won\n", figures


def _run_seed(
    domain: GlyphDomain,
    objective: Objective,
    gradient: Callable[..., Adapter],
    seed: int,
    updates: int,
    on_update: Callable[[int], None],
) -> dict[str, float]:
    task, rng, key = domain.make_task(seed), np.random.default_rng(seed), jax.random.key(seed)
    held_out = domain.make_sample_inputs(objective.images, rng)
    start = domain.init_adapter(held_out, seed)
    optimizer = optax.adam(objective.learning_rate)
    adapter, state, stray = start, optimizer.init(start), start
    for number in range(updates):
        if number % objective.updates_per_round == 0:
            seen = domain.value(task, adapter, domain.make_sample_inputs(objective.images, rng))
            pairs = preference_pairs(seen.utilities, seen.trajectory.sample_inputs.labels)
            seen = seen.replace(pairs=pairs)
        update_key = jax.random.fold_in(key, number)
        slope = gradient(domain, task, adapter, seen, jax.random.fold_in(update_key, 0))
        step, state = optimizer.update(slope, state)
        adapter = optax.apply_updates(adapter, step)
        stray = _step_at_random(stray, jax.random.fold_in(update_key, 1), optax.tree.norm(step))
        on_update(number + 1)
    ends = {"before": start, "after": adapter, "random": stray}
    return {name: float(domain.value(task, end, held_out).validation_loss) for name, end in ends.items()}


@jax.jit
def _step_at_random(adapter: Adapter, key: jax.Array, length: jax.Array) -> Adapter:
    """A step of this length in a uniformly random direction."""
    direction = optax.tree.random_like(key, adapter, jax.random.normal)
    scale = length / optax.tree.norm(direction)
    return jax.tree.map(lambda leaf, along: leaf + scale * along, adapter, direction)

"""An experiment that computes nothing: its steps record how they were called, and return what names their result.

The parameters of the steps are those of the real ones in utilgen_jax/experiment, see `test_fake_experiment`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from utilgen_jax.config.schema import Config
from utilgen_jax.methods import SECTIONS
from utilgen_jax.valuation.cross_fit import PoolValues


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a step, which also stands for its result.

    Attributes:
        step: name, such as "pools.plan".
        arguments: by the names of the parameters, defaults among them.
    """

    step: str
    arguments: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class FakePool:
    """Stands for a `GeneratedPool`; `made_by` is the call that made it, None where the test gave it."""

    spec: Any
    made_by: Call | None = None
    adapter: Any = "the checkpoint alone"
    round: int = 0


class Steps:
    """Steps of one kind, each an attribute.

    Args:
        calls: where calls are recorded.
        kind: in the steps' names; "": of the experiment itself.
        functions: parameters and result of each step.
    """

    def __init__(self, calls: list[Call], kind: str, functions: dict[str, Callable]) -> None:
        self.functions = dict(functions)
        self._calls, self._kind = calls, kind

    def describe(self, name: str, *args: Any, **kwargs: Any) -> Call:
        """The call as it is recorded, however its arguments are given."""
        bound = inspect.signature(self.functions[name]).bind(*args, **kwargs)
        bound.apply_defaults()
        return Call(f"{self._kind}.{name}" if self._kind else name, bound.arguments)

    def __getattr__(self, name: str) -> Callable:
        if name not in self.functions:
            raise AttributeError(name)

        def run(*args: Any, **kwargs: Any) -> Any:
            call = self.describe(name, *args, **kwargs)
            self._calls.append(call)
            result = self.functions[name](*args, **kwargs)
            return result(call) if callable(result) else result

        return run


# The functions below give parameters, and a function of the recorded call that makes the result; `itself`: the call.
def itself(call: Call) -> Call:
    return call


def generate(spec, records, adapter=None, *, condition_on=None, refine=None, strength=1.0):
    used = adapter or "the checkpoint alone"
    return lambda call: FakePool(spec, call, used, records.arguments["round_number"])


def adopt(spec, pool):
    return lambda call: FakePool(spec, call, pool.adapter)


def values_of(call: Call) -> PoolValues:
    name = call.arguments["name"]
    return PoolValues(f"weights {name}", f"losses {name}", fold_models={"models": name}, agreement=0.5)


def trained(call: Call) -> SimpleNamespace:
    """Stands for a `JointResult`."""
    return SimpleNamespace(
        call=call, adapter="the trained adapter", attribute_logits="logits", difficulties=np.array([0.3, 0.6])
    )


POOLS = {
    "class_prompts": lambda: [["a cat"], ["a dog"]],
    "caption_prompts": lambda: [["caption prompt"]],
    "class_token_prompts": lambda: [["token prompt"]],
    "attribute_prompts": lambda logits=None, number=None: itself,
    "plan": lambda prompts, round_number=0, difficulty=None: itself,
    "plan_rounds": lambda prompts, fractions: (
        lambda call: [Call(f"round {n}", {"round_number": n}) for n, _ in enumerate(fractions)]
    ),
    "led_by": lambda params, scale, micro_batch_size: itself,
    "mixed_shots": lambda records, mix_strategy: lambda call: (records, call),
    "generate": generate,
    "adopt": adopt,
    "show_difficulty": lambda spec, adapter: None,
}
ADAPTERS = {
    "learn_class_tokens": lambda prior: None,
    "train_lora": lambda spec, config, prior, difficulties=None, zero_token=False: itself,
    "train_class_loras": lambda spec, config, prior: itself,
    "train_dpo": lambda spec, pool, weights: itself,
    "per_image": lambda spec, fold_models, weighting, noise: itself,
}
VALUES = {
    "uniform": lambda name, pool: values_of,
    "cross_fit": lambda name, pool, weighting: values_of,
    "ensemble_labels": lambda spec, pool: SimpleNamespace(
        soft_labels=f"soft labels of {pool.spec.name}",
        members=f"all members of {pool.spec.name}",
        members_of_pool=f"members of {pool.spec.name}",
    ),
    "predict_uniform": lambda pool: PoolValues("uniform weights"),
    "predict_weights": lambda found, pool, weighting: PoolValues(f"by {found.weights}"),
    "predict_soft_labels": lambda labels, pool: f"predicted as {labels.soft_labels}",
    "show_weight_curve": lambda name, pool_round, values: None,
}
CLASSIFIERS = {
    "cross_fitted_difficulty": lambda pool: ("difficulty of shots", "difficulty of pool"),
    "difficulty_findings": lambda pool: itself,
    "practise": lambda pool, start, check_every, patience: lambda call: SimpleNamespace(params=call),
    "train": lambda method, synthetic, teachers=None: itself,
    "train_on_synthetic": lambda method, synthetic, teachers=None: itself,
    "train_saflex": lambda method, synthetic: (
        lambda call: SimpleNamespace(params=call, weights="weights in training", soft_labels="labels in training")
    ),
    "train_saflex_on_synthetic": lambda method, synthetic: lambda call: SimpleNamespace(params=call),
}
JOINT = {
    "train": lambda spec, plain, start, without: trained,
    "gate": lambda spec, plain, trained: SimpleNamespace(is_open=True),
    "value": lambda name, pool, trained, without: values_of,
    "predict_values": lambda pool, trained, without: PoolValues("by the network"),
    "accuracy": lambda spec, trained: 0.875,
    "findings": lambda spec, plain, trained, has_gate: itself,
}
PARTS = {"pools": POOLS, "adapters": ADAPTERS, "values": VALUES, "classifiers": CLASSIFIERS, "joint": JOINT}


class FakeExperiment:
    """Two classes, all sections at their defaults.

    Args:
        *sections: in place of the defaults of their type.
        pools: what `pool` returns for a spec.
        build: whether `pool` builds what `pools` does not hold; if not it returns a `FakePool` of round 0.
        config: further fields of the config.
    """

    def __init__(self, *sections: Any, pools: dict | None = None, build: bool = False, **config: Any) -> None:
        given = {type(section): section for section in sections}
        self.config = Config(
            method_sections={name: given.get(kind) or kind() for name, kind in SECTIONS.items()}, **config
        )
        self.calls: list[Call] = []
        self.split = SimpleNamespace(real=SimpleNamespace(class_names=("cat", "dog")))
        self.generator = SimpleNamespace(architecture=SimpleNamespace(image_encoder=None))
        self.pools, self.adapters, self.values, self.classifiers, self.joint = (
            Steps(self.calls, kind, functions) for kind, functions in PARTS.items()
        )
        self._pools, self._build = dict(pools or {}), build

    def call(self, step: str, *args: Any, **kwargs: Any) -> Call:
        """What is recorded of a call of a step, such as "pools.plan"."""
        kind, _, name = step.rpartition(".")
        return getattr(self, kind).describe(name, *args, **kwargs)

    @property
    def steps(self) -> list[str]:
        """Names of the steps that were called."""
        return [call.step for call in self.calls]

    def pool(self, spec: Any) -> FakePool:
        if spec not in self._pools:
            self._pools[spec] = spec.build(self) if self._build else FakePool(spec)
        return self._pools[spec]

    def training_data(self, pool: FakePool, values: PoolValues) -> tuple[str, FakePool, PoolValues]:
        return "training data", pool, values

    def real_only(self) -> str:
        return "real only"

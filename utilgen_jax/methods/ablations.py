"""Methods that show what each part of another method contributes; comparisons leave them out unless they are named."""

from __future__ import annotations

from collections.abc import Mapping

from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.methods.joint import Joint, JointPool
from utilgen_jax.methods.utilgen import UtilGen, UtilGenPool


def _utilgen(name: str, title: str, pool: UtilGenPool) -> UtilGen:
    return UtilGen(name, f"+ UtilGen, {title}", pool, only_in_ablations=True)


def _joint(name: str, title: str, pool: JointPool, weights: bool = False) -> Joint:
    return Joint(name, f"+ joint, {title}", pool, only_in_ablations=True, weights=weights)


METHODS = (
    _utilgen("utilgen_none", "class tokens alone", UtilGenPool(dpo=False, prompts=False, noise=False)),
    _utilgen("utilgen_model", "model level alone", UtilGenPool(prompts=False, noise=False)),
    _utilgen("utilgen_prompt", "prompts alone", UtilGenPool(dpo=False, noise=False)),
    _utilgen("utilgen_noise", "noise alone", UtilGenPool(dpo=False, prompts=False)),
    Joint("vanilla_ensemble", "+ plain synthetic images, ensemble labels", PlainPool(), only_in_ablations=True),
    Joint("joint_attributes", "+ joint, attributes alone", JointPool(), only_in_ablations=True, ensemble=False),
    _joint("joint_uncertain", "the least sure half of twice as many", JointPool(select="uncertain")),
    _joint("joint_useful", "the most useful half of twice as many", JointPool(select="useful")),
    _joint("joint_reweighted", "trained attribute probabilities", JointPool(train_attributes=True)),
    _joint("joint_lora", "trained attribute probabilities and LoRA", JointPool(train_attributes=True, train_lora=True)),
    _joint("joint_weights", "weights", JointPool(), weights=True),
)

# name -> methods that show, side by side, what each part of a method contributes
ABLATIONS: Mapping[str, tuple[str, ...]] = {
    "utilgen": ("vanilla", "utilgen_none", "utilgen_model", "utilgen_prompt", "utilgen_noise", "utilgen"),
    "joint": (
        "vanilla",
        "vanilla_ensemble",
        "saflex",
        "joint_attributes",
        "joint",
        "joint_uncertain",
        "joint_useful",
        "joint_reweighted",
        "joint_lora",
        "joint_weights",
    ),
}

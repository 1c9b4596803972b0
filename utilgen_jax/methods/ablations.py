"""Methods that show what each part of another method contributes; comparisons leave them out unless they are named."""

from __future__ import annotations

from collections.abc import Mapping

from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.methods.joint import Joint, JointPool
from utilgen_jax.methods.utilgen import UtilGen, UtilGenPool


def _utilgen(name: str, title: str, pool: UtilGenPool) -> UtilGen:
    return UtilGen(name, f"+ UtilGen, {title}", pool, only_in_ablations=True)


def _joint(title: str, without: str) -> Joint:
    pool = JointPool((without,))
    return Joint(pool.name, f"+ joint, {title}", pool, only_in_ablations=True, weights=without != "weights")


# Each leaves one part of the joint update, of its regularisation or of its use out.
_JOINT = (
    Joint("joint_without_labels", "+ joint, no soft labels", JointPool(), only_in_ablations=True, ensemble=False),
    Joint("joint_without_teachers", "+ joint, labels given once", JointPool(), only_in_ablations=True, teachers=False),
    _joint("no weight network", "weights"),
    _joint("no attributes", "attributes"),
    _joint("no LoRA", "lora"),
    _joint("no difficulty", "difficulty"),
    _joint("no anchor", "anchor"),
    _joint("no coverage", "coverage"),
    _joint("no bounds", "bounds"),
    _joint("no gate", "gate"),
)

METHODS = (
    _utilgen("utilgen_none", "class tokens alone", UtilGenPool(dpo=False, prompts=False, noise=False)),
    _utilgen("utilgen_model", "model level alone", UtilGenPool(prompts=False, noise=False)),
    _utilgen("utilgen_prompt", "prompts alone", UtilGenPool(dpo=False, noise=False)),
    _utilgen("utilgen_noise", "noise alone", UtilGenPool(dpo=False, prompts=False)),
    Joint(
        "vanilla_ensemble", "+ plain synthetic images, soft labels", PlainPool(), only_in_ablations=True, weights=False
    ),
    *_JOINT,
)

# name -> methods that show, side by side, what each part of a method contributes
ABLATIONS: Mapping[str, tuple[str, ...]] = {
    "utilgen": ("vanilla", "utilgen_none", "utilgen_model", "utilgen_prompt", "utilgen_noise", "utilgen"),
    "joint": ("vanilla", "vanilla_ensemble", *(method.name for method in _JOINT), "joint"),
}

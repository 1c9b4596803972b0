"""The config sections `valuation` and `ensemble`."""

from __future__ import annotations

import dataclasses

from utilgen_jax.fields import setting


@dataclasses.dataclass(frozen=True)
class ValuationConfig:
    """How synthetic images are valued: cross-fitted bilevel training of a weighting."""

    folds: int = setting(2, "cross-fit: each fold of the shots is validation once", minimum=2)
    steps: int = setting(300, "bilevel steps a fold", minimum=1)
    hidden: int = setting(100, "hidden units of the weight network", minimum=1)
    learning_rate: float = setting(1e-3, "Adam's learning rate, weight network", minimum=1e-8, maximum=10.0)
    weight_decay: float = setting(1e-4, "L2 of the weight network, as Meta-Weight-Net's code", minimum=0.0, maximum=1.0)
    label_strength: float = setting(4.0, "SAFLEX: β, how much the given label counts", minimum=0.0)
    temperature: float = setting(1.0, "SAFLEX: τ of the soft label; smaller is harder", minimum=1e-3)
    validation_batch_size: int = setting(0, "validation images a step; 0: the whole fold", minimum=0)


@dataclasses.dataclass(frozen=True)
class EnsembleConfig:
    """Soft labels from an ensemble of classifiers."""

    members: int = setting(3, "classifiers of the ensemble", minimum=1)
    mixing: str = setting("mixup", "of the images that they learn from", choices=("none", "mixup", "cutmix"))
    share: float = setting(
        1.0, "share of the ensemble in a soft label; the rest is the label", minimum=0.0, maximum=1.0
    )

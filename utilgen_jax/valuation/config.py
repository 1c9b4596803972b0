"""The config sections `valuation`, `saflex` and `ensemble`."""

from __future__ import annotations

import dataclasses

from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.fields import setting


@dataclasses.dataclass(frozen=True)
class ValuationConfig:
    """How synthetic images are valued: cross-fitted bilevel training of a weighting."""

    folds: int = setting(2, "of the shots: each is validation once; of all methods but `utilgen`", minimum=2)
    weighting_folds: int = setting(5, "the same, where a weighting is cross-fitted (`utilgen`)", minimum=2)
    plain_steps: int = setting(
        0, "steps of a fold's classifier before its bilevel steps; 0: as many as the final one's", minimum=0
    )
    synthetic_fraction: float = setting(
        0.1, "of the batches of these classifiers; small, so that they go by the shots", minimum=0.01, maximum=0.99
    )
    steps: int = setting(30, "bilevel steps a fold, on the pool alone", minimum=1)
    inner_learning_rate: float = setting(
        1e-5, "AdamW's rate in bilevel steps; small, so that the lookahead is local", minimum=1e-8, maximum=1.0
    )
    hidden: int = setting(100, "hidden units of the weight network", minimum=1)
    learning_rate: float = setting(3e-3, "Adam's learning rate, weight network", minimum=1e-8, maximum=10.0)
    weight_decay: float = setting(1e-4, "L2 of the weight network, as Meta-Weight-Net's code", minimum=0.0, maximum=1.0)
    validation_batch_size: int = setting(0, "validation images a step; 0: the whole fold", minimum=0)

    def training_of_a_fold(self, config: ClassifierConfig) -> ClassifierConfig:
        """The plain steps of a fold's classifier, given the final one's training."""
        steps = self.plain_steps or config.steps
        return dataclasses.replace(config, steps=steps, synthetic_fraction=self.synthetic_fraction)

    def total_steps(self, config: ClassifierConfig, num_folds: int) -> int:
        """Of all folds, plain and bilevel ones, given the final classifier's training."""
        return num_folds * (self.training_of_a_fold(config).steps + self.steps)


@dataclasses.dataclass(frozen=True)
class SaflexConfig:
    """How SAFLEX weighs and relabels synthetic images in the training of the classifier."""

    plain_fraction: float = setting(
        0.25, "share of the steps, the first ones, that train on the labels as they are", minimum=0.0, maximum=1.0
    )
    label_probability: float = setting(
        0.9, "what a given label keeps at zero influence", minimum=1e-3, maximum=1 - 1e-3
    )
    temperature: float = setting(1.0, "τ of the soft label; smaller is harder", minimum=1e-3)
    memory: float = setting(
        0.9, "share of the influence of earlier steps that an image's label keeps; 0: none", minimum=0.0, maximum=1.0
    )
    validation_batch_size: int = setting(0, "validation images a step; 0: the whole fold", minimum=0)
    validation_decay: float = setting(
        0.0,
        "of an average over steps of the validation loss's gradient, beside real images; 0: each step's own",
        minimum=0.0,
        maximum=0.999,
    )


@dataclasses.dataclass(frozen=True)
class EnsembleConfig:
    """Soft labels from three ensembles of classifiers."""

    members: int = setting(3, "classifiers of the shots alone", minimum=1)
    pool_members: int = setting(1, "classifiers of shots and half of the pool, for each half and labelling", minimum=1)
    mixing: str = setting("mixup", "of the images that they learn from", choices=("none", "mixup", "cutmix"))

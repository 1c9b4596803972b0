"""The joint update's steps of an experiment: training, gate, and the values of the final pool."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import softmax

from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.config.schema import Config
from utilgen_jax.experiment.keys import Key
from utilgen_jax.experiment.stages import step
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.conditioning import encode_negative_prompt, encode_prompts
from utilgen_jax.generator.stable_diffusion import Architecture
from utilgen_jax.joint.config import JointConfig
from utilgen_jax.joint.gate import Gate, compare_pools
from utilgen_jax.joint.program import LEVELS, REGULARIZERS, JointData, JointProgram
from utilgen_jax.joint.regularizers import AnchorSet, make_anchor_set
from utilgen_jax.joint.train import JointResult, num_steps, predict_weights, train_jointly
from utilgen_jax.methods.base import PoolSpec
from utilgen_jax.pool.generate import generate_batches
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.prompts.attributes import PromptAttributes
from utilgen_jax.report.data import Findings
from utilgen_jax.report.progress import Progress
from utilgen_jax.runtime.sharding import replicate
from utilgen_jax.valuation.cross_fit import PoolValues

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Experiment
    from utilgen_jax.experiment.pools import GeneratedPool

_PROMPTS_PER_CLASS = 16  # with drawn attributes, among which an update draws
_MOST_ANCHORS = 512  # noised images on which the adapter is held to the frozen generator


class JointSteps:
    """Trains classifiers, weight network and adapter by the one update, and uses what it has trained.

    Args:
        experiment: whose steps these are.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._told: set[str] = set()  # pools of which the gate's verdict has been told

    def program(self, without: tuple[str, ...] = ()) -> JointProgram:
        """The update's program, without some of its parts."""
        experiment = self.experiment
        program = joint_program(
            experiment.config,
            experiment.classifier_config,
            experiment.classifier_input,
            experiment.generator.architecture,
            len(experiment.words.columns),
        )
        # The gate comes after the update: with it or without, the compiled program is the same.
        left_out = tuple(name for name in without if name in (*LEVELS, *REGULARIZERS))
        return dataclasses.replace(program, without=left_out)

    def train(
        self, spec: PoolSpec, plain: GeneratedPool, start: Adapter | None, without: tuple[str, ...]
    ) -> JointResult:
        """Trains by the joint update.

        Args:
            spec: of the pool that it is for.
            plain: images of the generator as it is.
            start: of the adapter; None: one that changes nothing.
            without: parts that are left out, see `joint.program`.
        """
        trained = self._train(spec, plain, start, without)
        return dataclasses.replace(trained, adapter=_adapter(trained.adapter))

    @step("joint_{spec.name}", JointResult)
    def _train(
        self, spec: PoolSpec, plain: GeneratedPool, start: Adapter | None, without: tuple[str, ...]
    ) -> JointResult:
        experiment, program = self.experiment, self.program(without)
        with experiment.training_loop(num_steps(program, len(experiment.folds))) as loop:
            return train_jointly(
                experiment.classifier,
                program,
                experiment.adapters.sd,
                self._known(experiment.real, None, 0.0),
                self._known(experiment.examples(plain), experiment.prompt_attributes(plain.records), 0.5),
                self._data(program, plain),
                experiment.folds,
                start,
                experiment.key(Key.JOINT),
                loop,
            )

    def _data(self, program: JointProgram, plain: GeneratedPool) -> JointData:
        experiment = self.experiment
        sd, config = experiment.adapters.sd, experiment.config
        prompts = experiment.pools.attribute_prompts(number=_PROMPTS_PER_CLASS)
        drawn = experiment.pools.with_words(
            [PoolRecord(label=label, prompt=prompt) for label, of_class in enumerate(prompts) for prompt in of_class]
        )
        return replicate(
            JointData(
                anchors=self._anchors(program, plain) if program.has_anchor else None,
                prompt_embeds=encode_prompts(sd, [record.prompt or "" for record in drawn]),
                prompt_labels=jnp.repeat(jnp.arange(len(prompts), dtype=jnp.int32), _PROMPTS_PER_CLASS),
                prompt_attributes=jnp.asarray(experiment.prompt_attributes(drawn)),
                negative_prompt_embeds=encode_negative_prompt(sd, config.generator.negative_prompt),
            )
        )

    def _anchors(self, program: JointProgram, plain: GeneratedPool) -> AnchorSet:
        experiment, joint = self.experiment, program.joint
        sd = experiment.adapters.sd
        return make_anchor_set(
            sd,
            lambda rows: experiment.adapters.latents(sd, plain.images[rows]),
            plain.labels,
            experiment.word_choice.class_means(encode_prompts(sd, experiment.word_prompts)),
            (min(joint.steps * joint.num_generated, _MOST_ANCHORS), experiment.config.generator.batch_size),
            jax.random.fold_in(experiment.key(Key.JOINT), 3),
        )

    def gate(self, spec: PoolSpec, plain: GeneratedPool, trained: JointResult) -> Gate:
        """Decides over the folds whether the trained adapter is used, see `joint.gate`; tells it once."""
        gate = self._gate(spec, plain, trained)
        if spec.name in self._told:
            return gate
        self._told.add(spec.name)
        self.experiment.metrics.write(0, f"gate_{spec.name}", gain=gate.mean, standard_error=gate.standard_error)
        if self.experiment.is_first:
            verdict = "the adapter is used" if gate.is_open else "the generator stays as it is"
            print(f"gate: {gate.mean:+.3f} ± {gate.standard_error:.3f} held-out loss; {verdict}", file=sys.stderr)
        return gate

    def findings(self, spec: PoolSpec, plain: GeneratedPool, trained: JointResult, has_gate: bool) -> Findings:
        """What the update and the gate found, for the report.

        Args:
            spec, plain, trained: as of `gate`.
            has_gate: whether the gate has decided.
        """
        gate = self._gate(spec, plain, trained) if has_gate else None
        return Findings(
            gate_gains=None if gate is None else np.asarray(gate.gains),
            attributes=None if trained.attribute_logits is None else self._attributes(trained.attribute_logits),
            requested_difficulty=trained.difficulties,
            plain_difficulty=self.experiment.values.difficulty(plain),
        )

    def _attributes(self, logits: np.ndarray) -> list[tuple[str, str, float, float]]:
        """Of each value of each attribute, and of none (""): its probability before the training and after."""
        prompts = self.experiment.config.prompts
        attributes = PromptAttributes.parse(prompts.attributes)
        before = attributes.uniform_probabilities(prompts.attribute_probability)
        after = attributes.reweighted(before, np.asarray(logits)[: len(before)])
        names = [("|".join(group), value) for group in attributes.groups for value in ("", *group)]
        return [(*name, float(old), float(new)) for name, old, new in zip(names, before, after, strict=True)]

    @step("gate_{spec.name}", Gate)
    def _gate(self, spec: PoolSpec, plain: GeneratedPool, trained: JointResult) -> Gate:
        experiment = self.experiment
        joint = experiment.config.section(JointConfig)
        number = joint.gate_images * experiment.classifier_input.num_classes
        records = experiment.pools.plan(
            experiment.pools.attribute_prompts(logits=trained.attribute_logits, number=joint.gate_images),
            difficulty=(trained.difficulties.tolist(), 0.0),
        )[:number]
        sd, sampling = experiment.adapters.sd, experiment.config.generator
        parts = []
        with Progress("images for the gate", number, "image", enabled=experiment.is_first) as progress:
            for images in generate_batches(sd, records, trained.adapter, dataclasses.replace(sampling, strength=1.0)):
                parts.append(images)
                progress.update(sum(map(len, parts)))
        examples = experiment.examples(plain).take(np.arange(len(records)))
        adapted = dataclasses.replace(examples, inputs=experiment.classifier_input.images(np.concatenate(parts)))
        config = dataclasses.replace(experiment.classifier_config, steps=joint.gate_steps)
        with experiment.training_loop(2 * len(experiment.folds) * config.steps) as loop:
            return compare_pools(
                experiment.classifier,
                config,
                experiment.real,
                (examples, replicate(adapted)),
                experiment.folds,
                experiment.key(Key.GATE),
                loop,
            )

    @step("value_{name}", PoolValues)
    def value(self, name: str, pool: GeneratedPool, trained: JointResult, without: tuple[str, ...]) -> PoolValues:
        """The weights that the trained weight network gives to a pool, by the folds' classifiers.

        Args:
            name: of the stage.
            pool: the images.
            trained: by `train`.
            without: as in `train`.
        """
        return self.predict_values(pool, trained, without)

    def predict_values(self, pool: GeneratedPool, trained: JointResult, without: tuple[str, ...]) -> PoolValues:
        """The same of any images, and no stage."""
        experiment = self.experiment
        requested = np.array(
            [0.5 if record.requested_difficulty is None else record.requested_difficulty for record in pool.records],
            np.float32,
        )
        examples = self._known(experiment.examples(pool), experiment.prompt_attributes(pool.records), requested)
        shots = [experiment.real.take(fold.train_indices) for fold in experiment.folds]
        weights, losses = predict_weights(experiment.classifier, self.program(without), trained, shots, examples)
        return PoolValues(
            weights.mean(0),
            losses.mean(0),
            difficulty=experiment.values.difficulty(pool),
        )

    @step("evaluation_{spec.name}_update", float)
    def accuracy(self, spec: PoolSpec, trained: JointResult) -> float:
        """The accuracy on the test images of what the folds' averaged classifiers say in the mean."""
        experiment = self.experiment
        predicted = []
        for fold in range(len(jax.tree.leaves(trained.classifiers)[0])):
            params = jax.tree.map(lambda leaf, fold=fold: leaf[fold], trained.classifiers)
            predicted.append(softmax(experiment.classifiers.predict_test(params), axis=-1))
        return float((np.sum(predicted, axis=0).argmax(-1) == experiment.split.test.labels).mean())

    def _known(self, examples: Examples, attributes: np.ndarray | None, difficulty: float | np.ndarray) -> Examples:
        """Examples with the features that the weight network wants; None: of no attribute."""
        if attributes is None:
            attributes = np.zeros((len(examples), self.program().num_attributes), np.float32)
        requested = np.broadcast_to(np.float32(difficulty), (len(examples),))
        return dataclasses.replace(examples, attributes=replicate(attributes), difficulty=replicate(requested))


def joint_program(
    config: Config,
    classifier_config: ClassifierConfig,
    classifier_input: ClassifierInput,
    architecture: Architecture,
    num_words: int = 0,
) -> JointProgram:
    """The joint update's program of a config.

    Args:
        config: checked.
        classifier_config: of the classifiers that the update trains.
        classifier_input: what they see of an image.
        architecture: of the generator.
        num_words: W, of the classes that have several, see `Experiment.prompt_attributes`.
    """
    return JointProgram(
        config=classifier_config,
        valuation=config.valuation,
        joint=config.section(JointConfig),
        sampling=config.generator,
        classifier_input=classifier_input,
        latent_shape=architecture.latent_shape(config.generator.size),
        num_attributes=sum(PromptAttributes.parse(config.prompts.attributes).sizes) + num_words,
    )


def _adapter(nested: Adapter | dict) -> Adapter:
    """An adapter on the device, also from the dict that a stage was read as."""
    adapter = Adapter(**nested) if isinstance(nested, dict) else nested
    return jax.tree.map(jnp.asarray, adapter)

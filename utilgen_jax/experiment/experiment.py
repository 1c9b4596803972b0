"""An experiment: data, devices, keys, and the cached steps that methods are made of."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from utilgen_jax.bilevel.examples import Examples, labelled
from utilgen_jax.classifier.config import ClassifierConfig
from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.classifier.side_by_side import num_threads
from utilgen_jax.config.schema import Config
from utilgen_jax.data.fingerprint import Fingerprints
from utilgen_jax.data.splits import FewShotSplit, Fold
from utilgen_jax.data.streamed_images import Images, Reading, StreamedImages
from utilgen_jax.experiment.adapters import AdapterSteps
from utilgen_jax.experiment.classifiers import ClassifierSteps
from utilgen_jax.experiment.inputs import check_inputs, note_inputs, of_checkpoint
from utilgen_jax.experiment.joint import JointSteps
from utilgen_jax.experiment.keys import Key
from utilgen_jax.experiment.logging import log_stage
from utilgen_jax.experiment.outline import outline
from utilgen_jax.experiment.pools import GeneratedPool, PoolSteps
from utilgen_jax.experiment.results import changes, next_commands, print_table, report_data, write_results
from utilgen_jax.experiment.stages import StageCache
from utilgen_jax.experiment.values import ValueSteps
from utilgen_jax.experiment.words import WordPool, WordSteps
from utilgen_jax.experiment.workdir import identity_of, open_workdir, versions, write_summary
from utilgen_jax.generator.stable_diffusion import Architecture
from utilgen_jax.methods.base import Method, PoolSpec
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.pool.storage import Pool, read_pool, update_records
from utilgen_jax.prompts.attributes import PromptAttributes
from utilgen_jax.prompts.words import ClassWords
from utilgen_jax.report.job import job_progress
from utilgen_jax.report.metrics import MetricsWriter, read_metrics
from utilgen_jax.runtime.folder_lock import locked_folder
from utilgen_jax.runtime.sharding import replicate
from utilgen_jax.runtime.state_folder import Saving
from utilgen_jax.runtime.threads import run_at_once
from utilgen_jax.runtime.training_loop import TrainingLoop
from utilgen_jax.runtime.working_folder import exchange, shown
from utilgen_jax.valuation.cross_fit import PoolValues


@dataclasses.dataclass(frozen=True)
class SharedDirs:
    """Where runs of a comparison, which differ in method alone, keep what they have in common.

    Attributes:
        stages: results of stages.
        pools: pools that the few-shot images have a part in.
        shotless_pools: the others, and the stages that make them; runs that differ in shots too can share it.
        real_stages: results of the stages of the real images alone; None: in `stages`.
        other_sizes: the same of runs whose pools have another number of images, of which a pool can be a part.
    """

    stages: Path
    pools: Path
    shotless_pools: Path
    real_stages: Path | None = None
    other_sizes: Sequence[SharedDirs] = ()


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What a method's classifier trains on beside the real images.

    Attributes:
        synthetic: the pool as the classifier sees it, weighted; None: real images only.
        pool: the pool itself.
        values: of its images.
    """

    synthetic: Examples | None = None
    pool: GeneratedPool | None = None
    values: PoolValues | None = None


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """The test accuracies of a method, in [0, 1].

    Attributes:
        final: of the classifier that is trained as the config says.
        synthetic_only: of one that is trained on the synthetic images alone; None where there is none.
        of_update: see `Method.accuracy_of_update`.
        predicted: the final classifier's class of each test image, int32 [T]; None where an earlier version tested it.
    """

    final: float
    synthetic_only: float | None = None
    of_update: float | None = None
    predicted: np.ndarray | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class GeneratorSource:
    """The generator before its weights are read.

    Attributes:
        checkpoint: its folder.
        architecture: its components and sizes, without weights.
    """

    checkpoint: Path
    architecture: Architecture


def reading_of(config: Config) -> Reading:
    """What of a run's images is held in memory."""
    return Reading(config.data.memory_gib * 2**30, config.data.workers)


@dataclasses.dataclass
class Experiment:
    """A run's settings, input and steps; `setup.set_up` makes it. A context manager: its folder, its mesh, its metrics.

    Attributes:
        config: checked.
        methods: to compare, "real" first; the last is the one that the run is about.
        split: few-shot and test images.
        folds: of the few-shot images, for cross-fitting; empty where nothing is synthetic.
        words: of the classes.
        word_prompts: the class prompt with each word, P in all; none where nothing is synthetic.
        generator_source: see `generator`; None where nothing is synthetic.
        classifier: trained on each method's images.
        classifier_config: its training on real and synthetic images, with the synthetic fraction that suits the shots;
            methods train so whatever the final classifier is trained on.
        mesh: of devices.
        workdir: the run's folder.
        shared: for a run that is part of a comparison.
        inputs: fingerprints of all that is read.
        classifiers, adapters, pools, values, joint, word_choice: the cached steps.
    """

    config: Config
    methods: Sequence[Method]
    split: FewShotSplit
    folds: list[Fold]
    words: ClassWords
    word_prompts: list[str]
    generator_source: GeneratorSource | None
    classifier: Classifier
    classifier_config: ClassifierConfig
    mesh: jax.sharding.Mesh
    workdir: Path
    shared: SharedDirs | None
    inputs: Fingerprints = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Makes the steps."""
        saving = Saving(60 * self.config.checkpoint_every_minutes, identity_of(self.config))
        self.stages = StageCache(self.shared.stages if self.shared else self.workdir / "checkpoints", saving)
        self.classifiers = ClassifierSteps(self)
        self.adapters = AdapterSteps(self)
        self.pools = PoolSteps(self)
        self.values = ValueSteps(self)
        self.joint = JointSteps(self)
        self.word_choice = WordSteps(self)
        self._built: dict[PoolSpec, GeneratedPool] = {}
        self._data = TrainingData()  # of the last method
        self._plain_difficulty: np.ndarray | None = None  # of plain images, where a method trains on them

    def __enter__(self) -> Experiment:
        with ExitStack() as stack:
            if self.is_first:
                stack.enter_context(locked_folder(self.workdir))
            open_workdir(self.workdir, self.config)
            for folder, inputs in self._input_notes():
                note_inputs(folder, inputs)
            stack.enter_context(jax.set_mesh(self.mesh))
            stack.enter_context(job_progress(outline(self)))
            self.metrics = stack.enter_context(MetricsWriter(self.workdir, enabled=self.is_first))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def check_folders(self) -> None:
        """Raises InputError where the folders hold a run of other input, or damaged metrics; writes nothing."""
        for folder, inputs in self._input_notes():
            check_inputs(folder, inputs)
        read_metrics(self.workdir)  # for the report, when all is done

    def _input_notes(self) -> list[tuple[Path, Fingerprints]]:
        """The folders whose content follows from the input, and which part of it."""
        if self.shared is None:
            return [(self.workdir, self.inputs)]
        stages = dict.fromkeys((self.shared.stages, self.shared.real_stages or self.shared.stages))
        pools = [(self.shared.shotless_pools, of_checkpoint(self.inputs))] if self.generator_source else []
        return [*((folder, self.inputs) for folder in stages), *pools]

    @property
    def is_first(self) -> bool:
        """Whether this process writes."""
        return jax.process_index() == 0

    def key(self, use: Key) -> jax.Array:
        """The PRNG key of one use of randomness."""
        return jax.random.fold_in(jax.random.key(self.config.seed), use)

    @contextmanager
    def training_loop(self, total: int) -> Iterator[TrainingLoop]:
        """The loop of the stage that is being computed, of `total` training steps: logs them and keeps the state."""
        with log_stage(self.metrics, self.stages.current, total, self.config.log_every_steps) as on_step:
            yield TrainingLoop(on_step, self.stages.saved)

    @property
    def generator(self) -> GeneratorSource:
        """The generator; RuntimeError where nothing is synthetic."""
        if self.generator_source is None:
            raise RuntimeError("no method of this run has synthetic images, so it has no generator")
        return self.generator_source

    @property
    def reading(self) -> Reading:
        """What of its images is held in memory."""
        return reading_of(self.config)

    @property
    def classifier_input(self) -> ClassifierInput:
        """What the classifier sees of an image."""
        data = self.config.data
        return ClassifierInput(len(self.split.real.class_names), data.image_size, data.channels)

    @cached_property
    def real(self) -> Examples:
        """The few-shot images as the classifier sees them, on the mesh."""
        return self._labelled(self.split.real.images, self.split.real.labels)

    def _labelled(self, images: Images | jax.Array, labels: np.ndarray) -> Examples:
        inputs = images if isinstance(images, StreamedImages) else replicate(images)
        examples = replicate(labelled(None, labels, self.classifier_input.num_classes))
        return dataclasses.replace(examples, inputs=inputs)

    @cached_property
    def generator_shots(self) -> Images:
        """The few-shot images as the generator sees images, read from their originals: uint8 [N, S, S, 3]."""
        return self.split.originals(self.config.generator.image_size, 3, self.reading)

    def pool(self, spec: PoolSpec) -> GeneratedPool:
        """The pool of a spec, built once; methods whose specs are equal share it."""
        if spec not in self._built:
            self._built[spec] = spec.build(self)
        return self._built[spec]

    def examples(self, pool: GeneratedPool) -> Examples:
        """A pool as the classifier sees it, on the mesh, all weights 1.

        With what varies in its prompts: attributes, then the words of classes that have several.
        """
        images, sees = pool.pool.images, self.classifier_input
        if isinstance(images, StreamedImages):
            seen: Images | jax.Array = dataclasses.replace(images, seen_as=(sees.image_size, sees.channels))
        else:
            seen = sees.stored_images(images)
        examples = self._labelled(seen, pool.labels)
        if pool.spec.attributes:
            return dataclasses.replace(examples, attributes=replicate(self.prompt_attributes(pool.records)))
        if any(record.word for record in pool.records):
            return dataclasses.replace(examples, attributes=replicate(self._word_attributes(pool.records)))
        return examples

    def prompt_attributes(self, records: Sequence[PoolRecord]) -> np.ndarray:
        """What varies in the prompts of N images: attributes, then the words of classes that have several.

        Returns:
            Float32 [N, A + W], see `PromptAttributes.one_hot` and `ClassWords.one_hot`.
        """
        attributes = PromptAttributes.parse(self.config.prompts.attributes)
        options = np.stack([attributes.parse_prompt(record.prompt or "") for record in records])
        return np.concatenate([attributes.one_hot(options), self._word_attributes(records)], axis=1)

    def _word_attributes(self, records: Sequence[PoolRecord]) -> np.ndarray:
        return self.words.one_hot([record.label for record in records], [record.word for record in records])

    def real_only(self) -> TrainingData:
        """No synthetic images."""
        return TrainingData()

    def training_data(self, pool: GeneratedPool, values: PoolValues) -> TrainingData:
        """A pool as a classifier trains on it, see `PoolValues.training_weights`."""
        examples = self.examples(pool)
        targets = examples.targets if values.soft_labels is None else replicate(values.soft_labels)
        is_balanced = self.config.classifier.loss == "balanced_softmax"
        weights = replicate(values.training_weights(pool.labels, within_classes=is_balanced))
        return TrainingData(dataclasses.replace(examples, targets=targets, weights=weights), pool, values)

    def train_and_test(self, method: Method, data: TrainingData) -> Accuracy:
        """Trains a method's classifiers and tests them.

        Args:
            method: whose images they are.
            data: its own; where there is any, beside the classifier of the config's batches another one is trained on
                it alone, unless the config has it that way or wants none.
        """
        if method.name == "real":
            tested = self.classifiers.evaluate(method, self.classifiers.real())
            return Accuracy(tested.accuracy, predicted=tested.predicted)
        trainings: list[Callable[[], Any]] = [partial(method.train, self, data)]
        has_both = self.config.also_synthetic_only and not self.config.classifier.is_synthetic_only
        if data.synthetic is not None and has_both:
            trainings.append(partial(method.train_on_synthetic, self, data))
        at_once = num_threads(self.classifier_config, self.real, data.synthetic)
        (params, found), *other = run_at_once(trainings) if at_once > 1 else [train() for train in trainings]
        if method == self.methods[-1]:
            self._data = found
        if method.name == "vanilla" and data.values is not None:
            self._plain_difficulty = data.values.difficulty
        tested = self.classifiers.evaluate(method, params)
        of_update = method.accuracy_of_update(self)
        accuracy = Accuracy(tested.accuracy, of_update=of_update, predicted=tested.predicted)
        if other:
            on_synthetic = self.classifiers.evaluate_on_synthetic(method, other[0]).accuracy
            return dataclasses.replace(accuracy, synthetic_only=on_synthetic)
        all_synthetic = data.synthetic is not None and self.config.classifier.is_synthetic_only
        return dataclasses.replace(accuracy, synthetic_only=accuracy.final) if all_synthetic else accuracy

    def pool_folder(self, spec: PoolSpec, round_number: int = 0) -> Path:
        """Where a pool is kept: the method's own in `pool/round_RR`, another one beside it under its name."""
        name = f"round_{round_number:02d}"
        if self.shared is not None:
            return (self.shotless_folder(spec) or self.shared.pools) / spec.name / name
        own = self.methods[-1].pool == spec
        return self.workdir / "pool" / ("" if own else spec.name) / name

    def shotless_folder(self, spec: PoolSpec) -> Path | None:
        """Where a pool that the shots have no part in is shared, and the stage that makes it; None: it is not."""
        uses_shots = spec.uses_shots or (self.word_choice.is_needed and spec != WordPool())
        return None if self.shared is None or uses_shots else self.shared.shotless_pools

    def finish(self, accuracy: Mapping[str, Accuracy]) -> dict[str, Any]:
        """Notes the values in the pool and writes summary and report.

        A run that is part of a comparison writes its summary alone.

        Args:
            accuracy: by name of the method, see `train_and_test`.

        Returns:
            The contents of `summary.json`.
        """
        config, method = self.config, self.methods[-1]
        data = self._data
        pool = None if data.pool is None else data.pool.pool
        if data.pool is not None and data.values is not None and self.shared is None:
            pool = self._note_values(data.pool, data.values)
        names = {"real_only": "real", "vanilla": "vanilla", "final": method.name}
        rows = {row: accuracy[name] for row, name in names.items() if name in accuracy}
        summary: dict[str, Any] = {
            "method": config.method,
            "dataset": config.data.name,
            "shots": config.data.shots,
            "seed": config.seed,
            "trained_on": "synthetic_only" if config.classifier.is_synthetic_only else "real+synthetic",
            "accuracy": {row: each.final for row, each in rows.items()},
            "accuracy_synthetic_only": {
                row: each.synthetic_only for row, each in rows.items() if each.synthetic_only is not None
            },
            "num_real": len(self.split.real),
            "num_synthetic": 0 if pool is None else len(pool.labels),
            "num_test": len(self.split.test),
            "seconds": self.stages.seconds,
            "versions": versions(),
        }
        if accuracy[method.name].of_update is not None:
            summary["accuracy_of_update"] = accuracy[method.name].of_update
        if data.pool is not None and data.values is not None and any(record.word for record in data.pool.records):
            summary["words"] = self.word_choice.table(data.pool, data.values)
        report = None
        if self.shared is None:  # of stages, which every process runs
            report = report_data(self, rows, data, self._plain_difficulty)
        page = None
        if self.is_first and report is not None:
            page = write_results(self.workdir, summary, report, pool)
        if self.is_first:
            # The last file: a summary says that the run is whole. Only then is anything printed, which may fail.
            write_summary(self.workdir, summary)
        if page is not None and report is not None:
            print_table(summary)
            following = next_commands(summary, shown(self.workdir), sys.argv)
            print("\n".join([*changes(report), f"report: {shown(page)}", *following]))
        return summary

    def _note_values(self, pool: GeneratedPool, values: PoolValues) -> Pool:
        """Writes the values of a pool's images beside them, for a person to read."""
        folder = self.pool_folder(pool.spec, pool.round)
        columns = {"difficulty": values.difficulty, "weight": values.weights, "soft_label": values.soft_labels}
        update_records(folder, **{name: column for name, column in columns.items() if column is not None})
        exchange(folder)
        return read_pool(folder, self.split.real.class_names, self.reading)

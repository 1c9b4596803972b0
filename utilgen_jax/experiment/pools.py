"""The pool steps of an experiment: prompts, plans, generation, selection."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from utilgen_jax.classifier.dataset import ClassifierInput
from utilgen_jax.classifier.model import Classifier
from utilgen_jax.data.images import to_float
from utilgen_jax.data.long_tail import fill_counts
from utilgen_jax.data.streamed_images import Images, in_memory
from utilgen_jax.errors import InputError
from utilgen_jax.experiment.keys import Key
from utilgen_jax.experiment.stages import step
from utilgen_jax.generator.adapter import Adapter, ClassAdapters
from utilgen_jax.generator.conditioning import Condition
from utilgen_jax.generator.feedback import Feedback
from utilgen_jax.generator.finetune.textual_inversion import class_tokens
from utilgen_jax.generator.image_conditioning import condition_on_images, find_mix_strategy, plan_sources
from utilgen_jax.methods.base import PoolSpec
from utilgen_jax.pool.difficulty_sheets import difficulty_sheets
from utilgen_jax.pool.generate import ConditionOn, RefineBatch, generate_pool, open_pool
from utilgen_jax.pool.plan import common_beginning, in_rounds, plan_pool
from utilgen_jax.pool.records import PoolRecord, read_records
from utilgen_jax.pool.storage import Pool, PoolWriter, read_pool
from utilgen_jax.prompts.attributes import PromptAttributes
from utilgen_jax.prompts.captions import caption_labelled_images, check_captions
from utilgen_jax.prompts.templates import caption_prompts, class_prompts
from utilgen_jax.prompts.words import pair_in_turn
from utilgen_jax.report.progress import Progress
from utilgen_jax.runtime.atomic_write import replace_file
from utilgen_jax.runtime.distributed import check_terminated, shard_name
from utilgen_jax.runtime.sharding import replicate
from utilgen_jax.runtime.working_folder import was_saved
from utilgen_jax.types import Params

if TYPE_CHECKING:
    from utilgen_jax.experiment.experiment import Experiment

_COPIED_AT_ONCE = 256  # images


@dataclasses.dataclass(frozen=True)
class GeneratedPool:
    """A pool, and the generator that made it.

    Attributes:
        spec: how it was made.
        pool: the images as they are on disk.
        adapter: what was trained of the generator; of a pool whose classes have adapters of their own: none.
        round: of generation, from 0.
    """

    spec: PoolSpec
    pool: Pool
    adapter: Adapter = Adapter()
    round: int = 0

    @property
    def images(self) -> Images:
        """uint8 [N, H, W, 3], in memory or to be streamed."""
        return self.pool.images

    @property
    def labels(self) -> np.ndarray:
        """int32 [N]."""
        return self.pool.labels

    @property
    def records(self) -> tuple[PoolRecord, ...]:
        """What is known of each image."""
        return self.pool.records


class PoolSteps:
    """Plans, generates and selects the experiment's pools.

    Args:
        experiment: whose steps these are.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    @property
    def seed(self) -> tuple[int, ...]:
        """The numbers from which the random numbers of prompts, plans and sources are drawn."""
        return (self.experiment.config.seed,)

    def class_prompts(self) -> list[list[str]]:
        """The class prompt of each class; where it has several words, a prompt for each image, which share them."""
        dealt = self._deal_words(self.images_per_class(), self.experiment.word_choice.probabilities())
        return [[self.experiment.word_prompts[place] for place in places] for places in dealt]

    def _deal_words(self, counts: np.ndarray, probabilities: np.ndarray) -> list[list[int]]:
        return self.experiment.words.deal_all(probabilities, counts, [*self.seed, Key.WORDS])

    @property
    def _captions_file(self) -> Path:
        """The shots' captions. Every process captions for itself: the same captions, in a file of its own."""
        experiment = self.experiment
        name = "captions.jsonl" if experiment.is_first else f"captions.{shard_name(jax.process_index())}.jsonl"
        return (experiment.shared.stages if experiment.shared else experiment.workdir) / name

    def check_captions(self) -> None:
        """Raises InputError where the shots cannot be captioned; called before anything is written."""
        experiment = self.experiment
        check_captions(experiment.config.prompts.captions, experiment.split.real.ids, self._captions_file)

    def caption_prompts(self) -> list[list[str]]:
        """The prompts "class prompt, caption" of each class, one a shot; where it has several words, one an image."""
        experiment = self.experiment
        real, words, file = experiment.split.real, experiment.words, self._captions_file
        source = experiment.config.prompts.captions
        with Progress("captions", len(real), "image", enabled=experiment.is_first) as progress:
            seen = dataclasses.replace(real, images=experiment.generator_shots)
            captions = caption_labelled_images(source, seen, file, progress.update)
        dealt = self._deal_words(self.images_per_class(), experiment.word_choice.probabilities())
        prompts = []
        for label, places in enumerate(dealt):
            of_class = [caption for caption, other in zip(captions, real.labels, strict=True) if other == label]
            pairs = pair_in_turn(places, of_class)
            names = [words.names[place] for place, _ in pairs]
            template = f"{experiment.config.prompts.template}, {{caption}}"
            prompts.append(caption_prompts(template, names, [caption for _, caption in pairs]))
        return prompts

    def class_token_prompts(self) -> list[list[str]]:
        """The prompt of each class with its learnt token in place of its name."""
        tokens = class_tokens(self.experiment.classifier_input.num_classes)
        return [[prompt] for prompt in class_prompts(self.experiment.config.prompts.template, tokens)]

    def attribute_prompts(self, logits: np.ndarray | None = None, number: int | None = None) -> list[list[str]]:
        """Prompts of each class, with drawn attributes.

        Args:
            logits: added to the log-probabilities of the attributes' values and, where a class has several words, of
                the words, float [A + W]; None: the config's probabilities.
            number: of prompts a class; None: one for each image of the pool.
        """
        config, words = self.experiment.config, self.experiment.words
        attributes = PromptAttributes.parse(config.prompts.attributes)
        probabilities = attributes.uniform_probabilities(config.prompts.attribute_probability)
        word_probabilities = self.experiment.word_choice.probabilities()
        if logits is not None:
            num_values = sum(attributes.sizes)
            probabilities = attributes.reweighted(probabilities, logits[:num_values])
            word_probabilities = words.reweighted(word_probabilities, logits[num_values:])
        rng = np.random.default_rng([*self.seed, Key.ATTRIBUTES])
        counts = self.images_per_class() if number is None else np.full(len(words.of_class), number)
        prompts = []
        for places, count in zip(self._deal_words(counts, word_probabilities), counts, strict=True):
            drawn = attributes.draw(probabilities, max(int(count), 1), rng)
            of_class = [self.experiment.word_prompts[place] for place in places]
            prompts.append([attributes.render(of_class[n % len(of_class)], row) for n, row in enumerate(drawn)])
        return prompts

    def images_per_class(self) -> np.ndarray:
        """How many images of each class a pool has: int [K]."""
        experiment, pool = self.experiment, self.experiment.config.pool
        shots = np.bincount(experiment.split.real.labels, minlength=experiment.classifier_input.num_classes)
        if pool.fill_to:
            return fill_counts(shots, pool.fill_to)
        return pool.images_per_shot * shots if pool.images_per_shot else np.full_like(shots, pool.images_per_class)

    def plan(
        self,
        prompts: Sequence[Sequence[str]],
        round_number: int = 0,
        difficulty: tuple[Sequence[float], float] | None = None,
    ) -> list[PoolRecord]:
        """The records of a pool to generate, see `pool.plan.plan_pool`.

        Args:
            prompts: of each class, taken in turn.
            round_number: of generation.
            difficulty: means [K] and standard deviation of the requested difficulties; None: none is requested.
        """
        counts = self.images_per_class()
        return self.with_words(plan_pool(prompts, counts, self.seed, round_number, difficulty))

    def with_words(self, records: list[PoolRecord]) -> list[PoolRecord]:
        """Notes the word of each image whose class has several: the longest with whose class prompt its own begins."""
        words = self.experiment.words
        prompts: dict[int, list[tuple[str, str]]] = {}
        for place in words.columns:
            prompts.setdefault(int(words.labels[place]), []).append(
                (self.experiment.word_prompts[place], words.names[place])
            )

        def word_of(record: PoolRecord) -> str | None:
            found = [pair for pair in prompts.get(record.label, []) if (record.prompt or "").startswith(pair[0])]
            return max(found, key=lambda pair: len(pair[0]))[1] if found else None

        return [dataclasses.replace(record, word=word_of(record)) for record in records] if prompts else records

    def mixed_shots(self, records: Sequence[PoolRecord], mix_strategy: str) -> tuple[list[PoolRecord], ConditionOn]:
        """What conditions each image on two shots of its class, mixed, see `generator.image_conditioning`.

        Args:
            records: the whole pool.
            mix_strategy: name of one of `MIX_STRATEGIES`.

        Returns:
            The records, which now name the shots; and the condition.
        """
        experiment = self.experiment
        has_image_encoder = experiment.generator.architecture.image_encoder is not None
        strategy = find_mix_strategy(mix_strategy, has_image_encoder)
        labels = np.array([record.label for record in records])
        rng = np.random.default_rng([*self.seed, Key.MIXED_SHOTS])
        sources = plan_sources(experiment.split.real.labels, labels, rng)
        seeds = np.array([record.seed for record in records])
        shots, ids = experiment.generator_shots, experiment.split.real.ids
        named = [
            dataclasses.replace(record, conditioned_on=tuple(ids[row] for row in rows))
            for record, rows in zip(records, sources.tolist(), strict=True)
        ]

        def condition_on(condition: Condition, places: np.ndarray) -> tuple[Condition, jax.Array | None]:
            first, second = (jnp.asarray(to_float(in_memory(shots[sources[places, column]]))) for column in (0, 1))
            return condition_on_images(experiment.adapters.sd, condition, strategy, first, second, seeds[places])

        return named, condition_on

    def plan_rounds(self, prompts: Sequence[Sequence[str]], fractions: Sequence[float]) -> list[list[PoolRecord]]:
        """The records of a pool that grows, after each round, see `plan` and `pool.plan.in_rounds`."""
        return in_rounds(self.plan(prompts), fractions)

    def led_by(self, params: Params, scale: float, micro_batch_size: int) -> ConditionOn:
        """What leads images towards those of which a classifier is unsure, see `generator.feedback`.

        Args:
            params: of the classifier.
            scale, micro_batch_size: see `Feedback`.
        """
        experiment = self.experiment
        predict = Partial(predict_generated, experiment.classifier, experiment.classifier_input, replicate(params))
        feedback = Feedback(predict, scale, micro_batch_size)

        def condition_on(condition: Condition, places: np.ndarray) -> tuple[Condition, jax.Array | None]:
            return dataclasses.replace(condition, feedback=feedback), None

        return condition_on

    def generate(
        self,
        spec: PoolSpec,
        records: Sequence[PoolRecord],
        adapter: Adapter | ClassAdapters | None = None,
        *,
        condition_on: ConditionOn | None = None,
        refine: RefineBatch | None = None,
        strength: float = 1.0,
    ) -> GeneratedPool:
        """Generates the images that the pool's folder does not hold yet, as a stage, and reads the pool.

        Args:
            spec: of the pool.
            records: the whole pool so far, see `plan`. Their rounds are one, whose folder it is kept in; or they rise,
                in a pool that grows in the folder of the first.
            adapter: what was trained of the generator, or of each class's; None: the generator as it is.
            condition_on: what else the images are conditioned on; None: words alone.
            refine: gives each batch an adapter of its own.
            strength: part of the way from noise that is walked by images that start from others.
        """
        experiment, adapter = self.experiment, adapter or Adapter()
        round_number = records[0].round or 0
        folder = experiment.pool_folder(spec, round_number)
        work = partial(self._generate, spec, records, adapter, condition_on, refine, strength)
        name = _stage_name(spec, records[-1].round or 0)
        experiment.stages.run(name, dict, work, experiment.shotless_folder(spec))
        # A run that was cut off may have grown the pool further.
        with self._repairable(spec, round_number):
            pool = read_pool(folder, experiment.split.real.class_names, experiment.reading)
            pool = pool.first(len(records))
        return GeneratedPool(spec, pool, adapter if isinstance(adapter, Adapter) else Adapter(), round_number)

    def _generate(
        self,
        spec: PoolSpec,
        records: Sequence[PoolRecord],
        adapter: Adapter | ClassAdapters,
        condition_on: ConditionOn | None,
        refine: RefineBatch | None,
        strength: float,
    ) -> dict[str, np.ndarray]:
        experiment, round_number = self.experiment, records[0].round or 0
        sampling = dataclasses.replace(spec.sampling(experiment.config), strength=strength)
        if experiment.is_first and spec.images_follow_records:
            # The other processes wait in `_open` until this one has opened the pool.
            self._copy_beginning(spec, records)
        writer = self._open(spec, round_number)
        if len(writer) < len(records):
            title = f"generate {spec.name}" + (f", round {round_number}" if round_number else "")
            with Progress(title, len(records), "image", initial=len(writer), enabled=experiment.is_first) as progress:

                def on_images(done: int) -> None:
                    progress.update(done)
                    was_saved(writer.folder, 60 * experiment.config.checkpoint_every_minutes)
                    check_terminated()

                sd = experiment.adapters.sd_of(spec)
                generate_pool(
                    sd, writer, records, adapter, sampling, on_images, condition_on=condition_on, refine=refine
                )
        return {"num_images": np.array(len(records))}

    def _copy_beginning(self, spec: PoolSpec, records: Sequence[PoolRecord]) -> None:
        """Copies from the pools of other sizes, where one is finished, the images with which this pool begins."""
        experiment, round_number = self.experiment, records[0].round or 0
        class_names = experiment.split.real.class_names
        is_shotless = experiment.shotless_folder(spec) is not None
        longest, source = 0, None
        for other in experiment.shared.other_sizes if experiment.shared else ():
            root, stages = (other.shotless_pools,) * 2 if is_shotless else (other.pools, other.stages)
            folder = root / spec.name / f"round_{round_number:02d}"
            if (stages / f"{_stage_name(spec, round_number)}.safetensors").is_file():
                number = common_beginning(records, read_records(folder, class_names))
                longest, source = max((longest, source), (number, folder), key=lambda found: found[0])
        if source is not None:
            # The images are in the first process's shard, or in the folder itself.
            shard = 0 if jax.process_count() > 1 else None
            folder, image_format = experiment.pool_folder(spec, round_number), experiment.config.pool.format
            writer = PoolWriter(folder, class_names, shard, image_format)
            _copy(read_pool(source, reading=experiment.reading).first(longest), records, writer)

    def adopt(self, spec: PoolSpec, pool: GeneratedPool) -> GeneratedPool:
        """Copies a pool, as that of another spec."""
        experiment = self.experiment
        experiment.stages.run(_stage_name(spec, 0), dict, partial(self._adopt, spec, pool))
        with self._repairable(spec, 0):
            copied = read_pool(experiment.pool_folder(spec), experiment.split.real.class_names, experiment.reading)
        return GeneratedPool(spec, copied, pool.adapter)

    def _adopt(self, spec: PoolSpec, pool: GeneratedPool) -> dict[str, np.ndarray]:
        writer = self._open(spec, 0)
        if self.experiment.is_first:
            _copy(pool.pool, pool.records, writer)
        return {"num_images": np.array(len(pool.records))}

    def _open(self, spec: PoolSpec, round_number: int) -> PoolWriter:
        """Opens a pool to be continued, in every process, each with a shard of its own; see `open_pool`."""
        experiment = self.experiment
        with self._repairable(spec, round_number):
            folder, names = experiment.pool_folder(spec, round_number), experiment.split.real.class_names
            return open_pool(folder, names, is_sharded=True, image_format=experiment.config.pool.format)

    @contextmanager
    def _repairable(self, spec: PoolSpec, round_number: int) -> Iterator[None]:
        """Adds to what is wrong with a pool's folder how to go on."""
        experiment = self.experiment
        folder = experiment.pool_folder(spec, round_number)
        stages = experiment.shotless_folder(spec) or (experiment.shared.stages if experiment.shared else None)
        file = (stages or experiment.workdir / "checkpoints") / f"{_stage_name(spec, round_number)}.safetensors"
        try:
            yield
        except InputError as error:
            remove = f"{folder} and {file}" if file.exists() else str(folder)
            raise InputError(f"{error}; to go on, remove {remove}: the same command makes the pool again") from error

    def show_difficulty(self, spec: PoolSpec, adapter: Adapter) -> None:
        """Draws two sheets of what a difficulty encoder has learnt, for the report of a run of its own."""
        if self.experiment.shared is None:
            self._show_difficulty(spec, adapter)

    @step("difficulty_sheets", dict)
    def _show_difficulty(self, spec: PoolSpec, adapter: Adapter) -> dict[str, np.ndarray]:
        experiment = self.experiment
        names, sampling = experiment.split.real.class_names, spec.sampling(experiment.config)
        prompts = [experiment.word_prompts[place] for place in experiment.word_choice.likeliest()]
        sheets = difficulty_sheets(experiment.adapters.sd, adapter, sampling, names, prompts)
        for name, sheet in sheets.items() if experiment.is_first else ():
            folder = experiment.workdir / "report"
            folder.mkdir(parents=True, exist_ok=True)
            with replace_file(folder / f"{name}.png") as partial:
                sheet.save(partial, "png")
        return {"num_sheets": np.array(len(sheets))}


def predict_generated(classifier: Classifier, sees: ClassifierInput, params: Params, images: jax.Array) -> jax.Array:
    """Logits [B, K] of generated images float32 [B, H, W, 3], as the classifier sees them."""
    return classifier.apply(params, sees.images(images))


def _copy(pool: Pool, records: Sequence[PoolRecord], writer: PoolWriter) -> None:
    """Appends the images of a pool that a writer does not hold yet, under these records."""
    for start in range(len(writer), len(pool.labels), _COPIED_AT_ONCE):
        part = slice(start, min(start + _COPIED_AT_ONCE, len(pool.labels)))
        writer.append(to_float(in_memory(pool.images[part])), records[part])
    writer.finish()


def _stage_name(spec: PoolSpec, round_number: int) -> str:
    return f"pool_{spec.name}" if round_number == 0 else f"pool_{spec.name}_{round_number}"

"""The pool steps: prompts, plans, what the generator is given, and the folders, stages and records that stay."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.experiment.conftest import NamedPool, image_of, random_pool, with_fake_sd
from utilgen_jax.classifier.train import init_classifier
from utilgen_jax.data.images import to_float
from utilgen_jax.errors import InputError
from utilgen_jax.experiment import pools
from utilgen_jax.experiment.experiment import SharedDirs
from utilgen_jax.generator.adapter import Adapter
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.methods.baselines import PlainPool
from utilgen_jax.pool.generate import generate_batches
from utilgen_jax.pool.records import PoolRecord
from utilgen_jax.pool.storage import PoolWriter
from utilgen_jax.prompts.attributes import PromptAttributes
from utilgen_jax.prompts.captions import captioning


def unwritten(records):
    """Records as they were planned, without what the writer fills in."""
    return [dataclasses.replace(record, file_name="", class_name="") for record in records]


# Prompts


@pytest.fixture
def captioner(monkeypatch):
    """The class names that were captioned; a caption is the class and the image's brightest grey level."""
    heard = []

    def caption(images, class_names):
        heard.extend(class_names)
        return [f"{name} of sum {image.sum()}" for image, name in zip(images, class_names, strict=True)]

    monkeypatch.setattr(captioning, "make_captioner", lambda source: caption)
    return heard


def test_captions_stand_in_the_prompts_of_their_class(make_experiment, captioner):
    experiment = make_experiment(prompts__template="a sketch of {class}")
    real = experiment.split.real
    expected = [
        [
            f"a sketch of {real.class_names[label]}, {real.class_names[label]} of sum {image.sum()}"
            for image, other in zip(experiment.generator_shots, real.labels, strict=True)
            if other == label
        ]
        for label in (0, 1)
    ]
    assert experiment.pools.caption_prompts() == expected and len(expected[0]) == 2
    assert len(captioner) == 4
    lines = (experiment.workdir / "captions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(real.ids)
    # The file is read again: nothing is captioned.
    assert experiment.pools.caption_prompts() == expected and len(captioner) == 4


def test_each_process_captions_into_a_file_of_its_own(make_experiment, captioner, tmp_path, monkeypatch):
    shared = SharedDirs(tmp_path / "stages", tmp_path / "pools", tmp_path / "shotless")
    experiment = make_experiment(shared=shared)
    first = experiment.pools.caption_prompts()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert experiment.pools.caption_prompts() == first and len(captioner) == 8
    assert sorted(file.name for file in shared.stages.glob("*.jsonl")) == [
        "captions.jsonl",
        "captions.shard-00001.jsonl",
    ]
    assert not (experiment.workdir / "captions.jsonl").exists()


def test_learnt_tokens_take_the_place_of_the_class_names(make_experiment):
    experiment = make_experiment(prompts__template="one {class}.")
    assert experiment.word_prompts == ["one zero.", "one one."]
    assert experiment.pools.class_token_prompts() == [["one <class-0>."], ["one <class-1>."]]


ATTRIBUTES = {"prompts__template": "a {class}", "prompts__attributes": "thin|bold,small|large|huge"}


def test_attributes_are_drawn_by_seed(make_experiment):
    def prompts(seed=0, **arguments):
        experiment = make_experiment(
            **ATTRIBUTES, workdir=None, seed=seed, pool__images_per_class=30, prompts__attribute_probability=0.5
        )
        shutil.rmtree(experiment.workdir)  # Another seed would be refused there.
        return experiment.pools.attribute_prompts(**arguments)

    first = prompts()
    assert [len(part) for part in first] == [30, 30] and first[0] != first[1]
    assert prompts() == first
    assert prompts(seed=1) != first
    # Class after class from one generator.
    attributes = PromptAttributes((("thin", "bold"), ("small", "large", "huge")))
    rng = np.random.default_rng([0, 8])
    probabilities = np.array([0.5, 0.25, 0.25, 0.5, 1 / 6, 1 / 6, 1 / 6])
    for name, part in zip(("zero", "one"), first, strict=True):
        assert part == [attributes.render(f"a {name}", row) for row in attributes.draw(probabilities, 30, rng)]
    assert [len(part) for part in prompts(number=7)] == [7, 7]


@pytest.mark.parametrize(
    ("probability", "expected"), [(0.0, [0, 0, 0]), (0.3, [0.15, 0.15, 0.1]), (1.0, [0.5, 0.5, 1 / 3])]
)
def test_attributes_are_as_frequent_as_the_config_has_it(make_experiment, probability, expected):
    experiment = make_experiment(**ATTRIBUTES, pool__images_per_class=4000, prompts__attribute_probability=probability)
    prompts = sum(experiment.pools.attribute_prompts(), [])
    found = [np.mean([value in prompt for prompt in prompts]) for value in ("thin", "bold", "huge")]
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_logits_are_added_to_the_attributes_log_probabilities(make_experiment):
    experiment = make_experiment(**ATTRIBUTES, pool__images_per_class=4000, prompts__attribute_probability=0.5)
    # "absent", "thin", "bold", and of the other "absent", "small", "large", "huge"
    logits = np.log([1, 4, 1, 1, 1e-9, 1e-9, 1e9])
    prompts = sum(experiment.pools.attribute_prompts(logits=logits), [])
    frequency = [np.mean([value in prompt for prompt in prompts]) for value in ("thin", "bold", "small", "huge")]
    np.testing.assert_allclose(frequency, [4 / 7, 1 / 7, 0, 1], atol=0.02)


# Plans


def test_each_class_gets_so_many_images_for_each_of_its_shots(make_experiment, tmp_path):
    even = make_experiment(workdir=tmp_path / "even", pool__images_per_shot=5)
    np.testing.assert_array_equal(even.pools.images_per_class(), [10, 10])
    tail = {"data__max_classes": 3, "data__shots": 8, "data__imbalance_factor": 8}
    long_tail = make_experiment(workdir=tmp_path / "tail", pool__images_per_shot=5, **tail)
    np.testing.assert_array_equal(long_tail.pools.images_per_class(), [40, 10, 5])


def test_each_class_gets_its_number_of_images(make_experiment, tmp_path):
    np.testing.assert_array_equal(make_experiment().pools.images_per_class(), [4, 4])
    long_tail = make_experiment(
        workdir=tmp_path / "tail", data__max_classes=3, data__shots=8, data__imbalance_factor=8, pool__fill_to=9
    )
    # Shots 8, 2 and 1 are filled up to 9.
    np.testing.assert_array_equal(long_tail.pools.images_per_class(), [1, 7, 8])
    # A class that lacks none, as label noise can leave it, has a prompt all the same: a plan takes one of each.
    config = long_tail.config
    long_tail.config = dataclasses.replace(config, pool=dataclasses.replace(config.pool, fill_to=7))
    np.testing.assert_array_equal(long_tail.pools.images_per_class(), [0, 5, 6])
    prompts = long_tail.pools.attribute_prompts()
    assert [len(part) for part in prompts] == [1, 5, 6]
    assert np.bincount([record.label for record in long_tail.pools.plan(prompts)]).tolist() == [0, 5, 6]


def test_a_plan_takes_the_prompts_in_turn(make_experiment):
    experiment = make_experiment()
    prompts = [["a", "b", "c"], ["d"]]
    records = experiment.pools.plan(prompts, 3, difficulty=([0.2, 0.9], 0.0))
    assert [record.label for record in records] == [0, 1] * 4
    assert [record.prompt for record in records] == ["a", "d", "b", "d", "c", "d", "a", "d"]
    assert [record.requested_difficulty for record in records] == [0.2, 0.9] * 4
    assert {record.round for record in records} == {3}
    again, first_round = experiment.pools.plan(prompts, 3), experiment.pools.plan(prompts)
    assert [record.seed for record in again] == [record.seed for record in records]
    assert {record.requested_difficulty for record in again} == {None}
    assert {record.round for record in first_round} == {0}
    assert not {record.seed for record in first_round} & {record.seed for record in records}


def test_the_runs_seed_is_in_the_plan(make_experiment, tmp_path):
    plans = [make_experiment(workdir=tmp_path / f"{seed}", seed=seed).pools.plan([["a"], ["b"]]) for seed in (0, 1)]
    assert not {record.seed for record in plans[0]} & {record.seed for record in plans[1]}


# Generation


def test_a_pool_is_generated_once_and_read_by_the_next_run(make_experiment, generated):
    experiment = with_fake_sd(make_experiment())
    records = experiment.pools.plan([["a"], ["b"]], difficulty=([0.2, 0.9], 0.0))
    pool = experiment.pools.generate(PlainPool(), records)
    again = make_experiment().pools.generate(PlainPool(), records)
    assert len(generated) == 1 and generated[0]["sd"] == "the checkpoint" and generated[0]["adapter"] == Adapter()
    assert pool.spec == PlainPool() and pool.round == 0 and pool.adapter == Adapter()
    for read in (pool, again):
        assert unwritten(read.records) == records
        np.testing.assert_array_equal(read.labels, [0, 1] * 4)
        np.testing.assert_allclose(to_float(read.images), [image_of(record) for record in records], atol=0.005)
    assert generated[0]["folder"] == experiment.workdir / "pool" / "round_00"


def test_packed_images_are_those_of_single_files(make_experiment, generated, tmp_path):
    def pool_of(image_format):
        experiment = make_experiment(workdir=tmp_path / image_format, pool__format=image_format)
        return with_fake_sd(experiment).pool(PlainPool())

    single = pool_of("png")
    for image_format, file in (("webdataset", "train-00000.tar"), ("arrayrecord", "train-00000.array_record")):
        packed = pool_of(image_format)
        folder = tmp_path / image_format / "pool" / "round_00"
        assert sorted(path.name for path in folder.iterdir()) == ["metadata.jsonl", file]
        np.testing.assert_array_equal(packed.images, single.images)
        assert unwritten(packed.records) == unwritten(single.records)


def of_size(make_experiment, tmp_path, size, *others):
    """An experiment with so many images a class, beside those of other sizes."""
    folders = [tmp_path / f"size_{each}" for each in (size, *others)]
    dirs = [SharedDirs(folder / "stages", folder / "pools", folder / "shotless") for folder in folders]
    shared = dataclasses.replace(dirs[0], other_sizes=dirs[1:])
    return with_fake_sd(make_experiment(workdir=folders[0], shared=shared, pool__images_per_class=size))


@pytest.mark.parametrize("has_stage", [True, False])
def test_a_damaged_pool_says_how_to_go_on(make_experiment, generated, has_stage):
    experiment = with_fake_sd(make_experiment())
    whole = experiment.pool(PlainPool())
    folder, stage = experiment.pool_folder(PlainPool()), experiment.workdir / "checkpoints" / "pool_plain.safetensors"
    lines = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(lines + lines.splitlines()[-1] + "\n")
    if not has_stage:
        stage.unlink()
    with pytest.raises(InputError) as caught:
        with_fake_sd(make_experiment()).pool(PlainPool())
    remove = f"{folder} and {stage}" if has_stage else str(folder)
    end = f"stands there twice; to go on, remove {remove}: the same command makes the pool again"
    assert str(caught.value).endswith(end)
    shutil.rmtree(folder)
    stage.unlink(missing_ok=True)
    np.testing.assert_array_equal(with_fake_sd(make_experiment()).pool(PlainPool()).images, whole.images)


def test_a_pool_begins_with_that_of_another_size(make_experiment, generated, tmp_path):
    prompts = [["a"], ["b"]]
    for size, others, done in ((2, (4, 3), 0), (4, (2, 3), 4), (3, (2, 4), None)):
        generated.clear()
        experiment = of_size(make_experiment, tmp_path, size, *others)
        records = experiment.pools.plan(prompts)
        pool = experiment.pools.generate(PlainPool(), records)
        assert unwritten(pool.records) == records and len(records) == 2 * size
        np.testing.assert_allclose(to_float(pool.images), [image_of(record) for record in records], atol=0.005)
        # The third is a part of the second: nothing is generated.
        assert [call["done"] for call in generated] == ([] if done is None else [done])


def test_a_pool_of_other_prompts_or_of_an_adapter_does_not_begin_another(make_experiment, generated, tmp_path):
    first = of_size(make_experiment, tmp_path, 2)
    second = of_size(make_experiment, tmp_path, 4, 2)
    # An image of this spec may differ though its record does not.
    assert not NamedPool().images_follow_records
    for spec, prompts, others in ((NamedPool(), ["a"], ["a"]), (PlainPool(), ["a"], ["another"])):
        generated.clear()
        first.pools.generate(spec, first.pools.plan([["a"], prompts]))
        second.pools.generate(spec, second.pools.plan([["a"], others]))
        # The first image is of the first class.
        assert [call["done"] for call in generated] == [0, 1 if spec == PlainPool() else 0]


def test_an_unfinished_pool_begins_no_other(make_experiment, generated, tmp_path):
    first = of_size(make_experiment, tmp_path, 2)
    first.pools.generate(PlainPool(), first.pools.plan([["a"], ["b"]]))
    (tmp_path / "size_2" / "shotless" / "pool_plain.safetensors").unlink()
    second = of_size(make_experiment, tmp_path, 4, 2)
    second.pools.generate(PlainPool(), second.pools.plan([["a"], ["b"]]))
    assert [call["done"] for call in generated] == [0, 0]


@pytest.mark.parametrize(
    ("round_number", "stage", "folder"), [(0, "pool_named", "round_00"), (2, "pool_named_2", "round_02")]
)
def test_stage_and_folder_are_named_by_spec_and_round(make_experiment, generated, round_number, stage, folder):
    experiment = with_fake_sd(make_experiment())
    records = experiment.pools.plan([["a"], ["b"]], round_number)
    pool = experiment.pools.generate(NamedPool(), records)
    assert pool.round == round_number and list(experiment.stages.seconds) == [stage]
    assert generated[0]["folder"] == experiment.workdir / "pool" / "named" / folder


def test_a_shared_pool_that_no_shot_has_a_part_in_is_another_runs_too(make_experiment, generated, tmp_path):
    def run(name):
        shared = SharedDirs(tmp_path / name / "stages", tmp_path / name / "pools", tmp_path / "shotless")
        return with_fake_sd(make_experiment(workdir=tmp_path / name, shared=shared))

    for of_shots, count in ((False, 1), (True, 2)):
        generated.clear()
        for name in ("one", "two"):
            experiment = run(name)
            records = experiment.pools.plan([["a"], ["b"]])
            pool = experiment.pools.generate(NamedPool(f"of_shots_{of_shots}", of_shots), records)
            assert len(pool.labels) == 8
        assert len(generated) == count
    assert (tmp_path / "shotless" / "pool_of_shots_False.safetensors").is_file()
    assert (tmp_path / "two" / "stages" / "pool_of_shots_True.safetensors").is_file()


def test_all_that_shapes_the_images_reaches_the_generator(make_experiment, generated):
    experiment = with_fake_sd(make_experiment("utilgen"))
    adapter = Adapter(prompt_offsets=jnp.ones(3))

    def condition_on(condition, places):
        return condition, None

    def refine(adapter, inputs):
        return adapter

    spec = experiment.methods[-1].pool
    records = experiment.pools.plan([["a"], ["b"]], 1)
    pool = experiment.pools.generate(spec, records, adapter, condition_on=condition_on, refine=refine, strength=0.3)
    ((call),) = generated
    assert call["condition_on"] is condition_on and call["refine"] is refine
    assert call["adapter"] is adapter and pool.adapter is adapter
    assert call["sampling"] == dataclasses.replace(experiment.config.generator, strength=0.3)
    # Its prompts hold class tokens.
    assert call["sd"] == "the checkpoint with tokens"


def test_a_pool_that_was_cut_off_is_continued(make_experiment, generated):
    experiment = with_fake_sd(make_experiment())
    records = experiment.pools.plan([["a"], ["b"]])
    folder = experiment.pool_folder(PlainPool())
    writer = PoolWriter(folder, experiment.split.real.class_names)
    writer.append(np.zeros((3, 4, 4, 3), np.float32), records[:3])
    pool = experiment.pools.generate(PlainPool(), records)
    assert [call["done"] for call in generated] == [3]
    assert unwritten(pool.records) == records
    np.testing.assert_allclose(to_float(pool.images[:3]), 0, atol=0.005)
    np.testing.assert_allclose(to_float(pool.images[3:]), [image_of(record) for record in records[3:]], atol=0.005)


def test_a_pool_that_was_cut_off_behind_its_last_image_loads_no_generator(make_experiment, generated):
    experiment = make_experiment()
    records = experiment.pools.plan([["a"], ["b"]])
    writer = PoolWriter(experiment.pool_folder(PlainPool()), experiment.split.real.class_names)
    writer.append(np.zeros((8, 4, 4, 3), np.float32), records)
    assert len(experiment.pools.generate(PlainPool(), records).labels) == 8
    assert not generated and "sd" not in vars(experiment.adapters)


def test_a_pool_grows_in_one_folder_and_a_run_that_was_cut_off_sees_it_as_it_was(make_experiment, generated):
    experiment, spec = with_fake_sd(make_experiment()), NamedPool()
    parts = experiment.pools.plan_rounds([["a"], ["b"]], [0.25, 0.5, 1.0])
    for part in parts:
        pool = experiment.pools.generate(spec, part)
        assert unwritten(pool.records) == part and pool.round == 0
    assert [call["done"] for call in generated] == [0, 2, 4]
    assert len({call["folder"] for call in generated}) == 1
    again = with_fake_sd(make_experiment())
    for part in parts:
        assert unwritten(again.pools.generate(spec, part).records) == part
    assert len(generated) == 3


@pytest.mark.slow
def test_a_pool_is_led_by_a_classifier_and_all_rounds_share_one_program(make_experiment, quick_checkpoint, monkeypatch):
    experiment = make_experiment(generator__checkpoint=quick_checkpoint, generator__batch_size=4)
    sample_shape = (experiment.config.data.image_size,) * 2 + (experiment.config.data.channels,)
    records = experiment.pools.plan(experiment.pools.class_prompts())[:4]
    sd = load_stable_diffusion(quick_checkpoint)
    images, traced, predict = [], [], pools.predict_generated
    monkeypatch.setattr(pools, "predict_generated", lambda *args: traced.append(len(images)) or predict(*args))
    for number in range(3):
        params = init_classifier(experiment.classifier, sample_shape, jax.random.key(number))
        led = experiment.pools.led_by(params, 0.2, 0)
        (batch,) = generate_batches(sd, records, Adapter(), experiment.config.generator, condition_on=led)
        images.append(batch)
    assert np.abs(images[0] - images[1]).max() > 0.01 and set(traced) == {0}
    (plain,) = generate_batches(sd, records, Adapter(), experiment.config.generator)
    assert np.abs(images[0] - plain).max() > 0.01


@pytest.mark.slow
def test_the_images_are_the_librarys(make_experiment, quick_checkpoint):
    experiment = make_experiment(generator__checkpoint=quick_checkpoint, generator__batch_size=4)

    def condition_on(condition, places):
        return dataclasses.replace(condition, class_labels=condition.class_labels + places[:, None]), None

    def refine(adapter, inputs):
        return dataclasses.replace(adapter, noise_offsets=0.5 * inputs.latents)

    records = experiment.pools.plan(experiment.pools.class_prompts())[:6]
    sd = load_stable_diffusion(quick_checkpoint)
    made = {}
    for name, changes in {"plain": {}, "both": {"condition_on": condition_on, "refine": refine}}.items():
        pool = experiment.pools.generate(NamedPool(name), records, **changes)
        expected = np.concatenate([*generate_batches(sd, records, Adapter(), experiment.config.generator, **changes)])
        np.testing.assert_allclose(pool.images, (expected + 1) * 127.5, atol=0.51)
        made[name] = pool.images
    assert (made["plain"] != made["both"]).any(axis=(1, 2, 3)).all()


# A pool that is taken over


@pytest.mark.parametrize("done", [0, 3])
def test_a_pool_is_copied_and_a_copy_that_was_cut_off_is_continued(make_experiment, done):
    experiment = make_experiment(pool__images_per_class=2)
    pool = random_pool(8, adapter=Adapter(prompt_offsets=jnp.ones(2)))
    writer = PoolWriter(experiment.pool_folder(NamedPool()), experiment.split.real.class_names)
    writer.append(to_float(pool.images[:done]), pool.records[:done])
    for run in (experiment, make_experiment(pool__images_per_class=2)):
        copied = run.pools.adopt(NamedPool(), pool)
        np.testing.assert_array_equal(copied.images, pool.images)
        assert unwritten(copied.records) == list(pool.records)
        assert copied.adapter is pool.adapter and (copied.spec, copied.round) == (NamedPool(), 0)
        assert list(run.stages.seconds) == ["pool_named"]


# Conditioning on shots


@pytest.mark.parametrize("shots", [1, 3])
def test_images_are_mixed_from_shots_of_their_class(make_experiment, monkeypatch, shots):
    experiment = with_fake_sd(make_experiment(data__shots=shots, pool__images_per_class=10))
    records = experiment.pools.plan([["a"], ["b"]])
    calls = []

    def condition(sd, condition, strategy, first, second, seeds):
        calls.append((sd, condition, strategy, np.asarray(first), np.asarray(second), seeds))
        return "conditioned", "latents"

    monkeypatch.setattr(pools, "condition_on_images", condition)
    named, condition_on = experiment.pools.mixed_shots(records, "cutmix")
    places = np.array([3, 4, 17, 0, 11, 19, 19])
    assert condition_on("by text", places) == ("conditioned", "latents")
    condition_on("by text", np.arange(20))
    shots_of_generator = to_float(experiment.generator_shots)
    for (sd, of_text, strategy, first, second, seeds), chosen in zip(calls, (places, np.arange(20)), strict=True):
        assert sd == "the checkpoint" and of_text == "by text"
        assert strategy == pools.find_mix_strategy("cutmix", True)
        assert seeds.tolist() == [records[place].seed for place in chosen]
        for place, *sources in zip(chosen, first, second, strict=True):
            assert named[place] == dataclasses.replace(records[place], conditioned_on=named[place].conditioned_on)
            numbers = [np.flatnonzero((shots_of_generator == image).all(axis=(1, 2, 3))).item() for image in sources]
            assert (experiment.split.real.labels[numbers] == records[place].label).all()
            assert (numbers[0] != numbers[1]) == (shots > 1)
            assert named[place].conditioned_on == tuple(experiment.split.real.ids[number] for number in numbers)
    # An image's sources are its own, whatever batch it is in.
    for column in (3, 4):
        np.testing.assert_array_equal(calls[0][column], calls[1][column][places])


def test_the_sources_follow_the_seed(make_experiment, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(pools, "condition_on_images", lambda sd, condition, strategy, first, *rest: drawn.append(first))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        experiment = with_fake_sd(make_experiment(workdir=tmp_path / name, data__shots=4))
        experiment.config = dataclasses.replace(experiment.config, seed=seed)  # The shots stay the same.
        records = [PoolRecord(label=place % 2, seed=place) for place in range(20)]
        experiment.pools.mixed_shots(records, "mixup")[1](None, np.arange(20))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


# Sheets


def test_sheets_are_drawn_once_and_only_by_a_run_of_its_own(make_experiment, monkeypatch, tmp_path):
    from PIL import Image

    adapters = []

    def draw(sd, adapter, sampling, class_names, prompts):
        adapters.append(adapter)
        assert (sd, class_names, prompts) == ("the checkpoint", ("zero", "one"), experiment.word_prompts)
        assert sampling == experiment.config.generator
        return {"one": Image.new("RGB", (8, 8), (200, 0, 0))}

    monkeypatch.setattr(pools, "difficulty_sheets", draw)
    for _ in range(2):
        experiment = with_fake_sd(make_experiment())
        experiment.pools.show_difficulty(PlainPool(), "adapter")
    assert adapters == ["adapter"]
    with Image.open(experiment.workdir / "report" / "one.png") as sheet:
        assert sheet.getpixel((0, 0)) == (200, 0, 0)
    shared = SharedDirs(tmp_path / "stages", tmp_path / "pools", tmp_path / "shotless")
    with_fake_sd(make_experiment(workdir=tmp_path / "other", shared=shared)).pools.show_difficulty(
        PlainPool(), "adapter"
    )
    assert len(adapters) == 1

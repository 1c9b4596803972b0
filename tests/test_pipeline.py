"""The main job end to end: the real digits config, shrunk."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.diffusers_checkpoint import write_quick_stable_diffusion
from tests.tiny import DIGITS, TINY
from utilgen_jax import main, pipeline
from utilgen_jax.checkpoints import resolve_checkpoint
from utilgen_jax.config.command_line import read_config
from utilgen_jax.config.schema import to_json
from utilgen_jax.data.images import to_float
from utilgen_jax.data.sources import load_source
from utilgen_jax.data.splits import few_shot
from utilgen_jax.errors import InputError
from utilgen_jax.generator.adapter import Adapter, generate_images
from utilgen_jax.generator.image_conditioning import MIX_STRATEGIES, condition_on_images, plan_sources
from utilgen_jax.generator.inputs import make_sample_inputs
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.methods import METHODS
from utilgen_jax.pool.storage import read_pool
from utilgen_jax.prompts.attributes import PromptAttributes
from utilgen_jax.prompts.config import GLYPH_ATTRIBUTES

CONFIGS = Path(__file__).parents[1] / "configs"
SHRUNK = (
    ("generator.steps", "2"),
    ("generator.batch_size", "16"),
    ("pool.images_per_class", "4"),
    ("classifier.steps", "20"),
    ("classifier.width", "8"),
    ("valuation.steps", "6"),
    ("lora.steps", "4"),
    ("difficulty.steps", "4"),
    ("difficulty.batch_size", "16"),
    ("valuation.plain_steps", "10"),
    ("joint.plain_steps", "10"),
    ("joint.steps", "4"),
    ("joint.sampler_steps", "1"),
    ("joint.num_generated", "8"),
    ("joint.gate_images", "1"),
    ("joint.gate_steps", "5"),
    ("data.max_test", "100"),
    ("log_every_steps", "5"),
)


def shrunk(variant: str = ""):
    return read_config(f"{CONFIGS / 'digits.py'}:{variant}", SHRUNK)


def without_seconds(summary: dict) -> dict:
    return {key: value for key, value in summary.items() if key != "seconds"}


@pytest.fixture(scope="module")
def quick_checkpoint(tmp_path_factory):
    return write_quick_stable_diffusion(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, pipeline.run(shrunk("method=saflex"), workdir)


@pytest.mark.slow
def test_a_run_leaves_all_that_it_promises(finished):
    workdir, summary = finished
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert summary["method"] == "saflex" and summary["dataset"] == "digits"
    assert summary["shots"] == 2 and summary["seed"] == 0
    assert set(summary["accuracy"]) == {"real_only", "vanilla", "final"}
    assert set(summary["accuracy_synthetic_only"]) == {"vanilla", "final"}
    accuracies = [*summary["accuracy"].values(), *summary["accuracy_synthetic_only"].values()]
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    assert summary["trained_on"] == "real+synthetic"
    assert summary["num_real"] == 20 and summary["num_synthetic"] == 40 and summary["num_test"] == 100
    assert {"classifier_real", "pool_plain", "value_saflex", "evaluation_saflex"} <= set(summary["seconds"])
    assert summary["versions"].keys() >= {"utilgen_jax", "jax", "flax"}
    assert json.loads((workdir / "config.json").read_text())["pool"]["images_per_class"] == 4
    stages = {json.loads(line)["stage"] for line in (workdir / "metrics.jsonl").read_text().splitlines()}
    trained = {"classifier_vanilla", "classifier_saflex"}
    assert stages == {"classifier_real", *trained, *(f"{name}_synthetic_only" for name in trained)}
    page = (workdir / "report" / "index.html").read_text()
    for column in ("accuracy", "accuracy_synthetic_only"):
        assert f"<b>{100 * summary[column]['final']:.1f} %</b>" in page
    assert list((workdir / "tensorboard").iterdir())


@pytest.mark.slow
def test_the_pool_can_be_opened_by_a_person(finished):
    folder = finished[0] / "pool" / "round_00"
    records = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert len(records) == 40
    for index, record in enumerate(records):
        assert record["label"] == index % 10 and record["round"] == 0
        assert record["prompt"] == f"a photo of the digit {record['class_name']}"
        assert 0 <= record["weight"] <= 1 and 0 <= record["difficulty"] <= 1
        with Image.open(folder / record["file_name"]) as image:
            assert image.size == (32, 32)
    assert len({record["seed"] for record in records}) == 40
    assert len({record["weight"] for record in records}) > 1


@pytest.mark.slow
def test_the_same_seed_gives_the_same_summary_and_another_seed_another(finished, tmp_path):
    again = pipeline.run(shrunk("method=saflex"), tmp_path / "again")
    assert without_seconds(again) == without_seconds(finished[1])
    other = pipeline.run(shrunk("method=saflex,seed=1"), tmp_path / "other")
    assert other["accuracy"] != again["accuracy"]


@pytest.mark.slow
def test_a_run_that_was_broken_off_continues_and_ends_the_same(finished, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    # As if it had been killed in the middle of generation: later stages missing, the pool half there.
    for file in (workdir / "checkpoints").iterdir():
        if not file.name.startswith(("classifier_real", "difficulty")):
            file.unlink()
    (workdir / "summary.json").unlink()
    metadata = workdir / "pool" / "round_00" / "metadata.jsonl"
    lines = metadata.read_text().splitlines(keepends=True)
    metadata.write_text("".join(lines[:24]) + lines[24][:20])
    kept = (workdir / "pool" / "round_00" / json.loads(lines[3])["file_name"]).stat().st_mtime_ns

    summary = pipeline.run(shrunk("method=saflex"), workdir)
    assert without_seconds(summary) == without_seconds(finished[1])
    assert (workdir / "pool" / "round_00" / json.loads(lines[3])["file_name"]).stat().st_mtime_ns == kept
    messages = capsys.readouterr().err
    assert "classifier_real: done before" in messages and "classifier_vanilla: done before" not in messages


@pytest.mark.slow
@pytest.mark.parametrize(("method", "synthetic"), [("real", 0), ("cutmix", 0), ("vanilla", 40)])
def test_the_other_methods_run(tmp_path, capsys, method, synthetic):
    summary = pipeline.run(shrunk(f"method={method}"), tmp_path)
    assert summary["num_synthetic"] == synthetic
    accuracy = summary["accuracy"]
    as_baseline = {"real": "real_only", "vanilla": "vanilla"}.get(method, "final")
    assert set(accuracy) == {"real_only", as_baseline, "final"} and accuracy["final"] == accuracy[as_baseline]
    only = summary["accuracy_synthetic_only"]
    assert set(only) == ({"vanilla", "final"} if method == "vanilla" else set())
    # Where nothing is synthetic there is one column.
    second = {name: [f"{100 * only[name]:.1f}%" if name in only else "–"] if only else [] for name in accuracy}
    expected = [["real images only", "20", "0", f"{100 * accuracy['real_only']:.1f}%", *second["real_only"]]]
    if method != "real":
        expected.append(
            [METHODS[method].title, "20", str(synthetic), f"{100 * accuracy['final']:.1f}%", *second["final"]]
        )
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("changed most")]
    assert [re.split(" {2,}", line.strip()) for line in printed if "%" in line] == expected
    assert (tmp_path / "pool").exists() == (synthetic > 0)


@pytest.mark.slow
def test_synthetic_images_only_is_the_second_column_of_a_run_of_both(tmp_path, quick_checkpoint):
    own = {"generator.checkpoint": str(quick_checkpoint), "generator.image_size": "16", "classifier.name": "mlp"}
    settings = (*SHRUNK, *own.items(), ("baselines", ""), ("ensemble.members", "1"))
    spec = f"{CONFIGS / 'digits.py'}:method=joint"
    both = pipeline.run(read_config(spec, settings), tmp_path / "both")
    only = pipeline.run(read_config(f"{spec},synthetic_only", settings), tmp_path / "only")
    assert only["trained_on"] == "synthetic_only" and both["trained_on"] == "real+synthetic"
    # Labels are learnt from the same images, real ones among them: the same classifier, to the bit.
    assert only["accuracy"]["final"] == only["accuracy_synthetic_only"]["final"]
    assert only["accuracy_synthetic_only"] == both["accuracy_synthetic_only"]
    own, other = (
        load_file(tmp_path / run / "checkpoints" / f"classifier_joint{end}.safetensors")
        for run, end in (("only", ""), ("both", "_synthetic_only"))
    )
    for name in own:
        np.testing.assert_array_equal(own[name], other[name])
    mixed = load_file(tmp_path / "both/checkpoints/classifier_joint.safetensors")
    assert any((mixed[name] != own[name]).any() for name in own)


@pytest.mark.slow
def test_an_augmentation_is_a_row_or_under_any(tmp_path):
    row, under = (tmp_path / name / "checkpoints" for name in ("row", "under"))
    pipeline.run(shrunk("method=randaugment"), row.parent)
    overrides = (*SHRUNK, ("classifier.augmentation", "randaugment"))
    pipeline.run(read_config(f"{CONFIGS / 'digits.py'}:method=vanilla", overrides), under.parent)
    real, augmented = ((row / f"classifier_{name}.safetensors") for name in ("real", "randaugment"))
    weights, own, below = (load_file(file) for file in (real, augmented, under / "classifier_real.safetensors"))
    for name in weights:
        np.testing.assert_array_equal(own[name], below[name])
    assert any((weights[name] != own[name]).any() for name in weights)
    assert (under / "classifier_vanilla.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "family"), [("datadream", "unclip"), ("difficulty", "sdxl")])
def test_methods_that_adapt_the_generator_run(tmp_path, method, family):
    checkpoint = write_quick_stable_diffusion(tmp_path / "checkpoint", family)
    own = {
        "generator.checkpoint": str(checkpoint),
        "generator.image_size": "16",
        "classifier.name": "mlp",
        "lora.learning_rate": "0.1",
        "difficulty.learning_rate": "0.1",
    }
    config = read_config(f"{CONFIGS / 'digits.py'}:method={method}", (*SHRUNK, *own.items()))
    tmp_path = tmp_path / "run"
    summary = pipeline.run(config, tmp_path)
    assert summary["num_synthetic"] == 40 and {"vanilla", "final"} <= set(summary["accuracy"])
    folders = [tmp_path / "pool" / name for name in ("round_00", "plain/round_00")]
    texts = [(folder / "metadata.jsonl").read_text() for folder in folders]
    own, plain = ([json.loads(line) for line in text.splitlines()] for text in texts)
    for record, other in zip(own, plain, strict=True):
        # The same noise: what differs is what the generator was fitted to, and for one of them the words.
        assert (record["label"], record["seed"]) == (other["label"], other["seed"])
        assert (record["prompt"] == other["prompt"]) == (method == "datadream")
        assert record["prompt"].startswith(other["prompt"])
        assert (record.get("requested_difficulty") is not None) == (method == "difficulty")
        assert other.get("requested_difficulty") is None
    pixels = [np.asarray(Image.open(folder / own[3]["file_name"])) for folder in folders]
    assert (pixels[0] != pixels[1]).any()

    # Everything is on disk: a second run computes nothing.
    assert pipeline.run(config, tmp_path) == summary


@pytest.mark.slow
@pytest.mark.parametrize("method", ["joint", "joint_without_gate"])
def test_joint_trains_adapter_and_weight_network_and_learns_what_several_classifiers_say(
    tmp_path, quick_checkpoint, method
):
    own = {"generator.checkpoint": str(quick_checkpoint), "generator.image_size": "16", "classifier.name": "mlp"}
    settings = (*SHRUNK, *own.items(), ("baselines", ""), ("also_synthetic_only", "False"))
    summary = pipeline.run(read_config(f"{CONFIGS / 'digits.py'}:method={method}", settings), tmp_path)
    assert summary["num_synthetic"] == 40
    stages = tmp_path / "checkpoints"
    said = load_file(stages / f"ensemble_{method}.safetensors")
    soft_labels = np.mean([said[name] for name in ("of_shots", "of_pool", "of_relabelled")], axis=0)
    weights = load_file(stages / f"value_{method}.safetensors")["weights"]
    records = [
        json.loads(line) for line in (tmp_path / "pool" / "round_00" / "metadata.jsonl").read_text().splitlines()
    ]
    np.testing.assert_allclose([record["soft_label"] for record in records], soft_labels, rtol=1e-5)
    np.testing.assert_allclose([record["weight"] for record in records], weights, rtol=1e-5)
    np.testing.assert_allclose(soft_labels.sum(axis=1), 1.0, rtol=1e-5)
    trained = load_file(stages / f"joint_{method}.safetensors")
    requested = 1 / (1 + np.exp(-trained["adapter/difficulty_logits"]))
    if method == "joint_without_gate":
        assert len({record["prompt"] for record in records}) > 10
        found = [record["requested_difficulty"] for record in records]
        np.testing.assert_allclose(found, requested[[record["label"] for record in records]], atol=1e-4)
    else:
        gains = load_file(stages / "gate_joint.safetensors")["gains"]
        is_open = gains.mean() > gains.std(ddof=1) / np.sqrt(len(gains))
        assert (records[0]["requested_difficulty"] is not None) == is_open


@pytest.mark.slow
def test_a_long_tail_is_filled(tmp_path):
    changes = [("data.shots", "8"), ("data.imbalance_factor", "8"), ("pool.fill_to", "9")]
    settings = [*SHRUNK, *changes, ("classifier.loss", "balanced_softmax")]
    summary = pipeline.run(read_config(f"{CONFIGS / 'digits.py'}:method=vanilla", settings), tmp_path)
    lines = (tmp_path / "pool" / "round_00" / "metadata.jsonl").read_text().splitlines()
    made = np.bincount([json.loads(line)["label"] for line in lines])
    assert made[0] == 1 and made[-1] == 8 and (np.diff(made) >= 0).all()
    assert summary["num_real"] + summary["num_synthetic"] == 90


@pytest.mark.slow
def test_captions_of_the_shots_become_prompts(tmp_path):
    pipeline.run(shrunk("method=captions"), tmp_path)
    captions = [json.loads(line)["caption"] for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert len(captions) == 20 and len(set(captions)) > 3
    lines = (tmp_path / "pool" / "round_00" / "metadata.jsonl").read_text().splitlines()
    for index, line in enumerate(lines):
        record = json.loads(line)
        # Shots stand one of each class after the other; a class's images take their captions in turn.
        caption = captions[record["label"] + 10 * (index // 10 % 2)]
        assert record["prompt"] == f"a photo of the digit {record['class_name']}, {caption}"


@pytest.mark.parametrize("method", ["captions", "difficulty"])
def test_captions_that_cannot_be_had_are_told_before_anything_is_written(method, tmp_path):
    config = read_config(f"{CONFIGS / 'digits.py'}:method={method}", [("prompts.captions", str(tmp_path / "no.jsonl"))])
    with pytest.raises(InputError, match=r"no\.jsonl: no such file of captions"):
        pipeline.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_images_start_from_mixed_shots(tmp_path):
    config = shrunk("method=augcond")
    pipeline.run(config, tmp_path)
    pool, plain = (read_pool(tmp_path / "pool" / name) for name in ("round_00", "plain/round_00"))
    # By hand: the embedded generator has an image encoder, and is given the embedding of two shots, mixed by CutMix.
    real = few_shot(load_source(config.data), shots=2, seed=0).real
    sources = plan_sources(real.labels, pool.labels, np.random.default_rng([0, 4]))
    assert (real.labels[sources] == pool.labels[:, None]).all()
    enlarged = [Image.fromarray(image[..., 0]).resize((32, 32), Image.Resampling.BILINEAR) for image in real.images]
    shots = jnp.asarray(to_float(np.repeat(np.stack(enlarged)[..., None], 3, axis=-1)))
    sd = load_stable_diffusion(resolve_checkpoint("glyphs"))
    batch = pool.records[:16]
    seeds = np.array([record.seed for record in batch])
    inputs = make_sample_inputs(sd, [record.prompt for record in batch], pool.labels[:16], seeds, config.generator)
    pairs = shots[sources[:16, 0]], shots[sources[:16, 1]]
    condition, start = condition_on_images(sd, inputs.condition, MIX_STRATEGIES["cutmix"], *pairs, seeds)
    assert start is None
    images = generate_images(sd, Adapter(), dataclasses.replace(inputs, condition=condition), config.generator)
    np.testing.assert_allclose(pool.images[:16], (np.clip(images, -1, 1) + 1) * 127.5, atol=0.6)
    assert [record.seed for record in plain.records] == [record.seed for record in pool.records]
    assert (pool.images != plain.images).any(axis=(1, 2, 3)).all()


@pytest.mark.slow
def test_saflex_trains_towards_soft_labels(finished):
    lines = (finished[0] / "pool" / "round_00" / "metadata.jsonl").read_text().splitlines()
    soft = np.array([json.loads(line)["soft_label"] for line in lines])
    assert soft.shape == (40, 10)
    np.testing.assert_allclose(soft.sum(-1), 1, rtol=1e-4)
    assert soft.std(axis=0).max() > 0.1


@pytest.mark.slow
def test_the_better_of_several_words_are_chosen_and_shown(tmp_path, capsys):
    own = (("prompts.choose_words", "True"), ("prompts.images_per_word", "3"), ("classifier.name", "mlp"))
    config = read_config(f"{CONFIGS / 'digits.py'}:polysemy,method=saflex", (*SHRUNK, *own))
    summary = pipeline.run(config, tmp_path)
    rows = summary["words"]
    assert [row["word"] for row in rows[:4]] == ["zero", "eight", "one", "seven"] and len(rows) == 20
    assert sum(row["images"] for row in rows) == 40
    # Of two words the one of the higher value has all images of its class.
    for pair in zip(rows[::2], rows[1::2], strict=True):
        worse, better = sorted(pair, key=lambda row: row["share"])
        assert (worse["share"], worse["images"], better["share"], better["images"]) == (0, 0, 1, 4)
        assert worse["value"] <= better["value"] and worse["weight"] is None and 0 <= better["label_probability"] <= 1
    lines = (tmp_path / "pool" / "round_00" / "metadata.jsonl").read_text().splitlines()
    chosen = {row["class"]: row["word"] for row in rows if row["share"]}
    for record in map(json.loads, lines):
        assert record["word"] == chosen[record["class_name"]]
        assert record["prompt"] == f"a photo of the digit {record['word']}"
        assert record["file_name"].startswith(f"{record['class_name']}/")
    small = [json.loads(line) for line in (tmp_path / "pool/words/round_00/metadata.jsonl").read_text().splitlines()]
    assert len(small) == 60 and len({(record["class_name"], record["word"]) for record in small}) == 20
    printed = capsys.readouterr().out
    assert "words by " in printed and f"  chosen: zero as '{chosen['zero']}', one as" in printed
    assert "<h3>Words</h3>" in (tmp_path / "report" / "index.html").read_text()
    assert pipeline.run(config, tmp_path) == summary


@pytest.mark.slow
def test_a_word_is_one_of_the_attributes_that_are_learnt(tmp_path, quick_checkpoint):
    settings = (*TINY, ("generator.checkpoint", str(quick_checkpoint)), ("also_synthetic_only", "False"))
    summary = pipeline.run(read_config(f"{DIGITS}:polysemy,method=joint", settings), tmp_path / "run")
    lines = (tmp_path / "run" / "pool" / "plain" / "round_00" / "metadata.jsonl").read_text().splitlines()
    words = [json.loads(line)["word"] for line in lines]
    assert sorted(words) == ["eight"] * 2 + ["one"] * 2 + ["seven"] * 2 + ["zero"] * 2
    logits = load_file(tmp_path / "run" / "checkpoints" / "joint_joint.safetensors")["weighting/attributes/logits"]
    num_values = sum(PromptAttributes.parse(GLYPH_ATTRIBUTES).sizes)
    assert len(logits) == num_values + 4 and (logits[num_values:] != 0).all()
    assert [row["word"] for row in summary["words"]] == ["zero", "eight", "one", "seven"]


def make_image_folder(folder: Path, classes=("cat", "dog"), per_class: int = 4) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for index in range(per_class):
                pixels = rng.integers(0, 256, (40, 48, 3), np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def break_image(folder: Path) -> None:
    (folder / "train" / "dog" / "2.png").write_bytes(b"\x89PNG but not really")


def empty_class(folder: Path) -> None:
    for file in (folder / "train" / "cat").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("harm", "overrides", "message"),
    [
        (break_image, ["--config.data.shots=4"], "dog/2.png"),
        (empty_class, [], "cat"),
        (None, ["--config.data.shots=5"], "cat (4)"),
        (None, ["--config.generator.checkpoint=./no/such/folder"], "no/such/folder"),
        (None, ["--config.data.image_size=20"], "config.data.image_size: small_cnn and mlp take multiples of 8"),
        (None, ["--config.generator.scheduler=lcm", "--config.generator.steps=51"], "between 1 and 50, not 51"),
        (None, ["--config.parallel.data=3"], "config.parallel.data=3"),
    ],
)
def test_bad_input_is_one_message_status_2_and_nothing_written(tmp_path, capsys, harm, overrides, message):
    folder = make_image_folder(tmp_path / "images")
    if harm:
        harm(folder)
    workdir = tmp_path / "run"
    argv = [
        "main",
        f"--config={CONFIGS / 'imagefolder.py'}:runlocal",
        f"--workdir={workdir}",
        f"--config.data.path={folder}",
        "--config.generator.checkpoint=glyphs",
        "--config.data.shots=2",
        *overrides,
    ]
    assert main.main(argv) == 2
    output = capsys.readouterr()
    assert message in output.err and "Traceback" not in output.err
    assert not workdir.exists()


def test_another_config_on_a_workdir_is_refused_by_the_fields_that_differ(tmp_path, capsys):
    (tmp_path / "config.json").write_text(to_json(shrunk("shots=5")))
    arguments = [f"--config.{path}={text}" for path, text in SHRUNK]
    assert main.main(["main", f"--config={CONFIGS / 'digits.py'}", f"--workdir={tmp_path}", *arguments]) == 2
    assert "data.shots: 5 before, 2 now" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.slow
def test_each_class_has_a_lora_as_datadream_publishes_it_and_a_run_that_was_cut_off_ends_the_same(
    tmp_path, quick_checkpoint
):
    published = {
        "lora.per_class": "True",
        "lora.text_encoder_rank": "2",
        "lora.epochs": "3",
        "lora.batch_size": "2",
        "lora.warmup_steps": "1",
        "lora.prior_fraction": "0",
        "lora.snr_gamma": "0",
        "lora.crops": "2",
        "lora.sampler_steps": "3",
        "generator.checkpoint": str(quick_checkpoint),
        "generator.batch_size": "3",
        "also_synthetic_only": "False",
    }
    config = read_config(f"{DIGITS}:method=datadream", (*TINY, *published.items()))
    pipeline.run(config, tmp_path / "run")
    folder = tmp_path / "run/pool/round_00"
    records = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [record["label"] for record in records] == [0] * 4 + [1] * 4
    assert not (tmp_path / "run/pool/plain").exists()  # no prior images
    loras = [load_file(tmp_path / f"run/checkpoints/lora_datadream_{label}.safetensors") for label in (0, 1)]
    assert all((loras[0][name] != loras[1][name]).any() for name in loras[0])
    assert {name.split("/")[0] for name in loras[0]} == {"unet_lora", "text_encoder_lora"}

    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    for name in ("lora_datadream_1", "pool_datadream", "classifier_datadream", "evaluation_datadream"):
        (tmp_path / f"cut/checkpoints/{name}.safetensors").unlink()
    for name in ("summary.json", "pool/round_00/metadata.jsonl"):
        (tmp_path / "cut" / name).unlink()
    pipeline.run(config, tmp_path / "cut")
    for record in records:
        images = [
            np.asarray(Image.open(tmp_path / run / "pool/round_00" / record["file_name"])) for run in ("run", "cut")
        ]
        np.testing.assert_array_equal(*images)

"""The command that trains the generator on a folder: its files are opened by torch's diffusers."""

import json

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.numpy import load_file

from tests.diffusers_checkpoint import write_tiny_stable_diffusion
from utilgen_jax.finetune import train as training
from utilgen_jax.finetune.__main__ import main
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.runtime.state_folder import Saving, StateFolder
from utilgen_jax.sample.__main__ import main as sample

SMALL = ("--image_size=16", "--batch_size=2", "--rank=2", "--learning_rate=0.05")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_stable_diffusion(tmp_path_factory.mktemp("checkpoint"), family="sd15")


@pytest.fixture
def photos(tmp_path):
    """Three wide images of each of two classes, and one class alone in `cats`."""
    rng = np.random.default_rng(0)
    for name in ("black_cats", "dogs"):
        for number in range(3):
            folder = tmp_path / "photos" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


def run(checkpoint, images, out, *arguments):
    return main(["finetune", f"--checkpoint={checkpoint}", f"--images={images}", f"--out={out}", *SMALL, *arguments])


@pytest.mark.slow
def test_a_lora_of_unet_and_text_encoder_opens_in_diffusers(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "lora"
    arguments = ('--prompt="a photo of {class}"', "--epochs=2", "--text_encoder_rank=2", "--crops=2", "--flip")
    assert run(checkpoint, photos, out, *arguments) == 0
    assert f"written: {out / 'pytorch_lora_weights.safetensors'}" in capsys.readouterr().out
    assert not (out / "training").exists()
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)

    def paint():
        seed = torch.Generator().manual_seed(0)
        settings = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np", "generator": seed}
        return pipeline("a photo of dogs", **settings).images

    before = paint()
    pipeline.load_lora_weights(out)
    assert np.abs(paint() - before).max() > 0.01
    names = set(load_file(out / "pytorch_lora_weights.safetensors"))
    assert {name.split(".")[0] for name in names} == {"unet", "text_encoder"}
    # The same command again has nothing to do; another one does not mix with it.
    file = out / "pytorch_lora_weights.safetensors"
    first = file.stat().st_mtime_ns
    assert run(checkpoint, photos, out, *arguments) == 0 and file.stat().st_mtime_ns == first
    capsys.readouterr()
    assert run(checkpoint, photos, out, *arguments, "--seed=1") == 2
    assert "--out: " in (told := capsys.readouterr().err) and "--seed: 0 before, 1 now" in told


@pytest.mark.slow
def test_each_class_gets_a_lora_of_its_own_images(checkpoint, photos, tmp_path, monkeypatch):
    seen = []
    real = training.train_lora

    def train_lora(sd, prompts, examples, *arguments):
        seen.append((np.unique(examples.labels).tolist(), len(examples.labels)))
        return real(sd, prompts, examples, *arguments)

    monkeypatch.setattr(training, "train_lora", train_lora)
    out = tmp_path / "loras"
    assert run(checkpoint, photos, out, "--prompt=a photo of {class}", "--steps=2", "--per_class") == 0
    assert seen == [([0], 3), ([1], 3)]
    files = [load_file(out / name / "pytorch_lora_weights.safetensors") for name in ("black_cats", "dogs")]
    assert all((files[0][name] != files[1][name]).any() for name in files[0])


@pytest.mark.slow
def test_a_token_opens_in_diffusers_and_in_our_sampler(checkpoint, photos, tmp_path):
    out = tmp_path / "token"
    arguments = ("--prompt=a photo of <my-cat>", "--token=<my-cat>", "--initial=black cat", "--steps=3")
    assert (
        main(
            ["finetune", f"--checkpoint={checkpoint}", f"--images={photos / 'black_cats'}", f"--out={out}", *arguments]
            + ["--image_size=16", "--batch_size=2", "--learning_rate=0.05"]
        )
        == 0
    )
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    pipeline.load_textual_inversion(out / "learned_embeds.safetensors")
    row = pipeline.tokenizer.convert_tokens_to_ids("<my-cat>")
    table = pipeline.text_encoder.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(table[row], load_file(out / "learned_embeds.safetensors")["<my-cat>"][0], atol=1e-6)
    words = pipeline.tokenizer("black cat", add_special_tokens=False).input_ids
    assert np.abs(table[row] - table[words].mean(0)).max() > 1e-3
    images = ["--num=1", "--steps=2", "--height=16", "--width=16", f"--out={tmp_path / 'images'}"]
    assert sample(["sample", f"--checkpoint={checkpoint}", "--prompt=<my-cat>", f"--embeds={out}", *images]) == 0


@pytest.mark.slow
def test_a_training_that_was_cut_off_continues_with_the_same_bits(checkpoint, photos, tmp_path, monkeypatch, capsys):
    arguments = ("--prompt=a {class}", "--steps=6")
    assert run(checkpoint, photos, tmp_path / "whole", *arguments) == 0
    monkeypatch.setattr(training, "_states", lambda out: StateFolder(out / "training", Saving(every_seconds=0.0)))
    told = training._told

    def cut(progress, steps):
        inner = told(progress, steps)

        def on_step(step, loss):
            inner(step, loss)
            if step == 4:
                raise KeyboardInterrupt

        return on_step

    monkeypatch.setattr(training, "_told", cut)
    assert run(checkpoint, photos, tmp_path / "cut", *arguments) == 130
    assert "continues where the training was last saved" in capsys.readouterr().err
    seen = []
    monkeypatch.setattr(training, "_told", lambda progress, steps: lambda step, loss: seen.append(step))
    assert run(checkpoint, photos, tmp_path / "cut", *arguments) == 0
    assert seen == [4, 5, 6]  # three steps were saved
    whole, again = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("whole", "cut"))
    jax.tree.map(np.testing.assert_array_equal, whole, again)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out=x"], "--checkpoint: required, such as --checkpoint=sd15"),
        (["--token=<a>", "--prompt=a cat", "--initial=cat"], '--prompt: must hold the token, such as "a photo of <a>"'),
        (["--token=<a>", "--prompt=<a>"], "--initial: say which words the token starts from"),
        (["--token=<a>", "--prompt=<a>", "--initial=a", "--per_class"], "--per_class: has no effect with --token"),
        (["--initial=cat"], "--initial: is of use with --token only"),
        (["--dtype=float16"], "--dtype=float16: is not one of float32, bfloat16; the nearest is"),
        (["--epoch=3"], "--epoch"),
    ],
)
def test_bad_arguments_are_told_before_anything_is_read(arguments, message, capsys):
    assert main(["finetune", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt=a cat"], "has 2 class folders; --prompt must hold {class}"),
        (["--prompt=<a>", "--token=<a>", "--initial=cat"], "has 2 class folders; --token learns one subject"),
        (["--prompt=a {class}", "--image_size=13"], "--image_size=13: this checkpoint takes multiples of"),
    ],
)
def test_what_does_not_suit_the_images_is_told_and_nothing_is_written(
    checkpoint, photos, tmp_path, arguments, message, capsys
):
    out = tmp_path / "out"
    status = main(["finetune", f"--checkpoint={checkpoint}", f"--images={photos}", f"--out={out}", *arguments])
    assert status == 2 and message in capsys.readouterr().err and not out.exists()


def test_another_folders_files_are_left_alone(checkpoint, photos, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert run(checkpoint, photos, tmp_path, "--prompt=a {class}") == 2
    assert "holds other files" in capsys.readouterr().err and (tmp_path / "mine.txt").read_text() == "mine"


def test_settings_are_noted(checkpoint, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_train_lora", lambda *arguments: "the file")
    monkeypatch.setattr(training, "load_stable_diffusion", lambda *arguments, **settings: load_stable_diffusion)
    assert run(checkpoint, photos, tmp_path / "out", "--prompt=a {class}") == 0
    settings = json.loads((tmp_path / "out/finetune.json").read_text())
    assert settings["prompt"] == "a {class}" and settings["rank"] == 2 and settings["seed"] == 0


def test_a_training_is_not_continued_on_other_images(checkpoint, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "_train_lora", lambda *arguments: "the file")
    monkeypatch.setattr(training, "load_stable_diffusion", lambda *arguments, **settings: load_stable_diffusion)

    def again() -> str:
        status = run(checkpoint, photos, tmp_path / "out", "--prompt=a {class}")
        return capsys.readouterr().err if status else ""

    assert again() == again() == ""
    Image.new("RGB", (20, 30)).save(photos / "dogs" / "1.png")
    assert "holds results of other input" in (told := again())
    assert "--images: dogs/1.png: other content now" in told and "dogs/0.png" not in told
    (photos / "dogs" / "1.png").unlink()
    assert "--images: the names of all: other content now" in again()

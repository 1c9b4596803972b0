"""`python -m utilgen_jax.pretraining`, shrunk to seconds: from nothing to a checkpoint that the generator opens."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from utilgen_jax import checkpoints as weights
from utilgen_jax.generator.loading import load_generator
from utilgen_jax.pretraining import __main__ as foundation
from utilgen_jax.pretraining import config as recipe
from utilgen_jax.pretraining import corpus, glyphs, vocabulary
from utilgen_jax.pretraining import domain as world
from utilgen_jax.pretraining.tokenizer import write_tokenizer

# One resolution fewer in both networks, and attention in the UNet's middle alone: they are quicker to compile then.
# Latents are 16x16.
SMALL_AUTOENCODER = recipe.AUTOENCODER_CONFIG | {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
}
SMALL_UNET = recipe.UNET_CONFIG | {
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "block_out_channels": [16],
    "attention_head_dim": [2],
}


@pytest.fixture
def run(monkeypatch):
    """Runs the command with small models: flags -> exit status."""
    for name in ("CLIP_TRAINING", "AUTOENCODER_TRAINING", "UNET_TRAINING"):
        monkeypatch.setattr(recipe, name, dataclasses.replace(getattr(recipe, name), steps=20, batch_size=4))
    monkeypatch.setattr(recipe, "CORPUS_SIZE", 2000)
    monkeypatch.setattr(recipe, "AUTOENCODER_CONFIG", SMALL_AUTOENCODER)
    monkeypatch.setattr(recipe, "UNET_CONFIG", SMALL_UNET)
    monkeypatch.setattr(world, "GLYPH_ENDINGS", ("", "bold"))
    monkeypatch.setattr(recipe, "IMAGE_ENCODER_CONFIG", recipe.IMAGE_ENCODER_CONFIG | {"num_hidden_layers": 1})
    text_config = recipe.text_encoder_config
    monkeypatch.setattr(recipe, "text_encoder_config", lambda *sizes: text_config(*sizes) | {"num_hidden_layers": 1})
    return lambda *arguments: foundation.main(["foundation", *arguments])


def interrupt(*arguments):
    raise KeyboardInterrupt


@pytest.mark.slow
def test_the_command_makes_a_checkpoint_and_continues_after_an_interruption(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "glyphs"
    with monkeypatch.context() as patch:
        patch.setattr(foundation, "train_unet", interrupt)
        assert run(f"--out={out}", "--shrink=10", "--seed=1") == 130
    assert "continues after the last finished stage" in capsys.readouterr().err
    finished = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    parts = {"text_encoder", "text_projection", "image_encoder", "vae", "image_normalizer"}
    assert {path.parent.name for path in finished} == parts

    assert run(f"--out={out}", "--shrink=10", "--seed=1") == 0
    output = capsys.readouterr()
    assert f"The world is in {out}" in output.out
    assert "foundation: unet: 100% | 2/2 steps" in output.err
    assert "foundation: clip" not in output.err and "foundation: autoencoder" not in output.err
    assert all(path.read_bytes() == content for path, content in finished.items())
    assert not (out / "training").exists()
    # Painted by the finished checkpoint; a pixel that is not a number would have been an error.
    with Image.open(out / "gallery.png") as sheet:
        assert sheet.width > 10 * recipe.IMAGE_SIZE and sheet.height > 2 * recipe.IMAGE_SIZE

    # The written scaling factor and normaliser are those of the corpus under the written weights.
    generator, params = load_generator(weights.resolve_checkpoint(str(out)))
    pictures = corpus.make_corpus(1000, 1, generator.tokenizer)
    embeds = foundation.embed_corpus(pictures, generator, params)
    np.testing.assert_allclose(params["image_normalizer"]["mean"][0], embeds.mean(0), atol=1e-4)
    np.testing.assert_allclose(params["image_normalizer"]["std"][0], embeds.std(0), rtol=1e-3)
    moments = foundation.encode_corpus(pictures, generator.vae, params["vae"])
    assert (moments[..., :4] * generator.vae.scaling_factor).std() == pytest.approx(1.0, rel=1e-2)

    assert {tensor.dtype for tensor in load_file(out / "unet" / "diffusion_pytorch_model.safetensors").values()} == {
        np.dtype("float16")
    }


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("surplus", "surplus"),
        ("--shrink=0", "shrink"),
        ("--seed=-1", "seed"),
        ("--sede=1", "the nearest is --seed"),
        ("--config.data.shots=2", "--config: say which"),
    ],
)
def test_wrong_arguments_leave_with_a_message(run, tmp_path, capsys, argument, message):
    assert run(argument, f"--out={tmp_path / 'glyphs'}") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "glyphs").exists()


def test_the_corpus_is_that_of_the_renderer_with_its_captions_tokens(tmp_path, monkeypatch, capsys):
    write_tokenizer(tmp_path, vocabulary.vocabulary_words())
    tokenizer = weights.load_tokenizer(tmp_path)
    monkeypatch.setattr(corpus, "_CHUNK", 16)
    made = corpus.make_corpus(40, 5, tokenizer)
    images, captions, _ = glyphs.corpus(40, 5)
    np.testing.assert_array_equal(made.images, images)
    assert made.captions == captions
    np.testing.assert_array_equal(made.input_ids, weights.tokenize(tokenizer, captions))
    np.testing.assert_array_equal(made.empty_ids, weights.tokenize(tokenizer, [""])[0])
    assert "40/40 pictures" in capsys.readouterr().err
    batch = made.batch(5, 0, 8)
    assert batch["images"].shape == (8, 32, 32, 3) and batch["images"].dtype == np.float32
    assert batch["images"].min() >= -1 and batch["images"].max() <= 1
    np.testing.assert_array_equal(made.pictures(np.arange(40))[..., 1], images / np.float32(127.5) - 1)

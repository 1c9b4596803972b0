"""CLIP's towers against transformers', from a folder that transformers wrote."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from utilgen_jax.data.images import to_float
from utilgen_jax.errors import InputError
from utilgen_jax.generator.clip_similarity import clip_similarity
from utilgen_jax.generator.clip_towers import find_clip, image_tower_of, load_clip_towers
from utilgen_jax.generator.conditioning import encode_images

PROMPTS = ["a cat", "a photo of a construction crane"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoint):
    """A small CLIP, with the tokenizer of a Stable Diffusion checkpoint."""
    folder = tmp_path_factory.mktemp("clip")
    shutil.copytree(checkpoint("sd15") / "tokenizer", folder, dirs_exist_ok=True)
    vocabulary = json.loads((checkpoint("sd15") / "text_encoder/config.json").read_text())["vocab_size"]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1}
    text = CLIPTextConfig(**sizes, **ends, vocab_size=vocabulary, max_position_embeddings=77)
    vision = CLIPVisionConfig(**sizes, image_size=16, patch_size=4)
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    CLIPModel(config).eval().save_pretrained(folder)
    settings = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25], "size": 16, "crop_size": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_both_towers_are_those_of_transformers(folder):
    towers, model = load_clip_towers(find_clip(str(folder))), CLIPModel.from_pretrained(folder)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    pixels = (images / 255 - np.array(towers.image.mean)) / np.array(towers.image.std)
    ids = towers.tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        seen = model(input_ids=ids, pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32))
    embeds, words = towers.image.embed(jnp.asarray(to_float(images))), towers.embed_prompts(PROMPTS)
    assert embeds.shape == (3, 24) and words.shape == (2, 24)

    def direction(vectors):
        return np.asarray(vectors) / np.linalg.norm(vectors, axis=-1, keepdims=True)

    np.testing.assert_allclose(direction(embeds), seen.image_embeds, atol=2e-5)
    np.testing.assert_allclose(direction(words), seen.text_embeds, atol=2e-5)
    cosines = clip_similarity(towers.image, jnp.asarray(to_float(images)), words[:1])
    with torch.no_grad():
        np.testing.assert_allclose(cosines, seen.logits_per_image[:, 0] / model.logit_scale.exp(), atol=2e-5)


def test_it_passes_gradients_and_takes_images_of_any_size(folder):
    towers = load_clip_towers(folder)
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 40, 24, 3)), jnp.float32)
    words = towers.embed_prompts(PROMPTS)
    slope = jax.grad(lambda images: clip_similarity(towers.image, images, words).sum())(images)
    assert np.isfinite(slope).all() and np.abs(slope).max() > 0


def test_the_image_tower_of_an_unclip_checkpoint_is_its_image_encoder(loaded):
    sd = loaded("unclip")
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)), jnp.float32)
    np.testing.assert_allclose(image_tower_of(sd).embed(images), encode_images(sd, images), atol=1e-6)


@pytest.mark.parametrize("broken", ["one tower", "a weight is missing"])
def test_what_is_no_clip_is_refused(folder, tmp_path, broken):
    shutil.copytree(folder, tmp_path / "clip")
    if broken == "one tower":
        (tmp_path / "clip/config.json").write_text(json.dumps({"model_type": "clip_text_model"}))
        message = "is no CLIP with both towers"
    else:
        weights = load_file(tmp_path / "clip/model.safetensors")
        weights.pop("visual_projection.weight")
        save_file(weights, tmp_path / "clip/model.safetensors")
        message = "missing visual_projection.weight"
    with pytest.raises(InputError, match=message):
        load_clip_towers(tmp_path / "clip")


def test_one_that_cannot_be_had_names_the_field_and_the_way_out(tmp_path):
    with pytest.raises(InputError, match=r"config\.per_image\.clip: .*no such folder.*clip_weight=0 to do without"):
        find_clip(str(tmp_path / "nowhere"))

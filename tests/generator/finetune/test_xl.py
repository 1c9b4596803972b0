"""Training Stable Diffusion XL against torch's: LoRA in three models, a token's embeddings for both text encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from flax.traverse_util import flatten_dict

from tests.diffusers_checkpoint import TEXT_WIDTH, TEXT_WIDTH_2, write_tiny_stable_diffusion
from tests.torch_parity import relative_error
from utilgen_jax.checkpoints.lora_files import save_lora
from utilgen_jax.generator.adapter import Adapter, adapter_loras
from utilgen_jax.generator.finetune.denoising import DenoisingSet, adapter_loss
from utilgen_jax.generator.finetune.textual_inversion import initial_embeds
from utilgen_jax.generator.loading import load_stable_diffusion
from utilgen_jax.generator.tokens import add_tokens, tokenize_prompts, with_last_rows
from utilgen_jax.models.lora import init_lora

PROMPTS = ["the digit 7", "a photo of <cat>"]
LABELS = np.array([0, 1, 1])
KEY = jax.random.key(3)
MODELS = ("unet", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One resolution, a transformer in the middle."""
    return write_tiny_stable_diffusion(
        tmp_path_factory.mktemp("small"),
        family="sdxl",
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        block_out_channels=(8,),
        norm_num_groups=2,
        attention_head_dim=2,
        transformer_layers_per_block=2,
    )


def test_a_token_starts_from_its_words_in_both_text_encoders(folder):
    sd = load_stable_diffusion(folder)
    start = initial_embeds(sd, ["digit", "the"])
    words = sd.tokenizer("digit", add_special_tokens=False).input_ids
    assert start.shape == (2, TEXT_WIDTH + TEXT_WIDTH_2)
    tables = [sd.params[name]["text_model"]["embeddings"]["token_embedding"]["embedding"] for name in MODELS[1:]]
    expected = np.concatenate([np.asarray(table)[words].mean(0) for table in tables])
    np.testing.assert_allclose(start[0], expected, rtol=1e-5)


@pytest.mark.slow
def test_gradients_are_those_of_torch(folder, tmp_path):
    rng = np.random.default_rng(1)
    embeds = rng.standard_normal((1, TEXT_WIDTH + TEXT_WIDTH_2), np.float32)
    sd = add_tokens(load_stable_diffusion(folder), ["<cat>"], jnp.asarray(embeds))
    loras = {f"{name}_lora": init_lora(sd.params[name], KEY, rank=2).factors for name in MODELS}
    adapter = Adapter(**loras)
    adapter = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), adapter)
    latents = 0.5 * rng.standard_normal((len(LABELS), 4, 4, 4), np.float32)
    batch = DenoisingSet(jnp.asarray(latents), jnp.asarray(LABELS))
    ids = jnp.asarray(tokenize_prompts(sd, PROMPTS))

    @jax.jit
    def loss_and_gradients(sd, adapter, embeds):
        def loss(adapter, embeds):
            return jnp.mean(adapter_loss(with_last_rows(sd, embeds), adapter, ids, batch, KEY))

        return jax.value_and_grad(loss, argnums=(0, 1))(adapter, embeds)

    loss, (of_adapter, of_embeds) = loss_and_gradients(sd, adapter, embeds)

    oracle = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    save_lora(tmp_path, adapter_loras(adapter))
    encoders = (oracle.text_encoder, oracle.tokenizer), (oracle.text_encoder_2, oracle.tokenizer_2)
    for part, (encoder, tokenizer) in zip(np.split(embeds, [TEXT_WIDTH], axis=1), encoders, strict=True):
        oracle.load_textual_inversion(torch.tensor(part), token="<cat>", text_encoder=encoder, tokenizer=tokenizer)
    oracle.load_lora_weights(tmp_path)
    expected_loss, parameters = torch_loss(oracle, latents)
    tables = [encoder.get_input_embeddings().weight for encoder, _ in encoders]
    of = [*parameters.values(), *tables]  # of which the first text encoder's last layer has no part in the loss
    found = torch.autograd.grad(expected_loss, of, allow_unused=True)
    gradients = [torch.zeros_like(one) if grad is None else grad for one, grad in zip(of, found, strict=True)]
    assert relative_error(loss, expected_loss.item()) < 1e-5
    rows = np.concatenate([gradient[-1].numpy() for gradient in gradients[-2:]])
    np.testing.assert_allclose(of_embeds[0], rows, rtol=1e-3, atol=1e-5 * np.abs(rows).max())
    expected = dict(zip(parameters, gradients[:-2], strict=True))
    largest, compared = max(float(leaf.abs().max()) for leaf in expected.values()), 0
    for name in MODELS:
        for (*scope, factor), ours in flatten_dict(getattr(of_adapter, f"{name}_lora")).items():
            theirs = expected[name, ".".join(scope).removeprefix("text_model."), factor].numpy()
            np.testing.assert_allclose(ours, theirs.T, rtol=1e-3, atol=1e-5 * largest)
            compared += 1
    assert compared == len(expected)


def torch_loss(oracle, latents):
    """The loss as in diffusers' train_text_to_image_lora_sdxl.py with our draws, and the LoRA's parameters."""
    parameters = {
        (name, layer.partition(".lora_")[0].removeprefix("text_model."), "down" if "lora_A" in layer else "up"): one
        for name in MODELS
        for layer, one in getattr(oracle, name).named_parameters()
        if ".lora_" in layer
    }
    encoders = (oracle.text_encoder, oracle.tokenizer), (oracle.text_encoder_2, oracle.tokenizer_2)
    for one in (*parameters.values(), *(encoder.get_input_embeddings().weight for encoder, _ in encoders)):
        one.requires_grad_()
    outputs = []
    for encoder, tokenizer in encoders:
        ids = tokenizer([PROMPTS[label] for label in LABELS], padding="max_length", return_tensors="pt").input_ids
        outputs.append(encoder(ids, output_hidden_states=True))
    states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    timesteps = torch.tensor(np.array(jax.random.randint(jax.random.fold_in(KEY, 0), (len(LABELS),), 0, 1000)))
    noise = np.array(jax.random.normal(jax.random.fold_in(KEY, 1), latents.shape))
    clean, noise = (torch.tensor(array).permute(0, 3, 1, 2) for array in (latents, noise))
    sizes = torch.tensor([[8.0, 8.0, 0.0, 0.0, 8.0, 8.0]]).repeat(len(LABELS), 1)
    added = {"text_embeds": outputs[1].text_embeds, "time_ids": sizes}
    noisy = DDPMScheduler.from_config(oracle.scheduler.config).add_noise(clean, noise, timesteps)
    prediction = oracle.unet(noisy, timesteps, states, added_cond_kwargs=added).sample
    return torch.nn.functional.mse_loss(prediction, noise), parameters

"""Learned tokens, against diffusers' `load_textual_inversion` on the same checkpoint."""

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from tests.torch_parity import relative_error
from utilgen_jax import checkpoints
from utilgen_jax.errors import InputError
from utilgen_jax.generator.conditioning import encode_prompts
from utilgen_jax.generator.tokens import add_learned_embeds

WIDTH = 32


def rows(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32)


@pytest.mark.parametrize("count", [1, 3])
def test_prompt_embeds_are_those_of_diffusers(checkpoint, loaded, tmp_path, count):
    file = checkpoints.save_learned_embeds(tmp_path, "<Cat-toy>", rows(count))
    prompts = ["a photo of the <Cat-toy> digit", "<Cat-toy>", "the digit", "<Cat-toy>,<Cat-toy>! " * 12]
    pipe = StableDiffusionPipeline.from_pretrained(checkpoint("sd15"), safety_checker=None)
    pipe.load_textual_inversion(file)
    with torch.inference_mode():
        expected, _ = pipe.encode_prompt(prompts, "cpu", 1, False)

    sd = add_learned_embeds(loaded("sd15"), file)

    converted = [pipe.maybe_convert_prompt(prompt, pipe.tokenizer) for prompt in prompts]
    ids = pipe.tokenizer(converted, padding="max_length", truncation=True, max_length=77)["input_ids"]
    assert checkpoints.tokenize(sd.tokenizer, prompts).tolist() == ids
    assert relative_error(encode_prompts(sd, prompts), expected.numpy()) < 1e-5


def test_the_given_generator_and_weights_stay_as_they_are(loaded):
    sd = loaded("sd15")
    size = len(sd.tokenizer)
    table = sd.params["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"]

    new = add_learned_embeds(sd, ("<toy>", rows(2)))

    assert len(sd.tokenizer) == size == sd.text_encoder.vocab_size
    assert len(new.tokenizer) == size + 2 == new.text_encoder.vocab_size
    assert sd.params["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"] is table
    new_table = new.params["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"]
    np.testing.assert_array_equal(new_table[:size], table)
    np.testing.assert_array_equal(new_table[size:], rows(2))
    assert new.params["unet"] is sd.params["unet"]


def test_several_tokens_live_together_and_a_name_serves_once(loaded):
    both = add_learned_embeds(add_learned_embeds(loaded("sd15"), ("<a>", rows(1))), ("<b>", jax.numpy.ones(WIDTH)))
    ids = checkpoints.tokenize(both.tokenizer, ["<a> <b>"])[0]
    assert ids[1:3].tolist() == [len(both.tokenizer) - 2, len(both.tokenizer) - 1]
    for taken in ("<a>", "the</w>"):
        with pytest.raises(InputError, match=f"already knows '{taken}'"):
            add_learned_embeds(both, (taken, rows(1)))


def test_the_end_of_text_is_still_found(loaded):
    sd = add_learned_embeds(loaded("sd15"), ("<toy>", rows(1)))
    ids = checkpoints.tokenize(sd.tokenizer, ["a <toy> digit"])
    # Not compiled as one program, in which XLA may compute a value twice and round it otherwise.
    output = sd.text_encoder.apply(sd.variables("text_encoder"), ids)
    end = ids[0].tolist().index(sd.tokenizer.eos_token_id)
    np.testing.assert_array_equal(output.pooled[0], output.last_hidden_state[0, end])


def test_a_token_of_another_model_is_refused(loaded, tmp_path):
    file = checkpoints.save_learned_embeds(tmp_path, "<toy>", np.ones((1, 768)))
    with pytest.raises(InputError, match=r"learned_embeds\.safetensors: .*\[1, 768\], the text encoder is 32 wide"):
        add_learned_embeds(loaded("sd15"), file)

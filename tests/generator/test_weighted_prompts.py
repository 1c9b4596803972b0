"""Prompts with weights and of any length, against what web interfaces document and torch's text encoder."""

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel

from tests.torch_parity import relative_error
from utilgen_jax.generator.conditioning import encode_prompts
from utilgen_jax.generator.tokens import add_learned_embeds
from utilgen_jax.generator.weighted_prompts import encode_weighted_prompts, parse_weights

# The examples of the documentation of the web interface that began with this notation.
EXAMPLES = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.573),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641),
        (".", 1.1),
    ],
}


@pytest.mark.parametrize("prompt", EXAMPLES)
def test_the_documented_examples(prompt):
    parts = parse_weights(prompt)
    assert [text for text, _ in parts] == [text for text, _ in EXAMPLES[prompt]]
    assert [weight for _, weight in parts] == pytest.approx([weight for _, weight in EXAMPLES[prompt]])


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("", []),
        ("ratio 3:4) of a]", [("ratio 3:4) of a]", 1.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(a : -0.5 ) b", [("a ", -0.5), (" b", 1.0)]),
        ("back\\slash", [("back\\slash", 1.0)]),
    ],
)
def test_what_is_no_weight_is_text(prompt, parts):
    assert [(text, pytest.approx(weight)) for text, weight in parse_weights(prompt)] == parts


@pytest.mark.parametrize("family", ["sd15", "sd21"])
def test_a_short_prompt_without_weights_is_a_plain_one(loaded, family):
    prompts = ["the photo of it", "", "the digit"]
    np.testing.assert_array_equal(
        encode_weighted_prompts(loaded(family), prompts), encode_prompts(loaded(family), prompts)
    )


def torch_states(folder, ids):
    with torch.no_grad():
        return CLIPTextModel.from_pretrained(folder / "text_encoder")(torch.tensor(ids)).last_hidden_state.numpy()


def test_parts_are_encoded_apart_and_weights_keep_the_mean(checkpoint, loaded):
    sd = loaded("sd15")
    tokenizer = sd.tokenizer
    words = tokenizer("the digit " * 50, add_special_tokens=False).input_ids
    photo = tokenizer("photo", add_special_tokens=False).input_ids
    tokens, weights = words + photo, [1.0] * len(words) + [1.4] * len(photo)
    assert 75 < len(tokens) <= 150
    padded = tokens + [tokenizer.eos_token_id] * (150 - len(tokens))  # which pads here
    ids = [[tokenizer.bos_token_id, *padded[part : part + 75], tokenizer.eos_token_id] for part in (0, 75)]
    states = torch_states(checkpoint("sd15"), ids).reshape(1, 154, -1)
    scales = np.ones(154)
    for place, weight in enumerate(weights):
        scales[1 + place + 2 * (place // 75)] = weight
    expected = states * scales[:, None]
    expected *= states.mean() / expected.mean()
    ours = encode_weighted_prompts(sd, ["the digit " * 50 + "(photo:1.4)"])
    assert relative_error(ours, expected) < 1e-4


def test_learned_tokens_have_weights_too(loaded):
    sd = add_learned_embeds(loaded("sd15"), ("<toy>", np.random.default_rng(0).normal(size=(2, 32))))
    plain, weighted = encode_weighted_prompts(sd, ["a <toy>", "a (<toy>:1.5)"])
    changed = np.abs(np.asarray(weighted / plain) - np.asarray(weighted / plain)[0, 0]).max(axis=1) > 1e-3
    assert np.flatnonzero(changed).tolist() == [2, 3]

"""The tokenizer, against a written vocabulary."""

import json
import os

import numpy as np
import pytest
from transformers import CLIPTokenizer

from tests.diffusers_checkpoint import END, MAX_LENGTH, START, write_tiny_tokenizer
from utilgen_jax import checkpoints
from utilgen_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    write_tiny_tokenizer(tmp_path)
    return tmp_path


def test_prompts_become_padded_ids(folder):
    vocab = json.loads((folder / "vocab.json").read_text())
    ids = checkpoints.tokenize(checkpoints.load_tokenizer(folder), ["The digit 7", "", "x" * 200])

    assert ids.shape == (3, MAX_LENGTH) and ids.dtype == np.int32
    words = [START, "the</w>", "digit</w>", "7</w>", END]
    assert ids[0].tolist() == [vocab[word] for word in words] + [vocab[END]] * (MAX_LENGTH - len(words))
    assert ids[1].tolist() == [vocab[START]] + [vocab[END]] * (MAX_LENGTH - 1)
    assert ids[2].tolist() == [vocab[START]] + [vocab["x"]] * (MAX_LENGTH - 2) + [vocab[END]]


def test_newer_single_file_is_read_too(folder, tmp_path):
    tokenizer = checkpoints.load_tokenizer(folder)
    tokenizer.save_pretrained(tmp_path / "newer")
    assert not (tmp_path / "newer" / "vocab.json").exists()
    prompts = ["a photo of the digit 3", "Größe!"]
    newer = checkpoints.load_tokenizer(tmp_path / "newer")
    np.testing.assert_array_equal(checkpoints.tokenize(newer, prompts), checkpoints.tokenize(tokenizer, prompts))


def test_padding_token_of_stable_diffusion_2(folder):
    path = folder / "special_tokens_map.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "!"}))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token": "!"}))
    vocab = json.loads((folder / "vocab.json").read_text())
    ids = checkpoints.tokenize(checkpoints.load_tokenizer(folder), ["7"])[0]
    assert ids[:4].tolist() == [vocab[START], vocab["7</w>"], vocab[END], vocab["!"]]


def test_missing_and_broken_files_are_named(folder):
    with pytest.raises(InputError, match=r"gone: no tokenizer; vocab\.json and merges\.txt missing"):
        checkpoints.load_tokenizer(folder / "gone")
    (folder / "vocab.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read") as caught:
        checkpoints.load_tokenizer(folder)
    assert str(folder) in str(caught.value)


def test_length_that_is_not_written_down_is_the_models(folder):
    (folder / "tokenizer_config.json").unlink()
    prompts = ["the digit 7", "x" * 200]
    assert checkpoints.tokenize(checkpoints.load_tokenizer(folder), prompts).shape == (2, 77)
    assert checkpoints.tokenize(checkpoints.load_tokenizer(folder, max_length=16), prompts).shape == (2, 16)


# Case, contractions, digits, accents in one and in two code points, scripts, emoji joined from several, control and
# white space, text like a special token, and overlong text.
ODD_PROMPTS = [
    "",
    " ",
    "A photo of the DIGIT 7.",
    "isn't it? they'd've don't",
    "3.14159 1,000,000 1st 22nd 007",
    "!!! ... ??? #@$%^&*()_+-=[]{}|;':\",./<>?`~",
    "caf\u00e9 cafe\u0301 na\u00efve Stra\u00dfe \u0130stanbul \u01c5",
    "\u732b\u306e\u5199\u771f \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\u0e44\u0e17\u0e22 \u0928\u092e\u0938\u094d\u0924\u0947 \ud55c\uad6d\uc5b4",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f \U0001f1e9\U0001f1ea",
    "tabs\tand\nnew\r\nlines \u00a0 \u2003 \u200b end",
    "<|startoftext|> inside <|endoftext|> the text",
    "&amp; &lt;b&gt; <b>bold</b>",
    "\x00\x1f\ufffd\ufb01\u2460\u00bd",
    "a_very-long_word" * 30,
    "the quick brown fox " * 40,
]


def assert_ids_are_those_of_transformers(folder, prompts):
    """Compares our token ids with those of diffusers' calls of transformers."""
    ours = checkpoints.tokenize(checkpoints.load_tokenizer(folder), prompts)
    theirs = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    encoded = [
        theirs(prompt, padding="max_length", truncation=True, max_length=MAX_LENGTH).input_ids for prompt in prompts
    ]
    assert ours.tolist() == encoded


def test_odd_prompts_get_the_ids_of_transformers(folder):
    assert_ids_are_those_of_transformers(folder, ODD_PROMPTS)


@pytest.mark.skipif("UTILGEN_CLIP_TOKENIZER" not in os.environ, reason="names a folder with CLIP's vocabulary")
def test_with_clips_own_vocabulary():
    folder = os.environ["UTILGEN_CLIP_TOKENIZER"]
    # By hand, from OpenAI's CLIP.
    [ids] = checkpoints.tokenize(checkpoints.load_tokenizer(folder), ["a photo of a cat"])
    assert ids.tolist() == [49406, 320, 1125, 539, 320, 2368] + [49407] * 71
    assert_ids_are_those_of_transformers(folder, ODD_PROMPTS)

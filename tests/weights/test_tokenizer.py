"""The tokenizer, against the vocabulary that was written."""

import json

import numpy as np
import pytest

from tests.diffusers_checkpoint import END, MAX_LENGTH, START, write_tiny_tokenizer
from utilgen_jax import weights
from utilgen_jax.errors import InputError


@pytest.fixture
def folder(tmp_path):
    write_tiny_tokenizer(tmp_path)
    return tmp_path


def test_prompts_become_padded_ids(folder):
    vocab = json.loads((folder / "vocab.json").read_text())
    ids = weights.tokenize(weights.load_tokenizer(folder), ["The digit 7", "", "x" * 200])

    assert ids.shape == (3, MAX_LENGTH) and ids.dtype == np.int32
    words = [START, "the</w>", "digit</w>", "7</w>", END]
    assert ids[0].tolist() == [vocab[word] for word in words] + [vocab[END]] * (MAX_LENGTH - len(words))
    assert ids[1].tolist() == [vocab[START]] + [vocab[END]] * (MAX_LENGTH - 1)
    assert ids[2].tolist() == [vocab[START]] + [vocab["x"]] * (MAX_LENGTH - 2) + [vocab[END]]


def test_newer_single_file_is_read_too(folder, tmp_path):
    tokenizer = weights.load_tokenizer(folder)
    tokenizer.save_pretrained(tmp_path / "newer")
    assert not (tmp_path / "newer" / "vocab.json").exists()
    prompts = ["a photo of the digit 3", "Größe!"]
    newer = weights.load_tokenizer(tmp_path / "newer")
    np.testing.assert_array_equal(weights.tokenize(newer, prompts), weights.tokenize(tokenizer, prompts))


def test_padding_token_of_stable_diffusion_2(folder):
    path = folder / "special_tokens_map.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "!"}))
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token": "!"}))
    vocab = json.loads((folder / "vocab.json").read_text())
    ids = weights.tokenize(weights.load_tokenizer(folder), ["7"])[0]
    assert ids[:4].tolist() == [vocab[START], vocab["7</w>"], vocab[END], vocab["!"]]


def test_missing_and_broken_files_are_named(folder):
    with pytest.raises(InputError, match=r"gone: no tokenizer; vocab\.json and merges\.txt missing"):
        weights.load_tokenizer(folder / "gone")
    (folder / "vocab.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read") as caught:
        weights.load_tokenizer(folder)
    assert str(folder) in str(caught.value)


def test_length_must_be_written_down(folder):
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    with pytest.raises(InputError, match="model_max_length"):
        weights.load_tokenizer(folder)

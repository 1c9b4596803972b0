"""transformers loads the tokenizer, with one token per word."""

import itertools
import json
from pathlib import Path

import pytest
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from utilgen_jax.pretraining import tokenizer as glyph_tokenizer
from utilgen_jax.prompts import glyph_vocabulary as vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    glyph_tokenizer.write_tokenizer(folder, vocabulary.vocabulary_words())
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def test_byte_symbols_are_the_byte_level_alphabet():
    assert sorted(glyph_tokenizer.byte_symbols()) == sorted(ByteLevel.alphabet())


@pytest.mark.parametrize("word", vocabulary.vocabulary_words())
def test_each_word_is_one_token(tokenizer: CLIPTokenizer, word: str):
    assert tokenizer.tokenize(word) == [word + "</w>"]


def test_special_tokens_and_padding_are_stable_diffusions(tokenizer: CLIPTokenizer):
    ids = tokenizer("three", padding="max_length").input_ids
    start, end = len(tokenizer) - 2, len(tokenizer) - 1
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (start, end, end)
    assert [ids[0], *ids[2:]] == [start] + [end] * (len(ids) - 2)
    assert tokenizer.convert_ids_to_tokens(ids[1]) == "three</w>"


def test_longest_caption_needs_the_length_and_no_shorter_multiple_of_8(tokenizer: CLIPTokenizer):
    longest = [max(options, key=lambda value: len(value.split())) for options in vocabulary.ATTRIBUTE_VALUES.values()]
    length = len(tokenizer(", ".join([vocabulary.class_prompt(3), *longest])).input_ids)
    assert glyph_tokenizer.MODEL_MAX_LENGTH - 8 < length <= glyph_tokenizer.MODEL_MAX_LENGTH
    assert tokenizer.model_max_length == glyph_tokenizer.MODEL_MAX_LENGTH
    assert len(tokenizer("three " * 99, truncation=True).input_ids) == tokenizer.model_max_length


@pytest.mark.parametrize("text", ["zebra crossing", "naïve façade", "数字", "b-52's 100%"])
def test_any_text_survives_the_round_trip(tokenizer: CLIPTokenizer, text: str):
    ids = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    restored = tokenizer.decode(ids, skip_special_tokens=True)
    assert restored.replace(" ", "") == text.replace(" ", "")


def test_ids_are_dense_and_the_files_small(folder: Path):
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20_000


def test_merges_keep_words_whole_that_share_pieces():
    words = ["to", "photo", "top", "the", "three", "thin"]
    merges = {pair: rank for rank, pair in enumerate(glyph_tokenizer.learn_merges(words))}
    assert all(glyph_tokenizer._apply(merges, word) == [word + "</w>"] for word in words)
    assert not any(first == second for first, second in itertools.pairwise(merges))

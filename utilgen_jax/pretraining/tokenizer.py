"""A tokenizer for a small vocabulary: byte-level BPE in the files of a Stable Diffusion `tokenizer/` folder.

Each word of the vocabulary is one token; other text is split into shorter tokens, down to bytes.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from utilgen_jax.runtime.atomic_write import write_text

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
MODEL_MAX_LENGTH = 32  # the longest caption has 28 tokens, including START and END


def byte_symbols() -> list[str]:
    """Returns the printable characters that represent the 256 bytes in the byte-level BPE of GPT-2 and CLIP.

    Returns:
        256 distinct characters: the printable bytes themselves, then characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, printable), *(chr(256 + number) for number in range(256 - len(printable)))]


def _apply(merges: dict[tuple[str, str], int], word: str) -> list[str]:
    """Splits a word into symbols and merges neighbours, the highest-ranked pair first."""
    symbols = [*word[:-1], word[-1] + WORD_END]
    while len(symbols) > 1:
        pairs = [pair for pair in zip(symbols, symbols[1:], strict=False) if pair in merges]
        if not pairs:
            break
        place = list(zip(symbols, symbols[1:], strict=False)).index(min(pairs, key=merges.__getitem__))
        symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
    return symbols


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Returns merges that make each word (of ASCII characters) one symbol.

    A merge is appended only where the earlier ones leave a word in pieces. Later merges rank lower, so that they do not
    affect earlier words.
    """
    merges: dict[tuple[str, str], int] = {}
    for word in words:
        while len(symbols := _apply(merges, word)) > 1:
            merges[symbols[0], symbols[1]] = len(merges)
    return list(merges)


def write_tokenizer(folder: str | Path, words: Iterable[str]) -> None:
    """Writes `vocab.json`, `merges.txt`, `tokenizer_config.json` and `special_tokens_map.json`.

    Args:
        folder: output folder, created if missing; `transformers.CLIPTokenizer.from_pretrained` loads it.
        words: words that become tokens, in lower case; non-ASCII words remain bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    symbols = byte_symbols()
    merges = learn_merges(dict.fromkeys(word.lower() for word in words if word.isascii()))
    tokens = [*symbols, *(symbol + WORD_END for symbol in symbols), *map("".join, merges), START, END]
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": MODEL_MAX_LENGTH,
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
        **special,
    }
    vocab = {token: number for number, token in enumerate(tokens)}
    write_text(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    write_text(folder / "merges.txt", "\n".join(lines) + "\n")
    write_text(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")
    write_text(folder / "special_tokens_map.json", json.dumps(special, indent=2) + "\n")

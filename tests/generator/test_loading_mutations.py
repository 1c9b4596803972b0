"""Mutated JSON files of a checkpoint are read, or refused with a message; they never end in another exception."""

import json
import random

import pytest

from utilgen_jax.diffusion.samplers import SAMPLERS, make_sampler
from utilgen_jax.errors import InputError
from utilgen_jax.generator.loading import read_architecture

NUMBERS = [0, -1, 2, 7, 2.5, float("nan"), float("-inf")]
VALUES = [None, *NUMBERS, "", "a", True, [], [0], ["a"], [1, 2], [[1]], {}, {"a": 1}]
REMOVED = object()


@pytest.mark.parametrize("seed", range(4))
def test_a_mutated_file_is_read_or_refused(copy_of, seed):
    folder, draw = copy_of("unclip"), random.Random(seed)
    others = ("vocab.json", "special_tokens_map.json")  # of the tokenizer's library
    files = [path for path in sorted(folder.rglob("*.json")) if path.name not in others]
    assert len(files) >= 9
    outcomes = {"read": 0, "refused": 0}
    for _ in range(60):
        path = draw.choice(files)
        text = path.read_text()
        content = json.loads(text)
        name, value = draw.choice([*content, "of_tomorrow"]), draw.choice([*VALUES, REMOVED])
        changed = {key: each for key, each in (content | {name: value}).items() if each is not REMOVED}
        path.write_text(json.dumps(changed))
        try:
            schedule = read_architecture(folder).schedule
            for sampler in ("checkpoint", draw.choice(list(SAMPLERS))):
                make_sampler(sampler, schedule, 5)
            outcomes["read"] += 1
        except InputError as error:
            assert str(error)
            outcomes["refused"] += 1
        path.write_text(text)
    assert min(outcomes.values()) > 10

"""What a training draws on the host, as arrays that can be saved: NumPy's generators, and the order of an epoch."""

from __future__ import annotations

import numpy as np
from flax import struct

_WORD = 2**64


@struct.dataclass
class Draws:
    """The randomness of a training between two steps.

    Attributes:
        order: of the training images in this epoch, int64 [N].
        training, validation: states of the generators of training batches and of validation batches, uint64 [6].
    """

    order: np.ndarray
    training: np.ndarray
    validation: np.ndarray

    @classmethod
    def first(cls, size: int, seed: int) -> Draws:
        """Those of a training on so many images, before its first step."""
        training, validation = (np.random.default_rng((seed, use)) for use in range(2))
        return cls(np.arange(size), pack(training), pack(validation))


def epoch_batch(
    order: np.ndarray, step: int, batch_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The images of a step: an epoch's order in parts, without the incomplete last one.

    Args:
        order: of the epoch of the step before, int [N].
        step: its number, from 0.
        batch_size: B.
        rng: shuffles anew where an epoch begins.

    Returns:
        (order of the epoch [N], indices [B]).
    """
    place = step % (len(order) // batch_size)
    if place == 0:
        order = rng.permutation(len(order))
    return order, order[place * batch_size : (place + 1) * batch_size]


def pack(rng: np.random.Generator) -> np.ndarray:
    """The state of NumPy's default generator, PCG64, as uint64 [6]."""
    state = rng.bit_generator.state
    numbers = state["state"]["state"], state["state"]["inc"]
    words = [word for number in numbers for word in divmod(number, _WORD)]
    return np.array([*words, state["has_uint32"], state["uinteger"]], np.uint64)


def unpack(state: np.ndarray) -> np.random.Generator:
    """A generator in a state, see `pack`."""
    words = [int(word) for word in state]
    numbers = {"state": words[0] * _WORD + words[1], "inc": words[2] * _WORD + words[3]}
    rng = np.random.default_rng(0)
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": numbers,
        "has_uint32": words[4],
        "uinteger": words[5],
    }
    return rng

"""The uses of randomness in a run."""

import enum


class Key(enum.IntEnum):
    """What the run's PRNG key, of its seed, is folded with. All classifiers share theirs: methods are paired."""

    CLASSIFIER = 1
    VALUATION = 2
    LORA = 3
    MIXED_SHOTS = 4
    TEXTUAL_INVERSION = 5
    DPO = 6
    JOINT = 7
    ATTRIBUTES = 8
    ENSEMBLE = 9
    GATE = 10
    WORDS = 11
    PRACTICE = 12
    CROPS = 13
    MORE_IMAGES = 14

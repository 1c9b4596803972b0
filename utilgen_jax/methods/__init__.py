"""The methods, one paper one file; read before JAX is imported."""

from collections.abc import Mapping

from utilgen_jax.methods import (
    ablations,
    augcond,
    baselines,
    captions,
    datadream,
    deliberate_practice,
    difficulty,
    joint,
    saflex,
    utilgen,
)
from utilgen_jax.methods.ablations import ABLATIONS
from utilgen_jax.methods.base import Method, PoolSpec

# A new method is one more file in here, in the order of the tables.
_FILES = (baselines, captions, augcond, datadream, difficulty, deliberate_practice, saflex, utilgen, joint, ablations)

METHODS: Mapping[str, Method] = {method.name: method for file in _FILES for method in file.METHODS}
# Config section -> its dataclass, of the methods that have some.
SECTIONS: Mapping[str, type] = {
    name: section for file in _FILES for name, section in getattr(file, "SECTIONS", {}).items()
}
# Published systems, which the others are compared with.
PUBLISHED = tuple(name for name, method in METHODS.items() if method.published)

__all__ = ["ABLATIONS", "METHODS", "PUBLISHED", "SECTIONS", "Method", "PoolSpec"]

"""Tiny checkpoints that torch's diffusers wrote, one a family, once for all tests of this folder."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.diffusers_checkpoint import write_tiny_stable_diffusion
from utilgen_jax.generator.loading import load_stable_diffusion


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """Family ('sd15', 'sd21', 'unclip') -> folder, not to be changed."""
    return functools.cache(lambda family: write_tiny_stable_diffusion(tmp_path_factory.mktemp(family), family=family))


@pytest.fixture(scope="session")
def loaded(checkpoint):
    """Family -> its `StableDiffusion` in float32."""
    return functools.cache(lambda family: load_stable_diffusion(checkpoint(family)))


@pytest.fixture
def copy_of(checkpoint, tmp_path) -> Callable[[str], Path]:
    """Family -> a copy of its folder that a test may change."""
    return lambda family: Path(shutil.copytree(checkpoint(family), tmp_path / family))

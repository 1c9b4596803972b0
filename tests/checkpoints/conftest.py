"""Tiny checkpoints written by torch's diffusers, shared by the tests of this folder."""

import shutil
from pathlib import Path

import pytest

from tests.diffusers_checkpoint import write_tiny_stable_diffusion


@pytest.fixture(scope="session")
def unclip_original(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion 2.1-unCLIP with all components; read-only."""
    return write_tiny_stable_diffusion(tmp_path_factory.mktemp("unclip"), family="unclip")


@pytest.fixture
def unclip(unclip_original, tmp_path) -> Path:
    """A copy that tests may change."""
    return Path(shutil.copytree(unclip_original, tmp_path / "unclip"))

"""Finding checkpoints, and the messages when they are missing."""

import fnmatch
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest import mock

import huggingface_hub
import jax
import jax.numpy as jnp
import pytest
from diffusers import AutoencoderKL, UNet2DConditionModel
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from utilgen_jax import checkpoints
from utilgen_jax.checkpoints import checkpoint_folder
from utilgen_jax.checkpoints.published import PUBLISHED, RETIRED
from utilgen_jax.errors import InputError


class Hub:
    """A hub with one repository, 'owner/name', whose files are in a folder; records its requests."""

    def __init__(self, repository, cache, error=None, offline=False):
        self.repository, self.cache, self.error, self.offline = repository, cache, error, offline
        self.listed, self.downloads = [], []

    def model_info(self, repo_id, *, revision, timeout):
        assert timeout < 5
        self.listed.append((repo_id, revision))
        if self.offline:
            raise OfflineModeIsEnabled("offline")
        if self.error:
            raise self.error
        paths = [path for path in self.repository.rglob("*") if path.is_file()]
        names = [path.relative_to(self.repository).as_posix() for path in paths]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(self, repo_id, *, revision, allow_patterns, local_files_only=False):
        self.downloads.append((repo_id, revision))
        if local_files_only:
            if not self.cache.is_dir():
                raise LocalEntryNotFoundError("nothing kept")
            return str(self.cache)
        shutil.copytree(self.repository, self.cache, dirs_exist_ok=True)
        for path in [path for path in self.cache.rglob("*") if path.is_file()]:
            if not any(fnmatch.fnmatch(path.relative_to(self.cache).as_posix(), pattern) for pattern in allow_patterns):
                path.unlink()
        return str(self.cache)

    @property
    def weights(self):
        """Names of the weight files that were downloaded."""
        suffixes = {".safetensors", ".bin", ".ckpt"}
        return {path.relative_to(self.cache).as_posix() for path in self.cache.rglob("*") if path.suffix in suffixes}


@pytest.fixture
def hub(unclip, tmp_path, monkeypatch):
    """A hub whose repository a test may change; it also has unused files."""
    (unclip / "safety_checker").mkdir()
    for name in ("v1-5-pruned.safetensors", "safety_checker/model.safetensors", "unet/diffusion_pytorch_model.bin"):
        (unclip / name).write_bytes(b"")
    (unclip / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"")
    fake = Hub(unclip, tmp_path / "cache")
    for name in ("model_info", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(fake, name))
    return fake


def as_half(folder, **options):
    """Writes UNet and VAE of a repository also with `variant='fp16'`, and returns the old files."""
    old = [*folder.glob("unet/*.safetensors"), *folder.glob("vae/*.safetensors")]
    UNet2DConditionModel.from_pretrained(folder / "unet").half().save_pretrained(
        folder / "unet", variant="fp16", **options
    )
    AutoencoderKL.from_pretrained(folder / "vae").half().save_pretrained(folder / "vae", variant="fp16", **options)
    return old


def test_folder_is_taken_as_it_is(unclip_original, monkeypatch):
    assert checkpoints.resolve_checkpoint(str(unclip_original)) == unclip_original
    monkeypatch.chdir(unclip_original.parent)
    assert checkpoints.resolve_checkpoint(unclip_original.name).resolve() == unclip_original.resolve()
    monkeypatch.setenv("HOME", str(unclip_original.parent))
    assert checkpoints.resolve_checkpoint(f"~/{unclip_original.name}") == unclip_original


def test_glyphs_is_the_embedded_folder(tmp_path, monkeypatch):
    assert checkpoint_folder.GLYPHS.parts[-3:] == ("utilgen_jax", "assets", "glyphs")
    monkeypatch.setattr(checkpoint_folder, "GLYPHS", tmp_path)
    with pytest.raises(InputError, match="utilgen_jax.pretraining"):
        checkpoints.resolve_checkpoint("glyphs")
    (tmp_path / "model_index.json").write_text("{}")
    assert checkpoints.resolve_checkpoint("glyphs") == tmp_path


@pytest.mark.parametrize(
    "name", ["", "./gone", "/gone/model", "~/gone", "gone", "a/b/c", "../x", "tests/gone", "own er/name"]
)
def test_paths_are_not_requested_from_the_hub(name, hub, monkeypatch, tmp_path):
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="hub id 'owner/name'"):
        checkpoints.resolve_checkpoint(name)
    assert not hub.listed and not hub.downloads


def test_folder_without_index_and_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no model_index\.json"):
        checkpoints.resolve_checkpoint(str(tmp_path))
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match="this is a file"):
        checkpoints.resolve_checkpoint(str(tmp_path / "model.ckpt"))


FULL = {
    "image_encoder/model.safetensors",
    "image_normalizer/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
}
HALF = {name.replace(".", ".fp16.", 1) if name.startswith(("unet", "vae")) else name for name in FULL}


@pytest.mark.parametrize(("revision", "requested"), [(None, None), ("", None), ("v1", "v1")])
def test_only_needed_files_are_downloaded(hub, revision, requested):
    as_half(hub.repository)
    folder = checkpoints.resolve_checkpoint("owner/name", revision)
    assert folder == hub.cache and hub.weights == FULL
    assert hub.listed == hub.downloads == [("owner/name", requested)]
    for component in ("unet", "vae", "text_encoder", "image_encoder", "image_normalizer"):
        checkpoints.load_component(folder / component)


def test_requested_variant_is_downloaded_and_read(hub):
    as_half(hub.repository)
    folder = checkpoints.resolve_checkpoint("owner/name", variant="fp16")
    assert hub.weights == HALF
    _, params = checkpoints.load_component(folder / "unet", variant="fp16")
    assert jax.tree.leaves(params)[0].dtype == jnp.float16
    with pytest.raises(InputError, match=r"no weights of variant 'bf16'.*found: unet/diffusion"):
        checkpoints.resolve_checkpoint("owner/name", variant="bf16")
    with pytest.raises(InputError, match="no weights of variant 'bf16'"):
        checkpoints.resolve_checkpoint(str(hub.repository), variant="bf16")


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("options", [{}, {"max_shard_size": "300KB"}])
def test_repository_of_half_precision_alone_is_downloaded(hub, options, variant):
    for path in as_half(hub.repository, **options):
        path.unlink()
    folder = checkpoints.resolve_checkpoint("owner/name", variant=variant)
    assert not hub.weights & {"unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"}
    assert all(jax.tree.leaves(checkpoints.load_component(folder / name)[1]) for name in ("unet", "vae"))


def test_configs_come_without_weights(hub):
    for path in hub.repository.glob("unet/*.safetensors"):
        path.unlink()
    folder = checkpoints.resolve_checkpoint("owner/name", configs_only=True)
    assert not hub.weights and (folder / "unet" / "config.json").is_file()
    assert checkpoints.resolve_checkpoint(str(hub.repository), configs_only=True) == hub.repository


def test_pickles_alone_are_refused_before_the_download(hub):
    for path in hub.repository.glob("unet/*.safetensors"):
        path.unlink()
    with pytest.raises(InputError, match=r"in place of unet/diffusion_pytorch_model\.bin: a pickle"):
        checkpoints.resolve_checkpoint("owner/name")
    assert not hub.downloads
    with pytest.raises(InputError, match="in place of unet/diffusion_pytorch_model.bin"):
        checkpoints.resolve_checkpoint(str(hub.repository))


def test_repository_that_is_no_checkpoint_is_refused_before_the_download(hub):
    (hub.repository / "model_index.json").unlink()
    with pytest.raises(InputError, match=r"owner/name: has no model_index\.json"):
        checkpoints.resolve_checkpoint("owner/name")
    assert not hub.downloads


def test_single_component_is_found_here_and_on_the_hub(hub, unclip_original):
    assert checkpoints.resolve_component(str(unclip_original / "vae")) == unclip_original / "vae"
    with pytest.raises(InputError, match=r"has no config\.json"):
        checkpoints.resolve_component(str(unclip_original))
    hub.repository = unclip_original / "vae"
    assert checkpoints.load_component(checkpoints.resolve_component("owner/name"))[0]["_class_name"] == "AutoencoderKL"


def test_cached_files_are_used_without_a_connection(hub):
    checkpoints.resolve_checkpoint("owner/name")
    hub.offline = True
    assert checkpoints.resolve_checkpoint("owner/name") == hub.cache


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("no route"), "cannot be reached; `hf download owner/name --local-dir"),
        (GatedRepoError("403", response=mock.MagicMock()), "accept its licence at https://huggingface.co/owner/name"),
        (RepositoryNotFoundError("404", response=mock.MagicMock()), "neither a local folder nor a model"),
        (RevisionNotFoundError("404", response=mock.MagicMock()), "has no revision 'v1'"),
        (HFValidationError("bad"), "neither a local folder nor a model"),
        (HfHubHTTPError("no space left", response=mock.MagicMock()), "no space left"),
    ],
)
def test_message_on_a_hub_failure_has_advice(hub, error, message):
    hub.error = error
    with pytest.raises(InputError, match=message) as caught:
        checkpoints.resolve_checkpoint("owner/name", "v1")
    assert str(caught.value).startswith("owner/name: ")


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_a_short_name_stands_for_a_pinned_repository(hub, name, published):
    assert checkpoints.resolve_checkpoint(name) == hub.cache
    checkpoints.resolve_checkpoint(name, "mine")
    assert hub.downloads == [(published.hub_id, published.revision), (published.hub_id, "mine")]
    assert published.revision is None or re.fullmatch("[0-9a-f]{40}", published.revision)


@pytest.mark.parametrize("name", RETIRED)
def test_a_retired_repository_has_a_successor(hub, name):
    successor = PUBLISHED[RETIRED[name]]
    hub.error = RepositoryNotFoundError("401", response=mock.MagicMock())
    with pytest.raises(InputError, match=f"{name}: is gone from the Hugging Face hub; use .*{successor.hub_id}"):
        checkpoints.resolve_checkpoint(name)
    hub.offline = True
    with pytest.raises(InputError, match=f"cannot be reached; it is gone from there, use .*{successor.hub_id}"):
        checkpoints.resolve_checkpoint(name)
    hub.cache.mkdir()  # Those who have it can use it.
    assert checkpoints.resolve_checkpoint(name) == hub.cache


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_told_once_within_five_seconds(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path)}
        code = "import sys; from utilgen_jax.checkpoints import resolve_checkpoint; resolve_checkpoint('sd15')"
        start = time.monotonic()
        completed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "InputError: stable-diffusion-v1-5/stable-diffusion-v1-5: not on this machine" in completed.stderr
    assert "Retrying" not in completed.stderr and completed.stdout == ""
    assert time.monotonic() - start < 4 + 10  # four seconds, and Python's start on a busy machine


def test_offline_hub_is_an_input_error(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="pass FOLDER"):
        checkpoints.resolve_checkpoint("owner/surely-not-cached-here")

"""Where checkpoints are looked for, and what is said when they are not there."""

from unittest import mock

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from utilgen_jax import weights
from utilgen_jax.errors import InputError
from utilgen_jax.weights import checkpoint_folder


def hub_that(monkeypatch, answer):
    """Replaces the download; returns the list of calls made to it."""
    calls = []

    def snapshot_download(repo_id, **options):
        calls.append((repo_id, options))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_folder_is_taken_as_it_is(unclip_original, monkeypatch):
    assert weights.resolve_checkpoint(str(unclip_original)) == unclip_original
    monkeypatch.chdir(unclip_original.parent)
    assert weights.resolve_checkpoint(unclip_original.name).resolve() == unclip_original.resolve()
    monkeypatch.setenv("HOME", str(unclip_original.parent))
    assert weights.resolve_checkpoint(f"~/{unclip_original.name}") == unclip_original


def test_glyphs_is_the_embedded_folder(tmp_path, monkeypatch):
    assert checkpoint_folder.GLYPHS.parts[-3:] == ("utilgen_jax", "assets", "glyphs")
    monkeypatch.setattr(checkpoint_folder, "GLYPHS", tmp_path)
    with pytest.raises(InputError, match="utilgen_jax.foundation"):
        weights.resolve_checkpoint("glyphs")
    (tmp_path / "model_index.json").write_text("{}")
    assert weights.resolve_checkpoint("glyphs") == tmp_path


@pytest.mark.parametrize(
    "name", ["", "./gone", "/gone/model", "~/gone", "gone", "a/b/c", "../x", "tests/gone", "own er/name"]
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(name, monkeypatch, tmp_path):
    (tmp_path / "tests").mkdir()
    monkeypatch.chdir(tmp_path)
    calls = hub_that(monkeypatch, AssertionError("asked the hub"))
    with pytest.raises(InputError, match="hub id 'owner/name'"):
        weights.resolve_checkpoint(name)
    assert not calls


def test_folder_without_index_and_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no model_index\.json"):
        weights.resolve_checkpoint(str(tmp_path))
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match="this is a file"):
        weights.resolve_checkpoint(str(tmp_path / "model.ckpt"))


@pytest.mark.parametrize(("revision", "asked"), [(None, None), ("", None), ("v1", "v1")])
def test_hub_id_is_downloaded_without_pickles(unclip_original, monkeypatch, revision, asked):
    calls = hub_that(monkeypatch, unclip_original)
    assert weights.resolve_checkpoint("owner/name", revision) == unclip_original
    ((repo_id, options),) = calls
    assert (repo_id, options["revision"]) == ("owner/name", asked)
    assert {pattern.rsplit(".", 1)[-1] for pattern in options["allow_patterns"]} == {"json", "txt", "safetensors"}


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (LocalEntryNotFoundError("offline"), "hf download owner/name --local-dir"),
        (GatedRepoError("403", response=mock.MagicMock()), "accept its licence at https://huggingface.co/owner/name"),
        (RepositoryNotFoundError("404", response=mock.MagicMock()), "neither a folder here nor a repository"),
        (RevisionNotFoundError("404", response=mock.MagicMock()), "has no revision 'v1'"),
        (HFValidationError("bad"), "neither a folder here nor a repository"),
        (OSError("no space left"), "no space left"),
    ],
)
def test_hub_failure_says_the_way_out(monkeypatch, error, says):
    hub_that(monkeypatch, error)
    with pytest.raises(InputError, match=says) as caught:
        weights.resolve_checkpoint("owner/name", "v1")
    assert str(caught.value).startswith("owner/name: ")


def test_offline_hub_is_an_input_error(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="pass FOLDER"):
        weights.resolve_checkpoint("owner/surely-not-cached-here")

"""What is read from a bucket is copied once, and again where it has changed."""

import sys

import pytest
from fsspec.implementations.local import LocalFileSystem

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.buckets import bucket_problem, cache_of, local_copy


@pytest.fixture(autouse=True)
def bucket(tmp_path, monkeypatch):
    """A folder as a bucket, with three files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folder = tmp_path / "bucket" / "images"
    for name in ("train/a/1.png", "train/b/2.png", "note.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def copied(monkeypatch):
    """The files that are copied, as they come."""
    names, get_file = [], LocalFileSystem.get_file

    def noted(self, source, target, **options):
        names.append(source.rpartition("/")[2])
        return get_file(self, source, target, **options)

    monkeypatch.setattr(LocalFileSystem, "get_file", noted)
    return names


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_copied_and_later_only_what_has_changed(bucket, copied):
    from pathlib import Path

    copy = Path(local_copy(f"file://{bucket}/"))
    assert files_of(copy) == files_of(bucket) and copy.name == "images"
    assert sorted(copied) == ["1.png", "2.png", "note.txt"]
    copied.clear()
    (bucket / "train/b/2.png").write_text("other")
    (bucket / "train/b/3.png").write_text("new")
    (bucket / "note.txt").unlink()
    (copy / "train/a/1.png").unlink()
    assert local_copy(f"file://{bucket}") == str(copy)
    assert files_of(copy) == files_of(bucket)
    assert sorted(copied) == ["1.png", "2.png", "3.png"]


def test_a_copy_that_was_cut_off_is_completed(bucket, monkeypatch):
    get = LocalFileSystem.get

    def get_a_part(self, sources, targets):
        get(self, sources[:1], targets[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LocalFileSystem, "get", get_a_part)
        local_copy(f"file://{bucket}")
    assert files_of(cache_of(f"file://{bucket}", "copies").parent / local_copy(f"file://{bucket}")) == files_of(bucket)


def test_a_single_file_keeps_its_name(bucket):
    assert local_copy(f"file://{bucket}/note.txt").endswith("/note.txt")
    with open(local_copy(f"file://{bucket}/note.txt")) as file:
        assert file.read() == "note.txt"


def test_a_path_on_this_machine_stays(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert local_copy("~/images") == "/home/me/images"


def test_what_is_not_there_is_told(bucket):
    assert bucket_problem(f"file://{bucket}") == ""
    assert bucket_problem(f"file://{bucket}/other") == f"file://{bucket}/other: there is no such file or folder"
    assert bucket_problem(f"file://{bucket}/other", may_be_missing=True) == ""
    with pytest.raises(InputError, match="no such file or folder, or it is empty"):
        local_copy(f"file://{bucket}/other")
    with pytest.raises(InputError, match="give a bucket and a folder in it, such as gs://bucket/folder"):
        cache_of("gs://bucket", "runs")


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_missing_package_is_named(monkeypatch, scheme, package):
    monkeypatch.setitem(sys.modules, package, None)
    problem = bucket_problem(f"{scheme}://bucket/folder")
    assert problem.startswith(f"{scheme}://bucket/folder: ")
    assert problem.endswith(f"pip install 'utilgen_jax[{scheme}]'")


def test_a_bucket_that_refuses_tells_how_to_sign_in(monkeypatch):
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    class Refusing(MemoryFileSystem):
        def exists(self, path, **options):
            raise PermissionError("Anonymous caller does not have storage.objects.list access")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url, **options: (Refusing(), "/bucket/folder"))
    problem = bucket_problem("gs://bucket/folder")
    assert "cannot be reached (Anonymous caller" in problem and "gcloud auth application-default login" in problem

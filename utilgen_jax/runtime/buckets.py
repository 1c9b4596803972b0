"""Buckets, `gs://bucket/folder` and `s3://bucket/folder`: opened by fsspec, and copied to this machine to be read.

`file://` and `memory://`, which fsspec has itself, are treated like them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from utilgen_jax.errors import InputError, line_of
from utilgen_jax.runtime.atomic_write import write_text
from utilgen_jax.runtime.paths import expand, is_in_bucket

_CREDENTIALS = {
    "gs": "; are you signed in? `gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS=FILE",
    "s3": "; are you signed in? `aws configure`, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
_AT_ONCE = 1000  # files between two notes of what has been copied
_CHANGES_WITH_CONTENT = ("etag", "ETag", "md5Hash", "generation", "LastModified", "mtime", "created")


class Place(NamedTuple):
    """A file or folder in a bucket.

    Attributes:
        url: as it was given, without a slash at its end.
        files: fsspec's file system.
        root: its path there.
    """

    url: str
    files: Any
    root: str

    def path(self, name: str) -> str:
        """The path of what lies below it."""
        return f"{self.root}/{name}"

    def names(self, below: str = "") -> dict[str, dict[str, Any]]:
        """What lies below it: {name below it: fsspec's information}; nothing where there is no such folder."""
        self.files.invalidate_cache()
        found = self.files.find(self.path(below) if below else self.root, detail=True)
        return {path.removeprefix(f"{self.root}/"): about for path, about in found.items()}


def open_place(url: str) -> Place:
    """Opens a place in a bucket; nothing is read yet.

    Raises:
        InputError: the package for this kind of bucket is missing.
    """
    from fsspec.core import url_to_fs

    url = url.rstrip("/")
    scheme = url.partition("://")[0]
    options = {"auto_mkdir": True} if scheme == "file" else {}
    try:
        files, root = url_to_fs(url, **options)
    except ImportError as error:
        raise InputError(f"{url}: {error}; pip install 'utilgen_jax[{scheme}]'") from error
    except Exception as error:  # libraries for buckets raise errors of their own; so below
        raise InputError(f"{url}: cannot be opened ({line_of(error)})") from error
    return Place(url, files, root.rstrip("/"))


@contextmanager
def reached(url: str) -> Iterator[None]:
    """Makes an InputError of whatever keeps a bucket from being read or written."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        advice = _CREDENTIALS.get(url.partition("://")[0], "")
        raise InputError(f"{url}: cannot be reached ({line_of(error)}){advice}") from error


def bucket_problem(url: str, may_be_missing: bool = False) -> str:
    """Says why a place in a bucket cannot be read, or nothing.

    Args:
        url: of the place.
        may_be_missing: whether it is enough that the bucket answers.
    """
    try:
        place = open_place(url)
        with reached(url):
            exists = place.files.exists(place.root)
    except InputError as error:
        return str(error)
    return "" if exists or may_be_missing else f"{url}: there is no such file or folder"


def cache_of(url: str, kind: str, environ: Mapping[str, str] = os.environ, process: int = 0) -> Path:
    """The path on this machine for a place in a bucket: of its own name, in a folder of its own in the user's cache.

    Args:
        url: of the place.
        kind: of what is kept there: "copies" or "runs".
        environ: of the user.
        process: whose it is, where each has one of its own.

    Raises:
        InputError: there is no home, or the place is no folder in a bucket.
    """
    url = url.rstrip("/")
    scheme, _, path = url.partition("://")
    parts = PurePosixPath(path).parts
    if len(parts) < 2 or ".." in parts:
        raise InputError(f"{url}: give a bucket and a folder in it, such as {scheme}://bucket/folder")
    try:
        caches = Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError as error:
        raise InputError(f"{url}: there is no home folder to keep a copy in; set XDG_CACHE_HOME") from error
    name = hashlib.sha256(url.encode()).hexdigest()[:12] + (f"-{process}" if process else "")
    return caches / "utilgen_jax" / kind / name / parts[-1]


def local_copy(path: str) -> str:
    """The path itself, `~` expanded; of a place in a bucket the path of its copy on this machine, brought up to date.

    Only what is not there yet or has changed is copied. One process at a time does so, the others wait.

    Args:
        path: of a file or folder to read.

    Raises:
        InputError: it is not there, or the bucket cannot be reached.
    """
    if not is_in_bucket(path):
        return expand(path)
    place, target = open_place(path), cache_of(path, "copies")
    with reached(path), _locked(target.parent):
        _update(place, target, target.with_name("copied.json"))
    return str(target)


def _update(place: Place, target: Path, note: Path) -> None:
    """Makes a copy equal to what lies in the bucket; `note` has what is known to be the same, by name."""
    if place.files.isfile(place.root):
        found, names = {"": _version(place.files.info(place.root))}, {"": (place.root, target)}
    else:
        listed = place.names()
        if not listed:
            raise InputError(f"{place.url}: there is no such file or folder, or it is empty")
        found = {name: _version(about) for name, about in listed.items()}
        names = {name: (place.path(name), below(target, name)) for name in found}
    before: dict[str, str] = json.loads(note.read_text()) if note.is_file() else {}
    copied = {name: before[name] for name in found if before.get(name) == found[name] and names[name][1].is_file()}
    if target.is_file() and "" not in found:
        target.unlink()
    if target.is_dir():
        kept = {names[name][1] for name in copied}
        for file in target.rglob("*"):
            if file.is_file() and file not in kept:
                file.unlink()
    missing = [name for name in found if name not in copied]
    for start in range(0, len(missing), _AT_ONCE):
        part = missing[start : start + _AT_ONCE]
        for name in part:
            names[name][1].parent.mkdir(parents=True, exist_ok=True)
        place.files.get([names[name][0] for name in part], [str(names[name][1]) for name in part])
        copied |= {name: found[name] for name in part}
        write_text(note, json.dumps(copied))


def _version(about: Mapping[str, Any]) -> str:
    """A text that is another one once the content is."""
    changing = next((about[key] for key in _CHANGES_WITH_CONTENT if about.get(key)), "")
    return f"{about['size']} {changing}"


def below(folder: Path, name: str) -> Path:
    """The path of a name in a folder; InputError where it leads out of it."""
    if not re.fullmatch(r"(?!.*(^|/)\.\.?(/|$))[^/].*", name, re.DOTALL):
        raise InputError(f"{name!r}, in a bucket, is no name for a file below a folder; rename it")
    return folder / name


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which is made, waiting for it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

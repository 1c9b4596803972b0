"""The folder in which a run works: a folder, or the copy of one in a bucket, see `mirror`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import jax

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.distributed import all_see, wait_for_all
from utilgen_jax.runtime.folder_lock import locked_folder
from utilgen_jax.runtime.mirror import Mirror
from utilgen_jax.runtime.paths import is_in_bucket
from utilgen_jax.runtime.termination import Terminated

_PATIENCE = 60.0  # seconds to wait for another command that reads the same folder

_mirrors: list[Mirror] = []  # of the runs that are under way in this process


@contextmanager
def working_folder(workdir: str | Path, claims: bool = True) -> Iterator[Path]:
    """The folder in which a run works; of one in a bucket its copy, which is saved at the end of the block.

    `was_saved` saves it before. Messages of InputErrors name the folder in the bucket. Several processes share a copy
    where all of them see it; if not, each has one of its own, and nothing is saved where an error ends the block: the
    others may be anywhere.

    Args:
        workdir: a folder, or one in a bucket.
        claims: whether a run that works in the bucket's folder elsewhere is to end; False for who only reads.

    Raises:
        InputError: the bucket cannot be reached.
    """
    if not is_in_bucket(str(workdir)):
        yield Path(workdir)
        return
    first = Mirror(str(workdir))  # the first process's
    with _named(first), ExitStack() as names, ExitStack() as locks:
        is_first, patience = jax.process_index() == 0, 0.0 if claims else _PATIENCE
        if is_first:
            locks.enter_context(locked_folder(first.folder.parent, patience))
        mirror = first
        if not all_see(first.folder.with_name("seen")):
            mirror = Mirror(first.url, jax.process_index(), jax.process_count())
            names.enter_context(_named(mirror))
            locks.enter_context(locked_folder(mirror.folder.parent, patience))
        saves = is_first or mirror.is_one_of_several
        if saves:
            mirror.fetch()
            if claims:
                mirror.claim()
        wait_for_all("the copy of the workdir is there")
        if not claims:
            locks.close()
        _mirrors.append(mirror)
        end: type[BaseException] | None = None
        try:
            yield mirror.folder
        except BaseException as error:
            end = type(error)
            raise
        finally:
            _mirrors.remove(mirror)
            if saves and (end in (None, Terminated) or not mirror.is_one_of_several):
                with locked_folder(mirror.folder.parent, _PATIENCE):
                    mirror.save(must=end is None)


@contextmanager
def _named(mirror: Mirror) -> Iterator[None]:
    """Puts the folder in the bucket in place of the copy in messages of InputErrors."""
    try:
        yield
    except InputError as error:
        message = str(error).replace(str(mirror.folder), mirror.url).replace(str(mirror.folder.parent), mirror.url)
        raise InputError(message) from error


def was_saved(folder: Path, every_seconds: float = 0.0) -> None:
    """Saves to its bucket what lies in a run's folder, if that is one's copy; called where a run can be continued.

    Args:
        folder: of the run, or below it.
        every_seconds: nothing is done where the last save is not so long ago.
    """
    for mirror in _mirrors:
        if folder.is_relative_to(mirror.folder) and (mirror.is_one_of_several or jax.process_index() == 0):
            mirror.save_if_due(every_seconds)


def exchange(folder: Path) -> None:
    """Returns when every process has come to this call, and sees what the others have written below a run's folder."""
    for mirror in _mirrors:
        if folder.is_relative_to(mirror.folder) and mirror.is_one_of_several:
            mirror.save(takes=True)
    wait_for_all("what was written is seen")


def shown(path: Path) -> str:
    """A path as a person knows it: that in the bucket of what lies in the copy of a run's folder."""
    for mirror in _mirrors:
        if path.is_relative_to(mirror.folder):
            return f"{mirror.url}/{path.relative_to(mirror.folder).as_posix()}".removesuffix("/.")
    return str(path)

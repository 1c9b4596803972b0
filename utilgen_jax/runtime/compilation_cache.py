"""Compiled programs are kept between runs, so that a second start compiles nothing.

JAX's own variables say otherwise: `JAX_COMPILATION_CACHE_DIR` names another folder, `JAX_ENABLE_COMPILATION_CACHE=0`
keeps nothing.
"""

import fcntl
import hashlib
import os
import platform
from collections.abc import MutableMapping
from contextlib import suppress
from pathlib import Path

_MAX_BYTES = 4 * 2**30  # those that were used least recently are removed beyond it


def keep_programs(environ: MutableMapping[str, str] = os.environ) -> None:
    """Lets JAX keep compiled programs in the user's cache folder; call it before JAX is imported.

    Does nothing where the environment names a folder, or where the user's cannot be written. JAX makes the folder as it
    compiles: a command that answers without JAX leaves nothing.

    Args:
        environ: the variables that JAX reads as it is imported.
    """
    if "JAX_COMPILATION_CACHE_DIR" in environ:
        return
    try:
        caches = Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # there is no home
        return
    folder = caches / "utilgen_jax" / "programs" / _processor()
    if _can_be_written(folder):
        _remove_incomplete(folder)
        environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MAX_BYTES))
        # Small programs too: a run has hundreds of them.
        environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def _can_be_written(folder: Path) -> bool:
    """Whether a folder, or the first of those above it that there is, can be written."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _remove_incomplete(folder: Path) -> None:
    """Removes what a process that was killed had not written to its end; JAX would complain of it at each start."""
    with suppress(OSError), open(folder / ".lockfile", "a") as lock:  # the one that JAX takes, by `filelock`
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for program in folder.glob("*-cache"):
            # JAX notes the time of use once the program is on disk.
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink()


def _processor() -> str:
    """A name for this kind of processor: machines of several kinds may share a home, and instructions differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"

"""Runs independent pieces of work at once, each in a thread of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import ContextVar
from typing import TypeVar

import jax

Result = TypeVar("Result")

_stopped: ContextVar[threading.Event | None] = ContextVar("stopped", default=None)


def run_at_once(works: Sequence[Callable[[], Result]]) -> list[Result]:
    """Runs each piece of work in a thread, under the mesh that is set.

    Where one fails or the run is interrupted, the others end at their next `check_stopped`.

    Args:
        works: independent of each other; one alone runs in the calling thread.

    Returns:
        Their results, in order.
    """
    if len(works) < 2:
        return [work() for work in works]
    mesh, stopped = jax.sharding.get_mesh(), threading.Event()

    def run(work: Callable[[], Result]) -> Result:
        _stopped.set(stopped)
        # The mesh that is set is that of a thread.
        with jax.set_mesh(mesh):
            return jax.block_until_ready(work())

    with ThreadPoolExecutor(len(works)) as pool:
        running = [pool.submit(run, work) for work in works]
        try:
            wait(running, return_when=FIRST_EXCEPTION)
        finally:
            stopped.set()
    errors = [error for future in running if (error := future.exception()) and not isinstance(error, _Stopped)]
    if errors:
        raise errors[0]
    return [future.result() for future in running]


def check_stopped() -> None:
    """Ends work of `run_at_once` whose result is not wanted any more; does nothing elsewhere."""
    stopped = _stopped.get()
    if stopped is not None and stopped.is_set():
        raise _Stopped


class _Stopped(Exception):
    """Ends a thread."""


def num_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

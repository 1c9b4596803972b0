"""SIGTERM: a run saves its state at the next step and leaves; a second SIGTERM ends it at once.

JAX is not imported here: commands install this before they touch a device.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

STATUS = 128 + signal.SIGTERM  # 143, as a shell tells of a process that SIGTERM has ended
PATIENCE = 18.0  # seconds until a run that comes to no next step is ended
_SAME = 1.0  # seconds within which SIGTERM counts once: `timeout` and schedulers send it to a process and to its group

_requested = threading.Event()


class Terminated(BaseException):
    """SIGTERM has come, and what is to be saved is saved. Like KeyboardInterrupt no error that code may catch."""


def is_requested() -> bool:
    """Whether SIGTERM has come to this process; see `distributed.check_terminated`."""
    return _requested.is_set()


@contextmanager
def sigterm_handled() -> Iterator[None]:
    """Within the block the first SIGTERM is a request: code that can leave raises Terminated.

    A second one ends the process with STATUS, and so does PATIENCE: a compilation or a long step may not come to an end
    in time. In another thread than the main one, which alone may handle signals, nothing is handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Python runs a handler in the main thread between two operations, so never while XLA compiles. The byte of a signal
    # is written at once; a thread of its own reads it.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reader,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_before)
        signal.signal(signal.SIGTERM, before)
        os.write(writer, b"\0")
        watch.join()
        _requested.clear()
        os.close(reader)
        os.close(writer)


def _watch(reader: int) -> None:
    """Waits for SIGTERM, then for a second one; returns at a zero byte."""
    while (byte := _next(reader, None)) != signal.SIGTERM:
        if byte == 0:
            return
    _requested.set()
    print("SIGTERM: saving at the next step; a second one ends at once", file=sys.stderr, flush=True)
    came = time.monotonic()
    while (byte := _next(reader, came + PATIENCE - time.monotonic())) != 0:
        if byte is None:
            _end(f"no step has ended in {PATIENCE:.0f} s")
        if byte == signal.SIGTERM and time.monotonic() - came > _SAME:
            _end("a second SIGTERM")


def _end(why: str) -> None:
    print(f"ended: {why}; what was saved before stands", file=sys.stderr, flush=True)
    os._exit(STATUS)


def _next(reader: int, seconds: float | None) -> int | None:
    """The next byte; None where none comes in time."""
    ready, _, _ = select.select([reader], [], [], None if seconds is None else max(seconds, 0.0))
    return os.read(reader, 1)[0] if ready else None

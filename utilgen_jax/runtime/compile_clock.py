"""How long this thread has waited for JAX to trace and compile programs."""

from __future__ import annotations

import sys
import threading
import time

_PREFIX = "/jax/core/compile/"
_local = threading.local()
_registered = threading.Lock()


def compile_seconds() -> float:
    """Seconds of this thread's tracing and compilation since this was first called, in any thread."""
    if "jax" in sys.modules and _registered.acquire(blocking=False):  # once: it is never released
        from jax import monitoring

        monitoring.register_event_duration_secs_listener(_listen)
    return sum(seconds for _, seconds in getattr(_local, "events", ()))


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    """Notes an event as it ends; those within it, as of a program that is traced within another one, count once."""
    if event.startswith(_PREFIX) and event.endswith("_duration"):
        begin = time.monotonic() - duration_secs
        events = getattr(_local, "events", [])
        while events and events[-1][0] >= begin:
            events.pop()
        _local.events = [*events, (begin, duration_secs)]

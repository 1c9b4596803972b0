"""How long this thread has waited for JAX to trace and to compile programs."""

from __future__ import annotations

import sys
import threading
import time

_KINDS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace",
    "/jax/core/compile/backend_compile_duration": "compile",
}
_NOTHING = dict.fromkeys(_KINDS.values(), 0.0)
_Event = tuple[float, dict[str, float]]  # when it began, and its seconds by kind
_local = threading.local()  # its events, none of which is within another one
_registered = threading.Lock()


def compile_seconds() -> float:
    """Seconds of this thread's tracing and compilation since the clock was first read, in any thread."""
    return sum(seconds_by_kind().values())


def seconds_by_kind() -> dict[str, float]:
    """The same apart: of "trace", with the lowering, and of "compile", with the reading of compiled programs."""
    if "jax" in sys.modules and _registered.acquire(blocking=False):  # once: it is never released
        from jax import monitoring

        monitoring.register_event_duration_secs_listener(_listen)
    events: list[_Event] = getattr(_local, "events", [])
    return {kind: sum(seconds[kind] for _, seconds in events) for kind in _NOTHING}


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    """Notes an event as it ends; those within it, as of a program that is traced within another one, count once."""
    if event not in _KINDS:
        return
    begin = time.monotonic() - duration_secs
    events: list[_Event] = getattr(_local, "events", [])
    seconds = dict(_NOTHING)
    while events and events[-1][0] >= begin:
        for kind, each in events.pop()[1].items():
            seconds[kind] += each
    seconds[_KINDS[event]] += max(duration_secs - sum(seconds.values()), 0.0)
    events.append((begin, seconds))
    _local.events = events

"""Warnings for the person who runs a command: a line each on standard error, and each of them once."""

import sys

_told: set[str] = set()


def warn(message: str) -> None:
    """Prints a warning, in the first process alone, and none that this process has printed before."""
    if message not in _told and _is_first():
        _told.add(message)
        print(f"warning: {message}", file=sys.stderr)


def _is_first() -> bool:
    """Whether this is the first process of a run, told without touching a device, as `jax.process_index` would."""
    if "jax" not in sys.modules:
        return True
    from jax._src import distributed

    return not distributed.global_state.process_id

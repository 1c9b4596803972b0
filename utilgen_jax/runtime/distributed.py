"""Several processes as one run: they join, wait for each other, agree, and end together."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax

from utilgen_jax.errors import InputError

_FAILURE = "utilgen_jax/failure"
_DAY_MS = 24 * 60 * 60 * 1000


def initialize_distributed(environ: Mapping[str, str] = os.environ) -> bool:
    """Joins the other processes of this run, where the environment says that there are any.

    Call it before any device is used. What it looks at:

    - `UTILGEN_DISTRIBUTED=1` joins, `0` does not, whatever else is set. Needed on a Cloud TPU pod, whose VMs
      tell of it only over the network; JAX then asks them.
    - `JAX_COORDINATOR_ADDRESS` (host:port) joins; on clusters that JAX does not know, `JAX_NUM_PROCESSES` and
      `JAX_PROCESS_ID` give the rest.
    - More than one task in `SLURM_STEP_NUM_TASKS`, `OMPI_COMM_WORLD_SIZE` or `MEGASCALE_NUM_SLICES`, or more than one
      name in `TPU_WORKER_HOSTNAMES`, joins; JAX reads the rest from the same environment.

    Returns:
        Whether this process is part of a distributed run.

    Raises:
        InputError: one of the variables cannot be understood, or the other processes are not found.
    """
    if jax.distributed.is_initialized():
        return True
    requested = environ.get("UTILGEN_DISTRIBUTED", "")
    if requested not in ("", "0", "1"):
        raise InputError(f"environment variable UTILGEN_DISTRIBUTED={requested!r}: 1 joins other processes, 0 does not")
    tasks = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
    several = (
        "JAX_COORDINATOR_ADDRESS" in environ
        or any((_int(environ, name) or 1) > 1 for name in tasks)
        or "," in environ.get("TPU_WORKER_HOSTNAMES", "")
    )
    if requested == "0" or not (several or requested == "1"):
        return False
    try:
        jax.distributed.initialize(
            coordinator_address=environ.get("JAX_COORDINATOR_ADDRESS"),
            num_processes=_int(environ, "JAX_NUM_PROCESSES"),
            process_id=_int(environ, "JAX_PROCESS_ID"),
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"cannot join other processes ({error}); UTILGEN_DISTRIBUTED=0 runs without them") from error
    return True


def wait_for_all(name: str) -> None:
    """Returns when every process has come to this call; at once where there is one process.

    Args:
        name: of the place in the program, the same in all processes.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agree(value: bool) -> bool:
    """Returns the first process's value in every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(value))


@contextmanager
def end_together() -> Iterator[None]:
    """Ends every process of the run as soon as one of them fails within the block.

    The one that fails raises its error as ever; the others print its message and leave with exit status 1. Without
    this they would wait for it in the next collective operation until a timeout.
    """
    if jax.process_count() == 1:
        yield
        return
    client = _client()
    threading.Thread(target=_leave_on_failure, args=(client,), daemon=True).start()
    try:
        yield
    except BaseException as error:
        message = f"process {jax.process_index()}: {type(error).__name__}: {error}"
        client.key_value_set(_FAILURE, f"{jax.process_index()} {message}", allow_overwrite=True)
        # The first process serves the message: it must not be gone before the others have read it.
        time.sleep(2.0)
        raise


def _leave_on_failure(client) -> None:
    try:
        text = client.blocking_key_value_get(_FAILURE, _DAY_MS)
    except Exception:  # the service went away: the run is over
        return
    process, _, message = text.partition(" ")
    if int(process) != jax.process_index():
        print(f"error: another process of this run failed; {message}", file=sys.stderr, flush=True)
        os._exit(1)


def _client():
    """JAX's client of the service that coordinates the processes; it has no public name."""
    from jax._src import distributed

    return distributed.global_state.client


def _int(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is None or text.strip() == "":
        return None
    try:
        return int(text)
    except ValueError:
        raise InputError(f"environment variable {name}={text!r}: must be a whole number") from None

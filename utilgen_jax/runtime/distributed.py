"""Several processes as one run: they join, wait for each other, agree, and end together."""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.lifelines import Lifeline, Listener
from utilgen_jax.runtime.termination import Terminated, is_requested

_FAILURE = "utilgen_jax/failure"
_DEATH = "utilgen_jax/death"
_LISTENER = "utilgen_jax/listener"
_INTERVAL = 0.5  # seconds between looks for a failure
_BETWEEN_MEETINGS = 0.5  # seconds, about
_LATE = 15.0  # seconds until it is told that others have not come yet
_GRACE = 2.0  # seconds within which a failed collective operation is known to be another process's end
# What another process reports, and seconds that one waits for the others to end too.
_ENDS = ((_FAILURE, 20.0), (_DEATH, 3.0))
_SHARD = re.compile(r"(?:^|[/.])shard-(\d{5})(?=[/.])")


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
    # It would take SIGTERM for itself, see `termination`.
    jax.config.update("jax_enable_preemption_service", False)
    late = threading.Timer(_LATE, _tell, ["waiting for the other processes of this run, for 5 minutes at most"])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator_address=environ.get("JAX_COORDINATOR_ADDRESS"),
            num_processes=_int(environ, "JAX_NUM_PROCESSES"),
            process_id=_int(environ, "JAX_PROCESS_ID"),
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"cannot join other processes ({error}); UTILGEN_DISTRIBUTED=0 runs without them") from error
    finally:
        late.cancel()
    return True


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


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
    return bool(agree_on(int(value)))


def agree_on(number: int) -> int:
    """Returns the first process's number, an int32, in every process."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def is_any(value: bool) -> bool:
    """Whether the value is true in any process; all of them call this at the same place."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(value)).any())


def is_any_terminated() -> bool:
    """Whether SIGTERM has come to any process; all of them call this at the same place."""
    return is_any(is_requested())


def shard_name(number: int) -> str:
    """What a file or folder has in its name that a process other than the first may write, `shard-00003`."""
    return f"shard-{number:05d}"


def writer_of(path: str, processes: int) -> int:
    """Which of so many processes writes a file: the first one, unless its path names the shard of another."""
    found = _SHARD.search(path)
    number = int(found[1]) if found else 0
    return number if number < processes else 0


def is_own(path: str) -> bool:
    """Whether this process is the one that writes a file."""
    return writer_of(path, jax.process_count()) == jax.process_index()


def all_see(file: Path) -> bool:
    """Whether every process sees a file that the first one writes, and so shares its folder."""
    if jax.process_count() == 1:
        return True
    number = str(agree_on(secrets.randbelow(2**31)))
    if jax.process_index() == 0:
        file.write_text(number)
    wait_for_all(f"{file.name} is written")
    return not is_any(not file.is_file() or file.read_text() != number)


def check_terminated() -> None:
    """Raises Terminated where SIGTERM has come to any process; called wherever a run can be continued, by all."""
    if is_any_terminated():
        raise Terminated


class Meetings:
    """The steps of a loop after which several processes wait for each other, to agree on something: seconds apart.

    One process alone meets after every step.
    """

    def __init__(self) -> None:
        self._next = 1
        self._since: tuple[int, float] | None = None

    def is_one(self, step: int) -> bool:
        """Whether all meet after this step; called after every step, by all."""
        if jax.process_count() == 1:
            return True
        if step < self._next:
            if self._since is None:  # from here on, as what a meeting brings is not a step's time
                self._since = step, time.monotonic()
            return False
        apart = 2.0
        if self._since is not None and step > self._since[0]:
            apart = _BETWEEN_MEETINGS * (step - self._since[0]) / max(time.monotonic() - self._since[1], 1e-3)
        self._next = step + agree_on(int(np.clip(apart, 1, 1000)))
        self._since = None
        return True


@contextmanager
def end_together() -> Iterator[None]:
    """Ends every process of the run as soon as one of them fails within the block.

    The one that fails raises its error as ever; the others print its message and leave with exit status 1. Where one
    is killed or its machine is gone, the others say which. Without this they would wait for it in the next collective
    operation until a timeout. The first process serves the others: when it dies, JAX ends them.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch(_client(), _connection(_client()))
    try:
        yield
    except Terminated:  # so do all
        raise
    except BaseException as error:
        # Perhaps what a collective operation raises where another process has gone: then it is not ours.
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            time.sleep(_GRACE)
            watch.stop()
            watch.look()
        watch.stop()
        watch.report(error)
        raise
    finally:
        watch.stop()


class _Watch:
    """Looks for the end of another process, from a thread of its own.

    Args:
        client: of the service that coordinates the processes.
        connection: of this process; None: there is none.
    """

    def __init__(self, client: Any, connection: Listener | Lifeline | None = None) -> None:
        self._client = client
        self._connection = connection
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread: one inside the client when Python exits would abort the process."""
        self._stopped.set()
        self._thread.join()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def report(self, error: BaseException) -> None:
        """Tells the other processes of an error of this one."""
        self._set(_FAILURE, f"process {jax.process_index()}: {type(error).__name__}: {error}")

    def look(self) -> None:
        """Ends this process where another one has reported an error, or has died."""
        if isinstance(self._connection, Listener) and (name := self._connection.look()):
            self._set(_DEATH, f"{name} has died: it was killed, or its machine is gone")
        for key, patience in _ENDS:
            try:
                message = self._client.key_value_try_get(key)
            except jax.errors.JaxRuntimeError:  # there is none
                continue
            print(f"error: another process of this run failed; {message}", file=sys.stderr, flush=True)
            # The first process serves the others: it must outlive them. JAX's shutdown, which the one that failed comes
            # to when Python exits, returns when all have come to it.
            leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
            leaving.start()
            leaving.join(patience)
            os._exit(1)

    def _set(self, key: str, message: str) -> None:
        try:
            self._client.key_value_set(key, message)
        except jax.errors.JaxRuntimeError:  # another has failed before, or the first process has gone
            pass

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL):
            self.look()


def _connection(client: Any) -> Listener | Lifeline | None:
    """This process's part of the lifelines; None where the first process cannot be reached.

    JAX's own heartbeats end the run then, 100 s after a process has died.
    """
    from jax._src import distributed

    if jax.process_index() == 0:
        listener = Listener()
        client.key_value_set(_LISTENER, listener.address)
        return listener
    host = (distributed.global_state.coordinator_address or "").rpartition(":")[0].strip("[]")
    address = client.blocking_key_value_get(_LISTENER, 60_000)
    try:
        return Lifeline(host, address, f"process {jax.process_index()} on {socket.gethostname()}")
    except OSError as error:
        print(
            f"process {jax.process_index()}: no connection to {host} ({error}), so its death is noticed late",
            file=sys.stderr,
        )
        return None


def _client() -> Any:
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

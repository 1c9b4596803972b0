"""Programs that are compiled in a thread while the run does other work."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax


class CompileAhead:
    """Compiles programs in the order in which they are given, in a thread of its own.

    What is compiled is `jax.jit`'s own executable: a call with arguments of the shapes, types and shardings that it was
    lowered for finds it. A context manager, whose end waits for the program that is being compiled.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "compile_ahead")
        self._compiling: dict[str, Future[None]] = {}

    def __enter__(self) -> CompileAhead:
        return self

    def __exit__(self, *exception: Any) -> None:
        # XLA cannot be interrupted, and a process that ends beside it crashes.
        self._thread.shutdown(cancel_futures=True)

    def start(self, name: str, lower: Callable[[], jax.stages.Lowered]) -> None:
        """Has a program compiled, under the mesh that is set.

        Does nothing with several processes, which have to compile in one order, or on GPUs, where XLA times kernels as
        it compiles and would find the device busy.

        Args:
            name: for `wait`.
            lower: traces and lowers it, in the thread.
        """
        if jax.process_count() > 1 or jax.default_backend() == "gpu":
            return
        mesh = jax.sharding.get_mesh()

        def compile_program() -> None:
            with jax.set_mesh(mesh):
                lower().compile()

        self._compiling[name] = self._thread.submit(compile_program)

    def wait(self, name: str) -> None:
        """Waits until a program is compiled, and raises what went wrong; returns at once where none was started."""
        if name in self._compiling:
            self._compiling.pop(name).result()

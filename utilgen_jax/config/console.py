"""What a command says to a person: streams whose loss ends no run, and errors that a person can mend, in one line."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from utilgen_jax.errors import InputError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Where JAX reads its environment variables and starts its devices: errors from there are no bugs of a program.
_START_OF_JAX = ("jax/_src/config.py", "jax/_src/xla_bridge.py", "jax/_src/hardware_utils.py")


class Stream(io.TextIOBase):
    """A standard stream that leaves out what it cannot write, so that a run whose reader has left goes on.

    Attributes:
        error: why nothing more is written; None while all is well.

    Args:
        stream: to write to; None where it was closed from the start.
    """

    def __init__(self, stream: Any) -> None:
        self.error: Exception | None = None
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes text as far as that is possible; characters that the encoding lacks become '?'."""
        if self._stream is not None and self.error is None:
            try:
                self._stream.write(self._encodable(text))
            except (OSError, ValueError) as error:  # ValueError: it was closed meanwhile
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Writes what is buffered, as far as that is possible."""
        if self._stream is not None and self.error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        """Whether a person watches."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """The number of the file; OSError where there is none."""
        if self._stream is None:
            raise OSError(errno.EBADF, "the stream is closed")
        return self._stream.fileno()

    def writable(self) -> bool:
        """Always: what cannot be written is left out."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        """What becomes of characters that the encoding lacks; `input` asks for it."""
        return "replace"

    def _encodable(self, text: str) -> str:
        return text.encode(self.encoding, "replace").decode(self.encoding, "replace")

    def _give_up(self, error: Exception) -> None:
        self.error = error
        try:  # what is still in its buffer must not raise again when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()
        except (OSError, ValueError):
            pass


@contextmanager
def lasting_streams() -> Iterator[tuple[Stream, Stream]]:
    """Puts a `Stream` in place of standard output and standard error, which are yielded."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: else the next file that is opened would get what is printed
            os.open(os.devnull, os.O_RDWR)
    out, err = Stream(sys.stdout), Stream(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        yield out, err


def as_message(error: BaseException) -> str | None:
    """The lines to print of an error that a person can mend; None of others, which are bugs.

    Mended can be bad input, what the system refuses (a full disk, a folder that may not be written), the start of JAX
    (its environment variables, a device that is not there), and a device or machine with too little memory.
    """
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        advice = "; make room, and the same command continues" if error.errno in _FULL else ""
        return f"{where}{error.strerror or error}{advice}"
    if isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED"):
        lines = str(error).splitlines() or ["no more memory"]
        return f"{lines[0]}; take smaller batches or images: `python -m utilgen_jax.plan` tells what fits"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, ValueError | RuntimeError) and frames and frames[-1].filename.endswith(_START_OF_JAX):
        return f"JAX does not start: {' '.join(str(error).split())}"
    return None

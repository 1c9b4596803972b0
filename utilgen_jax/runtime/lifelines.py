"""A connection from every process of a run to the first one, which tells it when a process has died.

The system closes a process's connections when it ends, however it ends; of a machine that is gone, it finds out in half
a minute. A process in a long computation keeps its connection, where it might miss a heartbeat of ours.
"""

from __future__ import annotations

import secrets
import selectors
import socket

_HELLO = 5.0  # seconds for the first line of a connection
_END = b"\n"  # sent before an end that is none of a dead process


class Listener:
    """Of the first process: waits for the others' connections, and for their ends. `look` is called now and then.

    Attributes:
        address: what `Lifeline` needs of it, for the other processes.
    """

    def __init__(self) -> None:
        self._token = secrets.token_hex(8)
        self._socket = socket.create_server(("", 0))
        self.address = f"{self._socket.getsockname()[1]} {self._token}"
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._socket, selectors.EVENT_READ)

    def look(self) -> str | None:
        """Returns the name of a process that has died since the last look, "process 3 on host-7"; None: none has."""
        for ready, _ in self._selector.select(0):
            connection = ready.fileobj
            assert isinstance(connection, socket.socket)
            if connection is self._socket:
                self._accept()
            elif name := self._ended(connection, ready.data):
                return name
        return None

    def close(self) -> None:
        """Closes all connections."""
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _accept(self) -> None:
        connection, _ = self._socket.accept()
        connection.settimeout(_HELLO)
        try:
            token, _, name = connection.makefile(errors="replace").readline(1000).strip().partition(" ")
        except OSError:
            token = name = ""
        if token == self._token:
            _keep_alive(connection)
            self._selector.register(connection, selectors.EVENT_READ, name)
        else:  # none of ours
            connection.close()

    def _ended(self, connection: socket.socket, name: str) -> str | None:
        try:
            last = connection.recv(1)
        except OSError:  # such as a reset, or no answer of its machine
            last = b""
        self._selector.unregister(connection)
        connection.close()
        return None if last == _END else name


class Lifeline:
    """Of any other process: its connection to the first one.

    Args:
        host: of the first process.
        address: of its listener.
        name: of this process.
    """

    def __init__(self, host: str, address: str, name: str) -> None:
        port, token = address.split()
        self._socket = socket.create_connection((host, int(port)), timeout=_HELLO)
        self._socket.sendall(f"{token} {name}\n".encode())

    def close(self) -> None:
        """Ends it as a process does that has not died."""
        try:
            self._socket.sendall(_END)
        except OSError:  # the first process has closed it
            pass
        self._socket.close()


def _keep_alive(connection: socket.socket) -> None:
    """Has the system ask, after 10 quiet seconds, every 5 seconds, four times, whether the other machine is there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

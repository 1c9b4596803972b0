"""Connections by which the first process notices another one's death."""

import socket
import time

import pytest

from utilgen_jax.runtime.lifelines import Lifeline, Listener


@pytest.fixture
def listener():
    made = Listener()
    yield made
    made.close()


def looked(listener: Listener) -> str | None:
    """What it sees within a second."""
    for _ in range(20):
        if name := listener.look():
            return name
        time.sleep(0.05)
    return None


def test_a_connection_that_breaks_tells_the_name_once(listener):
    first, second = (Lifeline("127.0.0.1", listener.address, f"process {number} on host") for number in (1, 2))
    assert looked(listener) is None
    second._socket.close()  # as the system does for a process that was killed
    assert looked(listener) == "process 2 on host"
    assert looked(listener) is None
    first.close()


def test_a_process_that_leaves_has_not_died(listener):
    line = Lifeline("127.0.0.1", listener.address, "process 1 on host")
    assert looked(listener) is None
    line.close()
    assert looked(listener) is None


def test_connections_of_others_are_none_of_ours(listener):
    port = int(listener.address.split()[0])
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"", b"\xff\xfe\n"):
        with socket.create_connection(("127.0.0.1", port)) as other:
            other.sendall(said)
            other.shutdown(socket.SHUT_WR)
            assert looked(listener) is None


def test_where_the_first_process_has_left_nothing_is_raised():
    made = Listener()
    line = Lifeline("127.0.0.1", made.address, "process 1 on host")
    made.look()
    made.close()
    line.close()
    line.close()

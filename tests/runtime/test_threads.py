import threading
import time

import jax
import pytest

from utilgen_jax.runtime.sharding import make_mesh
from utilgen_jax.runtime.threads import check_stopped, num_cores, run_at_once


def test_works_run_at_once_under_the_mesh_and_come_back_in_order():
    both_run = threading.Barrier(2, timeout=30)

    def work(number):
        both_run.wait()  # breaks unless the other one runs too
        return number, jax.sharding.get_mesh()

    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        assert run_at_once([lambda: work(0), lambda: work(1)]) == [(0, mesh), (1, mesh)]


def test_one_alone_runs_in_the_calling_thread():
    assert run_at_once([threading.get_ident]) == [threading.get_ident()] and run_at_once([]) == []


@pytest.mark.parametrize("first", [True, False])
def test_where_one_fails_the_others_end(first):
    ended = []

    def fail():
        raise FloatingPointError("of this one")

    def go_on():
        for _ in range(30_000):
            time.sleep(0.001)
            try:
                check_stopped()
            except Exception:
                ended.append(True)
                raise

    with pytest.raises(FloatingPointError, match="of this one"):
        run_at_once([fail, go_on] if first else [go_on, fail])
    assert ended == [True]
    check_stopped()  # nothing is stopped here


def test_there_is_a_core():
    assert num_cores() >= 1

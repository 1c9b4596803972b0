"""Counts of a compiled program, against XLA's own where it has some."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from utilgen_jax.plan.hlo_counts import HloCounts, count_hlo
from utilgen_jax.runtime.sharding import make_mesh

MATRIX = jnp.ones((64, 64))


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def counts(function, *arguments) -> HloCounts:
    return count_hlo(compiled(function, *arguments).as_text())


def test_bytes_are_those_that_xla_counts():
    program = compiled(lambda x: jnp.sum(jnp.sin(x @ MATRIX), -1), MATRIX)
    assert count_hlo(program.as_text()).memory_bytes == program.cost_analysis()["bytes accessed"]


def test_a_loop_counts_as_often_as_it_runs():
    def looped(steps: int) -> HloCounts:
        return counts(lambda x: jax.lax.fori_loop(0, steps, lambda _, y: jnp.sin(y @ x), x), MATRIX)

    more = looped(7).memory_bytes - looped(4).memory_bytes
    # A step at least reads two matrices and writes one.
    assert more >= 3 * 3 * MATRIX.nbytes and more % 3 == 0


def test_products_copies_and_gathers_are_found():
    assert counts(lambda x: x @ x, MATRIX).float32_products == 1
    assert counts(lambda x: x @ x, MATRIX.astype(jnp.int32)).float32_products == 0
    assert counts(jnp.sin, MATRIX).float32_bytes == MATRIX.nbytes
    rows = jnp.array([3, 1])
    text = """
ENTRY %main (x: f32[64,64], rows: s32[2]) -> f32[2,64] {
  %x = f32[64,64]{1,0} parameter(0)
  %rows = s32[2]{0} parameter(1)
  %copy.1 = f32[64,64]{0,1:T(8,128)S(1)} copy(%x)
  ROOT %gather.2 = f32[2,64]{1,0} gather(%copy.1, %rows), offset_dims={1}
}
"""
    found = count_hlo(text)
    # The copy lies in fast memory: it is written and read there.
    assert found == HloCounts(
        kernels=2,
        memory_bytes=MATRIX.nbytes + rows.nbytes + 2 * 64 * 4,
        float32_bytes=2 * 64 * 4,
        copies=1,
        copied_bytes=MATRIX.nbytes,
        gathers=1,
    )


def test_collectives_count_with_what_they_bring():
    mesh = make_mesh(devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        batch = jax.device_put(MATRIX, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
        found = counts(lambda x: jnp.sum(x, 0), batch)
    assert (found.collectives, found.collective_bytes) == (1, 64 * 4)

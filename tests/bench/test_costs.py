import jax
import jax.numpy as jnp
import pytest

from utilgen_jax.bench.costs import compiled_flops, peak_bytes
from utilgen_jax.models.dot_product_attention import chunked_attention, dot_product_attention, plain_attention
from utilgen_jax.runtime.flops import count_bytes, count_flops


def compile(function, *arguments):
    traced = jax.jit(function).trace(*arguments)
    return traced, traced.lower().compile()


def test_a_matrix_product_costs_two_operations_a_multiplication_and_its_arrays():
    left, right = jnp.ones((64, 32)), jnp.ones((32, 16))
    traced, compiled = compile(jnp.matmul, left, right)
    assert compiled_flops(compiled, traced) == pytest.approx(2 * 64 * 32 * 16, rel=0.01)
    assert peak_bytes(compiled) >= 4 * (64 * 32 + 32 * 16 + 64 * 16)


@pytest.mark.parametrize("attend", [dot_product_attention, chunked_attention])
def test_loops_cost_as_much_as_they_repeat(attend):
    arguments = [jnp.ones((1, 1024, 2, 64))] * 3
    traced, compiled = compile(attend, *arguments)
    expected = 4 * 1024 * 1024 * 2 * 64
    assert count_flops(traced.jaxpr, "cpu") == expected
    assert compiled.cost_analysis()["flops"] < 0.2 * expected  # XLA's count, one pass through each loop
    assert compiled_flops(compiled, traced) == pytest.approx(expected, rel=0.05)


def test_of_branches_for_devices_the_one_of_the_platform_counts():
    matrix = jnp.ones((8, 8))
    function = lambda matrix: jax.lax.platform_dependent(
        matrix, cpu=lambda matrix: matrix @ matrix, default=lambda matrix: matrix @ matrix @ matrix
    )
    jaxpr = jax.jit(function).trace(matrix).jaxpr
    product = 2 * 8**3
    assert count_flops(jaxpr, "cpu") == product
    assert count_flops(jaxpr, "tpu") == count_flops(jaxpr) == 2 * product


def test_the_count_is_of_what_plain_attention_does():
    arguments = [jnp.ones((1, 600, 2, 8))] * 3
    assert count_flops(jax.jit(plain_attention).trace(*arguments).jaxpr) == 4 * 600 * 600 * 2 * 8


def test_a_product_moves_its_arrays_and_each_device_a_whole_weight():
    images, weight, keys = jnp.ones((64, 32)), jnp.ones((32, 16)), jnp.ones((64, 32, 8))
    traced, compiled = compile(jnp.matmul, images, weight)
    assert count_bytes(traced.jaxpr) == compiled.cost_analysis()["bytes accessed"] == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert count_bytes(traced.jaxpr, 4) == 4 * (64 * 32 + 64 * 16) // 4 + 4 * 32 * 16
    each = jax.jit(lambda images, keys: jnp.einsum("bi,bij->bj", images, keys)).trace(images, keys).jaxpr
    assert count_bytes(each, 4) == count_bytes(each) // 4 == 64 * (32 + 32 * 8 + 8)


def test_a_loop_moves_as_much_as_it_repeats():
    weight = jnp.ones((8, 8))
    loop = jax.jit(lambda x: jax.lax.scan(lambda x, _: (x @ weight, None), x, length=5)[0]).trace(weight).jaxpr
    assert count_bytes(loop) == 5 * 3 * 4 * 64

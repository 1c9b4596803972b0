import jax
import jax.numpy as jnp
import numpy as np
import pytest

from utilgen_jax.runtime.loops import map_in_parts, num_parts, remat_steps


@pytest.mark.parametrize(
    ("number", "most", "parts"), [(8, 0, 1), (8, 8, 1), (8, 9, 1), (8, 3, 4), (6, 4, 2), (7, 2, 7)]
)
def test_parts_are_equal_and_no_larger_than_asked(number, most, parts):
    assert num_parts(number, most) == parts


@pytest.mark.parametrize("most", [0, 1, 2, 6])
def test_a_batch_in_parts_gives_what_the_whole_gives_and_its_gradient(most):
    sizes, batch = [], {"x": jnp.arange(12.0).reshape(6, 2), "key": jax.random.split(jax.random.key(0), 6)}

    def function(scale, part):
        sizes.append(len(part["x"]))
        noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(part["key"])
        return scale * jnp.sin(part["x"]) + noise, None

    def total(scale):
        outputs, nothing = map_in_parts(lambda part: function(scale, part), batch, most)
        assert nothing is None
        return jnp.sum(outputs**2), outputs

    (_, outputs), gradient = jax.value_and_grad(total, has_aux=True)(3.0)
    assert set(sizes) == {most or 6}
    expected = function(3.0, batch)[0]
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, jnp.sum(2 * expected * jnp.sin(batch["x"])), rtol=1e-5)


@pytest.mark.parametrize("loop", [True, False])
def test_steps_are_those_of_a_scan(loop):
    step = lambda carry, x: (carry * x + 1, carry)
    inputs = jnp.linspace(0.5, 1.5, 5)
    found, expected = remat_steps(step, 2.0, inputs, loop), jax.lax.scan(step, 2.0, inputs)
    jax.tree.map(np.testing.assert_allclose, found, expected)

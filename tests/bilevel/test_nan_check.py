import jax.numpy as jnp
import numpy as np
import optax
import pytest

from utilgen_jax.bilevel import check_finite, init_bilevel, make_bilevel_update
from utilgen_jax.bilevel.examples import Examples
from utilgen_jax.bilevel.nan_check import no_steps, note_nonfinite, tensor_groups
from utilgen_jax.bilevel.weightings import uniform


def test_groups_are_named_by_the_first_two_parts_of_the_path():
    tree = {
        "params": {"conv1": {"kernel": 1, "bias": 2}, "fc": {"kernel": 3}},
        "adapter": {"loras": {"unet": {"a": 4}}},
    }
    assert tensor_groups(tree) == {"params/conv1": [2, 1], "params/fc": [3], "adapter/loras": [4]}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_step_is_kept(bad):
    record = no_steps({"losses": None, "weights": None})
    good, broken = [jnp.ones(2)], [jnp.ones(2), jnp.array([0.0, bad])]
    for step, losses in enumerate([good, broken, broken, good]):
        record = note_nonfinite(record, {"losses": losses, "weights": good}, jnp.int32(step))
    assert {name: int(step) for name, step in record.items()} == {"losses": 1, "weights": -1}
    with pytest.raises(FloatingPointError, match="^step 1: NaN or infinity in losses$"):
        check_finite(record)


def test_causes_come_before_effects():
    record = {"adapter/loras": 4, "params/b": 3, "params/a": 3, "losses": 3, "generated inputs": -1, "weighting/x": 3}
    with pytest.raises(
        FloatingPointError, match="step 3: NaN or infinity in losses, then params/a, params/b, weighting/x"
    ):
        check_finite({name: jnp.int32(step) for name, step in record.items()})


def test_a_run_that_breaks_tells_where():
    def apply(params, inputs):
        return inputs @ params["head"]["kernel"]

    optimizer = optax.sgd(0.1)
    update = make_bilevel_update(apply, uniform(), optimizer, optax.sgd(0.1))
    state = init_bilevel({"head": {"kernel": jnp.ones((2, 3))}}, optimizer, {}, optax.sgd(0.1))
    good = Examples(jnp.ones((4, 2)), jnp.eye(3)[jnp.array([0, 1, 2, 0])])
    for step in range(6):
        examples = good if step != 2 else good.replace(inputs=good.inputs.at[0, 0].set(jnp.inf))
        state, _ = update(state, examples)
    with pytest.raises(FloatingPointError, match=r"^step 2: NaN or infinity in losses, then params/head$"):
        check_finite(state.first_nonfinite)

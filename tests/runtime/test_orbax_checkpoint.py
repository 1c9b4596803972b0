"""Saving and restoring a run's state."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct

from utilgen_jax.errors import InputError
from utilgen_jax.runtime import orbax_checkpoint


@struct.dataclass
class State:
    """What a training run keeps."""

    params: dict
    opt_state: optax.OptState
    key: jax.Array
    step: int


def make_state(seed, impl="threefry2x32"):
    params = {"dense": {"kernel": jax.random.normal(jax.random.key(seed), (4, 3)), "bias": jnp.zeros(3, jnp.bfloat16)}}
    return State(params, optax.adam(1e-3).init(params), jax.random.split(jax.random.key(seed, impl=impl), 2), step=seed)


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    ours, theirs = (tree.replace(key=jax.random.key_data(tree.key)) for tree in (ours, theirs))
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert np.asarray(mine).dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_round_trip(tmp_path, impl):
    state = make_state(3, impl)
    assert not orbax_checkpoint.exists(tmp_path / "state")
    orbax_checkpoint.save(tmp_path / "state", state)
    assert orbax_checkpoint.exists(tmp_path / "state")

    restored = orbax_checkpoint.restore(tmp_path / "state", make_state(4, impl))

    assert_same(restored, state)
    assert jax.random.key_impl(restored.key) == jax.random.key_impl(state.key)


def test_restores_into_shapes_alone(tmp_path):
    state = make_state(3)
    orbax_checkpoint.save(tmp_path, state)
    shapes = jax.eval_shape(lambda: make_state(0))
    restored = orbax_checkpoint.restore(tmp_path, shapes)
    assert_same(restored, state.replace(step=jnp.asarray(3)))
    assert jax.random.normal(restored.key[0]) == jax.random.normal(state.key[0])


def test_a_new_save_replaces_the_old_one(tmp_path):
    for seed in (1, 2, 3):
        orbax_checkpoint.save(tmp_path, make_state(seed))
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
    assert_same(orbax_checkpoint.restore(tmp_path, make_state(0)), make_state(3))


def test_an_unfinished_save_is_not_seen(tmp_path):
    orbax_checkpoint.save(tmp_path, make_state(1))
    (tmp_path / "1.orbax-checkpoint-tmp").mkdir()
    assert_same(orbax_checkpoint.restore(tmp_path, make_state(0)), make_state(1))
    orbax_checkpoint.save(tmp_path, make_state(2))
    assert_same(orbax_checkpoint.restore(tmp_path, make_state(0)), make_state(2))


def test_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    orbax_checkpoint.save("state", {"x": np.ones(2)})
    np.testing.assert_array_equal(orbax_checkpoint.restore("state", {"x": np.zeros(2)})["x"], np.ones(2))


def test_restored_array_takes_the_sharding_of_like(tmp_path):
    orbax_checkpoint.save(tmp_path, {"x": jnp.arange(4.0)})
    sharding = jax.NamedSharding(
        jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)), jax.P("data")
    )
    like = {"x": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)}
    assert orbax_checkpoint.restore(tmp_path, like)["x"].sharding == sharding


@pytest.mark.parametrize(
    "like",
    [
        {"x": np.zeros(3), "y": np.zeros(3)},
        {"y": np.zeros(3)},
        {},
        {"x": jnp.zeros(4)},
        {"x": np.zeros(4)},
    ],
    ids=["extra", "renamed", "missing", "shape", "numpy shape"],
)
def test_other_structure_or_shape_is_refused(tmp_path, like):
    orbax_checkpoint.save(tmp_path, {"x": np.ones(3)})
    with pytest.raises(InputError) as caught:
        orbax_checkpoint.restore(tmp_path, like)
    assert str(tmp_path) in str(caught.value)


def test_missing_and_damaged_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere: holds no checkpoint"):
        orbax_checkpoint.restore(tmp_path / "nowhere", {"x": np.zeros(3)})
    assert not (tmp_path / "nowhere").exists()

    orbax_checkpoint.save(tmp_path / "state", {"x": np.ones(3)})
    for path in (tmp_path / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(InputError, match="state: .*cannot be restored"):
        orbax_checkpoint.restore(tmp_path / "state", {"x": np.zeros(3)})


def test_a_disk_that_cannot_be_written_is_told_in_one_line_and_keeps_what_was_saved(tmp_path, monkeypatch, capfd):
    folder = tmp_path / "state"
    orbax_checkpoint.save(folder, {"x": np.ones(3)})
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**10))
        with pytest.raises(InputError, match=r"state: the disk is full \(8.1 MiB needed, 0.0 free\); make room"):
            orbax_checkpoint.save(folder, {"x": np.zeros(2**20)})
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file/state"):
        orbax_checkpoint.save(tmp_path / "file" / "state", {"x": np.ones(3)})
    assert "Traceback" not in capfd.readouterr().err
    np.testing.assert_array_equal(orbax_checkpoint.restore(folder, {"x": np.zeros(3)})["x"], np.ones(3))

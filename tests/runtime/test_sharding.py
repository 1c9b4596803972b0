"""The mesh on 8 devices and with 2 processes. XLA makes fake devices only when it starts: both run in new processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.data.test_streamed_images import PIXELS, streamed
from utilgen_jax import checkpoints
from utilgen_jax.errors import InputError
from utilgen_jax.runtime import sharding
from utilgen_jax.runtime.distributed import initialize_distributed

ROOT = Path(__file__).parents[2]


def start(function, *arguments, devices, **environ):
    """Starts this file in a new process that calls one of its functions."""
    environ |= {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, __file__, function.__name__, *map(str, arguments)]
    return subprocess.Popen(
        command, env=os.environ | environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


def test_eight_devices(tmp_path):
    finish(start(eight_devices, tmp_path, devices=8))


@pytest.mark.slow
def test_two_processes(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environ = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [start(two_processes, tmp_path, devices=2, JAX_PROCESS_ID=str(i), **environ) for i in range(2)]
    for process in processes:
        finish(process)


def eight_devices(tmp_path):
    """Runs on 8 devices."""
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(sharding.make_mesh(data=2, fsdp=-1).shape) == {"data": 2, "fsdp": 4}
    for data, fsdp, named in [
        (3, 1, "data=3"),
        (-1, 3, "fsdp=3"),
        (4, 4, "fsdp=4"),
        (1, 1, "8 device"),
        (16, -1, "data=16"),
    ]:
        with pytest.raises(InputError, match=named):
            sharding.make_mesh(data, fsdp)

    mesh = sharding.make_mesh(data=2, fsdp=4)
    rng = np.random.default_rng(0)
    params = {
        "conv": {"kernel": rng.normal(size=(3, 3, 64, 128)), "bias": np.zeros(2**17)},
        "odd": {"kernel": rng.normal(size=(511, 513))},
        "small": {"kernel": rng.normal(size=(8, 8))},
    }
    placed = sharding.shard_params(params, mesh)
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, placed)
    assert specs == {
        "conv": {"kernel": P(None, None, None, "fsdp"), "bias": P()},
        "odd": {"kernel": P()},
        "small": {"kernel": P()},
    }
    assert placed["conv"]["kernel"].addressable_shards[0].data.shape == (3, 3, 64, 32)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6), placed, params)

    by_rule = sharding.param_shardings(params, mesh, rules=[("^conv/kernel", lambda shape, mesh: P("data"))])
    assert by_rule["conv"]["kernel"].spec == P("data") and by_rule["odd"]["kernel"].spec == P()

    batch = {"images": rng.normal(size=(16, 4, 4, 1)), "few": np.arange(3), "key": jax.random.key(0)}
    placed_batch = sharding.shard_batch(batch, mesh)
    assert placed_batch["images"].addressable_shards[0].data.shape == (2, 4, 4, 1)
    assert placed_batch["few"].sharding.is_fully_replicated and placed_batch["key"].sharding.is_fully_replicated
    with pytest.raises(InputError, match="a batch of 12 does not divide among 8 devices"):
        sharding.shard_batch(np.zeros((12, 2)), mesh)

    def loss(kernel, images):
        out = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.mean(out**2)

    kernel, images = params["conv"]["kernel"].astype(np.float32), rng.normal(size=(8, 4, 4, 64)).astype(np.float32)
    split = jax.jit(sharding.split_batch)
    whole = {"images": images, "few": images[:3]}
    with jax.set_mesh(mesh):
        assert [shard.data.shape[0] for shard in split(whole)["images"].addressable_shards] == [1] * 8
        np.testing.assert_array_equal(split(whole)["few"], images[:3])
        sharded = jax.jit(jax.grad(loss))(placed["conv"]["kernel"], sharding.shard_batch(images, mesh))
    np.testing.assert_allclose(sharded, jax.grad(loss)(kernel, images), atol=1e-5)

    checkpoints.save_component(tmp_path, {"_class_name": "X"}, placed)
    _, loaded = checkpoints.load_component(tmp_path, sharding_for=sharding.sharding_for(mesh))
    assert jax.tree.map(lambda leaf: leaf.sharding.spec, loaded) == specs
    jax.tree.map(np.testing.assert_array_equal, loaded, placed)


def two_processes(tmp_path):
    """Runs in each of 2 processes with 2 devices each."""
    assert initialize_distributed() and initialize_distributed()
    assert jax.process_count() == 2 and jax.device_count() == 4
    mesh = sharding.make_mesh(data=2, fsdp=2)
    params = {"dense": {"kernel": np.arange(2.0**17, dtype=np.float32).reshape(2, -1)}}
    placed = sharding.shard_params(params, mesh)
    assert not placed["dense"]["kernel"].is_fully_addressable
    assert placed["dense"]["kernel"].addressable_shards[0].data.shape == (2, 2**15)
    batch = sharding.shard_batch(np.arange(8.0), mesh)
    assert [shard.data.shape for shard in batch.addressable_shards] == [(2,), (2,)]
    first = 4 * jax.process_index()
    places, rows = sharding.own_rows(batch)
    assert places.tolist() == rows.tolist() == list(range(first, first + 4))
    places, _ = sharding.own_rows(sharding.shard_params({"bias": np.arange(3.0)}, mesh)["bias"])
    assert places.tolist() == ([0, 1, 2] if first == 0 else [])
    with jax.set_mesh(mesh):
        held = sharding.held_rows(sharding.batch_sharding(8), 8)
        assert held.tolist() == list(range(first, first + 4))
        again = sharding.place_rows(np.arange(8.0)[held], held, 8, sharding.batch_sharding(8))
        assert float(jax.jit(jnp.sum)(batch)) == float(jax.jit(jnp.sum)(again)) == 28
        (images,) = streamed().batches(np.arange(8)[::-1][None])
        assert images.addressable_shards[0].data.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(sharding.to_host(images), PIXELS[:8][::-1])

    checkpoints.save_component(tmp_path, {"_class_name": "X"}, placed)
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("saved")
    _, loaded = checkpoints.load_component(tmp_path, sharding_for=sharding.sharding_for(mesh))
    np.testing.assert_array_equal(sharding.to_host(loaded["dense"]["kernel"]), params["dense"]["kernel"])


def test_one_device():
    mesh = sharding.make_mesh()
    params = sharding.shard_params({"kernel": np.ones((512, 512))}, mesh)
    assert params["kernel"].sharding.spec == P()
    np.testing.assert_array_equal(sharding.shard_batch(np.arange(3), mesh), np.arange(3))
    np.testing.assert_array_equal(jax.jit(sharding.split_batch)(np.arange(3)), np.arange(3))


def test_parameters_are_born_in_their_shards():
    def init(key):
        return {"kernel": jax.random.normal(key, (512, 256)), "bias": jnp.zeros(2**17), "small": jnp.ones((8, 8))}

    key = jax.random.key(0)
    expected = sharding.init_sharded(init, key)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(expected))
    mesh = sharding.make_mesh(data=2, fsdp=4)
    with jax.set_mesh(mesh):
        found = sharding.init_sharded(init, key)
    assert {name: leaf.sharding for name, leaf in found.items()} == sharding.param_shardings(expected, mesh)
    assert found["kernel"].sharding.spec == P("fsdp", None)
    assert {shard.data.shape for shard in found["kernel"].addressable_shards} == {(128, 256)}
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_replicate():
    tree = {"images": np.arange(6.0).reshape(3, 2), "labels": np.arange(3)}
    here = sharding.replicate(tree)
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(here))
    with jax.set_mesh(sharding.make_mesh()):
        everywhere = sharding.replicate(tree)
    assert all(len(leaf.addressable_shards) == 8 for leaf in jax.tree.leaves(everywhere))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(everywhere))
    for placed in (here, everywhere):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(placed))
        jax.tree.map(np.testing.assert_array_equal, placed, tree)


def test_split_batch_keeps_the_values():
    batch = {"images": np.arange(48.0).reshape(16, 3), "few": np.arange(3), "odd": np.arange(12)}
    split = jax.jit(sharding.split_batch)
    jax.tree.map(np.testing.assert_array_equal, split(batch), batch)
    with jax.set_mesh(sharding.make_mesh(data=4, fsdp=2)):
        found = split(batch)
    jax.tree.map(np.testing.assert_array_equal, found, batch)
    assert {shard.data.shape for shard in found["images"].addressable_shards} == {(2, 3)}
    # What does not divide among the devices stays whole.
    assert {shard.data.shape for shard in found["odd"].addressable_shards} == {(12,)}


@pytest.mark.parametrize(
    ("data", "fsdp", "says"), [(0, 1, "data=0"), (-2, 1, "data=-2"), (1, 0, "fsdp=0"), (-1, -1, "both -1")]
)
def test_bad_mesh_sizes(data, fsdp, says):
    with pytest.raises(InputError, match=says) as caught:
        sharding.make_mesh(data, fsdp)
    assert "config.parallel." in str(caught.value)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))

"""Every implementation of attention against torch's scaled_dot_product_attention, values and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec

from tests.torch_parity import relative_error
from utilgen_jax.errors import InputError
from utilgen_jax.models.dot_product_attention import IMPLEMENTATIONS, dot_product_attention, splash_attention
from utilgen_jax.runtime.sharding import BATCH_AXES, make_mesh

HAS_GPU = jax.default_backend() == "gpu"

# Name -> function, supported dtype. The TPU kernel is interpreted.
TESTED = {
    "auto": (dot_product_attention, jnp.float32),
    "plain": (IMPLEMENTATIONS["plain"], jnp.float32),
    "chunked": (IMPLEMENTATIONS["chunked"], jnp.float32),
    "splash": (functools.partial(splash_attention, interpret=True), jnp.float32),
    "cudnn": (IMPLEMENTATIONS["cudnn"], jnp.bfloat16),
}
MARKS = {
    "cudnn": pytest.mark.skipif(not HAS_GPU, reason="cuDNN needs an NVIDIA GPU"),
    "splash": pytest.mark.slow,  # the interpreter is
}
PARAMETERS = [pytest.param(name, marks=MARKS.get(name, ())) for name in TESTED]
# Name -> queries, keys, size of a head, mask; the chunks are of 128 queries, the blocks of 128 to 512.
CASES = {
    "cross-attention": (130, 77, 8, None),
    "odd lengths": (9, 5, 8, None),
    "several chunks and blocks": (600, 520, 8, None),
    "causal": (78, 78, 16, "causal"),
    "random mask": (130, 6, 8, "random"),
}


def random_arrays(num_queries, num_keys, head_dim, batch=2, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return [
        jnp.asarray(rng.standard_normal((batch, length, 2, head_dim)), dtype)
        for length in (num_queries, num_keys, num_keys, num_queries)  # the last one is the output's cotangent
    ]


def make_mask(kind, num_queries, num_keys):
    if kind == "causal":
        return np.tril(np.ones((1, 1, num_queries, num_keys), bool))
    if kind == "random":
        mask = np.random.default_rng(1).random((2, 2, num_queries, num_keys)) < 0.5
        mask[..., 0] = True  # torch has no answer where every key is hidden
        return mask
    return None


def torch_attention(query, key, value, cotangent, mask):
    """Returns torch's output and the gradients of its product with the cotangent, [B, T, heads, d] each."""
    tensors = [torch.tensor(np.asarray(array, np.float32).swapaxes(1, 2)) for array in (query, key, value, cotangent)]
    inputs = [tensor.requires_grad_() for tensor in tensors[:3]]
    mask = None if mask is None else torch.from_numpy(mask)
    output = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=mask)
    gradients = torch.autograd.grad(output, inputs, tensors[3])
    return [tensor.detach().numpy().swapaxes(1, 2) for tensor in (output, *gradients)]


def with_gradients(attend, query, key, value, cotangent, mask):
    output, pullback = jax.vjp(lambda *arrays: attend(*arrays, mask), query, key, value)
    return [output, *pullback(cotangent)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", PARAMETERS)
def test_values_and_gradients_are_those_of_torch(name, case):
    attend, dtype = TESTED[name]
    num_queries, num_keys, head_dim, kind = CASES[case]
    mask = make_mask(kind, num_queries, num_keys)
    if name == "splash" and mask is not None:
        with pytest.raises(InputError, match="does not support a mask"):
            attend(*random_arrays(num_queries, num_keys, head_dim)[:3], mask)
        return
    if name == "cudnn" and "odd" in case:
        pytest.skip("cuDNN takes no such short sequences")
    arrays = random_arrays(num_queries, num_keys, head_dim, dtype=dtype)
    actual = jax.jit(functools.partial(with_gradients, attend))(*arrays, mask)
    tolerance = 1e-5 if dtype == jnp.float32 else 0.02
    for ours, theirs in zip(actual, torch_attention(*arrays, mask), strict=True):
        assert ours.dtype == dtype
        assert relative_error(ours, theirs) < tolerance


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", ["plain", "chunked", pytest.param("splash", marks=MARKS["splash"])])
def test_half_precision_is_near_float32(name, dtype):
    arrays = random_arrays(130, 77, 8, dtype=dtype)
    actual = jax.jit(functools.partial(with_gradients, TESTED[name][0]))(*arrays, None)
    for ours, theirs in zip(actual, torch_attention(*arrays, None), strict=True):
        assert ours.dtype == dtype
        assert relative_error(ours, theirs) < (0.02 if dtype == jnp.bfloat16 else 0.002)


def test_softmax_is_float32_with_bfloat16_inputs():
    """With equal scores the weights of 300 keys are 1/300 each; a sum in bfloat16 would stop growing at 256."""
    query = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    ones = jnp.ones((1, 300, 1, 8), jnp.bfloat16)
    for name in ("plain", "chunked"):
        np.testing.assert_allclose(np.asarray(TESTED[name][0](query, ones, ones), np.float32), 1.0, rtol=0.01)


@pytest.mark.parametrize("name", ["chunked", pytest.param("splash", marks=MARKS["splash"])])
@pytest.mark.parametrize("batch", [8, 3])
def test_a_batch_split_over_a_mesh_changes_nothing(name, batch):
    mesh = make_mesh(data=4, fsdp=2)
    arrays = random_arrays(20, 12, 8, batch=batch)
    whole = jax.jit(functools.partial(with_gradients, TESTED[name][0]))(*arrays, None)
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES if batch % mesh.size == 0 else None))
    with jax.set_mesh(mesh):
        spread = jax.jit(functools.partial(with_gradients, TESTED[name][0]))(*jax.device_put(arrays, split), None)
    for ours, expected in zip(spread, whole, strict=True):
        assert ours.sharding.is_equivalent_to(split, 4)
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_auto_is_decided_by_the_platform_that_it_is_compiled_for():
    long, short = (jax.ShapeDtypeStruct((1, length, 2, 40), jnp.float32) for length in (1024, 77))

    def lowered(platform, *shapes, mask=None):
        lowered = jax.jit(dot_product_attention).trace(*shapes, mask).lower(lowering_platforms=(platform,))
        return lowered.as_text()

    assert "tpu_custom_call" in lowered("tpu", long, long, long)
    for text in (
        lowered("tpu", long, short, short),
        lowered("tpu", long, long, long, mask=jnp.ones((1, 1, 1024, 1024), bool)),
        lowered("cpu", long, long, long),
        lowered("cuda", long, long, long),
    ):
        assert "custom_call" not in text
    chunk_of_scores, all_scores = "tensor<128x1024xf32>", "tensor<1x2x1024x1x1024xf32>"
    assert chunk_of_scores in lowered("cpu", long, long, long)
    assert all_scores not in lowered("cpu", long, long, long)
    assert all_scores in lowered("cuda", long, long, long)


def test_chunks_take_less_memory_for_the_gradient():
    arrays = random_arrays(1024, 1024, 8)

    def temporaries(name):
        compiled = jax.jit(functools.partial(with_gradients, IMPLEMENTATIONS[name])).lower(*arrays, None).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries("chunked") < temporaries("plain") / 8


def test_unknown_implementation_lists_the_known_ones():
    with pytest.raises(InputError, match="'flash' is unknown; known are auto, plain, cudnn, chunked, splash"):
        dot_product_attention(*random_arrays(4, 4, 8)[:3], implementation="flash")

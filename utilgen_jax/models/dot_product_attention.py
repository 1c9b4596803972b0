"""Dot-product attention, with fast implementations for CPUs, GPUs and TPUs."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from utilgen_jax.errors import InputError
from utilgen_jax.runtime.sharding import BATCH_AXES

_LONG = 512  # numbers of queries and keys from which the score matrix is avoided
_CHUNK = 128  # queries per chunk of 'chunked': with 4096 keys their scores, 2 MiB, fit into a CPU cache
_BLOCK = 512  # queries and keys per block of 'splash'; half for wide heads, which need more memory
_LANES = 128  # blocks of 'splash' are multiples of this


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Returns softmax(query keyᵀ / sqrt(d)) value, for each head (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

    Scores and softmax are always float32, as with diffusers' setting `upcast_attention`.

    Args:
        query: [B, T, heads, d].
        key: [B, S, heads, d], of query's dtype.
        value: [B, S, heads, d], of query's dtype.
        mask: bool, [1 or B, 1 or heads, 1 or T, S]; False hides a key from a query. None hides nothing.
        implementation: key of `IMPLEMENTATIONS`, or 'auto' for the fastest that supports these arguments on the target
            device of the compilation. 'cudnn' and 'splash' can only be differentiated once and in reverse mode; so can
            'auto' with long sequences.

    Returns:
        [B, T, heads, d], of query's dtype.

    Raises:
        InputError: the implementation is unknown, or is 'splash' with a mask.
    """
    if implementation != "auto":
        if implementation not in IMPLEMENTATIONS:
            names = ", ".join(["auto", *IMPLEMENTATIONS])
            raise InputError(f"attention: implementation = {implementation!r} is unknown; known are {names}")
        return IMPLEMENTATIONS[implementation](query, key, value, mask)
    by_platform: dict[str, Callable[..., jax.Array]] = {}
    if min(query.shape[1], key.shape[1]) >= _LONG:
        by_platform["cpu"] = chunked_attention
        if mask is None:
            by_platform["tpu"] = splash_attention
    if _fits_cudnn(query, key, mask):
        by_platform["cuda"] = cudnn_attention
    if not by_platform:
        return plain_attention(query, key, value, mask)
    return jax.lax.platform_dependent(query, key, value, mask, default=plain_attention, **by_platform)


def plain_attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Computes `dot_product_attention` with the full score matrix [B, heads, T, S], on any device."""
    attended = jax.nn.dot_product_attention(
        _widened(query), _widened(key), _widened(value), mask=mask, implementation="xla"
    )
    return attended.astype(query.dtype)


def cudnn_attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Computes `dot_product_attention` by cuDNN's flash attention, on NVIDIA GPUs.

    Supports float16 and bfloat16; d must be a multiple of 8, at most 128 (256 from Hopper on); with a mask, T and S
    must be even.
    """
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="cudnn")


def chunked_attention(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Computes `dot_product_attention` in chunks of queries of one head, and recomputes scores for the gradient.

    For CPUs, whose cache holds the scores of a chunk; it also saves memory on other devices. Rabe and Staats 2021,
    "Self-attention Does Not Need O(n²) Memory", arXiv:2112.05682, without chunks of keys.
    """
    return _on_each_device(_chunked, _widened(query), _widened(key), _widened(value), mask).astype(query.dtype)


def _chunked(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None) -> jax.Array:
    batch, num_queries, num_heads, head_dim = query.shape
    chunk = min(_CHUNK, num_queries)
    padding = -num_queries % chunk

    def heads_first(array: jax.Array) -> jax.Array:
        return array.swapaxes(1, 2).reshape(batch * num_heads, array.shape[1], head_dim)

    def chunks(rows: jax.Array) -> jax.Array:
        padded = jnp.pad(rows, ((0, 0), (0, padding), (0, 0)))
        return padded.reshape(batch * num_heads, -1, chunk, rows.shape[-1])

    @jax.checkpoint
    def attend(query: jax.Array, mask: jax.Array | None, key: jax.Array, value: jax.Array) -> jax.Array:
        scores = jnp.dot(query, key, preferred_element_type=jnp.float32) / head_dim**0.5
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
        return jnp.dot(jax.nn.softmax(scores, axis=-1).astype(value.dtype), value.T)

    def attend_in_chunks(head: tuple[jax.Array, jax.Array | None, jax.Array, jax.Array]) -> jax.Array:
        query, mask, key, value = head
        return jax.lax.map(lambda rows: attend(*rows, key, value), (query, mask))

    if mask is not None:
        whole = jnp.broadcast_to(mask, (batch, num_heads, num_queries, key.shape[1]))
        mask = chunks(whole.reshape(batch * num_heads, num_queries, -1))
    # [B heads, d, S]: XLA multiplies matrices with few rows and many columns faster in the gradient.
    keys, values = heads_first(key).swapaxes(1, 2), heads_first(value).swapaxes(1, 2)
    queries = chunks(heads_first(query))
    attended = jax.lax.map(attend_in_chunks, (queries, mask, keys, values))
    rows = attended.reshape(batch, num_heads, num_queries + padding, head_dim)
    return rows[:, :, :num_queries].swapaxes(1, 2)


def splash_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None, interpret: bool = False
) -> jax.Array:
    """Computes `dot_product_attention` by JAX's flash attention kernel for TPUs.

    With several devices, set the mesh by `jax.set_mesh`: the kernel then runs on each device's part of the batch, as
    the compiler cannot partition kernels.

    Args:
        query: [B, T, heads, d].
        key: [B, S, heads, d].
        value: [B, S, heads, d].
        mask: must be None.
        interpret: whether to interpret the kernel, slowly, on any device; for tests.

    Raises:
        InputError: there is a mask.
    """
    if mask is not None:
        raise InputError("attention: implementation = 'splash' does not support a mask; 'plain' and 'chunked' do")
    return _on_each_device(functools.partial(_splash, interpret=interpret), query, key, value, None)


def _splash(query: jax.Array, key: jax.Array, value: jax.Array, mask: None, interpret: bool) -> jax.Array:
    del mask
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    num_queries, num_heads, head_dim = query.shape[1:]
    num_keys = key.shape[1]
    largest = _BLOCK if head_dim <= 256 else _BLOCK // 2

    def block_and_padding(length: int) -> tuple[int, int]:
        block = min(largest, length + -length % _LANES)
        return block, -length % block

    (query_block, query_padding), (key_block, key_padding) = map(block_and_padding, (num_queries, num_keys))

    def heads_first(array: jax.Array, padding: int) -> jax.Array:
        return jnp.pad(array.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))

    shape = (num_queries + query_padding, num_keys + key_padding)
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask(shape)] * num_heads),
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=query_block,
            block_kv=key_block,
            block_q_dkv=query_block,
            block_kv_dkv=key_block,
            block_q_dq=query_block,
            block_kv_dq=key_block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = None
    if key_padding:  # the padding is a segment without queries
        segments = splash_attention_kernel.SegmentIds(
            q=jnp.zeros(shape[0], jnp.int32), kv=(jnp.arange(shape[1]) >= num_keys).astype(jnp.int32)
        )
    attended = jax.vmap(kernel, in_axes=(0, 0, 0, None))(
        heads_first(query * head_dim**-0.5, query_padding),
        heads_first(key, key_padding),
        heads_first(value, key_padding),
        segments,
    )
    return attended[:, :, :num_queries].swapaxes(1, 2)


def _on_each_device(
    attend: Callable[..., jax.Array], query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """Applies `attend` on each device of the current mesh, to its part of the batch if the batch is divisible."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if mesh.shape.get(axis, 1) > 1)
    if not axes or any(kind == AxisType.Manual for kind in mesh.axis_types):  # Manual: already one device's part
        return attend(query, key, value, mask)
    batch = query.shape[0]
    split = PartitionSpec(axes if batch % mesh.size == 0 else None)
    mask_split = split if mask is not None and mask.shape[0] == batch else PartitionSpec()
    return jax.shard_map(attend, in_specs=(split, split, split, mask_split), out_specs=split, check_vma=False)(
        query, key, value, mask
    )


def _widened(array: jax.Array) -> jax.Array:
    """Converts float16 to float32: XLA for CPUs has no float16 product that accumulates in float32."""
    return array.astype(jnp.float32) if array.dtype == jnp.float16 else array


def _fits_cudnn(query: jax.Array, key: jax.Array, mask: jax.Array | None) -> bool:
    """Returns whether this process has a GPU for `cudnn_attention`, and it supports the arguments and is fast for them.

    The GPU must be present when tracing, as JAX queries its cuDNN version.
    """
    lengths = (query.shape[1], key.shape[1])
    if query.dtype not in (jnp.float16, jnp.bfloat16) or query.shape[-1] % 8 or query.shape[-1] > 128:
        return False
    if min(lengths) < 64 or (mask is not None and any(length % 2 for length in lengths)):
        return False
    device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return False
    return float(device.compute_capability) >= 8  # Ampere


IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "plain": plain_attention,
    "cudnn": cudnn_attention,
    "chunked": chunked_attention,
    "splash": splash_attention,
}

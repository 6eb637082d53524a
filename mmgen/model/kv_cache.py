"""Keys and values of the slots computed so far: one pair of buffers a layer, of static size in a loop, so that a step updates
them in place."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmgen.model.config import GeneratorConfig
from mmgen.parallel.rules import constrain

Cache = tuple[tuple[Float[Array, "r g z k"], Float[Array, "r g z k"]], ...]


def empty_cache(c: GeneratorConfig, rows: int, slots: int, dtype: jnp.dtype) -> Cache:
    """[rows, key-value heads, slots, head dim] twice for each layer."""
    shape = (rows, c.block.kv_heads or c.block.heads, slots, c.block.head_dim)

    def empty() -> Array:
        return constrain(jnp.zeros(shape, dtype), "batch", "kv_heads", None, None)

    return tuple((empty(), empty()) for _ in range(c.layers))


def moved(cache: Cache, into: Cache) -> Cache:
    """To the beginning of larger buffers."""
    return jax.tree.map(lambda old, new: jax.lax.dynamic_update_slice(new, old, (0,) * old.ndim), cache, into)


def write(
    layer: tuple[Array, Array], k: Float[Array, "r f g k"], v: Float[Array, "r f g k"], start: Int[Array, "*r"]
) -> tuple[Array, Array]:
    """Slots start .. start + F of one layer, `start` the same for all rows or [R]. The buffers must have room: XLA would clamp
    a start that is too large."""

    def put(buffer, new):
        new = new.transpose(0, 2, 1, 3).astype(buffer.dtype)
        if jnp.ndim(start) == 0:  # one update; rows at places of their own take a scatter
            return jax.lax.dynamic_update_slice(buffer, new, (0, 0, start, 0))
        return jax.vmap(lambda row, piece, first: jax.lax.dynamic_update_slice(row, piece, (0, first, 0)))(buffer, new, start)

    return tuple(put(buffer, new) for buffer, new in zip(layer, (k, v), strict=True))


def bytes_per_row(c: GeneratorConfig, slots: int, itemsize: int) -> int:
    return 2 * c.layers * (c.block.kv_heads or c.block.heads) * c.block.head_dim * slots * itemsize

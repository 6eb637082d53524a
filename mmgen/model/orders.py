"""Batches in which every sample has an order of its own (plan/random_order.py)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mmgen.model.config import GeneratorConfig


def draw_orders(c: GeneratorConfig, key: PRNGKeyArray, progress: Float[Array, ""], rows: int) -> Int[Array, "b n"]:
    """Row b goes by fold_in(key, b): a random order with the probability that the plan has at this point of training, else
    raster."""
    share, raster = c.plan.random_share(progress, jnp), jnp.arange(c.layout.sites)

    def one(row: Array) -> Int[Array, "n"]:
        key_order, key_coin = jax.random.split(jax.random.fold_in(key, row))
        return jnp.where(jax.random.uniform(key_coin) < share, jax.random.permutation(key_order, raster), raster)

    return jax.vmap(one)(jnp.arange(rows))


def in_orders(c: GeneratorConfig, batch: dict, orders: Int[Array, "b n"]) -> dict:
    """A batch in raster order -> the same one in `orders`: row j of its logits and losses is that of site orders[b, j]."""
    ids = jnp.asarray(batch["ids"])
    index = jnp.expand_dims(orders, tuple(range(2, ids.ndim)))
    place = c.plan.places(c.layout, c.condition.slots, orders, jnp)
    return {**batch, "ids": jnp.take_along_axis(ids, index, axis=1), "position": place}

"""One forward of a parallel decoder: W consecutive sites of each row, every row at a place of its own.

slot C - 1 + s predicts the site of step s: it reads the token of step s - 1, and by attention those before it

Tokens stand in the order in which they are predicted.

The cache needs no rollback. Keys and values stand at their slot, a slot reads none behind itself, and the next window begins
at the last final token: what a wrong draft left behind is overwritten before anybody may read it.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from mmgen_tokenizers.errors import UserError

from mmgen.decoding.autoregressive import Autoregressive, Carry, Request
from mmgen.decoding.target import target
from mmgen.model.config import GeneratorConfig
from mmgen.model.heads import TurnedHead
from mmgen.model.inputs import Slots
from mmgen.model.kv_cache import Cache
from mmgen.model.positions import rotary_angles
from mmgen.model.transformer import combine_with, ends_of, plan_batch, slots_of
from mmgen.plan.plan import PADDING, GenerationPlan


class Windowed(Autoregressive):
    """One model with a cache that has room for windows of W sites: `begin`, then `scores`."""

    def __init__(self, c: GeneratorConfig, dtype: jnp.dtype, window: int):
        super().__init__(c, dtype)
        if not is_sequential(self.plan):
            raise UserError(
                "parallel decoders need a model that predicts one site after the other (NextToken, RandomOrder), not "
                f'{type(c.plan).__name__}: use decoder="autoregressive"'
            )
        self.window = window
        self.room = self.plan.slots + window  # for a finished row, whose window stands behind the last site

    def begin(self, r: Request) -> Carry:
        """The condition computed, and site 0 drawn, as plain decoding does it."""
        carry = self.start(r.batch, len(r.index) * (1 + r.which.guided), r.index)
        return self._step(r.params, r.batch, r.key, r.settings, r.which, self.segments[0], 0, carry)

    def scores(
        self, r: Request, tokens: Int[Array, "b m ..."], site: Int[Array, "b"], valid: Bool[Array, "r z"], cache: Cache
    ) -> tuple[Float[Array, "b w ..."], Cache]:
        """`target` of sites site .. site + W - 1 of each row, each given the `tokens` before it; site is at most N. Those
        behind the last site mean nothing."""
        c, W, B = self.config, self.window, len(site)
        ends, copies = ends_of(c, r.params, TurnedHead), len(valid) // B
        sites = site[:, None] + jnp.arange(W)
        slot = jnp.tile(self.plan.condition_slots - 1 + sites, (copies, 1))
        slots = self._slots_at(r.batch, slot)._replace(source=slot - self.plan.condition_slots)
        x = ends.input(jnp.concatenate([tokens] * copies), slots).astype(self.dtype)
        x = ends.place(x, slots)
        mask = (jnp.arange(self.room) <= slot[..., None]) & valid[:, None]
        modulator, head_modulator = ends.modulators(c, r.batch, slots)
        angles = rotary_angles(c.block, slots.position)
        first = slot[:, 0] if B > 1 else slot[0, 0]  # the rows of one picture are at one place, which takes no scatter
        states, cache = self._layers(r.params["layers"], x, angles, mask, modulator, cache, first)
        each = np.arange(W)[:, None]
        logits = combine_with(ends.heads, states, head_modulator, each, np.zeros_like(each), np.ones_like(each))
        guidance = r.settings.guidance[jnp.minimum(sites, self.plan.sites - 1)]
        guidance = guidance.reshape(*guidance.shape, *[1] * (logits.ndim - 2))
        unconditional = logits[B:] if r.which.guided else None
        return target(logits[:B], unconditional, guidance, r.settings.temperature, r.settings.top_p, r.which), cache

    def _slots_at(self, batch: dict, slot: Int[Array, "r w"]) -> Slots:
        """The plan's rows for some slots of each row; behind the last one, padding."""

        def take(array: Array, fill: int) -> Array:
            array = jnp.pad(array, [(0, 0), (0, self.window)] + [(0, 0)] * (array.ndim - 2), constant_values=fill)
            return array[jnp.arange(len(slot))[:, None] if len(array) > 1 else 0, slot]

        return Slots(*map(take, slots_of(self.plan, plan_batch(self.config, batch)), (PADDING, -1, 0, 0)))


def is_sequential(plan: GenerationPlan) -> bool:
    """Whether each site is predicted alone, by the slot that reads the token predicted before it."""
    order, C = np.argsort(plan.site_time), plan.condition_slots
    return bool(
        plan.causal
        and plan.times == plan.sites == plan.slots - C + 1
        and (plan.source[C:] == order[:-1]).all()
        and plan.combine_slot.shape[1] == 1
        and (plan.combine_head == 0).all()
        and (plan.combine_slot[:, 0] == C - 1 + plan.site_time).all()
    )


def at(array: Array, site: Int[Array, "b w"]) -> Array:
    """[B, M, ...] at the sites of each row; the last one for those behind it."""
    return array[jnp.arange(len(site))[:, None], jnp.minimum(site, array.shape[1] - 1)]


def put(tokens: Int[Array, "b m ..."], site: Int[Array, "b"], new: Int[Array, "b w ..."]) -> Int[Array, "b m ..."]:
    """From a site on, which differs from row to row. There must be room: XLA would clamp a site that is too large."""
    return jax.vmap(lambda row, piece, first: jax.lax.dynamic_update_slice_in_dim(row, piece, first, axis=0))(tokens, new, site)

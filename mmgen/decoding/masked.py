"""The loop of masked prediction (MaskGIT, arXiv 2202.04200): all hidden tokens are drawn in every round, the least certain
of them are hidden again, fewer each time.

Noise is a pure function of (seed, sample index, site, round), so that a picture does not depend on the batch around it.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmgen.decoding.autoregressive import Request
from mmgen.decoding.target import Filter, noise, target
from mmgen.model.attention import attend, mask_of
from mmgen.model.config import GeneratorConfig
from mmgen.model.heads import TurnedHead, choose
from mmgen.model.layers import FusedBlock
from mmgen.model.masking import hidden_share
from mmgen.model.positions import rotary_angles
from mmgen.model.transformer import build_plan, combine, embed, ends_of, layer_of, plan_batch, slots_of


class MaskedRounds:
    """Decoding of one configuration whose plan is Masked. It takes what `autoregressive.decode_params` gives."""

    def __init__(self, c: GeneratorConfig, dtype: jnp.dtype):
        self.config, self.dtype = c, dtype
        self.plan = build_plan(c)

    def row_bytes(self) -> int:
        """Memory that one picture takes, with guidance: logits and noise of all sites, and the scores of one attention."""
        layout = self.config.layout
        return 20 * layout.sites * layout.groups * layout.codebook_size + 16 * self.config.block.heads * self.plan.slots**2

    def decode(self, r: Request) -> tuple[Int[Array, "b n ..."], int]:
        """Tokens, and the number of forwards."""
        layout, steps = self.config.layout, len(r.settings.guidance)
        groups = (layout.groups,) if layout.groups > 1 else ()
        known = r.batch.get("known", jnp.full((len(r.index), layout.sites, *groups), -1))[: len(r.index)]
        tokens = jnp.where(known < 0, layout.codebook_size, known)
        holes = (tokens == layout.codebook_size).reshape(len(tokens), -1).sum(1)
        return jax.lax.fori_loop(0, steps, functools.partial(self.round, r, holes), tokens), steps

    def round(self, r: Request, holes: Int[Array, "b"], t: Array, tokens: Int[Array, "b n ..."]) -> Int[Array, "b n ..."]:
        """Tokens with holes (id V) -> the same with fewer; with none after the last round. `holes`: how many at first."""
        sites = jnp.arange(self.plan.sites)
        key_token, key_choice = jax.random.split(jax.random.fold_in(r.key, t))
        certain, scores = self._scores(r, tokens, t)
        hidden = tokens == self.config.layout.codebook_size
        picked = jnp.where(hidden, choose(scores, noise(key_token, r.index, sites, scores.shape[2:])), tokens)
        chance = jnp.take_along_axis(certain, picked[..., None], axis=-1)[..., 0]
        done = (t + 1) / len(r.settings.guidance)
        doubt = r.settings.choice_temperature * (1 - done) * noise(key_choice, r.index, sites, tokens.shape[2:])
        again = self._least(jnp.where(hidden, chance + doubt, jnp.inf), self._left(hidden, holes, done))
        return jnp.where(hidden & again, self.config.layout.codebook_size, picked)

    def _left(self, hidden: Array, holes: Int[Array, "b"], done: Float[Array, ""]) -> Int[Array, "b"]:
        """How many holes stay: as the schedule says, at least one and one less than there are; none at the end."""
        left = jnp.floor(hidden_share(self.config.plan, done) * holes).astype(jnp.int32)
        left = jnp.maximum(1, jnp.minimum(left, hidden.reshape(len(hidden), -1).sum(1) - 1))
        return jnp.where(done < 1, left, 0)

    def _least(self, confidence: Float[Array, "b n ..."], count: Int[Array, "b"]) -> Array:
        """Whether a token is among the `count` least certain of its sample; of equals the first ones."""
        flat = confidence.reshape(len(confidence), -1)
        rank = jnp.argsort(jnp.argsort(flat, axis=1), axis=1)
        return (rank < count[:, None]).reshape(confidence.shape)

    def _scores(self, r: Request, tokens: Int[Array, "b n ..."], t: Array) -> tuple[Array, Array]:
        """Log-probabilities before tokens are filtered, which confidence goes by, and the scores to draw from."""
        rows, guided = len(tokens), r.which.guided
        logits = self._logits(r.params, r.batch, jnp.concatenate([tokens] * (1 + guided)))
        pair = logits[:rows], logits[rows:] if guided else None
        given = r.settings.guidance[t], r.settings.temperature, r.settings.top_p
        whole = target(*pair, *given, Filter(guided, top_k=0, nucleus=False))
        return jax.nn.log_softmax(whole), target(*pair, *given, r.which)

    def _logits(self, params: dict, batch: dict, tokens: Int[Array, "r n ..."]) -> Float[Array, "r n ..."]:
        """One forward of all slots: each reads every other, so there is nothing to keep from round to round."""
        c, extra = self.config, plan_batch(self.config, batch)
        ends, slots = ends_of(c, params, TurnedHead), slots_of(self.plan, extra)
        x = embed(ends, {**batch, "ids": tokens}, self.plan, slots).astype(self.dtype)
        angles, mask = rotary_angles(c.block, slots.position), mask_of(self.plan, extra.valid)
        modulator, head_modulator = ends.modulators(c, batch, slots)
        for p in params["layers"]:
            x = layer_of(c, p, FusedBlock)(x, angles, lambda q, k, v: attend(q, k, v, mask), condition=modulator)
        return combine(self.plan, ends.heads, [x], head_modulator)

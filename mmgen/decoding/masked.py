"""The loop of masked prediction (MaskGIT, arXiv 2202.04200): all hidden tokens are drawn in every round, the least certain
of them are hidden again, fewer each time.

Noise is a pure function of (seed, sample index, site, round), so that a picture does not depend on the batch around it.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mmgen.decoding.autoregressive import Settings
from mmgen.decoding.target import Filter, noise, target
from mmgen.model.attention import attend, mask_of
from mmgen.model.config import GeneratorConfig
from mmgen.model.heads import choose
from mmgen.model.layers import FusedBlock
from mmgen.model.masking import hidden_share
from mmgen.model.positions import rotary_angles
from mmgen.model.transformer import build_plan, combine, embed, ends_of, layer_of, plan_batch, slots_of


class MaskedRounds:
    """Decoding of one configuration whose plan is Masked. It takes what `autoregressive.decode_params` gives."""

    def __init__(self, c: GeneratorConfig, dtype: jnp.dtype):
        self.config, self.dtype = c, dtype
        self.plan = build_plan(c)

    @property
    def bytes_per_row(self) -> int:
        """What a picture takes in memory, with guidance: logits and noise of all sites, and the scores of one attention."""
        layout = self.config.layout
        return 20 * layout.sites * layout.groups * layout.codebook_size + 16 * self.config.block.heads * self.plan.slots**2

    def generate(
        self, params: dict, batch: dict, index: Int[Array, "b"], key: PRNGKeyArray, settings: Settings, which: Filter
    ) -> Int[Array, "b n ..."]:
        """All tokens, for tracing inside a jitted program. `batch`: the condition of all rows, guided pairs included."""
        layout = self.config.layout
        groups = (layout.groups,) if layout.groups > 1 else ()
        tokens = jnp.full((len(index), layout.sites, *groups), layout.codebook_size, jnp.int32)
        unknown = jnp.full(len(index), layout.sites * layout.groups)
        step = functools.partial(self.round, params, batch, index, key, settings, which, unknown)
        return jax.lax.fori_loop(0, len(settings.guidance), step, tokens)

    def round(self, params, batch, index, key, settings: Settings, which: Filter, unknown, t, tokens) -> Int[Array, "b n ..."]:
        """Tokens with holes (id V) -> the same with fewer; with none after the last round. `unknown` [B]: holes at first."""
        sites = jnp.arange(self.plan.sites)
        key_token, key_choice = jax.random.split(jax.random.fold_in(key, t))
        certain, scores = self._scores(params, batch, tokens, settings, which, t)
        hidden = tokens == self.config.layout.codebook_size
        picked = jnp.where(hidden, choose(scores, noise(key_token, index, sites, scores.shape[2:])), tokens)
        chance = jnp.take_along_axis(certain, picked[..., None], axis=-1)[..., 0]
        done = (t + 1) / len(settings.guidance)
        doubt = settings.choice_temperature * (1 - done) * noise(key_choice, index, sites, tokens.shape[2:])
        again = self._least(jnp.where(hidden, chance + doubt, jnp.inf), self._left(hidden, unknown, done))
        return jnp.where(hidden & again, self.config.layout.codebook_size, picked)

    def _left(self, hidden: Array, unknown: Int[Array, "b"], done: Float[Array, ""]) -> Int[Array, "b"]:
        """How many holes stay: as the schedule says, at least one and one less than there are; none at the end."""
        left = jnp.floor(hidden_share(self.config.plan, done) * unknown).astype(jnp.int32)
        left = jnp.maximum(1, jnp.minimum(left, hidden.reshape(len(hidden), -1).sum(1) - 1))
        return jnp.where(done < 1, left, 0)

    def _least(self, confidence: Float[Array, "b n ..."], count: Int[Array, "b"]) -> Array:
        """Whether a token is among the `count` least certain of its sample; of equals the first ones."""
        flat = confidence.reshape(len(confidence), -1)
        rank = jnp.argsort(jnp.argsort(flat, axis=1), axis=1)
        return (rank < count[:, None]).reshape(confidence.shape)

    def _scores(self, params, batch, tokens, settings: Settings, which: Filter, t) -> tuple[Array, Array]:
        """Log-probabilities before tokens are filtered, which confidence goes by, and the scores to draw from."""
        rows = len(tokens)
        logits = self._logits(params, batch, jnp.concatenate([tokens] * (1 + which.guided)))
        pair = logits[:rows], logits[rows:] if which.guided else None
        given = settings.guidance[t], settings.temperature, settings.top_p
        whole = target(*pair, *given, Filter(which.guided, 0, False))
        return jax.nn.log_softmax(whole), target(*pair, *given, which)

    def _logits(self, params: dict, batch: dict, tokens: Int[Array, "r n ..."]) -> Float[Array, "r n ..."]:
        """One forward of all slots: each reads every other, so there is nothing to keep from round to round."""
        c, extra = self.config, plan_batch(self.config, batch)
        ends, slots = ends_of(c, params), slots_of(self.plan, extra)
        x = embed(ends, {**batch, "ids": tokens}, self.plan, slots).astype(self.dtype)
        angles, mask = rotary_angles(c.block, slots.position), mask_of(self.plan, extra.valid)
        modulator, head_modulator = ends.modulators(c, batch, slots)
        for p in params["layers"]:
            x = layer_of(c, p, FusedBlock)(x, angles, lambda q, k, v: attend(q, k, v, mask), condition=modulator)
        return combine(self.plan, ends.heads, [x], head_modulator)

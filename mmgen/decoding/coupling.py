"""How a site's new token follows from its draft, when the draft's law gives way to the law after better drafts before it.

Both rules draw the new token exactly from the new law, and keep the draft as often as they can: a site is final once all
before it were kept (arXiv 2510.24211, 2603.18599).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmgen.model.heads import choose

COUPLINGS = ("gumbel", "maximal")


def maximal(
    scores: Float[Array, "b w *g v"],
    drafts: Int[Array, "b w-1 *g"],
    law: Float[Array, "b w-1 *g v"],
    fresh: Float[Array, "b w *g v+1"],
) -> tuple[Int[Array, "b w *g"], Float[Array, "b w *g v"]]:
    """New tokens and their laws. A draft d of law q is kept with probability min(1, p(d) / q(d)), else drawn anew from
    max(p - q, 0) (arXiv 2211.17192); the last site has no draft. `fresh` is noise of this forward alone."""
    p = jax.nn.softmax(scores, axis=-1)
    rest = jnp.maximum(p[:, :-1] - law, 0)
    rest = jnp.where(rest.sum(-1, keepdims=True) > 1e-9, rest, p[:, :-1])  # p = q but for rounding
    drawn = choose(jnp.log(jnp.concatenate([rest, p[:, -1:]], axis=1)), fresh[..., :-1])
    uniform = jnp.exp(-jnp.exp(-fresh[:, :-1, ..., -1]))
    kept = uniform * _of(law, drafts) < _of(p[:, :-1], drafts)
    return jnp.concatenate([jnp.where(kept, drafts, drawn[:, :-1]), drawn[:, -1:]], axis=1), p


def _of(law: Float[Array, "b w *g v"], tokens: Int[Array, "b w *g"]) -> Float[Array, "b w *g"]:
    return jnp.take_along_axis(law, tokens[..., None], axis=-1)[..., 0]


def agreed(tokens: Int[Array, "b w *g"], drafts: Int[Array, "b w-1 *g"]) -> Int[Array, "b"]:
    """How many sites from the first on kept their draft: the tokens up to the first that changed, included, are final."""
    same = (tokens[:, :-1] == drafts).reshape(*drafts.shape[:2], -1).all(-1)
    return jnp.cumprod(same, axis=1).sum(1)

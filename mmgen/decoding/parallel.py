"""The loop of parallel decoders: guess W - 1 sites ahead, compute all of them in one forward, keep what holds.

A site is final once every token before it is, and was what its slot read. Rows go on at their own pace.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mmgen.decoding.autoregressive import Request
from mmgen.decoding.coupling import agreed, maximal
from mmgen.decoding.target import noise
from mmgen.decoding.window import Windowed, at, put
from mmgen.model.config import GeneratorConfig
from mmgen.model.heads import choose
from mmgen.model.kv_cache import Cache


class Static(NamedTuple):
    """What the first forward computed for all others."""

    valid: Bool[Array, "r z"]
    noise: Float[Array, "b n ..."]  # of all sites: every window reads it again, and drawing it costs more than reading it
    known: Int[Array, "b n ..."] | None  # tokens that are kept, -1 elsewhere (decoding/known.py)


class State(NamedTuple):
    tokens: Int[Array, "b m ..."]  # M = N + W columns: final tokens, then drafts
    final: Int[Array, "b"]  # so many tokens of each row are final
    cache: Cache
    forwards: Int[Array, ""]
    memory: Any  # what the decoder drafts from


class Parallel(Windowed):
    """What Jacobi and Speculative share. They add `opened(given)`, the state after the first forward, and `round(given, fixed,
    state)`, that after one more: drafts, `verify`, and what is drafted from next.

    `coupling`: "gumbel" draws site s by the noise of site s whatever the draft, so that tokens are those of plain decoding;
    "maximal" keeps more drafts, and gives tokens of the same distribution.
    """

    def __init__(self, c: GeneratorConfig, dtype: jnp.dtype, window: int, coupling: str):
        super().__init__(c, dtype, window)
        self.coupling = coupling
        layout = c.layout
        self.shape = (*([layout.groups] if layout.groups > 1 else []), layout.codebook_size)  # of a site's scores
        self.order = np.argsort(self.plan.site_time)  # the site of each step

    def row_bytes(self) -> int:
        """With the noise of all sites, and the scores of a window."""
        layout = self.config.layout
        return super().row_bytes() + (4 * layout.sites + 32 * self.window) * layout.groups * layout.codebook_size

    def decode(self, *given) -> tuple[Int[Array, "b n ..."], Int[Array, ""]]:
        """Tokens, and the number of forwards (of the large model) that the slowest row took. `given`: the Request, and what
        else the decoder takes."""
        carry = self.continued(given, self.opened(given))
        return self.seen(carry)[0], carry[1].forwards

    def stages(self, time: int, steps: int) -> list[tuple[int, int]]:
        """One program for all forwards."""
        return [(0, steps)]

    def continued(
        self, given: tuple, carry: tuple[Static, State], steps: Int[Array, ""] | None = None, stage: int = 0
    ) -> tuple[Static, State]:
        """After `steps` more forwards, or once all rows are done."""
        fixed, state = carry
        last = jnp.int32(self.plan.sites if steps is None else state.forwards + steps)

        def going(s: State) -> Array:
            return jnp.any(s.final < self.plan.sites) & (s.forwards < last)

        return fixed, jax.lax.while_loop(going, lambda s: self.round(given, fixed, s), state)

    def seen(self, carry: tuple[Static, State]) -> tuple[Int[Array, "b n ..."], Bool[Array, "b n"]]:
        """Tokens, and which of them are final."""
        step = self.plan.site_time
        return carry[1].tokens[:, step], step < carry[1].final[:, None]

    def first(self, r: Request) -> tuple[Static, State]:
        carry, N = self.begin(r), self.plan.sites
        first = carry.tokens[:, self.order[:1]]
        tokens = jnp.pad(first, [(0, 0), (0, N + self.window - 1)] + [(0, 0)] * (first.ndim - 2))
        table = jax.lax.map(lambda site: noise(r.key, r.index, site[None], self.shape)[:, 0], self.order)
        known = r.batch["known"][: len(r.index), self.order] if "known" in r.batch else None
        state = State(tokens, jnp.ones(len(tokens), jnp.int32), carry.cache, jnp.int32(1), None)
        return Static(carry.valid, jnp.moveaxis(table, 0, 1), known), state

    def kept(self, fixed: Static, site: Int[Array, "b w"], tokens: Int[Array, "b w ..."]) -> Int[Array, "b w ..."]:
        if fixed.known is None:
            return tokens
        known = at(fixed.known, site)
        return jnp.where(known >= 0, known, tokens)

    def verify(
        self, r: Request, fixed: Static, s: State, drafts: Int[Array, "b w-1 ..."], law: Float[Array, "b w-1 ..."] | None
    ) -> tuple[State, Float[Array, "b w ..."], Float[Array, "b w ..."] | None]:
        """One forward over the drafts of the sites that come next -> the state behind it, the scores of these sites and of one
        more, and (maximal coupling) the laws that their tokens now have."""
        N, site = self.plan.sites, s.final[:, None] + jnp.arange(self.window)
        drafts = self.kept(fixed, site[:, :-1], drafts)
        tokens = put(s.tokens, s.final, drafts)
        scores, cache = self.scores(r, tokens, s.final, fixed.valid, s.cache)
        if self.coupling == "gumbel":
            new, p = choose(scores, at(fixed.noise, site)), None
        else:
            new, p = maximal(scores, drafts, law, self.fresh_noise(r, s.forwards))
        new = self.kept(fixed, site, new)
        final = jnp.minimum(s.final + 1 + agreed(new, drafts), N)
        return State(put(tokens, s.final, new), final, cache, s.forwards + 1, s.memory), scores, p

    def fresh_noise(self, r: Request, forwards: Int[Array, ""]) -> Float[Array, "b w ..."]:
        """Of one forward alone: numbered behind the sites."""
        number = self.plan.sites + forwards * self.window + jnp.arange(self.window)
        return noise(r.key, r.index, number, (*self.shape[:-1], self.shape[-1] + 1))

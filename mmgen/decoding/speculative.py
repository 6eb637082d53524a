"""Speculative decoding (arXiv 2211.17192): a smaller model drafts W - 1 sites one by one, the large one checks them at once.

With Gumbel coupling both draw a site by the same noise (arXiv 2408.07978): the draft changes how long it takes, never a token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from mmgen.decoding.autoregressive import Request
from mmgen.decoding.parallel import Parallel, State, Static
from mmgen.decoding.window import Windowed, at, put
from mmgen.model.config import GeneratorConfig
from mmgen.model.heads import choose
from mmgen.model.kv_cache import Cache


class Memory(NamedTuple):
    """Of the draft model."""

    valid: Bool[Array, "r z"]
    cache: Cache


class Speculative(Parallel):
    """Takes a Request of the large model, and one of the draft's."""

    def __init__(
        self, c: GeneratorConfig, dtype: jnp.dtype, draft: GeneratorConfig, draft_dtype: jnp.dtype, window: int, coupling: str
    ):
        super().__init__(c, dtype, window, coupling)
        self.draft = Windowed(draft, draft_dtype, 1)

    def row_bytes(self) -> int:
        return super().row_bytes() + self.draft.row_bytes()

    def opened(self, given: tuple[Request, Request]) -> tuple[Static, State]:
        fixed, state = self.first(given[0])
        carry = self.draft.begin(given[1])
        return fixed, state._replace(memory=Memory(carry.valid, carry.cache))

    def round(self, given: tuple[Request, Request], fixed: Static, s: State) -> State:
        drafts, law, cache = self.drafts(given[1], fixed, s)
        return self.verify(given[0], fixed, s, drafts, law)[0]._replace(memory=s.memory._replace(cache=cache))

    def drafts(self, draft: Request, fixed: Static, s: State) -> tuple[Array, Array | None, Cache]:
        """W - 1 sites by the draft model, and the laws they were drawn from. It reads its last draft too: should all be kept,
        its cache has no gap."""
        W, N, valid = self.window, self.plan.sites, s.memory.valid
        laws = jnp.zeros((len(s.final), W, *self.shape)) if self.coupling == "maximal" else None

        def step(i, carry):
            tokens, laws, cache = carry
            site = jnp.minimum(s.final + i, N)
            scores, cache = self.draft.scores(draft, tokens, site, valid, cache)
            token = self.kept(fixed, site[:, None], choose(scores, at(fixed.noise, site[:, None])))
            laws = None if laws is None else laws.at[:, i].set(jax.nn.softmax(scores, axis=-1)[:, 0])
            return put(tokens, site, token), laws, cache

        tokens, laws, cache = jax.lax.fori_loop(0, W, step, (s.tokens, laws, s.memory.cache))
        drafts = at(tokens, s.final[:, None] + jnp.arange(W - 1))
        return drafts, None if laws is None else laws[:, :-1], cache

"""Speculative decoding (arXiv 2211.17192): a smaller model drafts W - 1 sites one by one, the large one checks them at once.

With Gumbel coupling both draw a site by the same noise (arXiv 2408.07978): the draft changes how long it takes, never a token.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from mmgen.decoding.autoregressive import Request
from mmgen.decoding.parallel import Parallel, State, Static
from mmgen.decoding.window import Windowed, at, put
from mmgen.model.config import GeneratorConfig
from mmgen.model.heads import choose


class Speculative(Parallel):
    def __init__(
        self, c: GeneratorConfig, dtype: jnp.dtype, draft: GeneratorConfig, draft_dtype: jnp.dtype, window: int, coupling: str
    ):
        super().__init__(c, dtype, window, coupling)
        self.draft = Windowed(draft, draft_dtype, 1)

    def row_bytes(self) -> int:
        return super().row_bytes() + self.draft.row_bytes()

    def decode(self, r: Request, draft: Request) -> tuple[Int[Array, "b n ..."], Int[Array, ""]]:
        """Tokens, and the number of the large model's forwards that the slowest row took."""
        fixed, state = self.open(r)
        carry = self.draft.begin(draft)
        state = state._replace(memory=carry.cache)
        return self.run(lambda s: self.round(r, draft, fixed, carry.valid, s), state)

    def round(self, r: Request, draft: Request, fixed: Static, valid: Array, s: State) -> State:
        drafts, law, cache = self.drafts(draft, fixed, valid, s)
        return self.verify(r, fixed, s, drafts, law)[0]._replace(memory=cache)

    def drafts(self, draft: Request, fixed: Static, valid: Array, s: State) -> tuple[Array, Array | None, tuple]:
        """W - 1 sites by the draft model, and the laws they were drawn from. It reads its last draft too: should all be kept,
        its cache has no gap."""
        W, N = self.window, self.plan.sites
        laws = jnp.zeros((len(s.final), W, *self.shape)) if self.coupling == "maximal" else None

        def step(i, carry):
            tokens, laws, cache = carry
            site = jnp.minimum(s.final + i, N)
            scores, cache = self.draft.scores(draft, tokens, site, valid, cache)
            token = choose(scores, at(fixed.noise, site[:, None]))
            laws = None if laws is None else laws.at[:, i].set(jax.nn.softmax(scores, axis=-1)[:, 0])
            return put(tokens, site, token), laws, cache

        tokens, laws, cache = jax.lax.fori_loop(0, W, step, (s.tokens, laws, s.memory))
        drafts = at(tokens, s.final[:, None] + jnp.arange(W - 1))
        return drafts, None if laws is None else laws[:, :-1], cache

"""Windowed Jacobi decoding (arXiv 2410.01699) with coupled draws (2002.09928, 2510.24211, 2603.18599).

All W sites of a window are drawn anew from the tokens that the last forward put before them. Draws of one site are coupled from
forward to forward, so that most stay as they are, and a run of sites that stayed is final at once.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmgen.decoding.autoregressive import Request
from mmgen.decoding.parallel import Parallel, State, Static
from mmgen.decoding.window import at
from mmgen.model.heads import choose

INITS = ("left", "upper", "law", "uniform")
Init = Literal["left", "upper", "law", "uniform"]


class Start(NamedTuple):
    """What stands at sites that no forward has reached yet: an argument of the program."""

    init: Int[Array, ""]  # INITS.index, or len(INITS): `tokens`
    tokens: Int[Array, "b n ..."]


class Memory(NamedTuple):
    known: Int[Array, "b"]  # sites before this one have been drawn by some forward
    last: Float[Array, "b 1 ..."]  # scores of the last of them
    law: Float[Array, "b w-1 ..."] | None  # maximal coupling: the laws of the drafts


class Jacobi(Parallel):
    """Takes a Request and a Start."""

    def opened(self, given: tuple[Request, Start]) -> tuple[Static, State]:
        fixed, state = self.first(given[0])
        B, shape = len(state.final), self.shape
        law = jnp.zeros((B, self.window - 1, *shape)) if self.coupling == "maximal" else None
        return fixed, state._replace(memory=Memory(state.final, jnp.zeros((B, 1, *shape)), law))

    def round(self, given: tuple[Request, Start], fixed: Static, s: State) -> State:
        r, start = given
        drafts, law = self.drafts(fixed, start, s)
        after, scores, p = self.verify(r, fixed, s, drafts, law)
        known = s.final + self.window
        return after._replace(memory=Memory(known, scores[:, -1:], self.laws(p, after.final - s.final)))

    def drafts(self, fixed: Static, start: Start, s: State) -> tuple[Array, Array | None]:
        """Of the W - 1 sites from `final` on, with their laws: what the last forward drew, and guesses behind that."""
        site, memory = s.final[:, None] + jnp.arange(self.window - 1), s.memory
        ahead = site - memory.known[:, None]

        def copied(period: int) -> Array:
            """The nearest known token some periods before."""
            source = memory.known[:, None] - 1 - (period - 1 - ahead) % period
            return at(s.tokens, jnp.where(source < 0, memory.known[:, None] - 1, source))

        def drawn(scores: Array) -> Array:
            return choose(scores, at(fixed.noise, site))

        ways = [
            lambda: copied(1),
            lambda: copied(self.config.layout.width),
            lambda: drawn(memory.last),
            lambda: drawn(jnp.zeros_like(memory.last)),
            lambda: at(start.tokens[:, self.order], site),
        ]
        guess = jax.lax.switch(start.init, ways)
        new = (ahead >= 0).reshape(*ahead.shape, *[1] * (guess.ndim - 2))
        drafts = jnp.where(new, guess, at(s.tokens, site))
        law = None if memory.law is None else jnp.where(new[..., None], self.guessed_law(start, memory, guess), memory.law)
        return drafts, law

    def guessed_law(self, start: Start, memory: Memory, guess: Int[Array, "b w-1 ..."]) -> Float[Array, "b w-1 ..."]:
        """What a guess was drawn from: a copy had no other choice."""
        from_law, uniform = (start.init == INITS.index(name) for name in ("law", "uniform"))
        drawn = jax.nn.softmax(jnp.where(from_law, memory.last, 0.0), axis=-1)
        return jnp.where(from_law | uniform, drawn, jax.nn.one_hot(guess, self.shape[-1]))

    def laws(self, p: Float[Array, "b w ..."] | None, step: Int[Array, "b"]) -> Float[Array, "b w-1 ..."] | None:
        """Of the tokens that the next window begins with: those of this one without the `step` sites that are final now. Always
        the law just drawn from: a draft that was kept has it too."""
        if p is None:
            return None
        return at(p, step[:, None] + jnp.arange(self.window - 1))

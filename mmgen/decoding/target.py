"""The one definition of the distribution that is sampled from, of its guidance schedules, and of the noise.

Guidance, then temperature, then top-k, then top-p, in float32. The noise is a pure function of (seed, sample index, site), so
that any exact decoder gives the same tokens, whatever the batch around them (Gumbel coupling, arXiv 2002.09928).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from mmgen_tokenizers.errors import UserError, nearest

from mmgen.model.config import Sampling

SCHEDULES = ("constant", "linear", "power_cosine")


@dataclass(frozen=True)
class Filter:
    """The static half of the settings: a program is compiled for each."""

    guided: bool
    top_k: int  # 0: all
    nucleus: bool  # whether top-p cuts anything


def target(
    conditional: Float[Array, "*e v"],
    unconditional: Float[Array, "*e v"] | None,
    guidance: Float[Array, "*#e #v"],
    temperature: Float[Array, ""],
    top_p: Float[Array, ""],
    which: Filter,
) -> Float[Array, "*e v"]:
    """Log-probabilities up to a constant, -inf where filtered.

    Guidance g means unconditional + g (conditional - unconditional) (arXiv 2207.12598). Ties at the k-th place are kept. Top-p
    keeps every token before which less than p of the mass stands, hence always the first.
    """
    z = conditional.astype(jnp.float32)
    if which.guided:
        u = unconditional.astype(jnp.float32)
        z = u + guidance * (z - u)
    z = z / temperature
    if 0 < which.top_k < z.shape[-1]:
        z = jnp.where(z < _lowest(z, jnp.int32(1), which.top_k), -jnp.inf, z)
    if which.nucleus:
        mass = jnp.exp(z - jnp.max(z, axis=-1, keepdims=True))
        z = jnp.where(z < _lowest(z, mass, top_p * jnp.sum(mass, axis=-1, keepdims=True)), -jnp.inf, z)
    return z


def _lowest(z: Float[Array, "*e v"], weight: Array, needed: Float[Array, "*#e 1"] | int) -> Float[Array, "*e 1"]:
    """The largest value that entries of at least `needed` weight reach, exact; NaN, below which nothing is, where rounding
    leaves less in all.

    Found bit by bit in integers that are ordered as the floats are. A CPU takes longer to sort.
    """
    sign = jnp.uint32(1 << 31)
    bits = jax.lax.bitcast_convert_type(z, jnp.uint32)
    order = jnp.where(bits >= sign, ~bits, bits | sign)

    def settle(i: Int[Array, ""], low: Array) -> Array:
        higher = low | (sign >> i.astype(jnp.uint32))
        reached = jnp.sum(jnp.where(order >= higher, weight, 0), axis=-1, keepdims=True)
        return jnp.where(reached >= needed, higher, low)

    low = jax.lax.fori_loop(0, 32, settle, jnp.zeros((*z.shape[:-1], 1), jnp.uint32))
    return jax.lax.bitcast_convert_type(jnp.where(low >= sign, low ^ sign, ~low), jnp.float32)


def noise(key: PRNGKeyArray, index: Int[Array, "b"], site: Int[Array, "e"], shape: tuple[int, ...]) -> Float[Array, "b e ..."]:
    """Standard Gumbel noise of `shape` for each sample index and site.

    mode="high": the default's 23-bit uniforms cannot reach the tail that large vocabularies hold (documented in
    jax.random.gumbel).
    """

    def one(i, n):
        return jax.random.gumbel(jax.random.fold_in(jax.random.fold_in(key, i), n), shape, mode="high")

    return jax.vmap(lambda i: jax.vmap(lambda n: one(i, n))(site))(index)


def guidance_schedule(schedule: str | tuple[str, float], scale: float, times: int) -> Float[np.ndarray, "t"]:
    """One factor per decode step: constant; linear 1 + (G-1) t/(T-1) (VAR, arXiv 2404.02905); power-cosine
    1 + (G-1) (1 - cos(pi (t/T)^p)) / 2 (RAR, 2411.00776)."""
    name, power = (schedule, None) if isinstance(schedule, str) else tuple(schedule)
    t = np.arange(times)
    if name == "constant":
        return np.full(times, scale, np.float32)
    if name == "linear":
        return (1 + (scale - 1) * t / max(1, times - 1)).astype(np.float32)
    if name == "power_cosine" and power is not None:
        return (1 + (scale - 1) * (1 - np.cos(np.pi * (t / times) ** float(power))) / 2).astype(np.float32)
    raise UserError(
        f"guidance schedule {schedule!r} is not 'constant', 'linear' or power_cosine with its power (power_cosine:2.5; "
        f"in Python ('power_cosine', 2.5)).{nearest(str(name), SCHEDULES)}"
    )


def resolve(recommended: Sampling, times: int, **given) -> tuple[Filter, dict[str, np.ndarray]]:
    """Arguments of `generate` (None: the recommended setting) -> the static filter and the arrays a program takes."""
    unknown = set(given) - set(vars(recommended))
    assert not unknown, unknown
    s = {name: getattr(recommended, name) if given.get(name) is None else given[name] for name in vars(recommended)}
    check_ranges(s)
    scale = _guidance(s["guidance"])
    if scale.ndim and scale.shape != (times,):
        raise UserError(f"guidance has shape {scale.shape}; pass one number, or one for each of the {times} decode steps")
    g = scale if scale.ndim else guidance_schedule(s["guidance_schedule"], float(scale), times)
    which = Filter(guided=bool((g != 1).any()), top_k=int(s["top_k"]), nucleus=s["top_p"] < 1)
    return which, {"guidance": g, "temperature": np.float32(s["temperature"]), "top_p": np.float32(s["top_p"])}


def check_ranges(given: dict) -> None:
    """Raises UserError for settings, by their names in `Sampling`, that no model takes."""
    temperature, top_k, top_p = (_number(name, given.get(name, 1)) for name in ("temperature", "top_k", "top_p"))
    if not temperature > 0:
        raise UserError(f"temperature {temperature} must be positive; for the likeliest tokens set top-k to 1")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p {top_p} must be in (0, 1]")
    if not top_k >= 0 or top_k % 1:
        raise UserError(f"top_k {top_k:g} must be a whole number: 0 (all tokens) or more")
    _guidance(given.get("guidance", 1))


def _number(name: str, value: object) -> float:
    try:
        if not isinstance(value, str):
            return float(value)
    except (TypeError, ValueError):
        pass
    raise UserError(f"{name} must be a number, not {value!r}")


def _guidance(given: object) -> Float[np.ndarray, "*t"]:
    try:
        if np.asarray(given).dtype.kind not in "iuf":  # numpy reads numbers out of texts
            raise TypeError
        scale = np.asarray(given, np.float32)
    except (TypeError, ValueError):
        raise UserError(f"guidance must be a number, or an array of one for each decode step, not {given!r}") from None
    if not np.isfinite(scale).all():
        raise UserError(f"guidance {given} must be finite")
    return scale

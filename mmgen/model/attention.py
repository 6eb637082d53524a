"""Attention under the plan's rule: over all slots at once, and over a cache."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from mmgen.model import kernels
from mmgen.model.kernels import Rule
from mmgen.parallel.rules import constrain, one_cpu
from mmgen.plan.plan import GenerationPlan


def rule_of(plan: GenerationPlan, valid: Bool[Array, "b s"] | None) -> Rule:
    return Rule(plan, valid, mask_of(plan, valid))


def mask_of(plan: GenerationPlan, valid: Bool[Array, "b s"] | None) -> Bool[Array, "#b 1 s s"] | None:
    """The rule over all slots; None where plain causal attention says the same. `valid`: PlanBatch's."""
    if valid is None and plan.causal:
        return None
    slot = np.arange(plan.slots)
    allow = jnp.asarray(plan.allow(slot, slot, np if one_cpu() else jnp))[None]
    if valid is not None:
        allow &= valid[:, None, :] | jnp.eye(plan.slots, dtype=bool)
    return allow[:, None]


def attention(
    q: Float[Array, "b s h k"], k: Float[Array, "b s g k"], v: Float[Array, "b s g k"], rule: Rule, implementation: str
) -> Float[Array, "b s h k"]:
    """`attend` under the rule, by the implementation that GeneratorConfig.attention names. All give the same numbers, up to
    rounding, in slots that are no padding. One that cannot compute this is replaced by XLA's products, which is said once."""
    if reason := kernels.hindrance(implementation, q, rule):
        _announce(f"attention {implementation}: {reason}; plain products take its place")
        implementation = "xla"
    if implementation == "xla":
        return attend(q, k, v, rule.mask)
    q = constrain(q, "batch", None, "heads", None)
    k, v = (constrain(x, "batch", None, "kv_heads", None) for x in (k, v))
    return {"blocks": by_block, "cudnn": kernels.cudnn, "splash": kernels.splash}[implementation](q, k, v, rule)


def by_block(
    q: Float[Array, "b s h k"], k: Float[Array, "b s g k"], v: Float[Array, "b s g k"], rule: Rule
) -> Float[Array, "b s h k"]:
    """A product for each block of slots: nothing is computed that the rule then hides."""
    blocks = rule.plan.blocks
    return jnp.concatenate([attend(q[:, i:end], k[:, :end], v[:, :end], None, causal=False) for i, end in blocks], axis=1)


@functools.cache
def _announce(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def attend(
    q: Float[Array, "b s h k"], k: Float[Array, "b z g k"], v: Float[Array, "b z g k"], mask: Bool[Array, "#b 1 s z"] | None,
    causal: bool = True,
) -> Float[Array, "b s h k"]:  # fmt: skip
    """Softmax(q k / sqrt(K)) v; query heads h share key-value head h // (H / G). `mask` None: `causal`, or all see all.

    Where slots are split, each device has the queries of its own slots and gathers keys and values of all.
    """
    q = constrain(q, "batch", "slots", "heads", None)
    k, v = (constrain(x, "batch", None, "kv_heads", None) for x in (k, v))
    if not one_cpu():
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal and mask is None)
    # XLA's products on a CPU want heads first: measured 1.3x the speed of the library's layout over a whole training step.
    mask = jnp.tri(q.shape[1], dtype=bool)[None, None] if causal and mask is None else mask
    return attend_cached(q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), None if mask is None else mask[:, 0])


def attend_cached(
    q: Float[Array, "r f h k"], k: Float[Array, "r g z k"], v: Float[Array, "r g z k"], mask: Bool[Array, "#r f z"] | None
) -> Float[Array, "r f h k"]:
    """The same over a cache laid out [R, G, Z, K], so that the few queries of a step read it in one contiguous sweep.

    Keys that the mask hides may hold anything, values anything finite. `mask` None: nothing is hidden.
    """
    R, F, H, K = q.shape
    G = k.shape[1]
    q = q.reshape(R, F, G, H // G, K).transpose(0, 2, 3, 1, 4).reshape(R, G, H // G * F, K)
    score = jnp.einsum("rgqk,rgzk->rgqz", q, k, preferred_element_type=jnp.float32) * K**-0.5
    if mask is not None:
        seen = jnp.broadcast_to(mask[:, None, None], (mask.shape[0], 1, H // G, F, mask.shape[-1]))
        score = jnp.where(seen.reshape(mask.shape[0], 1, H // G * F, -1), score, -jnp.inf)
    weight = jax.nn.softmax(score, axis=-1).astype(v.dtype)
    out = jnp.einsum("rgqz,rgzk->rgqk", weight, v)
    return out.reshape(R, G, H // G, F, K).transpose(0, 3, 1, 2, 4).reshape(R, F, H, K)

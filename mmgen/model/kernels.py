"""Faster ways to the same attention: each a function of (q, k, v, rule), and what it asks for.

Queries and keys come as attention.py has placed them: batch and heads may be split over a mesh, slots are not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from mmgen.parallel.rules import current_mesh, platform, spec
from mmgen.plan.plan import GenerationPlan

FEW = 32  # blocks of slots, each of which is a product of its own
TILES = (512, 384, 256, 128)  # slots that splash attention takes at a time
QKV = ("batch", "slots", "heads", None)


class Rule(NamedTuple):
    """Who may read whom."""

    plan: GenerationPlan
    valid: Bool[Array, "b s"] | None  # PlanBatch's
    mask: Bool[Array, "#b 1 s s"] | None  # what both say; None where plain causal attention says the same


def cudnn(q: Float[Array, "b s h k"], k: Float[Array, "b s g k"], v: Float[Array, "b s g k"], rule: Rule) -> Array:
    """cuDNN's flash attention, which takes head dims that 8 divides, and beside a mask an even number of slots: zeros are added
    where need be, and the scale stays that of the real head dim."""
    S, K = q.shape[1], q.shape[3]
    more, causal = (S % 2 if rule.mask is not None else 0), rule.mask is None
    q, k, v = (_wider(x, more, -K % 8) for x in (q, k, v))
    mask = None if causal else jnp.pad(rule.mask, ((0, 0), (0, 0), (0, more), (0, more))) | jnp.eye(S + more, dtype=bool)
    y = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=K**-0.5, is_causal=causal, implementation="cudnn")
    return y[:, :S, :, :K]


def splash(
    q: Float[Array, "b s h k"], k: Float[Array, "b s g k"], v: Float[Array, "b s g k"], rule: Rule, interpret: bool = False
) -> Array:
    """Splash attention, a kernel for TPUs that skips tiles which the plan's rule hides. Samples' own padding goes by segments:
    slots that are padding see each other alone. Slots are padded to tiles; of head dims libtpu 0.0.42.1 takes 64, 100
    and 128 (tests/parallel/tpus.py). `interpret`: on a CPU, slowly."""
    S, K = q.shape[1], q.shape[3]
    more = -S % TILES[-1]
    q, k, v = (_wider(x, more).transpose(0, 2, 1, 3) for x in (q * K**-0.5, k, v))
    valid = jnp.ones((q.shape[0], S), bool) if rule.valid is None else rule.valid
    segment = jnp.pad(valid, ((0, 0), (0, more))).astype(jnp.int32)

    def on_device(q, k, v, segment):
        return jax.vmap(_splash_kernel(rule.plan, q.shape[1], q.shape[2], interpret))(q, k, v, segment)

    if current_mesh() is not None:
        batch, _, heads, _ = spec(QKV, activation=True)
        piece = P(batch, heads)
        on_device = jax.shard_map(on_device, in_specs=(piece, piece, piece, P(batch)), out_specs=piece, check_vma=False)
    return on_device(q, k, v, segment).transpose(0, 2, 1, 3)[:, :S]


def _splash_kernel(plan: GenerationPlan, heads: int, slots: int, interpret: bool):
    """For one sample: q, k, v [heads, slots, K] and the slots' segments."""
    from jax.experimental.pallas.ops.tpu import splash_attention as library

    slot, more = np.arange(plan.slots), slots - plan.slots
    allowed = np.pad(plan.allow(slot, slot), ((0, more), (0, more))) | np.eye(slots, dtype=bool)
    tile = next(size for size in TILES if slots % size == 0)
    kernel = library.make_splash_mha(
        library.MultiHeadMask([library.NumpyMask(allowed)] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=library.BlockSizes(
            block_q=tile, block_kv=tile, block_q_dkv=tile, block_kv_dkv=tile, block_q_dq=tile, block_kv_dq=tile
        ),
        residual_checkpoint_name="attention",  # remat_keep
        interpret=interpret,
    )
    return lambda q, k, v, segment: kernel(q, k, v, library.SegmentIds(segment, segment))


def _wider(x: Float[Array, "b s h k"], slots: int = 0, dims: int = 0) -> Array:
    """With zeros behind its slots and its head dim."""
    return jnp.pad(x, ((0, 0), (0, slots), (0, 0), (0, dims))) if slots or dims else x


def hindrance(name: str, q: Float[Array, "b s h k"], rule: Rule) -> str | None:
    """Why that implementation cannot compute this; None where nothing is known to speak against it."""
    place, mesh = platform(), current_mesh()
    if name != "xla" and mesh is not None and mesh.shape["sequence"] > 1:
        return "slots are split (--mesh.sequence)"
    if name == "blocks":
        few = rule.valid is None and 0 < len(rule.plan.blocks) <= FEW
        return None if few else "the plan's slots do not come in a few blocks, the same in all samples"
    if name == "cudnn" and place != "gpu":
        return "cuDNN is for NVIDIA GPUs"
    if name == "cudnn" and (q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[3] > 128):
        return f"cuDNN multiplies in bfloat16, with heads up to 128 wide: these have {q.dtype} and {q.shape[3]}"
    if name == "splash" and place != "tpu":
        return "splash attention is for TPUs"
    return None

"""Vector quantization (VQ-VAE, arXiv 1711.00937), with l2-normalised low-dimensional codes as in ViT-VQGAN (arXiv 2110.04627).

With backpropagation="index" it is IBQ (arXiv 2412.02692): the code with the largest inner product, and gradients for all codes.

Parameters: {"codebook": float32 [V, C]}. All of it computes in float32 whatever the network does: rounded distances pick other
codes.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..errors import UserError

MOST_COUNTED = 2**24  # codes whose usage training counts
WINDOW = 65536  # positions over which it does

Params = dict[str, Any]
AFFINITIES = 2**26  # entries of the [positions, V] matrix that encoding holds at a time: 256 MiB


@dataclass(frozen=True)
class VQ:
    groups: ClassVar[int] = 1  # ids a site
    size: int = 16384  # codes, V
    dim: int = 8  # channels of a code, C
    normalize: bool = True  # codes and latents on the unit sphere; the decoder gets the normalised code
    codebook: float = 1.0  # weight of ||code - sg(latent)||^2
    commitment: float = 0.25  # weight of ||sg(code) - latent||^2; taming's "legacy" loss is codebook=0.25, commitment=1
    entropy: float = 0.0  # weight of the entropy loss; needs a [positions, V] matrix
    temperature: float = 0.01  # of the soft assignment in the entropy loss
    # Where the gradient of a code goes on: straight to the latent, or through the softmax of the latent's inner products with
    # all codes, the largest of which then also chooses the code (IBQ).
    backpropagation: Literal["latent", "index"] = "latent"


class Quantized(NamedTuple):
    codes: Float[Array, "B h w C"]  # straight-through: the gradient goes to the latents
    ids: Int[Array, "B h w"]
    losses: dict[str, Float[Array, ""]]  # weighted: codebook, commitment; entropy if its weight is not 0; index if IBQ


def init(config: VQ, key: Array) -> Params:
    """Codes uniform in +-1/V, then on the unit sphere if the codes are normalised, as LlamaGen does; for IBQ normal.

    Inner products with codes near 0 are all alike: their softmax would let no gradient through.
    """
    if config.backpropagation == "index":
        codebook = jax.random.normal(key, (config.size, config.dim))
        return {"codebook": _sphere(codebook) if config.normalize else codebook}
    codebook = jax.random.uniform(key, (config.size, config.dim), minval=-1 / config.size, maxval=1 / config.size)
    return {"codebook": _sphere(codebook) if config.normalize else codebook}


def _sphere(x: Float[Array, "*N C"]) -> Float[Array, "*N C"]:
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def table(config: VQ, params: Params) -> Float[Array, "V C"]:
    """The code vectors as the decoder gets them."""
    codebook = jnp.asarray(params["codebook"], jnp.float32)
    return _sphere(codebook) if config.normalize else codebook


def lookup(config: VQ, params: Params, ids: Int[Array, "*N"]) -> Float[Array, "*N C"]:
    return table(config, params)[ids]


def _affinity(config: VQ, z: Float[Array, "M C"], codes: Float[Array, "V C"]) -> Float[Array, "M V"]:
    """What the chosen code has most of: minus the squared distance, or the inner product if gradients go by the index.

    Exact float32 products also where the default precision is lower.
    """
    products = jnp.matmul(z, codes.T, precision=jax.lax.Precision.HIGHEST)
    if config.backpropagation == "index":
        return products
    return -(jnp.square(z).sum(1, keepdims=True) + jnp.square(codes).sum(1) - 2 * products)


def nearest(config: VQ, params: Params, latents: Float[Array, "*N C"]) -> Int[Array, "*N"]:
    """Id of the nearest code. Large codebooks are searched for a few positions at a time."""
    codes, z = table(config, params), latents.reshape(-1, config.dim).astype(jnp.float32)
    z = _sphere(z) if config.normalize else z
    rows = max(1, AFFINITIES // config.size)

    def ids(z: Float[Array, "M C"]) -> Int[Array, "M"]:
        return jnp.argmax(_affinity(config, z, codes), -1).astype(jnp.int32)

    found = ids(z) if len(z) <= rows else jax.lax.map(lambda row: ids(row[None])[0], z, batch_size=rows)
    return found.reshape(latents.shape[:-1])


def quantize(config: VQ, params: Params, latents: Float[Array, "B h w C"]) -> Quantized:
    """Codes (straight-through), ids and losses of a training step."""
    codes = table(config, params)
    z = latents.astype(jnp.float32)
    z = _sphere(z) if config.normalize else z
    affinity = _affinity(config, z.reshape(-1, config.dim), codes)
    ids = jnp.argmax(affinity, -1).astype(jnp.int32)
    chosen = codes[ids].reshape(z.shape)
    fixed = jax.lax.stop_gradient
    losses = {
        "codebook": config.codebook * jnp.square(chosen - fixed(z)).mean(),
        "commitment": config.commitment * jnp.square(fixed(chosen) - z).mean(),
    }
    if config.entropy:
        losses["entropy"] = config.entropy * entropy_loss(affinity, config.temperature)
    if config.backpropagation == "latent":
        return Quantized(z + fixed(chosen - z), ids.reshape(z.shape[:-1]), losses)
    through = chosen + _soft_gradient(affinity, codes).reshape(z.shape)
    losses["index"] = jnp.square(through - z).mean()
    return Quantized(through, ids.reshape(z.shape[:-1]), losses)


def _soft_gradient(affinity: Float[Array, "M V"], codes: Float[Array, "V C"]) -> Float[Array, "M C"]:
    """0 with the gradient of the soft assignment: added to the chosen codes it makes the one-hot index straight-through."""
    soft, fixed = jax.nn.softmax(affinity), jax.lax.stop_gradient
    return (soft - fixed(soft)) @ fixed(codes)


def entropy_loss(affinity: Float[Array, "M V"], temperature: float) -> Float[Array, ""]:
    """Mean entropy of the soft assignments minus the entropy of their mean: each sure, all of them diverse (MaskGIT's)."""
    log_p = jax.nn.log_softmax(affinity / temperature)
    p = jnp.exp(log_p)
    mean = p.mean(0)
    return -(p * log_p).sum(-1).mean() + (mean * jnp.log(mean + 1e-5)).sum()


# Usage of the codebook, a pytree that a training step carries along.

Usage = dict[str, Int[Array, "..."]]


def start_usage(config: Any, window: int = WINDOW) -> Usage:
    """No code of a quantizer (any kind) seen yet. `window`: positions over which usage and perplexity are reported."""
    codes = config.size * config.groups
    if codes > MOST_COUNTED:
        raise UserError(f"training counts the use of each id, and {codes:.1e} ids are too many: set the quantizer's groups")
    return {"window": jnp.full(window * config.groups, -1, jnp.int32), "idle": jnp.zeros(codes, jnp.int32)}


def update_usage(usage: Usage, ids: Int[Array, "*N"], groups: int = 1) -> Usage:
    """After a step that used `ids`: the window slides on; `idle` counts the steps since a code was last used. Each of the
    `groups` along the last axis has codes of its own."""
    ids = (ids.reshape(-1, groups) + jnp.arange(groups) * (usage["idle"].size // groups)).reshape(-1)
    window = jnp.concatenate([usage["window"], ids])[-usage["window"].size :]
    idle = (usage["idle"] + 1).at[ids].set(0)
    return {"window": window, "idle": idle}


def usage_metrics(usage: Usage, groups: int = 1) -> dict[str, Float[Array, ""]]:
    """`usage`: share of the codes that the window holds; `perplexity`: exp of the entropy of their frequencies, mean over
    groups."""
    seen = usage["window"] >= 0
    counts = jnp.zeros(usage["idle"].size).at[usage["window"]].add(seen)  # -1 adds 0 to the last code
    p = counts / jnp.maximum(counts.sum(), 1)  # over groups too, which multiplies perplexity by their number
    return {"usage": (counts > 0).mean(), "perplexity": jnp.exp(-jax.scipy.special.xlogy(p, p).sum()) / groups}


def revive(
    config: VQ, params: Params, usage: Usage, latents: Float[Array, "*N C"], key: Array, after: int
) -> tuple[Params, Usage]:
    """Moves each code unused for `after` steps onto a random latent of the batch (Jukebox, arXiv 2005.00341, section 3.1).

    A little noise keeps two codes that drew the same latent apart. Runs inside a jitted step.
    """
    z = latents.reshape(-1, config.dim).astype(jnp.float32)
    z = _sphere(z) if config.normalize else z
    which, noise = jax.random.split(key)
    drawn = z[jax.random.randint(which, (config.size,), 0, z.shape[0])]
    drawn = drawn + 0.01 * z.std(0) * jax.random.normal(noise, drawn.shape)
    dead = usage["idle"] >= after
    codebook = jnp.where(dead[:, None], _sphere(drawn) if config.normalize else drawn, params["codebook"])
    return {**params, "codebook": codebook}, {**usage, "idle": jnp.where(dead, 0, usage["idle"])}

"""From hidden states to what is predicted at a site: the distribution, its loss and its sampler."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmgen.model.config import GeneratorConfig
from mmgen.model.layers import LayerNorm, norm_of, product, turned_product, weight
from mmgen.parallel.rules import constrain, one_cpu


class VocabularyHead(nnx.Module):
    """A norm and a linear map to `codebook_size` logits, times `groups` where a site holds several sub-tokens, which are
    then independent given the hidden state. The map starts at zero: the first loss is log V (LlamaGen, arXiv 2406.06525)."""

    def __init__(self, c: GeneratorConfig, rngs: nnx.Rngs):
        self.groups, self.size = c.layout.groups, c.layout.codebook_size
        self.modulated, D = c.block.modulation != "none", c.block.width
        if self.modulated:  # LayerNorm, scaled and shifted by the class
            self.norm = LayerNorm(D, ("embed",), c.block.norm_eps, learned=False)
            self.modulation = weight(rngs, (D, 2 * D), ("embed", None))
            self.modulation_bias = weight(rngs, (2 * D,), (None,), scale=0.0)
        else:
            self.norm = norm_of(c.block, D, "embed")
        if c.block.norm_after:  # the states have just been normed: a layer, then a norm of its own
            self.layer = weight(rngs, (D, D), ("embed", None))
        if c.block.bias and c.block.norm_after:
            self.layer_bias = weight(rngs, (D,), (None,), scale=0.0)
        if c.block.bias:
            self.bias = weight(rngs, (self.groups * self.size,), ("vocab",), scale=0.0)
        self.project(D, self.groups * self.size, rngs)

    def project(self, width: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.map = weight(rngs, (width, outputs), ("embed", "vocab"), scale=0.0)

    def mapped(self, features: Float[Array, "b n d"]) -> Float[Array, "b n v"]:
        return jnp.matmul(features, self.map[...].astype(features.dtype), preferred_element_type=jnp.float32)

    def features(
        self, hidden: Float[Array, "b s d"], condition: Float[Array, "b #s d"] | None = None
    ) -> Float[Array, "b s d"]:
        """What plans combine over slots before the one product of `logits`. `condition`: what modulates."""
        if hasattr(self, "layer"):
            hidden = product(hidden, self.layer) + (self.layer_bias[...] if hasattr(self, "layer_bias") else 0)
            hidden = jax.nn.gelu(hidden, approximate=False)
        if not self.modulated:
            return self.norm(hidden)
        scale, shift = jnp.split(condition @ self.modulation[...] + self.modulation_bias[...], 2, axis=-1)
        return self.norm(hidden) * (1 + scale) + shift

    def logits(self, features: Float[Array, "b n d"]) -> Float[Array, "b n ..."]:
        """float32 [B, N, V], or [B, N, G, V] with groups."""
        y = self.mapped(features)
        y = y + self.bias[...].astype(jnp.float32) if hasattr(self, "bias") else y
        y = constrain(y, "batch", "sites", "vocab")
        return y.reshape(*y.shape[:2], self.groups, self.size) if self.groups > 1 else y


class TurnedHead(VocabularyHead):
    """The same head in the form that decodes: see layers.turned_product."""

    def project(self, width: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.map_turned = weight(rngs, (outputs, width), ("vocab", "embed"), scale=0.0)

    def mapped(self, features: Float[Array, "b n d"]) -> Float[Array, "b n v"]:
        return turned_product(features, self.map_turned[...], jnp.float32)


def turn(head: dict) -> dict:
    """Parameters of one VocabularyHead -> those of a TurnedHead."""
    return {name: value for name, value in head.items() if name != "map"} | {"map_turned": head["map"].T}


def negative_log_likelihood(
    logits: Float[Array, "b n *g v"], tokens: Int[Array, "b n *g"], smoothing: float = 0.0
) -> Float[Array, "b n *g"]:
    """Of each token, in nats. `smoothing`: that share of the label goes to all V tokens evenly."""
    if one_cpu():
        chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    else:  # a sum: devices that share the vocabulary find the token without moving logits, and the way back is no scatter
        chosen = jnp.sum(jnp.where(jnp.arange(logits.shape[-1]) == tokens[..., None], logits, 0), axis=-1)
    wanted = (1 - smoothing) * chosen + smoothing * jnp.mean(logits, axis=-1) if smoothing else chosen
    return jax.nn.logsumexp(logits, axis=-1) - wanted


def choose(scores: Float[Array, "b e *g v"], noise: Float[Array, "b e *g v"]) -> Int[Array, "b e *g"]:
    """A sample of softmax(scores), which need not be normalised, by the Gumbel-max trick."""
    return jnp.argmax(scores + noise, axis=-1).astype(jnp.int32)

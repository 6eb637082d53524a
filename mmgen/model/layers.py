"""One transformer layer, in the form that trains and in the fused form that decodes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mmgen.model.config import BlockConfig
from mmgen.model.positions import rotate

STANDARD_DEVIATION = 0.02  # of every initial weight (LlamaGen, arXiv 2406.06525)


def weight(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], scale: float = STANDARD_DEVIATION
) -> nnx.Param:
    """A parameter with logical axis names, which `parallel/` maps to a mesh; a zero scale needs no random numbers."""
    value = jax.random.normal(rngs.params(), shape) * scale if scale else jnp.zeros(shape)
    return nnx.Param(value, axes=axes)


def product(x: Float[Array, "b s d"], w: nnx.Param | Array) -> Float[Array, "b s f"]:
    """x times a matrix. Rows are flattened on a CPU: XLA transposes the gradient of a three-dimensional product, at a third of
    a training step's time; elsewhere batch and slots stay apart, because they may lie on different axes of the mesh."""
    w = w[...].astype(x.dtype)
    if jax.default_backend() != "cpu":
        return x @ w
    return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], -1)


class RMSNorm(nnx.Module):
    """arXiv 1910.07467; the mean square in float32, the product in the dtype of x."""

    def __init__(self, size: int, axes: tuple[str | None, ...], eps: float):
        self.scale = nnx.Param(jnp.ones(size), axes=axes)
        self.eps = eps

    def __call__(self, x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
        x32 = x.astype(jnp.float32)
        x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * self.scale[...].astype(x.dtype)


class Block(nnx.Module):
    """x + attention(norm(x)), then x + SwiGLU(norm(x)) (arXiv 2002.05202). Biases nowhere."""

    def __init__(self, c: BlockConfig, rngs: nnx.Rngs):
        D, H, K, F = c.width, c.heads, c.head_dim, c.mlp
        self.config = c
        self.norm_attention = RMSNorm(D, ("embed",), c.norm_eps)
        self.project(c, rngs)
        self.out = weight(rngs, (H, K, D), ("heads", "head", "embed"))
        if c.qk_norm:
            self.norm_q, self.norm_k = (RMSNorm(K, (None,), c.norm_eps) for _ in "qk")
        self.norm_mlp = RMSNorm(D, ("embed",), c.norm_eps)
        self.down = weight(rngs, (F, D), ("mlp", "embed"))

    def project(self, c: BlockConfig, rngs: nnx.Rngs) -> None:
        D, H, G, K, F = c.width, c.heads, c.kv_heads or c.heads, c.head_dim, c.mlp
        self.q = weight(rngs, (D, H, K), ("embed", "heads", "head"))
        self.k = weight(rngs, (D, G, K), ("embed", "kv_heads", "head"))
        self.v = weight(rngs, (D, G, K), ("embed", "kv_heads", "head"))
        self.gate = weight(rngs, (D, F), ("embed", "mlp"))
        self.up = weight(rngs, (D, F), ("embed", "mlp"))

    def qkv(self, x: Float[Array, "b s d"]) -> tuple[Array, Array, Array]:
        D, K = self.config.width, self.config.head_dim
        return tuple(product(x, w[...].reshape(D, -1)).reshape(*x.shape[:2], -1, K) for w in (self.q, self.k, self.v))

    def gated(self, x: Float[Array, "b s d"]) -> Float[Array, "b s f"]:
        return jax.nn.silu(product(x, self.gate)) * product(x, self.up)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        angles: Float[Array, "#b s 2 k_half"],
        attend: Callable[[Array, Array, Array], Array],
        drop_attention: Callable[[Array], Array] = lambda y: y,
        drop_mlp: Callable[[Array], Array] = lambda y: y,
    ) -> Float[Array, "b s d"]:
        q, k, v = self.qkv(self.norm_attention(x))
        if self.config.qk_norm:
            q, k = self.norm_q(q), self.norm_k(k)
        mixed = attend(rotate(q, angles), rotate(k, angles), v)
        x = x + drop_attention(product(mixed.reshape(*x.shape[:2], -1), self.out[...].reshape(-1, x.shape[-1])))
        return x + drop_mlp(product(self.gated(self.norm_mlp(x)), self.down))


class FusedBlock(Block):
    """The same layer with one matrix for q, k, v and one for gate and up: a decode step is a chain of small products."""

    def project(self, c: BlockConfig, rngs: nnx.Rngs) -> None:
        heads = c.heads + 2 * (c.kv_heads or c.heads)
        self.qkv_fused = weight(rngs, (c.width, heads * c.head_dim), ("embed", "heads"))
        self.gate_up = weight(rngs, (c.width, 2 * c.mlp), ("embed", "mlp"))

    def qkv(self, x: Float[Array, "b s d"]) -> tuple[Array, Array, Array]:
        c = self.config
        y = product(x, self.qkv_fused).reshape(*x.shape[:2], -1, c.head_dim)
        return tuple(jnp.split(y, (c.heads, c.heads + (c.kv_heads or c.heads)), axis=2))

    def gated(self, x: Float[Array, "b s d"]) -> Float[Array, "b s f"]:
        gate, up = jnp.split(product(x, self.gate_up), 2, axis=-1)
        return jax.nn.silu(gate) * up


def fuse(layer: dict) -> dict:
    """Parameters of one Block -> those of a FusedBlock."""
    rest = {name: value for name, value in layer.items() if name not in ("q", "k", "v", "gate", "up")}
    flat = [layer[name].reshape(layer[name].shape[0], -1) for name in "qkv"]
    return rest | {
        "qkv_fused": jnp.concatenate(flat, axis=1),
        "gate_up": jnp.concatenate([layer["gate"], layer["up"]], axis=1),
    }

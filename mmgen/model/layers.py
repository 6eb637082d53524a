"""One transformer layer, in the form that trains and in the fused form that decodes."""

import platform
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mmgen.model.config import BlockConfig
from mmgen.model.positions import rotate
from mmgen.parallel.rules import constrain, one_cpu

STANDARD_DEVIATION = 0.02  # of every initial weight (LlamaGen, arXiv 2406.06525)


def weight(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], scale: float = STANDARD_DEVIATION
) -> nnx.Param:
    """A parameter with logical axis names, which `parallel/` maps to a mesh; a zero scale needs no random numbers."""
    value = jax.random.normal(rngs.params(), shape) * scale if scale else jnp.zeros(shape)
    return nnx.Param(value, axes=axes)


def compute_dtype(name: str | jnp.dtype | None) -> jnp.dtype:
    """What networks multiply in. None and "auto": bfloat16, but float32 on a CPU, where that is ten times faster."""
    if name is None or str(name) == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def product(x: Float[Array, "b s d"], w: nnx.Param | Array) -> Float[Array, "b s f"]:
    """x times a matrix. Rows are flattened on a CPU: XLA transposes the gradient of a three-dimensional product, at a third of
    a training step's time; elsewhere batch and slots stay apart, because they may lie on different axes of the mesh."""
    w = w[...].astype(x.dtype)
    if not one_cpu():
        return x @ w
    return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], -1)


FEW_ROWS = range(2, 65)  # a single row is slow in a fused sum


def turned_product(
    x: Float[Array, "b s d"], w: Float[Array, "*f d"], dtype: jnp.dtype | None = None
) -> Float[Array, "b s *f"]:
    """x times the transpose of a matrix, as matrices lie while decoding: the weights of one output side by side; or of several
    matrices at once. `dtype`: of the result, if not that of x.

    Few rows are bound by reading the matrix, which a sum that XLA fuses with its multiplication does fastest on a CPU (of
    x86, the only one where this was measured; in float32, because the multiplication rounds)."""
    w = w.astype(x.dtype)
    if not one_cpu():
        return jnp.einsum("bsd,...d->bs...", x, w, preferred_element_type=dtype)
    rows, outputs, w = x.reshape(-1, x.shape[-1]), w.shape[:-1], w.reshape(-1, w.shape[-1])
    if len(rows) in FEW_ROWS and x.dtype == jnp.float32 and platform.machine() in ("x86_64", "AMD64"):
        y = jnp.sum(w * rows[:, None], axis=-1)
    else:
        y = jnp.einsum("fd,md->fm", w, rows, preferred_element_type=dtype).T
    return y.reshape(*x.shape[:-1], *outputs)


class RMSNorm(nnx.Module):
    """arXiv 1910.07467; the mean square in float32, the product in the dtype of x."""

    def __init__(self, size: int, axes: tuple[str | None, ...], eps: float):
        self.scale = nnx.Param(jnp.ones(size), axes=axes)
        self.eps = eps

    def __call__(self, x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
        x32 = x.astype(jnp.float32)
        x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * self.scale[...].astype(x.dtype)


def layer_norm(x: Float[Array, "*s d"], eps: float) -> Float[Array, "*s d"]:
    """Mean 0, variance 1; in float32."""
    x32 = x.astype(jnp.float32)
    x32 -= jnp.mean(x32, axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """arXiv 1607.06450; `learned`: with a scale and an offset."""

    def __init__(self, size: int, axes: tuple[str | None, ...], eps: float, learned: bool = True):
        self.eps, self.learned = eps, learned
        if learned:
            self.scale, self.offset = nnx.Param(jnp.ones(size), axes=axes), nnx.Param(jnp.zeros(size), axes=axes)

    def __call__(self, x: Float[Array, "*s d"]) -> Float[Array, "*s d"]:
        y = layer_norm(x, self.eps)
        return y * self.scale[...].astype(x.dtype) + self.offset[...].astype(x.dtype) if self.learned else y


def norm_of(c: BlockConfig, size: int, axis: str | None, modulated: bool = False) -> nnx.Module:
    """The configuration's kind of norm."""
    if c.norm == "rms" and not modulated:
        return RMSNorm(size, (axis,), c.norm_eps)
    return LayerNorm(size, (axis,), c.norm_eps, learned=c.norm == "layer")


def unit(x: Float[Array, "*s k"]) -> Float[Array, "*s k"]:
    """Vectors of length 1; in float32."""
    x32 = x.astype(jnp.float32)
    return (x32 / jnp.maximum(jnp.linalg.norm(x32, axis=-1, keepdims=True), 1e-12)).astype(x.dtype)


class Modulation(NamedTuple):
    """What adaLN does to one branch of a layer."""

    gate: Float[Array, "#b #s d"]
    scale: Float[Array, "#b #s d"]
    shift: Float[Array, "#b #s d"]

    def __call__(self, normed: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        return normed * (1 + self.scale) + self.shift


class Block(nnx.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), SwiGLU (arXiv 2002.05202) or GELU; with norm_after norm(x + attention(x)),
    then norm(x + MLP(x))."""

    def __init__(self, c: BlockConfig, rngs: nnx.Rngs):
        D, H, K = c.width, c.heads, c.head_dim
        self.config = c
        modulated = c.modulation != "none"
        self.norm_attention, self.norm_mlp = (norm_of(c, D, "embed", modulated) for _ in "am")
        if modulated:
            self.modulation_bias = weight(rngs, (6, D), (None, "embed"))
        if c.modulation in ("block", "slot"):
            self.modulation = weight(rngs, (D, 6, D), ("embed", None, None))
        self.project(c, rngs)
        if c.qk_norm:
            self.norm_q, self.norm_k = (norm_of(c, K, None) for _ in "qk")
        if c.l2_attention:
            self.temperature = nnx.Param(jnp.full(H, jnp.log(4.0)), axes=("heads",))  # logarithm of what q k is multiplied by
        if c.bias:
            self.out_bias, self.down_bias = (weight(rngs, (D,), ("embed",), scale=0.0) for _ in "od")

    def project(self, c: BlockConfig, rngs: nnx.Rngs) -> None:
        D, H, G, K, F = c.width, c.heads, c.kv_heads or c.heads, c.head_dim, c.mlp
        self.q = weight(rngs, (D, H, K), ("embed", "heads", "head"))
        self.k = weight(rngs, (D, G, K), ("embed", "kv_heads", "head"))
        self.v = weight(rngs, (D, G, K), ("embed", "kv_heads", "head"))
        if c.mlp_kind == "swiglu":
            self.gate = weight(rngs, (D, F), ("embed", "mlp"))
        self.up = weight(rngs, (D, F), ("embed", "mlp"))
        self.out = weight(rngs, (H, K, D), ("heads", "head", "embed"))
        self.down = weight(rngs, (F, D), ("mlp", "embed"))
        if c.bias:
            self.q_bias = weight(rngs, (H, K), ("heads", "head"), scale=0.0)
            self.v_bias = weight(rngs, (G, K), ("kv_heads", "head"), scale=0.0)
            if c.key_bias:
                self.k_bias = weight(rngs, (G, K), ("kv_heads", "head"), scale=0.0)
            self.up_bias = weight(rngs, (F,), ("mlp",), scale=0.0)

    def qkv(self, x: Float[Array, "b s d"]) -> tuple[Array, Array, Array]:
        c, D = self.config, self.config.width
        q, k, v = (product(x, w[...].reshape(D, -1)).reshape(*x.shape[:2], -1, c.head_dim) for w in (self.q, self.k, self.v))
        k = k + self.k_bias[...] if c.key_bias else k
        return (q + self.q_bias[...], k, v + self.v_bias[...]) if c.bias else (q, k, v)

    def hidden(self, x: Float[Array, "b s d"]) -> Float[Array, "b s f"]:
        """What the MLP's last product reads."""
        up = checkpoint_name(product(x, self.up) + (self.up_bias[...] if self.config.bias else 0), "mlp")
        if self.config.mlp_kind == "swiglu":
            return jax.nn.silu(checkpoint_name(product(x, self.gate), "mlp")) * up
        return jax.nn.gelu(up, approximate=self.config.mlp_kind == "gelu")

    def merged(self, heads: Float[Array, "b s hk"]) -> Float[Array, "b s d"]:
        return product(heads, self.out[...].reshape(-1, self.config.width))

    def lowered(self, hidden: Float[Array, "b s f"]) -> Float[Array, "b s d"]:
        return product(hidden, self.down)

    def attention(self, x: Float[Array, "b s d"], angles: Array | None, attend: Callable) -> Float[Array, "b s d"]:
        c = self.config
        q, k, v = (checkpoint_name(y, "qkv") for y in self.qkv(x))
        if c.qk_norm:
            q, k = self.norm_q(q), self.norm_k(k)
        if c.l2_attention:  # `attend` divides by sqrt(K)
            temperature = jnp.exp(jnp.minimum(self.temperature[...], jnp.log(100.0))) * c.head_dim**0.5
            q, k = unit(q) * temperature[:, None].astype(q.dtype), unit(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        y = self.merged(checkpoint_name(attend(q, k, v), "attention").reshape(*x.shape[:2], -1))
        return y + self.out_bias[...] if c.bias else y

    def mlp(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        y = self.lowered(constrain(self.hidden(x), "batch", "slots", "mlp"))
        return y + self.down_bias[...] if self.config.bias else y

    def branches(self, condition: Float[Array, "b #s m"]) -> tuple[Modulation, Modulation]:
        """Of attention and MLP. VAR's order: gates, scales, shifts."""
        D = self.config.width
        if self.config.modulation != "shared":
            condition = product(condition, self.modulation[...].reshape(D, -1))
        six = condition.reshape(*condition.shape[:2], 6, D) + self.modulation_bias[...]
        return tuple(Modulation(*(six[:, :, i] for i in range(first, 6, 2))) for first in (0, 1))

    def __call__(
        self,
        x: Float[Array, "b s d"],
        angles: Float[Array, "#b s 2 k_half"] | None,
        attend: Callable[[Array, Array, Array], Array],
        drop_attention: Callable[[Array], Array] = lambda y: y,
        drop_mlp: Callable[[Array], Array] = lambda y: y,
        condition: Float[Array, "b #s m"] | None = None,
    ) -> Float[Array, "b s d"]:
        """`condition`: what modulates, [B, 1, D], [B, S, D] by slot, or [B, 1, 6 D] of the matrix that all layers share."""
        if self.config.norm_after:
            x = self.norm_attention(x + drop_attention(self.attention(x, angles, attend)))
            return self.norm_mlp(x + drop_mlp(self.mlp(x)))
        if self.config.modulation == "none":
            x = x + drop_attention(self.attention(self.norm_attention(x), angles, attend))
            return x + drop_mlp(self.mlp(self.norm_mlp(x)))
        first, second = self.branches(condition)
        x = x + drop_attention(first.gate * self.attention(first(self.norm_attention(x)), angles, attend))
        return x + drop_mlp(second.gate * self.mlp(second(self.norm_mlp(x))))


class FusedBlock(Block):
    """The same layer with one array for q, k, v and one for gate and up, all turned: a decode step is a chain of small
    products. In each of their pieces the heads, or units, can be split over devices."""

    def project(self, c: BlockConfig, rngs: nnx.Rngs) -> None:
        groups = c.kv_heads or c.heads
        pieces = c.heads // groups + 2  # a query head of each group, and so on; keys; values
        self.qkv_turned = weight(rngs, (pieces, groups * c.head_dim, c.width), (None, "kv_heads", "embed"))
        self.gate_up_turned = weight(rngs, (2 if c.mlp_kind == "swiglu" else 1, c.mlp, c.width), (None, "mlp", "embed"))
        self.out_turned = weight(rngs, (c.width, c.heads * c.head_dim), ("embed", "heads"))
        self.down_turned = weight(rngs, (c.width, c.mlp), ("embed", "mlp"))
        if c.bias:
            self.qkv_bias = weight(rngs, (pieces, groups * c.head_dim), (None, "kv_heads"), scale=0.0)
            self.up_bias = weight(rngs, (c.mlp,), ("mlp",), scale=0.0)

    def qkv(self, x: Float[Array, "b s d"]) -> tuple[Array, Array, Array]:
        y = turned_product(x, self.qkv_turned[...]) + (self.qkv_bias[...] if self.config.bias else 0)
        y = constrain(y, "batch", "slots", None, "kv_heads").reshape(*y.shape[:3], -1, self.config.head_dim)
        q = y[:, :, :-2].swapaxes(2, 3)  # heads that read the same keys stand together
        return q.reshape(*q.shape[:2], -1, self.config.head_dim), y[:, :, -2], y[:, :, -1]

    def hidden(self, x: Float[Array, "b s d"]) -> Float[Array, "b s f"]:
        both = turned_product(x, self.gate_up_turned[...])
        up = both[:, :, -1] + (self.up_bias[...] if self.config.bias else 0)
        if self.config.mlp_kind == "swiglu":
            return jax.nn.silu(both[:, :, 0]) * up
        return jax.nn.gelu(up, approximate=self.config.mlp_kind == "gelu")

    def merged(self, heads: Float[Array, "b s hk"]) -> Float[Array, "b s d"]:
        return turned_product(heads, self.out_turned[...])

    def lowered(self, hidden: Float[Array, "b s f"]) -> Float[Array, "b s d"]:
        return turned_product(hidden, self.down_turned[...])


def fuse(layer: dict) -> dict:
    """Parameters of one Block -> those of a FusedBlock."""
    fused = ("q", "k", "v", "gate", "up", "out", "down", "q_bias", "k_bias", "v_bias")
    rest = {name: value for name, value in layer.items() if name not in fused}
    groups = layer["k"].shape[1]

    def pieces(x: Array) -> Array:
        """[(D), H, K] -> [H / G, G K, (D)]: of the query heads h that read keys g = h // (H / G), one of each g a piece."""
        apart = x.reshape(*x.shape[:-2], groups, -1, x.shape[-1])
        return jnp.moveaxis(apart, (-2, -3, -1), (0, 1, 2)).reshape(apart.shape[-2], -1, *x.shape[:-2])

    if "q_bias" in layer:
        biases = (layer["q_bias"], layer.get("k_bias", jnp.zeros_like(layer["v_bias"])), layer["v_bias"])
        rest["qkv_bias"] = jnp.concatenate([pieces(bias) for bias in biases])
    return rest | {
        "qkv_turned": jnp.concatenate([pieces(layer[name]) for name in "qkv"]),
        "gate_up_turned": jnp.stack([layer[name].T for name in ("gate", "up") if name in layer]),
        "out_turned": layer["out"].reshape(-1, layer["out"].shape[-1]).T,
        "down_turned": layer["down"].T,
    }

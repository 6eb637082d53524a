"""What a slot reads: the condition's embeddings, and the input rule that turns known tokens into the inputs of other slots."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from mmgen_tokenizers.quantizers import multiscale

from mmgen.model.config import (
    ClassCondition,
    FeatureCondition,
    GeneratorConfig,
    Masked,
    NextNeighbor,
    NextScale,
    NextToken,
    RandomOrder,
    TextCondition,
)
from mmgen.model.layers import weight
from mmgen.plan.plan import CONDITION, INDEX, NOWHERE, SCALE, TARGET_COLUMN, TARGET_ROW


class Slots(NamedTuple):
    """The plan's rows for the slots that are computed now; leading axis B where they differ per sample."""

    kind: Int[Array, "#b f"]
    source: Int[Array, "#b f"]
    position: Int[Array, "#b f p"]
    number: Int[Array, "1 f"]  # of all slots


class InputRule(Protocol):
    """tokens int32 [B, N(, G)] (only those sampled before these slots' time may be used), slots -> [B, F, D].

    A rule keeps no state between steps, so that teacher forcing and decoding are the same call on all slots or on some.
    """

    def __call__(self, tokens: Int[Array, "b n ..."], slots: Slots) -> Float[Array, "b f d"]: ...


class Shift(nnx.Module):
    """Each slot embeds the token of its source site; the sub-tokens of a group are summed."""

    def __init__(self, c: GeneratorConfig, rngs: nnx.Rngs):
        self.table = weight(rngs, (c.layout.groups, c.layout.codebook_size, c.block.width), (None, "vocab", "embed"))

    def __call__(self, tokens: Int[Array, "b n ..."], slots: Slots) -> Float[Array, "b f d"]:
        tokens = tokens.reshape(*tokens.shape[:2], -1)
        source = jnp.broadcast_to(slots.source, (len(tokens), slots.source.shape[1]))
        known = jnp.take_along_axis(tokens, jnp.maximum(source, 0)[:, :, None], axis=1)  # [B, F, G]
        x = sum(self.table[...][g][known[:, :, g]] for g in range(known.shape[2]))
        return jnp.where((source >= 0)[:, :, None], x, 0)


class Pyramid(nnx.Module):
    """A slot reads the sum of the coarser scales, as large as its own scale: VAR's input (arXiv 2404.02905).

    Codes and convolutions are the tokenizer's (`adopt`); they are never trained (axis name "frozen").
    """

    def __init__(self, c: GeneratorConfig, rngs: nnx.Rngs):
        self.config, self.layout, self.condition_slots = c.plan.quantizer, c.layout, c.condition.slots
        V, C, P = self.config.size, self.config.dim, self.config.phis
        self.codebook = weight(rngs, (V, C), ("frozen", None))
        if P:
            self.phi_kernel = weight(rngs, (P, 3, 3, C, C), ("frozen", None, None, None, None), scale=0.0)
            self.phi_bias = weight(rngs, (P, C), ("frozen", None), scale=0.0)
        self.embed = weight(rngs, (C, c.block.width), (None, "embed"), scale=C**-0.5)  # else places drown C numbers
        self.bias = weight(rngs, (c.block.width,), ("embed",), scale=0.0)

    @property
    def quantizer(self) -> dict:
        """Parameters of the tokenizer's quantizer."""
        phi = {str(i): {"kernel": self.phi_kernel[...][i], "bias": self.phi_bias[...][i]} for i in range(self.config.phis)}
        return {"codebook": self.codebook[...], **({"phi": phi} if phi else {})}

    def __call__(self, tokens: Int[Array, "b n"], slots: Slots) -> Float[Array, "b f d"]:
        known = tokens[:, : self.layout.prefixes[-2]]  # all scales but the last, which nobody reads
        read = multiscale.next_input(self.config, self.quantizer, known, self.layout.height, self.layout.width)
        place = jnp.maximum(slots.position[..., INDEX] - self.condition_slots, 0)
        place = jnp.broadcast_to(place, (len(tokens), place.shape[1]))
        return jnp.take_along_axis(read.astype(self.embed.dtype), place[..., None], axis=1) @ self.embed[...] + self.bias[...]


def adopt(c: GeneratorConfig, params: dict, quantizer: dict) -> dict:
    """The generator's parameters with those of its multi-scale tokenizer's quantizer in the input rule."""
    own = {"codebook": quantizer["codebook"]}
    if c.plan.quantizer.phis:
        each = [quantizer["phi"][str(i)] for i in range(c.plan.quantizer.phis)]
        own |= {f"phi_{name}": jnp.stack([phi[name] for phi in each]) for name in ("kernel", "bias")}
    return {**params, "ends": {**params["ends"], "input": {**params["ends"]["input"], **own}}}


class Mix(nnx.Module):
    """A slot reads the token of its own site, or that it is hidden (id V); the sub-tokens of a group are summed."""

    def __init__(self, c: GeneratorConfig, rngs: nnx.Rngs):
        self.condition_slots, self.hidden, G, D = c.condition.slots, c.layout.codebook_size, c.layout.groups, c.block.width
        self.bits = self.hidden.bit_length() - 1 if c.plan.embedding == "bits" else None
        if self.bits is None:
            self.table = weight(rngs, (G, self.hidden + 1, D), (None, None, "embed"))  # a row more than codes: cannot be split
        else:
            self.map = weight(rngs, (G * self.bits, D), (None, "embed"))
            self.bias = weight(rngs, (D,), ("embed",), scale=0.0)

    def __call__(self, tokens: Int[Array, "b n ..."], slots: Slots) -> Float[Array, "b f d"]:
        tokens = tokens.reshape(*tokens.shape[:2], -1)
        site = jnp.maximum(slots.position[..., INDEX] - self.condition_slots, 0)
        own = jnp.take_along_axis(tokens, jnp.broadcast_to(site, (len(tokens), site.shape[1]))[..., None], axis=1)  # [B, F, G]
        if self.bits is None:
            return sum(self.table[...][g][own[..., g]] for g in range(own.shape[2]))
        signs = ((own[..., None] >> jnp.arange(self.bits)) & 1) * 2 - 1
        signs = jnp.where((own == self.hidden)[..., None], 0, signs).reshape(*own.shape[:2], -1)
        return signs.astype(self.map.dtype) @ self.map[...] + self.bias[...]


class Places(nnx.Module):
    """Learned vectors that are added to what slots read: where positions are learned, of each slot; where there are scales, of
    each scale, and of the condition once more (VAR)."""

    def __init__(self, c: GeneratorConfig, indices: int, rngs: nnx.Rngs):
        D = c.block.width
        if c.block.position == "learned":
            self.slot = weight(rngs, (indices, D), (None, "embed"))
        if c.layout.scales:
            self.scale = weight(rngs, (len(c.layout.scales), D), (None, "embed"))
            self.start = weight(rngs, (c.condition.slots, D), (None, "embed"))

    def __call__(self, x: Float[Array, "b f d"], slots: Slots) -> Float[Array, "b f d"]:
        index, scale = slots.position[..., INDEX], slots.position[..., SCALE]
        if hasattr(self, "slot"):
            x = x + self.slot[...][index]
        if not hasattr(self, "scale"):
            return x
        x = x + self.scale[...][scale]
        own = (slots.kind == CONDITION)[..., None]
        return x + jnp.where(own, self.start[...][jnp.minimum(index, len(self.start[...]) - 1)], 0)


class Targets(nnx.Module):
    """A learned vector of the site that a slot predicts, and with learned positions of the one that it holds (RAR, arXiv
    2411.00776): where every sample has an order of its own, a slot cannot know otherwise what comes next."""

    def __init__(self, c: GeneratorConfig, rngs: nnx.Rngs):
        self.width, D = c.layout.width, c.block.width
        self.target = weight(rngs, (c.layout.sites, D), (None, "embed"))
        if c.block.position == "learned":
            self.place = weight(rngs, (c.condition.slots + c.layout.sites, D), (None, "embed"))

    def __call__(self, x: Float[Array, "b f d"], slots: Slots) -> Float[Array, "b f d"]:
        row, column = slots.position[..., TARGET_ROW], slots.position[..., TARGET_COLUMN]
        target = self.target[...][jnp.maximum(row * self.width + column, 0)]
        x = x + jnp.where((row == NOWHERE)[..., None], 0, target)
        return x + self.place[...][slots.position[..., INDEX]] if hasattr(self, "place") else x


def places_of(c: GeneratorConfig, indices: int, rngs: nnx.Rngs) -> nnx.Module | None:
    """What is added to the inputs for their places; None where rotary codes say all. `indices`: how many INDEX counts."""
    if isinstance(c.plan, RandomOrder):
        return Targets(c, rngs)
    return Places(c, indices, rngs) if c.block.position == "learned" or c.layout.scales else None


INPUT_RULES: dict[type, type[nnx.Module]] = {  # of each kind of plan
    NextToken: Shift,
    NextNeighbor: Shift,
    NextScale: Pyramid,
    RandomOrder: Shift,
    Masked: Mix,
}


def input_rule(c: GeneratorConfig, rngs: nnx.Rngs) -> InputRule:
    """The rule that the plan of `c` reads its inputs by."""
    return INPUT_RULES[type(c.plan)](c, rngs)


class ClassEmbedding(nnx.Module):
    def __init__(self, condition: ClassCondition, width: int, rngs: nnx.Rngs):
        self.table = weight(rngs, (condition.classes + 1, width), ("classes", "embed"))
        if condition.prefix:
            self.prefix = weight(rngs, (condition.prefix, width), (None, "embed"))

    def __call__(self, batch: dict) -> Float[Array, "b c d"]:
        x = self.table[...][batch["label"]][:, None]
        if not hasattr(self, "prefix"):
            return x
        return jnp.concatenate([jnp.broadcast_to(self.prefix[...], (len(x), *self.prefix.shape)), x], axis=1)


class TextEmbedding(nnx.Module):
    def __init__(self, condition: TextCondition, width: int, rngs: nnx.Rngs):
        self.table = weight(rngs, (condition.vocabulary, width), ("vocab", "embed"))

    def __call__(self, batch: dict) -> Float[Array, "b c d"]:
        return self.table[...][batch["prompt"]]


class FeatureEmbedding(nnx.Module):
    """LlamaGen's caption MLP over features of a text encoder. `null` is never trained (axis name "frozen")."""

    def __init__(self, condition: FeatureCondition, width: int, rngs: nnx.Rngs):
        self.null = weight(rngs, (condition.length, condition.width), ("frozen", None), scale=condition.width**-0.5)
        self.fc1 = weight(rngs, (condition.width, width), (None, "embed"))
        self.fc2 = weight(rngs, (width, width), ("embed", None))

    def __call__(self, batch: dict) -> Float[Array, "b c d"]:
        features = batch["features"]
        if "null" in batch:  # bool [B]: rows that get the null condition
            features = jnp.where(batch["null"][:, None, None], self.null[...], features)
        features = features.astype(self.fc1[...].dtype)
        return jax.nn.gelu(features @ self.fc1[...], approximate=True) @ self.fc2[...]


def condition_embedding(c: GeneratorConfig, rngs: nnx.Rngs) -> nnx.Module:
    kinds = {ClassCondition: ClassEmbedding, TextCondition: TextEmbedding, FeatureCondition: FeatureEmbedding}
    return kinds[type(c.condition)](c.condition, c.block.width, rngs)

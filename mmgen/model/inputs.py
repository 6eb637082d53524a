"""What a slot reads: the condition's embeddings, and the input rule that turns known tokens into the inputs of other slots."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mmgen.model.config import ClassCondition, FeatureCondition, GeneratorConfig, NextToken, TextCondition
from mmgen.model.layers import weight


class Slots(NamedTuple):
    """The plan's rows for the slots that are computed now; leading axis B where they differ per sample."""

    kind: Int[Array, "#b f"]
    source: Int[Array, "#b f"]
    position: Int[Array, "#b f p"]


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


INPUT_RULES: dict[type, type[nnx.Module]] = {NextToken: Shift}  # of each kind of plan


def input_rule(c: GeneratorConfig, rngs: nnx.Rngs) -> nnx.Module:
    """The rule that the plan of `c` reads its inputs by."""
    return INPUT_RULES[type(c.plan)](c, rngs)


class ClassEmbedding(nnx.Module):
    def __init__(self, condition: ClassCondition, width: int, rngs: nnx.Rngs):
        self.table = weight(rngs, (condition.classes + 1, width), ("classes", "embed"))

    def __call__(self, batch: dict) -> Float[Array, "b 1 d"]:
        return self.table[...][batch["label"]][:, None]


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

"""The decoder-only transformer. It knows slots, times and heads; which system it is, the plan and the configuration say.

Parameters are a plain dict {"ends": condition, input rule, heads; "blocks": the layers, stacked on axis 0}.
A batch is a dict: "ids" int32 [B, N(, G)] and one of "label" int32 [B] | "prompt" int32 [B, C] with "prompt_valid" bool [B, C]
| "features" float32 [B, C, F] with "features_valid" bool [B, C]. Where each sample has its own order, "source" int32 [B, S] and
"position" int32 [B, S, P] stand for the plan's. Decoding may be given tokens: "known" (decoding/known.py).
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mmgen.model import heads as heads_module
from mmgen.model.attention import attention, rule_of
from mmgen.model.config import GeneratorConfig, Masked
from mmgen.model.heads import VocabularyHead
from mmgen.model.inputs import Slots, condition_embedding, input_rule, places_of
from mmgen.model.layers import Block, norm_of, weight
from mmgen.model.masking import holes
from mmgen.model.positions import rotary_angles
from mmgen.parallel.rules import constrain, gathered, one_cpu
from mmgen.plan.plan import INDEX, GenerationPlan, PlanBatch

__all__ = ["axes", "build_plan", "forward", "init", "log_likelihood", "loss"]


class Ends(nnx.Module):
    """All but the layers."""

    def __init__(self, c: GeneratorConfig, head: type[VocabularyHead], rngs: nnx.Rngs):
        self.condition = condition_embedding(c, rngs)
        self.input = input_rule(c, rngs)
        self.heads = nnx.Dict({f"head{i}": head(c, rngs) for i in range(len(c.taps))})
        plan, D = build_plan(c), c.block.width
        self.places = places_of(c, int(plan.position[:, INDEX].max()) + 1, rngs)
        self.norm = norm_of(c.block, D, "embed") if c.block.norm_after else None
        if c.unread:
            self.unread = weight(rngs, (c.unread, D), ("frozen", None), scale=0.0)
        if c.block.modulation == "slot":
            self.number = weight(rngs, (plan.slots, D), (None, "embed"))
        if c.block.modulation == "shared":
            self.modulation = weight(rngs, (D, 6 * D), ("embed", None))
            self.modulation_bias = weight(rngs, (6 * D,), (None,), scale=0.0)

    def place(self, x: Float[Array, "b f d"], slots: Slots) -> Float[Array, "b f d"]:
        x = x if self.places is None else self.places(x, slots)
        return x if self.norm is None else self.norm(x)

    def modulators(self, c: GeneratorConfig, batch: dict, slots: Slots) -> tuple[Array | None, Array | None]:
        """What modulates the layers, and the heads: of the class, [B, 1, ...], or of each slot too, [B, F, D]; None without
        modulation."""
        if c.block.modulation == "none":
            return None, None
        vector = self.condition(batch)[:, -1:]  # the class, behind its prefix
        vector = jax.nn.silu(vector + self.number[...][slots.number] if c.block.modulation == "slot" else vector)
        if c.block.modulation != "shared":
            return vector, vector
        return vector @ self.modulation[...] + self.modulation_bias[...], vector


@functools.cache
def build_plan(c: GeneratorConfig) -> GenerationPlan:
    return c.plan.build(c.layout, c.condition.slots)


@functools.cache
def _structure(make, *args) -> tuple[nnx.GraphDef, nnx.State]:
    """Graph definition and abstract parameters, without allocating."""
    return nnx.split(nnx.eval_shape(lambda: make(*args, nnx.Rngs(0))), nnx.Param)


def ends_of(c: GeneratorConfig, params: dict, head: type[VocabularyHead] = VocabularyHead) -> Ends:
    return nnx.merge(_structure(Ends, c, head)[0], nnx.State(params["ends"]))


def layer_of(c: GeneratorConfig, params: dict, kind: type[Block] = Block) -> Block:
    return nnx.merge(_structure(kind, c.block)[0], nnx.State(params))


def init(c: GeneratorConfig, key: PRNGKeyArray) -> dict:
    """Fresh parameters, float32."""

    def pure(module: nnx.Module) -> dict:
        return nnx.to_pure_dict(nnx.state(module, nnx.Param))

    def block(key):
        return pure(Block(c.block, nnx.Rngs(key)))

    key_ends, key_blocks = jax.random.split(key)
    ends = pure(Ends(c, VocabularyHead, nnx.Rngs(key_ends)))
    return {"ends": ends, "blocks": jax.vmap(block)(jax.random.split(key_blocks, c.layers))}


def axes(c: GeneratorConfig) -> dict:
    """Logical axis names of every parameter, in the structure of `init`; "frozen" marks what training leaves alone."""
    blocks = jax.tree.map(lambda names: ("layers", *names), block_axes(c), is_leaf=lambda names: isinstance(names, tuple))
    return {"ends": ends_axes(c), "blocks": blocks}


def ends_axes(c: GeneratorConfig, head: type[VocabularyHead] = VocabularyHead) -> dict:
    return _axes(Ends, c, head)


def block_axes(c: GeneratorConfig, kind: type[Block] = Block) -> dict:
    """Of one layer."""
    return _axes(kind, c.block)


def _axes(make, *args) -> dict:
    flat = nnx.to_flat_state(_structure(make, *args)[1])
    return nnx.to_pure_dict(nnx.from_flat_state([(path, p.replace(p.get_metadata()["axes"])) for path, p in flat]))


def cast(axes: dict, params: dict, dtype: jnp.dtype) -> dict:
    """The parameters as they are computed with. What is frozen stays as it is: codes are those that the tokenizer decodes."""

    def one(names: tuple, p: Array) -> Array:
        return p if "frozen" in names else p.astype(dtype)

    return jax.tree.map(one, axes, params, is_leaf=lambda names: isinstance(names, tuple))


def plan_batch(c: GeneratorConfig, batch: dict) -> PlanBatch:
    """What differs from sample to sample: None where the plan speaks for all."""
    given = next((batch[name] for name in ("prompt_valid", "features_valid") if name in batch), None)
    if given is not None:
        content = jnp.ones((len(given), build_plan(c).slots - c.condition.slots), bool)
        given = jnp.concatenate([jnp.asarray(given, bool), content], axis=1)
    return PlanBatch(given, batch.get("source"), batch.get("position"))


def slots_of(plan: GenerationPlan, extra: PlanBatch) -> Slots:
    """The plan's rows for all slots, [1, S, ...], or [B, S, ...] where the samples have their own."""
    source, position = (
        jnp.asarray(array)[None] if own is None else jnp.asarray(own)
        for array, own in ((plan.source, extra.source), (plan.position, extra.position))
    )
    return Slots(jnp.asarray(plan.kind)[None], source, position, jnp.arange(plan.slots)[None])


def embed(ends: Ends, batch: dict, plan: GenerationPlan, slots: Slots) -> Float[Array, "b s d"]:
    """Inputs of all slots: of the condition's its own, of the others by the input rule. Both are made as long as all slots:
    pieces of odd lengths cost TPUs a shuffle of every row, and minutes to compile."""
    condition = jnp.pad(ends.condition(batch), ((0, 0), (0, plan.slots - plan.condition_slots), (0, 0)))
    given = np.arange(plan.slots) < plan.condition_slots
    return ends.place(jnp.where(given[:, None], condition, ends.input(batch["ids"], slots)), slots)


def combine(plan: GenerationPlan, heads: nnx.Dict, states: list[Float[Array, "b s d"]], condition) -> Float[Array, "b n ..."]:
    """Logits of every site: per head, the weighted sum of its slots' features, then one product."""
    return combine_with(heads, states, condition, plan.combine_slot, plan.combine_head, plan.combine_weight)


def combine_with(
    heads: nnx.Dict, states: list, condition: Array | None, slot: np.ndarray, head: np.ndarray, weight: np.ndarray
) -> Array:
    """`slot`, `head`, `weight` [E, K] over the slots of `states` [B, F, D]; a step of decoding passes its own few rows.
    `condition`: what modulates the heads."""
    return logits_of(heads, mixed(heads, states, condition, slot, head, weight))


def mixed(
    heads: nnx.Dict, states: list, condition: Array | None, slot: np.ndarray, head: np.ndarray, weight: np.ndarray
) -> list[Float[Array, "b e d"]]:
    """For each head what it multiplies: its features, summed over the slots by which it predicts."""
    found = []
    for i, hidden in enumerate(states):
        features = heads[f"head{i}"].features(hidden, condition)
        if len(states) == 1 and slot.shape[1] == 1:  # every weight is 1
            found.append(_rows(features, slot[:, 0]))
        else:
            share = jnp.where(head == i, weight, 0.0).astype(features.dtype)
            found.append(jnp.einsum("bekd,ek->bed", features[:, slot], share))
    return found


def _rows(x: Float[Array, "b s d"], slot: Int[Array, "e"] | np.ndarray) -> Float[Array, "b e d"]:
    """x[:, slot]. A slice where the slots are known to follow each other: the way back of a gather is a scatter."""
    if isinstance(slot, np.ndarray) and (slot == slot[0] + np.arange(len(slot))).all():
        return x[:, slot[0] : slot[0] + len(slot)]
    return x[:, slot]


def logits_of(heads: nnx.Dict, features: list[Float[Array, "b e d"]]) -> Float[Array, "b e ..."]:
    """The sum of what the heads make of their features."""
    logits = [heads[f"head{i}"].logits(x) for i, x in enumerate(features)]
    return sum(logits[1:], logits[0])


def forward(
    c: GeneratorConfig,
    params: dict,
    batch: dict,
    key: PRNGKeyArray | None = None,
    dtype: jnp.dtype = jnp.float32,
    collect: list | None = None,
) -> Float[Array, "b n ..."]:
    """Teacher-forced logits, float32 [B, N, V] ([B, N, G, V] with groups): row n predicts site n from earlier ones.

    `key`: dropout is on. `dtype`: what matrices multiply in. `collect`: a list that receives the hidden states at each tap.
    """
    return logits_of(*_features(c, params, batch, key, dtype, collect))


def _features(
    c: GeneratorConfig, params: dict, batch: dict, key: PRNGKeyArray | None, dtype: jnp.dtype, collect: list | None = None
) -> tuple[nnx.Dict, list[Float[Array, "b n d"]]]:
    """The heads, and what each multiplies."""
    plan, extra = build_plan(c), plan_batch(c, batch)
    params = cast(axes(c), params, dtype)
    ends = ends_of(c, {**params, "ends": gathered(params["ends"], axes(c)["ends"])})
    slots = slots_of(plan, extra)
    x = constrain(embed(ends, batch, plan, slots), "batch", "slots", "embed")
    keys = jax.random.split(jax.random.key(0) if key is None else key, c.layers + 1)
    x = _drop(c.dropout.token if key is not None else 0.0, keys[-1])(x)
    angles = rotary_angles(c.block, slots.position)
    attend = functools.partial(attention, rule=rule_of(plan, extra.valid), implementation=c.attention)
    modulator, head_modulator = ends.modulators(c, batch, slots)

    def layer(x, inputs):
        p, key_layer, path = inputs
        drops = _layer_drops(c, key_layer, path) if key is not None else {}
        x = layer_of(c, p)(x, angles, attend, condition=modulator, **drops)
        return constrain(x, "batch", "slots", "embed"), None

    if c.remat:
        kept = jax.checkpoint_policies.save_only_these_names(*c.remat_keep)
        layer = jax.checkpoint(layer, policy=kept, prevent_cse=one_cpu())  # a scan keeps what is computed again apart by itself
    path = jnp.asarray(c.dropout.path * np.arange(c.layers) / max(1, c.layers - 1), jnp.float32)
    states, start = [], 0
    for tap in c.taps:
        piece = jax.tree.map(operator.itemgetter(slice(start, tap)), (params["blocks"], keys[:-1], path))
        x = _through(layer, x, piece)
        states.append(x)
        start = tap
    if collect is not None:
        collect.extend(states)
    return ends.heads, mixed(
        ends.heads, states, head_modulator, plan.combine_slot, plan.combine_head, plan.combine_weight
    )


def loss(
    c: GeneratorConfig, params: dict, batch: dict, key: PRNGKeyArray | None = None, dtype: jnp.dtype = jnp.float32
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Mean cross-entropy of a token (with groups: a sub-token) in nats, weighted by the plan, and metrics: "loss", "accuracy"
    (of the likeliest token)."""
    if isinstance(c.plan, Masked):
        return masked_loss(c, params, batch, key, dtype)
    each, right = _each_token(c, params, batch, key, dtype)
    weight = jnp.asarray(build_plan(c).loss_weight)
    value = jnp.mean(each.reshape(*each.shape[:2], -1).sum(-1) * weight) / c.layout.groups
    return value, {"loss": value, "accuracy": jnp.mean(right)}


def log_likelihood(c: GeneratorConfig, params: dict, batch: dict, dtype: jnp.dtype = jnp.float32) -> Float[Array, " b"]:
    """Of the ids of each picture under its condition, in nats: the sum over its tokens, each given those before it in the order
    of the plan. Masked plans have no order, and so no such sum."""
    each, _ = _each_token(c, params, batch, None, dtype)
    return -each.reshape(len(each), -1).sum(1)


def _each_token(
    c: GeneratorConfig, params: dict, batch: dict, key: PRNGKeyArray | None, dtype: jnp.dtype,
    ids: Int[Array, "b n *g"] | None = None, smoothing: float = 0.0,
) -> tuple[Float[Array, "b n *g"], Bool[Array, "b n *g"]]:
    """Negative log-likelihood of each token, and whether it is the likeliest. `ids`: what is predicted, if not what is read."""
    heads, features = _features(c, params, batch, key, dtype)

    def part(heads: nnx.Dict, features: list, ids: Array) -> tuple[Array, Array]:
        logits = logits_of(heads, features)
        return heads_module.negative_log_likelihood(logits, ids, smoothing), jnp.argmax(logits, axis=-1) == ids

    ids = jnp.asarray(batch["ids"] if ids is None else ids)
    if c.loss_chunks == 1:
        return part(heads, features, ids)
    # In float32, for their gradient is summed over the parts.
    graph, weights = nnx.split(heads)
    weights = jax.tree.map(lambda w: w.astype(jnp.float32), weights)
    one = jax.checkpoint(lambda _, inputs: (None, part(nnx.merge(graph, weights), *inputs)), prevent_cse=False)
    _, found = jax.lax.scan(one, None, jax.tree.map(functools.partial(_in_parts, c.loss_chunks), (features, ids)))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2).reshape(ids.shape), found)


def _in_parts(parts: int, x: Float[Array, "b n ..."]) -> Float[Array, "p b m ..."]:
    """Part i has the sites i, i + parts, ...: where sites are split over devices, each keeps its own."""
    x = jnp.moveaxis(x.reshape(x.shape[0], -1, parts, *x.shape[2:]), 2, 0)
    return constrain(x, None, "batch", "sites", *[None] * (x.ndim - 3))


def masked_loss(
    c: GeneratorConfig, params: dict, batch: dict, key: PRNGKeyArray | None, dtype: jnp.dtype
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Mean over hidden tokens (and, at plan.visible_weight, over the others) of the smoothed cross-entropy; accuracy of the
    hidden ones. The key says what is hidden; without one it is the same in every batch."""
    key_holes, key = (jax.random.key(0), None) if key is None else jax.random.split(key)
    hidden = holes(c.plan, batch["ids"].shape, key_holes)
    seen = {**batch, "ids": jnp.where(hidden, c.layout.codebook_size, batch["ids"])}
    each, right = _each_token(c, params, seen, key, dtype, batch["ids"], c.plan.smoothing)
    value = jnp.average(each, weights=jnp.where(hidden, 1.0, c.plan.visible_weight))
    return value, {"loss": value, "accuracy": jnp.average(right, weights=hidden)}


def _through(layer, x: Array, stacked) -> Array:
    """Layer after layer: a scan, whose compilation does not grow with depth; on a CPU one by one, which saves copies."""
    if not one_cpu():
        return jax.lax.scan(layer, x, stacked)[0]
    for i in range(len(jax.tree.leaves(stacked)[0])):
        x, _ = layer(x, jax.tree.map(operator.itemgetter(i), stacked))
    return x


def _drop(rate: float, key: PRNGKeyArray):
    """Dropout by elements at a static rate."""
    return lambda y: y if rate == 0.0 else jnp.where(jax.random.bernoulli(key, 1 - rate, y.shape), y / (1 - rate), 0)


def _layer_drops(c: GeneratorConfig, key: PRNGKeyArray, path: Float[Array, ""]) -> dict:
    """Dropout of a layer's two branches, and drop path (arXiv 1603.09382), which drops a branch for a whole sample."""

    def branch(rate: float, key: PRNGKeyArray):
        key_element, key_path = jax.random.split(key)

        def drop(y):
            y = _drop(rate, key_element)(y)
            if c.dropout.path == 0.0:
                return y
            keep = jax.random.bernoulli(key_path, 1 - path, (len(y), 1, 1))
            return jnp.where(keep, y / (1 - path).astype(y.dtype), 0)

        return drop

    key_attention, key_mlp = jax.random.split(key)
    return {"drop_attention": branch(c.dropout.residual, key_attention), "drop_mlp": branch(c.dropout.mlp, key_mlp)}

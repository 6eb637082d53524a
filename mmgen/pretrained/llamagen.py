"""LlamaGen's GPT (arXiv 2406.06525), class-conditional and text-conditional: family `llamagen-gpt`.

`config` takes LlamaGen's own keys; what the weights show need not be given. Read: block_size (256 tokens unless given: 16 x 16;
the 384-pixel models have 576), n_head, n_kv_head, norm_eps, rope_base. What the weights show must agree: dim, n_layer,
vocab_size, num_classes, cls_token_num, caption_dim, ffn_hidden. Ignored: model_type, multiple_of, head_dim, uncond_tokens,
ffn_dim_multiplier, initializer_range, token_dropout_p, attn_dropout_p, resid_dropout_p, ffn_dropout_p, drop_path_rate,
class_dropout_prob, max_batch_size, max_seq_len, medusa_attention_num.
"""

import functools
import math
import warnings
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.files import flatten, rename
from mmgen_tokenizers.pretrained.from_weights import agree, settings

from mmgen.model.config import (
    BlockConfig,
    ClassCondition,
    Dropout,
    FeatureCondition,
    GeneratorConfig,
    NextNeighbor,
    NextToken,
    Sampling,
    TokenLayout,
)
from mmgen.pretrained.naming import published_shapes, renamed

ROWS = (
    ("cls_embedding.embedding_table.weight", "ends.condition.table", ""),
    ("cls_embedding.uncond_embedding", "ends.condition.null", ""),
    ("cls_embedding.cap_proj.fc1.weight", "ends.condition.fc1", "linear"),
    ("cls_embedding.cap_proj.fc2.weight", "ends.condition.fc2", "linear"),
    ("tok_embeddings.weight", "ends.input.table", ""),
    ("layers.{i}.attention.wqkv.weight", "layers.{i}.qkv", "linear"),
    ("layers.{i}.attention.wo.weight", "layers.{i}.out", "linear"),
    ("layers.{i}.feed_forward.w1.weight", "layers.{i}.gate", "linear"),
    ("layers.{i}.feed_forward.w3.weight", "layers.{i}.up", "linear"),
    ("layers.{i}.feed_forward.w2.weight", "layers.{i}.down", "linear"),
    ("layers.{i}.attention_norm.weight", "layers.{i}.norm_attention", ""),
    ("layers.{i}.ffn_norm.weight", "layers.{i}.norm_mlp", ""),
    ("norm.weight", "ends.heads.head0.norm", ""),
    ("output.weight", "ends.heads.head0.map", "linear"),
    ("freqs_cis", "", ""),
)
# layers, heads, width, MLP width, recommended guidance of the published class-conditional weights
Sizes = Mapping[str, tuple[int, int, int, int, float]]
Plan = NextToken | NextNeighbor
SIZES: Sizes = {
    "GPT-B": (12, 12, 768, 2048, 2.0),
    "GPT-L": (24, 16, 1024, 2816, 2.0),
    "GPT-XL": (36, 20, 1280, 3584, 1.75),
    "GPT-XXL": (48, 24, 1536, 4096, 1.75),
    "GPT-3B": (24, 32, 3200, 8704, 1.65),
}
DEFAULTS = {"block_size": None, "n_head": None, "n_kv_head": None, "norm_eps": 1e-5, "rope_base": 10_000.0}
SHOWN = ("dim", "n_layer", "vocab_size", "num_classes", "cls_token_num", "caption_dim", "ffn_hidden")
IGNORED = (
    "model_type", "multiple_of", "head_dim", "uncond_tokens", "ffn_dim_multiplier", "initializer_range", "token_dropout_p",
    "attn_dropout_p", "resid_dropout_p", "ffn_dropout_p", "drop_path_rate", "class_dropout_prob", "max_batch_size",
    "max_seq_len", "medusa_attention_num",
)  # fmt: skip
PLAN = NextToken("none")


def preset(
    size: str,
    condition: ClassCondition | FeatureCondition = ClassCondition(),
    tokens: int = 256,
    vocabulary: int = 16384,
    sizes: Sizes = SIZES,
    plan: Plan = PLAN,
) -> GeneratorConfig:
    """A published size, "GPT-B" ... "GPT-3B", with the paper's dropout."""
    if size not in sizes:
        raise UserError(f"there is no size {size!r}; known: {', '.join(sizes)}.{nearest(size, sizes)}")
    depth, heads, width, mlp, _ = sizes[size]
    return GeneratorConfig(
        plan=plan,
        layout=_square(tokens, vocabulary),
        condition=condition,
        block=BlockConfig(width=width, heads=heads, mlp=mlp),
        depth=depth,
        dropout=Dropout(token=0.1, residual=0.1, mlp=0.1),
    )


def _square(tokens: int, vocabulary: int) -> TokenLayout:
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(f"block_size {tokens} is not a square grid of tokens")
    return TokenLayout(height=side, width=side, codebook_size=vocabulary)


def configure(
    state: dict[str, np.ndarray], config: dict | None, family: str = "llamagen-gpt", sizes: Sizes = SIZES, plan: Plan = PLAN
) -> tuple[GeneratorConfig, Sampling]:
    """The model that a checkpoint of LlamaGen, or of a `family` made of its layers, holds, and its recommended sampling."""
    given = settings(family, config, DEFAULTS, SHOWN, IGNORED)
    if "tok_embeddings.weight" not in state:
        raise UserError("the checkpoint has no tok_embeddings.weight: it is not a LlamaGen GPT (its tokenizers: llamagen-vq)")
    vocabulary, width = state["tok_embeddings.weight"].shape
    depth = len({name.split(".")[1] for name in state if name.startswith("layers.")}) - max(plan.taps(0))
    size = {(d, w): (h, g) for d, h, w, _, g in sizes.values()}.get((depth, width))
    if not (size or given["n_head"]):
        raise UserError(
            f"{depth} layers of width {width} are no published size: pass config n_head (--config FILE.json with "
            '{"n_head": ...})'
        )
    if not given["block_size"]:
        say = 'config block_size 576 (--config FILE.json with {"block_size": 576})'
        warnings.warn(f"taken for 256 tokens (16 x 16): for a model of 384 pixels pass {say}", stacklevel=2)
    heads, guidance = given["n_head"] or size[0], size[1] if size else 1.0
    mlp = state.get("layers.0.feed_forward.w1.weight", np.zeros((0, 0))).shape[0]
    condition = _condition(state)
    model = GeneratorConfig(
        plan=plan,
        layout=_square(given["block_size"] or 256, vocabulary),
        condition=condition,
        block=BlockConfig(
            width=width,
            heads=heads,
            kv_heads=given["n_kv_head"],
            mlp=mlp,
            rope_base=float(given["rope_base"]),
            norm_eps=float(given["norm_eps"]),
        ),
        depth=depth,
    )
    agree(family, given, _shown(model))
    if isinstance(condition, FeatureCondition):
        return model, Sampling(guidance=7.5, top_k=1000)
    return model, Sampling(guidance=guidance)


def _condition(state: dict[str, np.ndarray]) -> ClassCondition | FeatureCondition:
    if "cls_embedding.embedding_table.weight" in state:
        return ClassCondition(classes=len(state["cls_embedding.embedding_table.weight"]) - 1)
    if "cls_embedding.uncond_embedding" not in state:
        raise UserError("the checkpoint has neither cls_embedding.embedding_table.weight nor cls_embedding.uncond_embedding")
    length, width = state["cls_embedding.uncond_embedding"].shape
    return FeatureCondition(width=width, length=length)


def _shown(model: GeneratorConfig) -> dict[str, int]:
    """Sizes that the weights show, by LlamaGen's names."""
    shown = {
        "dim": model.block.width,
        "n_layer": model.depth,
        "vocab_size": model.layout.codebook_size,
        "ffn_hidden": model.block.mlp,
        "cls_token_num": model.condition.slots,
    }
    if isinstance(model.condition, ClassCondition):
        return shown | {"num_classes": model.condition.classes}
    return shown | {"caption_dim": model.condition.width}


def reference_shapes(c: GeneratorConfig, rows: Sequence = ROWS, plan: Plan = PLAN) -> dict[str, tuple[int, ...]]:
    """LlamaGen's names and shapes for a configuration, without allocating."""
    return published_shapes(c, functools.partial(to_reference, rows=rows, plan=plan))


def from_reference(c: GeneratorConfig, state: dict[str, np.ndarray], rows: Sequence = ROWS) -> dict:
    """LlamaGen's tensors -> our parameters. Raises UserError that lists what does not fit."""
    return _stacked(c, renamed(c, state, rows, _unstacked))


def to_reference(
    c: GeneratorConfig, params: dict, xp=np, rows: Sequence = ROWS, plan: Plan = PLAN
) -> dict[str, np.ndarray]:
    """Our parameters -> LlamaGen's tensors, flat: the inverse of `from_reference`, bit for bit.

    Raises UserError for a model that LlamaGen's code could not compute.
    """
    _refuse_differences(c, plan)
    return rename(flatten(_unstacked(c, params, xp)), rows, None, back=True)


def _refuse_differences(c: GeneratorConfig, plan: Plan) -> None:
    sizes = ("width", "heads", "kv_heads", "mlp", "rope_base", "norm_eps")
    theirs = BlockConfig(**{name: getattr(c.block, name) for name in sizes})
    changed = {f"block.{name} {value}": value != getattr(theirs, name) for name, value in vars(c.block).items()}
    differences = {
        f"the plan is {c.plan}, not {plan}": c.plan != plan,
        "the layout is not a square grid of single tokens": c.layout.groups > 1 or c.layout.height != c.layout.width,
        "a text condition of its own": not isinstance(c.condition, ClassCondition | FeatureCondition),
        "slots before the class": isinstance(c.condition, ClassCondition) and c.condition.prefix > 0,
        **changed,
    }
    found = [name for name, is_so in differences.items() if is_so]
    if found:
        whose = {NextToken: "LlamaGen", NextNeighbor: "NAR"}[type(plan)]
        raise UserError(f"{whose}'s code has no model like this one ({', '.join(found)}): export it without --format")


def _unstacked(c: GeneratorConfig, params: dict, xp) -> dict:
    """One dict a layer, q, k and v in one matrix, pairs of the rotary code side by side as LlamaGen has them. `xp`: numpy, or
    jax.numpy under a trace."""

    def layer(i: int) -> dict:
        p = jax.tree.map(lambda a: xp.asarray(a[i]), params["blocks"])
        D, K = c.block.width, c.block.head_dim
        order = np.argsort(_half_split(K))
        qkv = [p["q"][..., order], p["k"][..., order], p["v"]]
        return {name: p[name] for name in ("gate", "up", "down")} | {
            "qkv": xp.concatenate([w.reshape(D, -1) for w in qkv], axis=1),
            "out": p["out"].reshape(-1, D),
            "norm_attention": p["norm_attention"]["scale"],
            "norm_mlp": p["norm_mlp"]["scale"],
        }

    heads = params["ends"]["heads"]
    return {
        "ends": {
            "condition": params["ends"]["condition"],
            "input": {"table": params["ends"]["input"]["table"][0]},
            "heads": {name: {"norm": head["norm"]["scale"], "map": head["map"]} for name, head in heads.items()},
        },
        "layers": {str(i): layer(i) for i in range(c.layers)},
    }


def _stacked(c: GeneratorConfig, flat: dict) -> dict:
    """The inverse of `_unstacked`."""

    def layer(p: dict) -> dict:
        D, K, H = c.block.width, c.block.head_dim, c.block.heads
        qkv = p["qkv"].reshape(D, -1, K)
        q, k, v = np.split(qkv, (H, (H + qkv.shape[1]) // 2), axis=1)
        order = _half_split(K)
        return {name: p[name] for name in ("gate", "up", "down")} | {
            "q": q[..., order], "k": k[..., order], "v": v,
            "out": p["out"].reshape(H, K, D),
            "norm_attention": {"scale": p["norm_attention"]},
            "norm_mlp": {"scale": p["norm_mlp"]},
        }  # fmt: skip

    ends = flat["ends"]
    blocks = [layer(flat["layers"][str(i)]) for i in range(c.layers)]
    return {
        "ends": {
            "condition": ends["condition"],
            "input": {"table": ends["input"]["table"][None]},
            "heads": {name: {"norm": {"scale": head["norm"]}, "map": head["map"]} for name, head in ends["heads"].items()},
        },
        "blocks": jax.tree.map(lambda *layers: np.stack(layers), *blocks),
    }


def _half_split(size: int) -> np.ndarray:
    """Where our rotary code's position i of a head stands in LlamaGen's interleaved order: pairs (2i, 2i + 1) -> (i, i +
    K/2)."""
    return np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)])

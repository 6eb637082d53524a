"""RAR (arXiv 2411.00776): family `rar`, with the tokenizer of family `maskgit-vqgan`.

`config` takes RAR's own keys, with or without the sections of its files' "model". Read: guidance_scale, guidance_scale_pow and
randomize_temperature, instead of the published size's. What weights show must agree: codebook_size, hidden_size,
num_hidden_layers, num_attention_heads, intermediate_size, image_seq_len, condition_num_classes. Ignored: dropout, attn_drop,
class_label_dropout, use_checkpoint, and the tokenizer's token_size, num_latent_tokens, finetune_decoder,
pretrained_tokenizer_weight.
"""

import math

import jax
import numpy as np
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.files import flatten, rename
from mmgen_tokenizers.pretrained.from_weights import agree, settings

from mmgen.model.config import BlockConfig, ClassCondition, Dropout, GeneratorConfig, RandomOrder, Sampling, TokenLayout
from mmgen.pretrained.naming import published_shapes, renamed

ROWS = (
    ("cls_token", "ends.prefix", ""),
    ("embeddings.weight", "ends.table", ""),
    ("pos_embed", "ends.place", ""),
    ("target_aware_pos_embed", "ends.target", ""),
    ("timesteps_embeddings", "ends.number", ""),
    ("blocks.{i}.norm1.weight", "layers.{i}.norm_attention.scale", ""),
    ("blocks.{i}.norm1.bias", "layers.{i}.norm_attention.offset", ""),
    ("blocks.{i}.norm2.weight", "layers.{i}.norm_mlp.scale", ""),
    ("blocks.{i}.norm2.bias", "layers.{i}.norm_mlp.offset", ""),
    ("blocks.{i}.attn.qkv.weight", "layers.{i}.qkv", "linear"),
    ("blocks.{i}.attn.qkv.bias", "layers.{i}.qkv_bias", ""),
    ("blocks.{i}.attn.q_norm.weight", "layers.{i}.norm_q.scale", ""),
    ("blocks.{i}.attn.q_norm.bias", "layers.{i}.norm_q.offset", ""),
    ("blocks.{i}.attn.k_norm.weight", "layers.{i}.norm_k.scale", ""),
    ("blocks.{i}.attn.k_norm.bias", "layers.{i}.norm_k.offset", ""),
    ("blocks.{i}.attn.proj.weight", "layers.{i}.out", "linear"),
    ("blocks.{i}.attn.proj.bias", "layers.{i}.out_bias", ""),
    ("blocks.{i}.mlp.fc1.weight", "layers.{i}.up", "linear"),
    ("blocks.{i}.mlp.fc1.bias", "layers.{i}.up_bias", ""),
    ("blocks.{i}.mlp.fc2.weight", "layers.{i}.down", "linear"),
    ("blocks.{i}.mlp.fc2.bias", "layers.{i}.down_bias", ""),
    ("blocks.{i}.adaLN_modulation.1.weight", "layers.{i}.modulation", "linear"),
    ("blocks.{i}.adaLN_modulation.1.bias", "layers.{i}.modulation_bias", ""),
    ("adaln_before_head.adaLN_modulation.1.weight", "ends.head.modulation", "linear"),
    ("adaln_before_head.adaLN_modulation.1.bias", "ends.head.modulation_bias", ""),
    ("lm_head.weight", "ends.head.map", "linear"),
    ("lm_head.bias", "ends.head.bias", ""),
)
# depth, width, MLP width; recommended guidance, its power, temperature
SIZES = {
    "B": (24, 768, 3072, (16.0, 2.75, 1.0)),
    "L": (24, 1024, 4096, (15.5, 2.5, 1.02)),
    "XL": (32, 1280, 5120, (6.9, 1.5, 1.02)),
    "XXL": (40, 1408, 6144, (8.0, 1.2, 1.02)),
}
TRUNK = {
    "mlp_kind": "gelu_exact", "bias": True, "qk_norm": True, "norm": "layer", "position": "learned", "modulation": "slot",
    "norm_eps": 1e-6,
}  # fmt: skip
# Rows of its tables that no slot reads: the mask's; places behind the picture; targets of the two first slots, and behind the
# picture; numbers behind the last slot.
UNREAD = (1, 1022, 2, 1022, 99)
# Where our order of modulation (gates, scales, shifts; attention before MLP) stands in theirs (shift, scale, gate of attention,
# then of the MLP).
MODULATION = np.array([2, 5, 1, 4, 0, 3])
SHOWN = ("codebook_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_seq_len",
         "condition_num_classes")  # fmt: skip
USED = ("guidance_scale", "guidance_scale_pow", "randomize_temperature")
IGNORED = ("dropout", "attn_drop", "class_label_dropout", "use_checkpoint", "token_size", "num_latent_tokens",
           "finetune_decoder", "pretrained_tokenizer_weight")  # fmt: skip
NEEDED = ("target_aware_pos_embed", "pos_embed", "embeddings.weight", "lm_head.weight", "blocks.0.attn.q_norm.weight",
          "blocks.0.mlp.fc1.bias")  # fmt: skip


def preset(size: str, classes: int = 1000, tokens: int = 256, vocabulary: int = 1024) -> GeneratorConfig:
    """A published size, "B", "L", "XL" or "XXL", with the paper's dropout behind attention and MLP."""
    if size not in SIZES:
        raise UserError(f"there is no size {size!r}; known: {', '.join(SIZES)}.{nearest(size, SIZES)}")
    depth, width, mlp, _ = SIZES[size]
    return _model(depth, width, 16, mlp, classes, tokens, vocabulary, dropout=Dropout(residual=0.1, mlp=0.1))


def _model(
    depth: int, width: int, heads: int, mlp: int, classes: int, tokens: int, vocabulary: int, **fields
) -> GeneratorConfig:
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(f"image_seq_len {tokens} is not a square grid of tokens")
    return GeneratorConfig(
        plan=RandomOrder(),
        layout=TokenLayout(height=side, width=side, codebook_size=vocabulary),
        condition=ClassCondition(classes, prefix=1),
        block=BlockConfig(width=width, heads=heads, mlp=mlp, **TRUNK),
        depth=depth,
        **fields,
    )


def configure(state: dict[str, np.ndarray], config: dict | None) -> tuple[GeneratorConfig, Sampling]:
    """The model that a checkpoint holds, and its recommended sampling."""
    for name in NEEDED:
        if name not in state:
            raise UserError(f"the checkpoint has no {name}: it is no RAR (its tokenizer: maskgit-vqgan)")
    vocabulary, width = state["lm_head.weight"].shape
    shown = {
        "codebook_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        "num_attention_heads": width // len(state["blocks.0.attn.q_norm.weight"]),
        "intermediate_size": len(state["blocks.0.mlp.fc1.bias"]),
        "image_seq_len": state["pos_embed"].shape[1] - 1024,
        "condition_num_classes": len(state["embeddings.weight"]) - vocabulary - 2,
    }
    _, _, depth, heads, mlp, tokens, classes = shown.values()
    section = config["model"] if isinstance(config, dict) and isinstance(config.get("model"), dict) else config
    given = settings("rar", section, _recommended(depth, width), SHOWN, IGNORED)
    agree("rar", given, shown)
    model = _model(depth, width, heads, mlp, classes, tokens, vocabulary, unread=sum(UNREAD))
    scale, power, temperature = (float(given[name]) for name in USED)
    # Scale 0 is RAR's way to say: without guidance.
    return model, Sampling(guidance=scale or 1.0, guidance_schedule=("power_cosine", power), temperature=temperature)


def _recommended(depth: int, width: int) -> dict[str, float]:
    """Settings of the published size; other sizes are drawn without guidance."""
    sizes = {(d, w): recommended for d, w, _, recommended in SIZES.values()}
    return dict(zip(USED, sizes.get((depth, width), (1.0, 1.0, 1.0)), strict=True))


def reference_shapes(c: GeneratorConfig) -> dict[str, tuple[int, ...]]:
    """RAR's names and shapes for a configuration, without allocating."""
    return published_shapes(c, to_reference)


def from_reference(c: GeneratorConfig, state: dict[str, np.ndarray]) -> dict:
    """RAR's tensors -> our parameters. Raises UserError that lists what does not fit."""
    return _stacked(c, renamed(c, state, ROWS, _unstacked))


def to_reference(c: GeneratorConfig, params: dict, xp=np) -> dict[str, np.ndarray]:
    """Our parameters -> RAR's tensors, flat: the inverse of `from_reference`, bit for bit. Rows that nobody reads are zero
    where the model was trained here.

    Raises UserError for a model that RAR's code could not compute.
    """
    like = _model(c.depth, c.block.width, c.block.heads, c.block.mlp, 0, 1, 1)
    square = c.layout.kind == "grid" and c.layout.groups == 1 and c.layout.height == c.layout.width
    condition = isinstance(c.condition, ClassCondition) and c.condition.prefix == 1
    if not isinstance(c.plan, RandomOrder) or c.block != like.block or not square or not condition:
        raise UserError("RAR's code has no model like this one: export it without --format")
    return rename(flatten(_unstacked(c, params, xp)), ROWS, None, back=True)


def _unstacked(c: GeneratorConfig, params: dict, xp) -> dict:
    """RAR's tables, and one dict a layer, with its shapes. `xp`: numpy, or jax.numpy under a trace."""
    D, ends = c.block.width, params["ends"]
    unread = ends.get("unread", xp.zeros((sum(UNREAD), D), np.float32))
    mask, places, first, targets, numbers = xp.split(unread, np.cumsum(UNREAD[:-1]))

    def layer(i: int) -> dict:
        p = jax.tree.map(lambda a: xp.asarray(a[i]), params["blocks"])
        back = np.argsort(MODULATION)
        same = ("norm_attention", "norm_mlp", "norm_q", "norm_k", "up", "up_bias", "down", "down_bias", "out_bias")
        return {name: p[name] for name in same} | {
            "qkv": xp.concatenate([p[name].reshape(D, -1) for name in "qkv"], axis=1),
            "qkv_bias": xp.concatenate([p[f"{name}_bias"].reshape(-1) for name in "qkv"]),
            "out": p["out"].reshape(-1, D),
            "modulation": p["modulation"][:, back].reshape(D, -1),
            "modulation_bias": p["modulation_bias"][back].reshape(-1),
        }

    tables = {
        "prefix": ends["condition"]["prefix"][None],
        "table": xp.concatenate([ends["input"]["table"][0], mask, ends["condition"]["table"]]),
        "place": xp.concatenate([ends["places"]["place"], places])[None],
        "target": xp.concatenate([first, ends["places"]["target"], targets])[None],
        "number": xp.concatenate([ends["number"], numbers])[None],
        "head": ends["heads"]["head0"],
    }
    return {"ends": tables, "layers": {str(i): layer(i) for i in range(c.layers)}}


def _stacked(c: GeneratorConfig, flat: dict) -> dict:
    """The inverse of `_unstacked`."""
    D, H, K = c.block.width, c.block.heads, c.block.head_dim
    tables, sites, vocabulary = flat["ends"], c.layout.sites, c.layout.codebook_size

    def layer(p: dict) -> dict:
        matrices, biases = np.split(p["qkv"].reshape(D, -1, K), 3, axis=1), np.split(p["qkv_bias"].reshape(-1, K), 3)
        own = {name: p[name] for name in p if name not in ("qkv", "qkv_bias")}
        return own | dict(zip("qkv", matrices, strict=True)) | {
            **{f"{name}_bias": bias for name, bias in zip("qkv", biases, strict=True)},
            "out": p["out"].reshape(H, K, D),
            "modulation": p["modulation"].reshape(D, 6, D)[:, MODULATION],
            "modulation_bias": p["modulation_bias"].reshape(6, D)[MODULATION],
        }  # fmt: skip

    token, mask, classes = np.split(tables["table"], (vocabulary, vocabulary + 1))
    place, places = np.split(tables["place"][0], (2 + sites,))
    first, target, targets = np.split(tables["target"][0], (2, 2 + sites))
    number, numbers = np.split(tables["number"][0], (1 + sites,))
    ends = {
        "condition": {"table": classes, "prefix": tables["prefix"][0]},
        "input": {"table": token[None]},
        "places": {"place": place, "target": target},
        "number": number,
        "unread": np.concatenate([mask, places, first, targets, numbers]),
        "heads": {"head0": tables["head"]},
    }
    blocks = [layer(flat["layers"][str(i)]) for i in range(c.layers)]
    return {"ends": ends, "blocks": jax.tree.map(lambda *layers: np.stack(layers), *blocks)}

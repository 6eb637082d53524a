"""MaskBit's generator (arXiv 2409.16211): family `maskbit`, with the tokenizer of the same name.

`config` takes MaskBit's own keys, those of its files' model.mlm_model or the whole file. Read: heads (16), and instead of what
is recommended guidance_scale, guidance_annealing, scale_pow, num_steps, randomize_temperature, softmax_temperature and
gen_mask_schedule_strategy. What the weights show must agree: hidden_dim, codebook_size, codebook_splits, depth, mlp_dim,
nclass, use_prenorm. Ignored: model_cls, img_size, input_stride, dropout, class_label_dropout, train_mask_schedule_strategy,
use_sampling_annealing.
"""

import dataclasses
import math
from pathlib import Path

import jax
import mmgen_tokenizers as mt
import numpy as np
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.files import flatten, read_checkpoint, rename
from mmgen_tokenizers.pretrained.from_weights import agree, settings

from mmgen.model.config import BlockConfig, ClassCondition, Dropout, GeneratorConfig, Masked, Sampling, TokenLayout
from mmgen.pretrained.naming import published_shapes, renamed

ROWS = (
    ("class_emb.weight", "ends.condition.table", ""),
    ("input_proj.weight", "ends.input.map", "linear"),
    ("input_proj.bias", "ends.input.bias", ""),
    ("pos_emb", "ends.places.slot", ""),
    ("first_layer.0.weight", "ends.norm.scale", ""),
    ("first_layer.0.bias", "ends.norm.offset", ""),
    ("transformer.layers.{i}.0.mha.in_proj_weight", "layers.{i}.qkv", "linear"),
    ("transformer.layers.{i}.0.mha.in_proj_bias", "layers.{i}.qkv_bias", ""),
    ("transformer.layers.{i}.0.mha.out_proj.weight", "layers.{i}.out", "linear"),
    ("transformer.layers.{i}.0.mha.out_proj.bias", "layers.{i}.out_bias", ""),
    ("transformer.layers.{i}.0.norm.weight", "layers.{i}.norm_attention.scale", ""),
    ("transformer.layers.{i}.0.norm.bias", "layers.{i}.norm_attention.offset", ""),
    ("transformer.layers.{i}.1.net.0.weight", "layers.{i}.up", "linear"),
    ("transformer.layers.{i}.1.net.0.bias", "layers.{i}.up_bias", ""),
    ("transformer.layers.{i}.1.net.2.weight", "layers.{i}.down", "linear"),
    ("transformer.layers.{i}.1.net.2.bias", "layers.{i}.down_bias", ""),
    ("transformer.layers.{i}.1.norm.weight", "layers.{i}.norm_mlp.scale", ""),
    ("transformer.layers.{i}.1.norm.bias", "layers.{i}.norm_mlp.offset", ""),
    ("last_layer.0.weight", "ends.heads.head0.layer", "linear"),
    ("last_layer.0.bias", "ends.heads.head0.layer_bias", ""),
    ("last_layer.2.weight", "ends.heads.head0.norm.scale", ""),
    ("last_layer.2.bias", "ends.heads.head0.norm.offset", ""),
    ("prediction_layer.weight", "ends.heads.head0.map", "linear"),
    ("prediction_layer.bias", "ends.heads.head0.bias", ""),
    ("bits_to_indices", "", ""),
)
# Recommended guidance, its power, and noise on the choice, of the published 24 layers of width 1024, for 64 rounds.
SIZES = {
    "10bit": (6.4, 2.5, 10.5),
    "12bit": (7.1, 3.0, 8.2),
    "14bit": (7.1, 3.0, 7.8),
    "16bit": (6.5, 2.5, 7.5),
    "18bit": (5.7, 2.5, 8.5),
}
PLAN = Masked("arccos", steps=64, smoothing=0.1, visible_weight=1.0, embedding="bits")
TRUNK = {
    "mlp_kind": "gelu_exact", "bias": True, "norm": "layer", "norm_after": True, "position": "learned", "norm_eps": 1e-12,
}  # fmt: skip
SHOWN = ("hidden_dim", "codebook_size", "codebook_splits", "depth", "mlp_dim", "nclass", "use_prenorm")
IGNORED = ("model_cls", "img_size", "input_stride", "dropout", "class_label_dropout", "train_mask_schedule_strategy",
           "use_sampling_annealing")  # fmt: skip


def preset(size: str, classes: int = 1000, tokens: int = 256) -> GeneratorConfig:
    """A published size, by the bits of its tokenizer, "10bit" ... "18bit", with the paper's dropout behind attention and
    MLP."""
    if size not in SIZES:
        raise UserError(f"there is no size {size!r}; known: {', '.join(SIZES)}.{nearest(size, SIZES)}")
    plan = dataclasses.replace(PLAN, choice_temperature=SIZES[size][2])
    model = _model(24, 1024, 16, 4096, classes, tokens, int(size.removesuffix("bit")), 2, plan)
    return dataclasses.replace(model, dropout=Dropout(token=0.1, residual=0.1, mlp=0.1))


def _model(
    depth: int, width: int, heads: int, mlp: int, classes: int, tokens: int, bits: int, groups: int, plan: Masked
) -> GeneratorConfig:
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise UserError(f"the checkpoint has places for {tokens} tokens, which are no square grid")
    return GeneratorConfig(
        plan=plan,
        layout=TokenLayout(height=side, width=side, codebook_size=2 ** (bits // groups), groups=groups),
        condition=ClassCondition(classes),
        block=BlockConfig(width=width, heads=heads, mlp=mlp, **TRUNK),
        depth=depth,
        unread=depth,  # the biases of the keys, which change nothing
    )


def is_generator(checkpoint: str | Path) -> bool:
    """Whether a checkpoint holds MaskBit's generator, and not its tokenizer, which goes by the same name."""
    return "input_proj.weight" in read_checkpoint(checkpoint)


def grouped(tokenizer: mt.Tokenizer | None, model: GeneratorConfig) -> mt.Tokenizer | None:
    """The tokenizer with as many sub-tokens a site as the generator predicts, which changes none of its weights."""
    quantizer = getattr(tokenizer and tokenizer.config, "quantizer", None)
    if not isinstance(quantizer, mt.LFQ):
        return tokenizer
    config = dataclasses.replace(tokenizer.config, quantizer=dataclasses.replace(quantizer, groups=model.layout.groups))
    return mt.Tokenizer(config, tokenizer.params, tokenizer.source, tokenizer.buffers)


def configure(state: dict[str, np.ndarray], config: dict | None) -> tuple[GeneratorConfig, Sampling]:
    """The model that a checkpoint holds, and its recommended sampling."""
    if "input_proj.weight" not in state or "bits_to_indices" not in state:
        raise UserError("the checkpoint has no input_proj.weight or no bits_to_indices: it is no MaskBit generator")
    width, bits = state["input_proj.weight"].shape
    given = settings("maskbit", _section(config), _defaults(width, bits), SHOWN, IGNORED)
    shown = {
        "hidden_dim": width,
        "codebook_size": 2**bits,
        "codebook_splits": bits // len(state["bits_to_indices"]),
        "depth": len({name.split(".")[2] for name in state if name.startswith("transformer.layers.")}),
        "mlp_dim": len(state.get("transformer.layers.0.1.net.0.bias", ())),
        "nclass": len(state.get("class_emb.weight", ())) - 1,
        "use_prenorm": "norm_after_transformer.weight" in state,
    }
    agree("maskbit", given, shown)
    if shown["use_prenorm"]:
        raise UserError("the checkpoint has its norms before each branch (use_prenorm), which no published MaskBit has")
    if not given["heads"]:
        raise UserError(f'no published MaskBit has width {width}: pass config heads (--config FILE.json with {{"heads": ...}})')
    plan, sampling = _sampling(given)
    tokens = state["pos_emb"].shape[1] - 1
    sizes = (shown["depth"], width, given["heads"], shown["mlp_dim"], shown["nclass"], tokens, bits)
    return _model(*sizes, shown["codebook_splits"], plan), sampling


def _section(config: dict | None) -> dict | None:
    """What one of MaskBit's files says of the generator; keys that are given as they are stay so."""
    model = config.get("model") if isinstance(config, dict) else None
    return model.get("mlm_model", {}) if isinstance(model, dict) else config


def _defaults(width: int, bits: int) -> dict[str, float | str | None]:
    """Rounds and settings of the published size."""
    scale, power, noise = SIZES.get(f"{bits}bit", (0.0, 1.0, 4.5))
    return {
        "heads": 16 if width == 1024 else None,
        "guidance_scale": scale,
        "guidance_annealing": "cosine",
        "scale_pow": power,
        "num_steps": PLAN.steps,
        "randomize_temperature": noise,
        "softmax_temperature": 1.0,
        "gen_mask_schedule_strategy": PLAN.schedule,
    }


def _sampling(given: dict) -> tuple[Masked, Sampling]:
    """Their guidance s is 1 + s of ours."""
    annealing = given["guidance_annealing"]
    if annealing not in ("cosine", "none"):
        raise UserError(f"guidance_annealing {annealing} has no name here: leave it out, and pass guidance= an array")
    plan = dataclasses.replace(
        PLAN,
        schedule=given["gen_mask_schedule_strategy"],
        steps=given["num_steps"],
        choice_temperature=float(given["randomize_temperature"]),
    )
    if plan.schedule not in ("cosine", "linear", "arccos"):
        raise UserError(f"gen_mask_schedule_strategy {plan.schedule} is not one of cosine, linear, arccos")
    schedule = ("power_cosine", float(given["scale_pow"])) if annealing == "cosine" else "constant"
    return plan, Sampling(1 + float(given["guidance_scale"]), schedule, float(given["softmax_temperature"]))


def reference_shapes(c: GeneratorConfig) -> dict[str, tuple[int, ...]]:
    """MaskBit's names and shapes for a configuration, without allocating."""
    return published_shapes(c, to_reference)


def from_reference(c: GeneratorConfig, state: dict[str, np.ndarray]) -> dict:
    """MaskBit's tensors -> our parameters. Raises UserError that lists what does not fit."""
    return _stacked(c, renamed(c, state, ROWS, _unstacked))


def to_reference(c: GeneratorConfig, params: dict, xp=np) -> dict[str, np.ndarray]:
    """Our parameters -> MaskBit's tensors, flat: the inverse of `from_reference`, bit for bit. The keys' biases are zero where
    the model was trained here.

    Raises UserError for a model that MaskBit's code could not compute.
    """
    like = dataclasses.replace(c.block, **TRUNK, kv_heads=None, qk_norm=False, l2_attention=False)
    square = c.layout.kind == "grid" and c.layout.height == c.layout.width
    bits = isinstance(c.plan, Masked) and c.plan.embedding == "bits"
    if not bits or c.block != like or not square or not isinstance(c.condition, ClassCondition) or c.condition.prefix:
        raise UserError("MaskBit's code has no model like this one: export it without --format")
    bit = xp.asarray(2 ** np.arange(c.layout.codebook_size.bit_length() - 1), np.int32)
    return rename(flatten(_unstacked(c, params, xp)), ROWS, None, back=True) | {"bits_to_indices": bit}


def _unstacked(c: GeneratorConfig, params: dict, xp) -> dict:
    """One dict a layer, with MaskBit's shapes; the place of the class behind those of the picture. `xp`: numpy, or jax.numpy
    under a trace."""
    D, ends = c.block.width, params["ends"]
    key_bias = ends.get("unread", xp.zeros((c.layers, D), np.float32))

    def layer(i: int) -> dict:
        p = jax.tree.map(lambda a: xp.asarray(a[i]), params["blocks"])
        same = ("norm_attention", "norm_mlp", "up", "up_bias", "down", "down_bias", "out_bias")
        return {name: p[name] for name in same} | {
            "qkv": xp.concatenate([p[name].reshape(D, -1) for name in "qkv"], axis=1),
            "qkv_bias": xp.concatenate([p["q_bias"].reshape(-1), key_bias[i], p["v_bias"].reshape(-1)]),
            "out": p["out"].reshape(-1, D),
        }

    slot = ends["places"]["slot"]
    tables = {name: ends[name] for name in ("condition", "input", "norm", "heads")}
    places = {"slot": xp.concatenate([slot[1:], slot[:1]])[None]}
    return {"ends": {**tables, "places": places}, "layers": {str(i): layer(i) for i in range(c.layers)}}


def _stacked(c: GeneratorConfig, flat: dict) -> dict:
    """The inverse of `_unstacked`."""
    D, H, K = c.block.width, c.block.heads, c.block.head_dim
    layers = [flat["layers"][str(i)] for i in range(c.layers)]

    def layer(p: dict) -> dict:
        matrices, biases = np.split(p["qkv"].reshape(D, -1, K), 3, axis=1), np.split(p["qkv_bias"].reshape(-1, K), 3)
        own = {name: p[name] for name in p if name not in ("qkv", "qkv_bias")}
        return own | dict(zip("qkv", matrices, strict=True)) | {
            "q_bias": biases[0], "v_bias": biases[2], "out": p["out"].reshape(H, K, D),
        }  # fmt: skip

    slot = flat["ends"]["places"]["slot"][0]
    ends = {
        **flat["ends"],
        "places": {"slot": np.concatenate([slot[-1:], slot[:-1]])},
        "unread": np.stack([p["qkv_bias"][D : 2 * D] for p in layers]),
    }
    return {"ends": ends, "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *map(layer, layers))}

"""VAR (arXiv 2404.02905): family `var`, with the tokenizer of family `var-vqvae`, which its input is made with.

`config` takes VAR's own keys. Read: num_heads (depth unless given), norm_eps (1e-6), attn_l2_norm (true). What weights and
tokenizer show must agree: depth, embed_dim, mlp_ratio, num_classes, shared_aln, V, Cvae, patch_nums. Ignored: the tokenizer's
own ch, ch_mult, num_res_blocks, quant_resi, share_quant_resi, using_znorm, and cond_drop_rate, drop_rate, attn_drop_rate,
drop_path_rate, flash_if_available, fused_if_available.
"""

import dataclasses

import jax
import numpy as np
from mmgen_tokenizers.errors import UserError, nearest
from mmgen_tokenizers.files import flatten, rename
from mmgen_tokenizers.pretrained.from_weights import agree, settings

from mmgen.model.config import BlockConfig, ClassCondition, Dropout, GeneratorConfig, NextScale, Sampling
from mmgen.pretrained.naming import published_shapes, renamed

ROWS = (
    ("class_emb.weight", "ends.condition.table", ""),
    ("pos_start", "ends.places.start", ""),
    ("pos_1LC", "ends.places.slot", ""),
    ("lvl_embed.weight", "ends.places.scale", ""),
    ("word_embed.weight", "ends.input.embed", "linear"),
    ("word_embed.bias", "ends.input.bias", ""),
    ("shared_ada_lin.1.weight", "ends.modulation", "linear"),
    ("shared_ada_lin.1.bias", "ends.modulation_bias", ""),
    ("blocks.{i}.ada_lin.1.weight", "layers.{i}.modulation", "linear"),
    ("blocks.{i}.ada_lin.1.bias", "layers.{i}.modulation_bias", ""),
    ("blocks.{i}.ada_gss", "layers.{i}.offset", ""),
    ("blocks.{i}.attn.mat_qkv.weight", "layers.{i}.qkv", "linear"),
    ("blocks.{i}.attn.q_bias", "layers.{i}.q_bias", ""),
    ("blocks.{i}.attn.v_bias", "layers.{i}.v_bias", ""),
    ("blocks.{i}.attn.zero_k_bias", "", ""),
    ("blocks.{i}.attn.scale_mul_1H11", "layers.{i}.temperature", ""),
    ("blocks.{i}.attn.proj.weight", "layers.{i}.out", "linear"),
    ("blocks.{i}.attn.proj.bias", "layers.{i}.out_bias", ""),
    ("blocks.{i}.ffn.fc1.weight", "layers.{i}.up", "linear"),
    ("blocks.{i}.ffn.fc1.bias", "layers.{i}.up_bias", ""),
    ("blocks.{i}.ffn.fc2.weight", "layers.{i}.down", "linear"),
    ("blocks.{i}.ffn.fc2.bias", "layers.{i}.down_bias", ""),
    ("head_nm.ada_lin.1.weight", "ends.heads.head0.modulation", "linear"),
    ("head_nm.ada_lin.1.bias", "ends.heads.head0.modulation_bias", ""),
    ("head.weight", "ends.heads.head0.map", "linear"),
    ("head.bias", "ends.heads.head0.bias", ""),
    ("lvl_1L", "", ""),
    ("attn_bias_for_masking", "", ""),
)
# depth, whether adaLN's matrix is shared
SIZES = {"d16": (16, False), "d20": (20, False), "d24": (24, False), "d30": (30, False), "d36": (36, True)}
RECOMMENDED = Sampling(guidance=2.5, guidance_schedule="linear", top_k=900, top_p=0.96)  # VAR's "cfg 1.5" is 1 + 1.5
SHOWN = ("depth", "embed_dim", "mlp_ratio", "num_classes", "shared_aln", "V", "Cvae", "patch_nums")
DEFAULTS = {"num_heads": None, "norm_eps": 1e-6, "attn_l2_norm": True}
IGNORED = ("ch", "ch_mult", "num_res_blocks", "quant_resi", "share_quant_resi", "using_znorm", "cond_drop_rate", "drop_rate",
           "attn_drop_rate", "drop_path_rate", "flash_if_available", "fused_if_available")  # fmt: skip


def preset(size: str, tokenizer) -> GeneratorConfig:
    """A published size, "d16" ... "d36" (of 512 pixels), with the paper's drop path. `tokenizer`: its configuration (families
    multiscale), which says the scales."""
    if size not in SIZES:
        raise UserError(f"there is no size {size!r}; known: {', '.join(SIZES)}.{nearest(size, SIZES)}")
    depth, shared = SIZES[size]
    dropout = Dropout(path=0.1 * depth / 24)
    return _model(depth, 64 * depth, depth, 256 * depth, ClassCondition(1000), shared, tokenizer, dropout=dropout)


def _model(
    depth: int, width: int, heads: int, mlp: int, condition: ClassCondition, shared: bool, tokenizer, l2: bool = True,
    eps: float = 1e-6, dropout: Dropout = Dropout(),
) -> GeneratorConfig:  # fmt: skip
    from mmgen_tokenizers.families import multiscale

    block = BlockConfig(
        width=width, heads=heads, mlp=mlp, mlp_kind="gelu", bias=True, l2_attention=l2, position="learned",
        modulation="shared" if shared else "block", norm_eps=eps,
    )  # fmt: skip
    layout = multiscale.layout(tokenizer, tokenizer.image_size, tokenizer.image_size)
    return GeneratorConfig(NextScale(tokenizer.quantizer), layout, condition, block, depth, dropout)


def configure(state: dict[str, np.ndarray], config: dict | None, tokenizer=None) -> tuple[GeneratorConfig, Sampling]:
    """The model that a checkpoint holds, and its recommended sampling. `tokenizer`: its configuration, families multiscale."""
    given = settings("var", config, DEFAULTS, SHOWN, IGNORED)
    if "pos_1LC" not in state or "word_embed.weight" not in state:
        raise UserError("the checkpoint lacks pos_1LC or word_embed.weight: it is no VAR transformer (tokenizer: var-vqvae)")
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    width, channels = state["word_embed.weight"].shape
    mlp = len(state["blocks.0.ffn.fc1.bias"])
    condition = ClassCondition(len(state["class_emb.weight"]) - 1)
    shared = "shared_ada_lin.1.weight" in state
    shown = {
        "depth": depth, "embed_dim": width, "mlp_ratio": mlp / width, "num_classes": condition.classes, "shared_aln": shared,
        "V": len(state["head.bias"]), "Cvae": channels, "patch_nums": tokenizer.quantizer.scales,
    }  # fmt: skip
    agree("var", given, shown)
    quantizer = tokenizer.quantizer
    sites = sum(side * side for side in quantizer.scales)
    if (quantizer.size, quantizer.dim, sites) != (shown["V"], channels, state["pos_1LC"].shape[1]):
        raise UserError(
            f"the tokenizer has {quantizer.size} codes of {quantizer.dim} numbers and {sites} ids a picture, the checkpoint "
            f"{shown['V']}, {channels} and {state['pos_1LC'].shape[1]}: they do not belong together"
        )
    heads, l2, eps = given["num_heads"] or depth, given["attn_l2_norm"], float(given["norm_eps"])
    return _model(depth, width, heads, mlp, condition, shared, tokenizer, l2, eps), RECOMMENDED


def reference_shapes(c: GeneratorConfig) -> dict[str, tuple[int, ...]]:
    """VAR's names and shapes for a configuration, without allocating."""
    return published_shapes(c, to_reference)


def from_reference(c: GeneratorConfig, state: dict[str, np.ndarray]) -> dict:
    """VAR's tensors -> our parameters, all but the tokenizer's. Raises UserError that lists what does not fit."""
    return _stacked(c, renamed(c, state, ROWS, _unstacked))


def to_reference(c: GeneratorConfig, params: dict, xp=np) -> dict[str, np.ndarray]:
    """Our parameters -> VAR's tensors and buffers, flat: the inverse of `from_reference`, bit for bit."""
    like = dataclasses.replace(c.block, mlp_kind="gelu", bias=True, qk_norm=False, norm="rms", position="learned")
    if not isinstance(c.plan, NextScale) or c.block != like or c.block.modulation not in ("block", "shared"):
        raise UserError("VAR's code has no model like this one: export it without --format")
    theirs = rename(flatten(_unstacked(c, params, xp)), ROWS, None, back=True)
    scale = np.repeat(np.arange(len(c.layout.scales)), [h * w for h, w in c.layout.scales])
    mask = np.where(scale[:, None] >= scale[None], 0, -np.inf).astype(np.float32)
    zeros = {f"blocks.{i}.attn.zero_k_bias": xp.zeros(c.block.width, np.float32) for i in range(c.layers)}
    return theirs | zeros | {"lvl_1L": xp.asarray(scale[None]), "attn_bias_for_masking": xp.asarray(mask[None, None])}


def _unstacked(c: GeneratorConfig, params: dict, xp) -> dict:
    """One dict a layer, with VAR's shapes. `xp`: numpy, or jax.numpy under a trace."""
    D, shared = c.block.width, c.block.modulation == "shared"

    def layer(i: int) -> dict:
        p = jax.tree.map(lambda a: xp.asarray(a[i]), params["blocks"])
        six = p.pop("modulation_bias")
        own = {"offset": six[None, None]} if shared else {"modulation_bias": six.reshape(-1)}
        if "modulation" in p:
            own["modulation"] = p["modulation"].reshape(D, -1)
        return {name: p[name] for name in ("up", "up_bias", "down", "down_bias", "out_bias")} | own | {
            "qkv": xp.concatenate([p[name].reshape(D, -1) for name in "qkv"], axis=1),
            "q_bias": p["q_bias"].reshape(-1),
            "v_bias": p["v_bias"].reshape(-1),
            "temperature": p["temperature"].reshape(1, -1, 1, 1),
            "out": p["out"].reshape(-1, D),
        }  # fmt: skip

    ends = {name: value for name, value in params["ends"].items() if name != "places"}
    places = params["ends"]["places"]
    ends["input"] = {name: ends["input"][name] for name in ("embed", "bias")}
    ends["places"] = {"start": places["start"][None], "slot": places["slot"][None], "scale": places["scale"]}
    return {"ends": ends, "layers": {str(i): layer(i) for i in range(c.layers)}}


def _stacked(c: GeneratorConfig, flat: dict) -> dict:
    """The inverse of `_unstacked`."""
    D, H, K = c.block.width, c.block.heads, c.block.head_dim

    def layer(p: dict) -> dict:
        q, k, v = np.split(p["qkv"].reshape(D, -1, K), 3, axis=1)
        own = {"modulation_bias": p["offset" if "offset" in p else "modulation_bias"].reshape(6, D)}
        if "modulation" in p:
            own["modulation"] = p["modulation"].reshape(D, 6, D)
        return {name: p[name] for name in ("up", "up_bias", "down", "down_bias", "out_bias")} | own | {
            "q": q, "k": k, "v": v,
            "q_bias": p["q_bias"].reshape(H, K),
            "v_bias": p["v_bias"].reshape(H, K),
            "temperature": p["temperature"].reshape(-1),
            "out": p["out"].reshape(H, K, D),
        }  # fmt: skip

    blocks = [layer(flat["layers"][str(i)]) for i in range(c.layers)]
    places = flat["ends"]["places"]
    ends = flat["ends"] | {"places": {**places, "start": places["start"][0], "slot": places["slot"][0]}}
    return {"ends": ends, "blocks": jax.tree.map(lambda *layers: np.stack(layers), *blocks)}

"""VAR's multi-scale tokenizer (arXiv 2404.02905): vae_ch160v4096z32.pth. Pictures in [-1, 1].

taming's network, with one projection for query, key and value, and 3 x 3 convolutions around a residual quantizer of scales.

`config` of a conversion, all of it optional:
  patch_nums (1, 2, 3, 4, 5, 6, 8, 10, 13, 16): the scales; those of VAR for 512 pixels are 1, 2, 3, 4, 6, 9, 13, 18, 24, 32
  quant_resi (0.5)
  beta (0.25)   used if training goes on
  V, Cvae, ch, ch_mult, num_res_blocks, share_quant_resi   must be what the weights show
  using_znorm (false)   cannot be another
Ignored, for they are VAR's transformer's: num_classes, depth, embed_dim, num_heads, mlp_ratio, norm_eps, shared_aln,
attn_l2_norm, cond_drop_rate. The buffer quantize.ema_vocab_hit_SV counts training's hits and is dropped.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..api import Tokenizer
from ..errors import UserError
from ..families.multiscale import MultiScale
from ..files import Row
from ..quantizers.multiscale import MultiScaleVQ
from . import taming
from .from_weights import State, agree, converted, count, network, parameters, settings

FAMILY = "var-vqvae"
PRESETS = {"VAR": MultiScale()}
DEFAULTS = {"patch_nums": MultiScaleVQ().scales, "quant_resi": 0.5, "beta": 0.25}
CLAIMS = ("V", "Cvae", "ch", "ch_mult", "num_res_blocks", "share_quant_resi", "using_znorm")
IGNORED = ("num_classes", "depth", "embed_dim", "num_heads", "mlp_ratio", "norm_eps", "shared_aln", "attn_l2_norm",
           "cond_drop_rate")  # fmt: skip
HITS = "quantize.ema_vocab_hit_SV"


def table() -> list[Row]:
    """Their names -> ours: taming's, but for the layouts of the first two."""
    return [
        ("quant_conv.weight", "quant_conv.kernel", "conv"),
        ("post_quant_conv.weight", "post_quant_conv.kernel", "conv"),
        ("quantize.quant_resi.qresi_ls.{i}.weight", "quantizer.phi.{i}.kernel", "conv"),
        ("quantize.quant_resi.qresi_ls.{i}.bias", "quantizer.phi.{i}.bias", ""),
        (HITS, "", ""),
        *taming.table(),
    ]


def configure(config: Mapping[str, Any] | None, state: State) -> MultiScale:
    """The configuration that the weights show, completed from `config`, which must not contradict them."""
    c = settings(FAMILY, config, DEFAULTS, CLAIMS, IGNORED)
    flat = parameters(FAMILY, state, table(), ("quantize.quant_resi.qresi_ls.0.weight", "quantize.embedding.weight"))
    net, (size, dim) = network(flat, 1, fused_qkv=True), flat["quantizer.codebook"].shape
    scales, phis = tuple(c["patch_nums"]), count(flat, "quantizer.phi.")
    if HITS in state and len(state[HITS]) != len(scales):
        raise UserError(f"{FAMILY}: the checkpoint has {len(state[HITS])} scales, not {len(scales)}: pass its patch_nums")
    agree(FAMILY, c, {"ch": net.channels, "ch_mult": net.multipliers, "num_res_blocks": net.encoder_blocks})
    agree(FAMILY, c, {"V": size, "Cvae": dim, "share_quant_resi": phis, "using_znorm": False})
    quantizer = MultiScaleVQ(
        size=size, dim=dim, commitment=float(c["beta"]), scales=scales, phis=phis, phi_ratio=abs(float(c["quant_resi"]))
    )
    return MultiScale(net, quantizer, image_size=scales[-1] * net.factor)


def convert(checkpoint: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """A checkpoint file -> Tokenizer."""
    return converted(FAMILY, configure, table(), checkpoint, config)

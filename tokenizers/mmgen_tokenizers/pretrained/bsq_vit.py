"""BSQ-ViT (arXiv 2406.07548): vision transformers over patches of 8 x 8 pixels, binary spherical codes. Pictures in [-1, 1].

`config` of a conversion, all of it optional:
  heads (width / 64, which is theirs)
  gamma0 (1), gamma (1), zeta (1), inv_temperature (1)   weights of the losses, used if training goes on
  embed_dim, embed_group_size   must be what the weights show; l2_norm and post_q_l2_norm true, logit_laplace false
Ignored: beta, for there a default of 0.25 always takes its place; clamp_range, persample_entropy_compute, cb_entropy_compute.
Ids of 18 bits are numbers, those of 36 pairs of numbers. Of a training checkpoint the averaged weights are taken, as there.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..api import Tokenizer
from ..errors import UserError
from ..families.vqgan import VQGAN
from ..files import Row, read_checkpoint
from ..networks.vit import ViT
from ..quantizers.binary import BSQ, LARGEST
from .cnn_names import rows
from .from_weights import State, agree, fitted, parameters, settings
from .vit_names import trunk, trunk_of

FAMILY = "bsq-vit"
PRESETS = {
    "BSQ-ViT-18": VQGAN(ViT(), BSQ(18, commitment=0.25 * 18, entropy=1.0, block=1)),
    "BSQ-ViT-36": VQGAN(ViT(), BSQ(36, 2, commitment=0.25 * 36, entropy=1.0, block=1)),
}
DEFAULTS = {"heads": None, "gamma0": 1.0, "gamma": 1.0, "zeta": 1.0, "inv_temperature": 1.0}
CLAIMS = ("embed_dim", "embed_group_size", "l2_norm", "post_q_l2_norm", "logit_laplace")
IGNORED = ("beta", "clamp_range", "persample_entropy_compute", "cb_entropy_compute")
TABLE: list[Row] = [
    *(row for s in ("encoder", "decoder") for row in trunk(s, f"{s}.transformer", "transformer.resblocks")),
    *((f"{s}.positional_embedding", f"{s}.positions", "") for s in ("encoder", "decoder")),
    *rows(
        [
            ("encoder.conv1", "encoder.patch", "patch"),
            ("quant_embed", "quant_conv", "linear"),
            ("post_quant_embed", "post_quant_conv", "linear"),
            ("decoder.ffn.0", "decoder.ffn", "linear"),
            ("decoder.conv_out", "decoder.conv_out", "linear"),
        ]
    ),
    ("quantize.{buffer}", "", ""),
]


def channels_last(state: State) -> dict[str, np.ndarray]:
    """The pixels of a patch in our order, (dy, dx, channel): theirs is (channel, dy, dx)."""
    parameters(FAMILY, state, TABLE, ("encoder.conv1.weight", "decoder.conv_out.weight", "quantize.group_basis"))
    first = state["encoder.conv1.weight"]
    last = {name: state[name] for name in ("decoder.conv_out.weight", "decoder.conv_out.bias")}
    side = math.isqrt(first.shape[1] // 3)
    if {first.shape[1], *map(len, last.values())} != {3 * side**2}:
        raise UserError(f"{FAMILY}: encoder.conv1 {list(first.shape)} and decoder.conv_out do not fit the same patches")
    last = {name: a.reshape(3, side**2, *a.shape[1:]).swapaxes(0, 1).reshape(a.shape) for name, a in last.items()}
    return {**state, **last, "encoder.conv1.weight": first.reshape(-1, 3, side, side)}


def configure(config: Mapping[str, Any] | None, state: State) -> VQGAN:
    """The configuration that the weights (channels_last) show, completed from `config`, which must not contradict them."""
    c = settings(FAMILY, config, DEFAULTS, CLAIMS, IGNORED)
    flat = parameters(FAMILY, state, TABLE, ())
    patch, bits = state["encoder.conv1.weight"].shape[-1], flat["quant_conv.kernel"].shape[1]
    agree(FAMILY, c, {"embed_dim": bits, "embed_group_size": len(state["quantize.group_basis"])})
    agree(FAMILY, c, {"l2_norm": True, "post_q_l2_norm": True, "logit_laplace": False})
    size = patch * math.isqrt(len(flat["encoder.positions"]))
    quantizer = BSQ(
        bits,
        groups=next(n for n in range(1, bits + 1) if bits % n == 0 and bits // n <= LARGEST),
        commitment=0.25 * bits,  # of the sum over channels there, of their mean here
        entropy=c["zeta"] * c["gamma0"] / c["inv_temperature"],
        diversity=c["gamma"] / c["gamma0"],
        temperature=1 / c["inv_temperature"],
        block=len(state["quantize.group_basis"]),
    )
    return VQGAN(ViT(trunk_of(flat, "encoder", c["heads"]), size, patch, flat["decoder.ffn.bias"].size), quantizer, size)


def convert(checkpoint: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """A checkpoint file -> Tokenizer."""
    state = channels_last(read_checkpoint(checkpoint))
    ours = configure(config, state)
    return Tokenizer(ours, fitted(ours, state, TABLE), FAMILY)

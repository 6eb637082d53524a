"""TiTok's vector-quantized tokenizers (arXiv 2406.07550): L-32, B-64, S-128 and, of one training stage, BL-64, BL-128, SL-256.

`config` of a conversion, all of it optional:
  use_l2_norm, is_legacy   codes on the unit sphere; scrambled latents: both true where the weights hold MaskGIT's decoder
  heads (width / 64, which is TiTok's) of both networks; commitment_cost (0.25), used if training goes on
  codebook_size, token_size, num_latent_tokens, vit_enc_patch_size, vit_dec_patch_size, crop_size, finetune_decoder
  must be what the weights show
Ignored: vit_enc_model_size, vit_dec_model_size, quantize_mode.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..api import Tokenizer
from ..families.titok import MASKGIT, Proxy, TiTok
from ..files import Row, read_checkpoint
from ..networks.vit import Trunk
from ..quantizers.vq import VQ
from .cnn_names import BLOCK, Layer, at, rows
from .from_weights import State, agree, count, fitted, parameters, settings
from .vit_names import trunk, trunk_of

FAMILY = "titok"
S, B, L = Trunk(512, 8, 8), Trunk(768, 12, 12), Trunk(1024, 24, 16)
LEGACY, SINGLE = VQ(4096, 12), VQ(8192, 64, normalize=False)
PRESETS = {
    "TiTok-L-32": TiTok(L, L, LEGACY, 32, proxy=Proxy(), scrambled=True),
    "TiTok-B-64": TiTok(B, B, LEGACY, 64, proxy=Proxy(), scrambled=True),
    "TiTok-S-128": TiTok(S, S, LEGACY, 128, proxy=Proxy(), scrambled=True),
    "TiTok-BL-64-VQ": TiTok(B, L, SINGLE, 64),
    "TiTok-BL-128-VQ": TiTok(B, L, SINGLE, 128),
    "TiTok-SL-256-VQ": TiTok(S, L, SINGLE, 256),
}
DEFAULTS = {"use_l2_norm": True, "is_legacy": True, "heads": None, "commitment_cost": 0.25}  # with MaskGIT's decoder
CLAIMS = ("codebook_size", "token_size", "num_latent_tokens", "vit_enc_patch_size", "vit_dec_patch_size", "crop_size",
          "finetune_decoder")  # fmt: skip
IGNORED = ("vit_enc_model_size", "vit_dec_model_size", "quantize_mode")


def table() -> list[Row]:
    """Their names -> ours."""
    learned: list[Row] = [
        ("{side}.class_embedding", "{side}.class_token", ""),
        ("{side}.positional_embedding", "{side}.positions", ""),
        ("{side}.latent_token_positional_embedding", "{side}.latent_positions", ""),
        ("latent_tokens", "encoder.latents", ""),
        ("decoder.mask_token", "decoder.mask", ""),
        ("quantize.embedding.weight", "quantizer.codebook", ""),
        ("pixel_quantize.embedding.weight", "head.codebook", ""),
    ]
    layers: list[Layer] = [
        ("encoder.patch_embed", "encoder.patch", "patch"),
        ("encoder.conv_out", "quant_conv", "pixel"),
        ("decoder.decoder_embed", "post_quant_conv", "linear"),
        ("decoder.ffn.0", "head.ffn", "pixel"),
        ("decoder.ffn.2", "head.scores", "pixel"),
        ("decoder.conv_out", "head.conv_out", "conv"),
        ("pixel_decoder.conv_in", "head.decoder.conv_in", "conv"),
        *at("pixel_decoder.mid.{b}", "head.decoder.middle.blocks.{b}", BLOCK),
        *at("pixel_decoder.up.{i}.block.{b}", "head.decoder.levels.{i}.blocks.{b}", BLOCK),
        ("pixel_decoder.up.{i}.upsample_conv", "head.decoder.ups.{i}.conv", "conv"),
        ("pixel_decoder.norm_out", "head.decoder.norm_out", "norm"),
        ("pixel_decoder.conv_out", "head.decoder.conv_out", "conv"),
    ]
    trunks = [row for s in ("encoder", "decoder") for row in trunk(s, f"{s}.transformer", "transformer")]
    return [*learned, *trunks, *rows(layers)]


def configure(config: Mapping[str, Any] | None, state: State) -> TiTok:
    """The configuration that the weights show, completed from `config`, which must not contradict them."""
    flat = parameters(FAMILY, state, table(), ("latent_tokens", "quantize.embedding.weight", "decoder.ffn.0.weight"))
    proxy = _proxy(flat)
    legacy = proxy is not None
    c = settings(FAMILY, config, DEFAULTS | {"use_l2_norm": legacy, "is_legacy": legacy}, CLAIMS, IGNORED)
    size, dim = flat["quantizer.codebook"].shape
    patch = math.isqrt(flat["encoder.patch.kernel"].shape[0] // 3)
    image_size = patch * math.isqrt(len(flat["encoder.positions"]) - 1)
    ours = TiTok(
        encoder=trunk_of(flat, "encoder", c["heads"]),
        decoder=trunk_of(flat, "decoder", c["heads"]),
        quantizer=VQ(size, dim, c["use_l2_norm"], commitment=float(c["commitment_cost"])),
        tokens=len(flat["encoder.latents"]),
        image_size=image_size,
        patch=patch,
        proxy=proxy,
        scrambled=c["is_legacy"],
    )
    agree(FAMILY, c, {"codebook_size": size, "token_size": dim, "num_latent_tokens": ours.tokens, "vit_enc_patch_size": patch})
    agree(FAMILY, c, {"vit_dec_patch_size": patch, "crop_size": image_size, "finetune_decoder": legacy})
    return ours


def _proxy(flat: Mapping[str, np.ndarray]) -> Proxy | None:
    if "head.codebook" not in flat:
        return None
    codes, latent = flat["head.codebook"].shape
    channels, place = flat["head.decoder.conv_out.kernel"].shape[2], "head.decoder.levels."
    widths = [flat[f"{place}{i}.blocks.0.conv2.kernel"].shape[-1] for i in range(count(flat, place))]
    blocks, multipliers = count(flat, f"{place}0.blocks."), tuple(width // channels for width in widths)
    changes = {"channels": channels, "multipliers": multipliers, "decoder_blocks": blocks, "latent": latent}
    return Proxy(codes, dataclasses.replace(MASKGIT, **changes))


def convert(checkpoint: str | Path, config: Mapping[str, Any] | None = None) -> Tokenizer:
    """A checkpoint file -> Tokenizer."""
    state = read_checkpoint(checkpoint)
    ours = configure(config, state)
    return Tokenizer(ours, fitted(ours, state, table()), FAMILY)

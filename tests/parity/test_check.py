"""convert --check on what published code gave: its layers and ours agree."""

import json

import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers.pretrained import bsq_vit, llamagen, maskgit, taming, titok
from mmgen_tokenizers.pretrained.check import TOLERANCE, compare, table_of

pytestmark = pytest.mark.parity
LAYERS = {  # of the fixtures: the family, and array in io.npz -> the module that gave it
    "llamagen_vq": (llamagen, {"enc_out": "encoder.conv_out", "latents": "quant_conv", "dec_conv_in": "decoder.conv_in"}),
    "taming_vqgan": (taming, {"latents": "quant_conv", "dec_conv_in": "decoder.conv_in"}),
    "maskgit_vqgan": (maskgit, {"latents": "encoder.conv_out"}),
    "titok": (titok, {"z": "encoder.conv_out"}),
    "bsq_vit": (bsq_vit, {"enc_ln_pre": "encoder.ln_pre", "quant_embed": "quant_embed", "dec_ln_post": "decoder.ln_post"}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_published_code_agrees(parity, name):
    folder, (family, layers) = parity(name), LAYERS[name]
    config = json.loads((folder / "meta.json").read_text())["config"]
    config = {key: value for key, value in config.items() if key in (*family.DEFAULTS, *family.CLAIMS)}
    config |= {"heads": 4} if family is bsq_vit else {}  # which no tensor shows
    with np.load(folder / "io.npz") as file:
        arrays = {key: file[key] for key in file.files}
    tok = mt.convert(family.FAMILY, folder / "model.safetensors", config=config)
    given = {"image": arrays["image"], "ids": arrays.get("ids", arrays.get("indices"))}
    given |= {module: arrays[key] for key, module in layers.items()}
    found, unknown = compare(tok, table_of(tok), given)
    assert {row.name for row in found} == given.keys() - {"image"} and not unknown
    assert max(row.error for row in found) <= TOLERANCE

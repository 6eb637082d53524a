"""A switch of the network that no converter uses yet, by the names and shapes of published weights."""

import json

import jax
import numpy as np
import pytest
from mmgen_tokenizers.api import shapes
from mmgen_tokenizers.families.vqgan import VQGAN
from mmgen_tokenizers.networks.cnn import CNN
from mmgen_tokenizers.quantizers.vq import VQ

pytestmark = pytest.mark.parity


def test_a_decoder_without_attention_is_mar(parity):
    keys = json.loads((parity().parent / "research" / "tokenizer_keys" / "mar_kl16.json").read_text())
    ours = shapes(VQGAN(CNN(decoder_attention_levels=(), latent=16), VQ(4, 16)))
    attention = {key.split(".attn.")[0] for key in keys if ".attn." in key}
    assert attention == {"encoder.down.4"} and "attention" not in ours["decoder"]["levels"]["4"]
    decoder = [shape for key, shape in keys.items() if key.startswith("decoder.")]
    assert sum(np.prod(s) for s in decoder) == sum(leaf.size for leaf in jax.tree.leaves(ours["decoder"]))

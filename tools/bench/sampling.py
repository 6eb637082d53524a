"""Next-scale and next-neighbor sampling beside the papers' own PyTorch code: the same model, the same machine, one run.

    python tools/bench/sampling.py --family var --peer PATH/TO/VAR --out tools/bench/results/var_cpu.json
    python tools/bench/sampling.py --family nar --peer PATH/TO/NAR --out tools/bench/results/nar_cpu.json

PATH is a checkout of the public repository; torch must be importable. Without --peer only mmgen is measured. Weights are
random: what is measured is time, in seconds a batch, the best of `--repeats` turns, which both take alternately after one that
compiles. In float32 on a CPU, with guidance 4. `var`: VAR-d16 and its VQ decoder, with top-k 900 and top-p 0.95 as in its demo;
guidance grows with the scale. `nar`: NAR-B's 256 tokens in 31 steps, without a decoder.

What of VAR's imports is not installed and computes nothing (huggingface_hub, for uploads) is replaced by an empty class. Its
models are made without build_vae_var, which leaves weights that no checkpoint fills uninitialised.
"""

import argparse
import contextlib
import functools
import importlib.util
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import mmgen_tokenizers as mt
from common import best_of_each, matmul_rate, report, write
from mmgen_tokenizers.families import multiscale
from mmgen_tokenizers.pretrained.var import PRESETS

from mmgen.generator import Generator
from mmgen.model import transformer
from mmgen.model.config import GeneratorConfig, Sampling
from mmgen.model.inputs import adopt
from mmgen.pretrained import nar, var

GUIDANCE, TOP_K, TOP_P = 4.0, 900, 0.95

Sampler = Callable[[], Any]  # draws a batch


class Family(NamedTuple):
    what: str
    folder: str  # of the checkout, to import from
    ours: Callable[[], Generator]
    theirs: Callable[[int], Sampler]


def random_weights(config: GeneratorConfig) -> dict:
    """Fresh parameters, but for the heads, which start at zero: filters would meet nothing but ties."""
    params = transformer.init(config, jax.random.key(0))
    for head in params["ends"]["heads"].values():
        head["map"] = 0.02 * jax.random.normal(jax.random.key(1), head["map"].shape)
    return params


def our_var() -> Generator:
    tokenizer = mt.Tokenizer(PRESETS["VAR"], multiscale.init(PRESETS["VAR"], jax.random.key(2)))
    config = var.preset("d16", tokenizer.config)
    params = adopt(config, random_weights(config), tokenizer.params["quantizer"])
    # VAR's "cfg" is what guidance adds to 1.
    sampling = Sampling(1 + GUIDANCE, "linear", top_k=TOP_K, top_p=TOP_P)
    return Generator(config, params, tokenizer, sampling=sampling, dtype="float32")


def our_nar() -> Generator:
    config = nar.preset("GPT-B")
    return Generator(config, random_weights(config), sampling=Sampling(GUIDANCE), dtype="float32")


@functools.cache
def peer_var() -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        sys.modules["huggingface_hub"] = ModuleType("huggingface_hub")
        sys.modules["huggingface_hub"].PyTorchModelHubMixin = type("PyTorchModelHubMixin", (), {})
    import torch
    from models.var import VAR
    from models.vqvae import VQVAE

    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        vae = VQVAE(vocab_size=4096, z_channels=32, ch=160, test_mode=True).eval()
        return VAR(vae, depth=16, embed_dim=1024, num_heads=16, attn_l2_norm=True).eval()


def their_var(batch: int) -> Sampler:
    import torch

    model, labels = peer_var(), torch.arange(batch) % 1000
    return lambda: model.autoregressive_infer_cfg(batch, labels, cfg=GUIDANCE, top_k=TOP_K, top_p=TOP_P)


def their_nar(batch: int) -> Sampler:
    import torch
    from autoregressive.models.generate import generate
    from autoregressive.models.gpt import GPT_models

    torch.manual_seed(0)
    model = GPT_models["GPT-B"](vocab_size=16384, block_size=256, num_classes=1000, cls_token_num=1).eval()
    options = {"cfg_interval": -1, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "sample_logits": True}

    def run():
        with contextlib.redirect_stderr(io.StringIO()):  # its progress
            generate(model, torch.arange(batch) % 1000, 256, cfg_scale=GUIDANCE, **options)

    return run


FAMILIES = {
    "var": Family("VAR-d16 with its VQ decoder", ".", our_var, their_var),
    "nar": Family("NAR-B, 256 tokens", "NAR-images", our_nar, their_nar),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", required=True, choices=FAMILIES)
    parser.add_argument("--peer", help="checkout of the paper's code")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    family, peer = FAMILIES[arguments.family], arguments.peer
    if peer:
        sys.path.insert(0, str(Path(peer) / family.folder))

    figures, generator = {"matmul_gflops_before": matmul_rate()}, family.ours()
    for batch in arguments.batches:
        runs = {"mmgen": functools.partial(generator.generate, labels=[i % 1000 for i in range(batch)])}
        if peer:
            runs["peer"] = family.theirs(batch)
        found = best_of_each(runs, arguments.repeats)
        figures |= {f"seconds_{batch}_{name}": seconds for name, seconds in found.items()}
        if peer:
            figures[f"times_as_fast_{batch}"] = found["peer"] / found["mmgen"]
        print(json.dumps(figures), flush=True)
    figures["matmul_gflops_after"] = matmul_rate()
    figures = {name: round(value, 3) for name, value in figures.items()}
    what = f"{family.what}, guidance {GUIDANCE:g}, float32; seconds a batch"
    write(report(what, figures, peer, arguments.family.upper()), arguments.out)


if __name__ == "__main__":
    main()

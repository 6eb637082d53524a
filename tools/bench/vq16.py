"""LlamaGen's VQ-16 beside its own PyTorch code: encode and decode, the same random weights, the same machine, one run.

    python tools/bench/vq16.py --peer PATH/TO/LlamaGen --out tools/bench/results/vq16_cpu.json

PATH is a checkout of the public repository; torch must be importable. Its model has its channels last; "compiled" is
torch.compile of that, left out where it does not work (it needs a C++ compiler). First both must give the same ids and pictures
(in float32); then all take turns, and of each the best of --rounds counts: pictures of 256 x 256 pixels a second, and GFLOP/s.
float32 on a CPU, bfloat16 elsewhere. The convolution that most of the time goes to (3 x 3, 128 channels, the whole picture)
takes turns with them: "share" is what mmgen reaches of the faster of JAX's and PyTorch's.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
from common import best_of_each, report, run, write
from mmgen_tokenizers.api import shapes
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.pretrained.llamagen import PRESETS
from safetensors.numpy import save_file

SIZE, CELLS, CODE, CHANNELS = 256, 16, 8, 128  # pixels and ids on a side, channels of a code and of the first level
CONFIG = PRESETS["VQ-16"]
DEVICE, DTYPE = ("cpu", "float32") if jax.default_backend() == "cpu" else ("cuda", "bfloat16")
Runs = dict[str, Callable[[], Any]]  # by "encode_", "decode_" or "convolution_" and who does it


def our_runs(tokenizer: mt.Tokenizer, images: np.ndarray, ids: np.ndarray) -> Runs:
    x, kernel = jnp.ones((1, SIZE, SIZE, CHANNELS), DTYPE), jnp.full((3, 3, CHANNELS, CHANNELS), 0.01, DTYPE)
    layout = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    convolve = jax.jit(partial(jax.lax.conv_general_dilated, **layout))
    return {
        "convolution_mmgen": lambda: convolve(x, kernel).block_until_ready(),
        "encode_mmgen": lambda: tokenizer.encode(images),
        "decode_mmgen": lambda: tokenizer.decode(ids),
    }


def peer_model() -> Any:
    import torch
    from tokenizer.tokenizer_image.vq_model import VQ_16

    torch.manual_seed(0)
    return VQ_16().eval()


def converted(model: Any) -> mt.Tokenizer:
    """VQ-16 with the peer's weights."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.safetensors"
        save_file({name: value.numpy() for name, value in model.state_dict().items()}, path)
        return mt.Tokenizer(CONFIG, mt.convert("llamagen-vq", path).params, dtype=DTYPE)


def peer_runs(model: Any, images: np.ndarray, ids: np.ndarray) -> Runs:
    """Eager, on the device and with channels last: not waited for."""
    import torch

    place = {"device": DEVICE, "dtype": getattr(torch, DTYPE), "memory_format": torch.channels_last}
    model, layer = model.to(**place), torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1).to(**place)
    x, square = torch.from_numpy(images).permute(0, 3, 1, 2).to(**place), torch.ones(1, CHANNELS, SIZE, SIZE).to(**place)
    codes, shape = torch.from_numpy(ids.reshape(-1)).long().to(DEVICE), (len(ids), CODE, CELLS, CELLS)
    return {
        "convolution_peer": lambda: layer(square),
        "encode_peer": lambda: model.encode(x)[2][2],
        "decode_peer": lambda: model.decode_code(codes, shape),
    }


def waiting(runs: Runs) -> Runs:
    """Without gradients, and with what is on a GPU done when they return."""
    import torch

    def wait(compute: Callable[[], Any]) -> Any:
        with torch.inference_mode():
            found = compute()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return found

    return {name: partial(wait, compute) for name, compute in runs.items()}


def compiled(runs: Runs) -> Runs:
    """Encoding and decoding by torch.compile; none where it does not work."""
    import torch

    made = waiting({f"{name}_compiled": torch.compile(runs[name]) for name in ("encode_peer", "decode_peer")})
    try:
        for compute in made.values():
            compute()
    except Exception as error:  # of many kinds, by what is missing
        print(f"torch.compile does not work here: {error}", file=sys.stderr)
        return {}
    return made


def agreement(ours: Runs, theirs: Runs) -> dict[str, float]:
    """The share of equal ids and the largest difference of pictures in [-1, 1]; UserError where float32 gives other ones."""
    ids, pictures = theirs["encode_peer"]().cpu().numpy(), theirs["decode_peer"]().float().cpu().numpy()
    same = float(np.mean(ours["encode_mmgen"]().reshape(-1) == ids))
    difference = float(np.abs(ours["decode_mmgen"]() - pictures.transpose(0, 2, 3, 1).clip(-1, 1)).max())
    if DTYPE == "float32" and (same < 0.99 or difference > 1e-3):
        raise UserError(f"not the same model: {same:.1%} of the ids are equal, pictures differ by {difference:.2g}")
    return {"same_ids": same, "largest_difference": difference}


def gflops(batch: int) -> dict[str, float]:
    """What each run computes, as XLA counts it before it optimises."""
    params, image = shapes(CONFIG), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, CELLS**2), jnp.int32)
    encode = jax.jit(partial(vqgan.encode, CONFIG)).lower(params, image)
    decode = jax.jit(partial(vqgan.decode, CONFIG, height=CELLS, width=CELLS)).lower(params, ids)
    found = {"encode": batch * encode.cost_analysis()["flops"], "decode": batch * decode.cost_analysis()["flops"]}
    return {name: count / 1e9 for name, count in {**found, "convolution": 2 * SIZE**2 * 9 * CHANNELS**2}.items()}


def measure(with_peer: bool, batch: int, rounds: int) -> dict[str, float]:
    model = peer_model() if with_peer else None
    tokenizer = converted(model) if with_peer else mt.Tokenizer(CONFIG, vqgan.init(CONFIG, jax.random.key(0)), dtype=DTYPE)
    images = np.random.default_rng(0).uniform(-1, 1, (batch, SIZE, SIZE, 3)).astype(np.float32)
    ids = tokenizer.encode(images)
    runs, figures = our_runs(tokenizer, images, ids), {}
    if with_peer:
        theirs = peer_runs(model, images, ids)
        figures = agreement(runs, waiting(theirs))
        print(figures, file=sys.stderr, flush=True)
        runs |= waiting(theirs) | compiled(theirs)
    work, seconds = gflops(batch), best_of_each(runs, rounds)
    figures |= {name: batch / s for name, s in seconds.items() if not name.startswith("convolution")}
    rates = {name: work[name.partition("_")[0]] / s for name, s in seconds.items()}
    fastest = max(rate for name, rate in rates.items() if name.startswith("convolution"))
    figures |= {f"{name}_gflops": rate for name, rate in rates.items()}
    return figures | {f"{verb}_share": rates[f"{verb}_mmgen"] / fastest for verb in ("encode", "decode")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="checkout of LlamaGen")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.peer:
        sys.path.insert(0, arguments.peer)
    figures = measure(bool(arguments.peer), arguments.batch, arguments.rounds)
    what = f"LlamaGen VQ-16, pictures of {SIZE} x {SIZE}, batch {arguments.batch}, {DTYPE}; pictures a second, more is better"
    figures = {name: float(f"{value:.4g}") for name, value in figures.items()}
    write(report(what, figures, arguments.peer, "LlamaGen"), arguments.out)


if __name__ == "__main__":
    run(main)

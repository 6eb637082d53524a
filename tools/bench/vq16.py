"""LlamaGen's VQ-16 beside its own PyTorch code: encode and decode, the same random weights, the same machine, one run.

    python tools/bench/vq16.py --peer PATH/TO/LlamaGen --out tools/bench/results/vq16_cpu.json

PATH is a checkout of the public repository; torch must be importable, and a C++ compiler for "compiled", which is torch.compile
of the channels-last model. Pictures a second of 256 x 256 pixels: all take turns, after a first call that compiles, and of each
the best of `--rounds` counts. float32 on a CPU, bfloat16 elsewhere. The rate of the convolution that most of the time goes to
(3 x 3, 128 channels), measured in the same run, says what the machine could give; "share" is what mmgen reaches of it.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
from common import best_of, report, write
from mmgen_tokenizers.api import shapes
from mmgen_tokenizers.families import vqgan
from safetensors.numpy import save_file

SIZE, CELLS, CODE = 256, 16, 8  # pixels and ids on a side, channels of a code
PEERS = ("eager", "channels_last", "compiled")
Pair = tuple[Callable[[], object], Callable[[], object]]  # encode, decode


def convolution_rate(dtype: str) -> float:
    """GFLOP/s of JAX's 3 x 3 convolution of 128 channels at the full size of a picture."""
    x = jnp.ones((1, SIZE, SIZE, 128), dtype)
    kernel = jnp.full((3, 3, 128, 128), 0.01, dtype)
    f = jax.jit(
        partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    )
    return 2 * SIZE**2 * 9 * 128**2 / best_of(lambda: f(x, kernel).block_until_ready(), 5) / 1e9


def peer_convolution_rate(device: str) -> float:
    """The same of PyTorch's, channels last."""
    import torch

    x = torch.ones(1, 128, SIZE, SIZE, device=device, dtype=_dtype(device)).to(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(128, 128, 3, padding=1).to(device, x.dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        return 2 * SIZE**2 * 9 * 128**2 / best_of(_waiting(lambda: layer(x), device), 5) / 1e9


def gflops(config: mt.VQGAN) -> dict[str, float]:
    """Operations to encode and to decode one picture, as XLA counts them before it optimises."""
    params, image = shapes(config), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, CELLS**2), jnp.int32)
    decode = partial(vqgan.decode, config, height=CELLS, width=CELLS)
    encode = partial(vqgan.encode, config)
    lowered = {"encode": jax.jit(encode).lower(params, image), "decode": jax.jit(decode).lower(params, ids)}
    return {verb: program.cost_analysis()["flops"] / 1e9 for verb, program in lowered.items()}


def peer_model() -> object:
    import torch
    from tokenizer.tokenizer_image.vq_model import VQ_16

    torch.manual_seed(0)
    return VQ_16().eval()


def converted(model: object | None, dtype: str) -> mt.Tokenizer:
    """VQ-16 with the peer's weights, or its own random ones without a peer."""
    if model is None:
        return mt.Tokenizer(mt.VQGAN(), vqgan.init(mt.VQGAN(), jax.random.key(0)), dtype=dtype)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.safetensors"
        save_file({name: value.numpy() for name, value in model.state_dict().items()}, path)
        tokenizer = mt.convert("llamagen-vq", path)
        return mt.Tokenizer(tokenizer.config, tokenizer.params, tokenizer.source, dtype=dtype)


def _dtype(device: str):
    import torch

    return torch.float32 if device == "cpu" else torch.bfloat16


def _waiting(run: Callable[[], object], device: str) -> Callable[[], object]:
    """With what is on a GPU done when it returns."""
    import torch

    def wait():
        found = run()
        if device == "cuda":
            torch.cuda.synchronize()
        return found

    return wait


def peer(model: object, kind: str, device: str, images: np.ndarray, ids: np.ndarray) -> Pair:
    """Encode -> ids and decode -> pictures of one form of the peer, pictures [B, 3, H, W] and ids on its device."""
    import torch

    memory = torch.contiguous_format if kind == "eager" else torch.channels_last
    model = model.to(device, _dtype(device), memory_format=memory)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(device, _dtype(device), memory_format=memory)
    codes, shape = torch.from_numpy(ids.reshape(-1)).long().to(device), (len(ids), CODE, CELLS, CELLS)
    both = (lambda: model.encode(x)[2][2], lambda: model.decode_code(codes, shape))
    if kind == "compiled":
        both = tuple(torch.compile(run) for run in both)
    return tuple(_waiting(torch.inference_mode()(run), device) for run in both)


def best_in_turns(pairs: dict[str, Pair], rounds: int) -> dict[str, float]:
    """Seconds of the fastest call of each, under "encode_" or "decode_" and its name."""
    runs = {f"{verb}_{name}": run for name, pair in pairs.items() for verb, run in zip(("encode", "decode"), pair, strict=True)}
    for name, run in runs.items():
        print(f"compiling {name}", file=sys.stderr, flush=True)
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
        print(json.dumps({name: round(min(seconds), 3) for name, seconds in times.items()}), file=sys.stderr, flush=True)
    return {name: min(seconds) for name, seconds in times.items()}


def agreement(ours: Pair, theirs: Pair) -> dict[str, float]:
    """Whether both compute the same: the share of equal ids and the largest difference of pictures in [-1, 1]."""
    ids, pictures = ours[0]().reshape(-1), theirs[1]().float().cpu().numpy().transpose(0, 2, 3, 1)
    same = np.mean(ids == theirs[0]().cpu().numpy())
    return {"same_ids": float(same), "largest_difference": float(np.abs(ours[1]() - pictures.clip(-1, 1)).max())}


def measure(with_peer: bool, kinds: list[str], batch: int, rounds: int) -> dict[str, float]:
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    dtype = "float32" if device == "cpu" else "bfloat16"
    model = peer_model() if with_peer else None
    tokenizer = converted(model, dtype)
    images = np.random.default_rng(0).uniform(-1, 1, (batch, SIZE, SIZE, 3)).astype(np.float32)
    ids = tokenizer.encode(images)
    pairs = {"mmgen": (partial(tokenizer.encode, images), partial(tokenizer.decode, ids))}
    operations = gflops(tokenizer.config)
    figures = {f"{verb}_gflops_a_picture": count for verb, count in operations.items()}
    figures["convolution_gflops_mmgen"] = convolution_rate(dtype)
    if with_peer:
        figures["convolution_gflops_peer"] = peer_convolution_rate(device)
        pairs |= {kind: peer(copy.deepcopy(model), kind, device, images, ids) for kind in kinds}
        figures |= agreement(pairs["mmgen"], pairs[kinds[0]])
    figures |= {name: batch / seconds for name, seconds in best_in_turns(pairs, rounds).items()}
    for verb in operations:
        figures[f"{verb}_share"] = figures[f"{verb}_mmgen"] * operations[verb] / figures["convolution_gflops_mmgen"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="checkout of LlamaGen")
    parser.add_argument("--kinds", nargs="+", choices=PEERS, default=list(PEERS), help="forms of the peer")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.peer:
        sys.path.insert(0, arguments.peer)
    figures = measure(bool(arguments.peer), arguments.kinds, arguments.batch, arguments.rounds)
    what = f"LlamaGen VQ-16, pictures of {SIZE} x {SIZE}, batch {arguments.batch}; pictures a second, more is better"
    figures = {name: float(f"{value:.4g}") for name, value in figures.items()}
    write(report(what, figures, arguments.peer, "LlamaGen"), arguments.out)


if __name__ == "__main__":
    main()

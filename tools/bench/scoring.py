"""How long the statistics of a whole evaluation take, and how much memory: FID, precision, recall and KID of 50,000 pictures.

    python tools/bench/scoring.py --out tools/bench/results/scoring_cpu.json

Features are random, of 2048 numbers: 50,000 of the samples, and of the reference a file of statistics with 10,000, as ADM's
hold. Mean and covariance of the samples are counted, the network is not. `--samples` and `--rows` take fewer.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from common import matmul_rate, report, write
from mmgen_tokenizers.evaluation.scoring import KEPT, Measured, compare
from mmgen_tokenizers.evaluation.statistics import Moments

WIDTH, PIECE = 2048, 2000


def features(count: int, seed: int) -> np.ndarray:
    """Like those of InceptionV3: not negative, of uneven spread."""
    rng = np.random.default_rng(seed)
    scale = np.random.default_rng(0).lognormal(0, 0.7, WIDTH).astype(np.float32)
    return np.maximum(rng.standard_normal((count, WIDTH), np.float32) + 0.1 * seed, 0) * scale


def measured(x: np.ndarray) -> Measured:
    moments = [Moments.of(x[i : i + PIECE]) for i in range(0, len(x), PIECE)]
    return Measured(sum(moments[1:], moments[0]).gaussian, None, x, None, None)


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--samples", type=int, default=50_000)
    p.add_argument("--rows", type=int, default=KEPT, help="of the reference's features")
    p.add_argument("--out", type=Path)
    arguments = p.parse_args()
    samples, kept = features(arguments.samples, 1), features(arguments.rows, 2)
    reference = measured(kept)
    start = time.perf_counter()
    found = compare(measured(samples), reference)
    seconds = time.perf_counter() - start
    figures = {"samples": arguments.samples, "rows": arguments.rows, "seconds": round(seconds, 1)}
    figures["peak_gigabytes"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)
    figures |= {name: round(figure["value"], 4) for name, figure in found.items()}
    write(report("statistics of features", figures | {"matmul_gflops": round(matmul_rate())}), arguments.out)


if __name__ == "__main__":
    main()

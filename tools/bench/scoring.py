"""How long a whole evaluation takes, and how much memory: FID, precision, recall and KID of 50,000 pictures' features, and the
features themselves, InceptionV3's.

    python tools/bench/scoring.py --out tools/bench/results/scoring_cpu.json

Features are random, of 2048 numbers: 50,000 of the samples, and of the reference a file of statistics with 10,000, as ADM's
hold. Mean and covariance of the samples are counted. `--samples` and `--rows` take fewer.
The network has random weights and gets `--pictures` of 299 x 299 pixels after one call that is not counted; its compilation is
told apart. `--pictures 0` leaves it out.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from common import matmul_rate, report, write
from mmgen_tokenizers.evaluation import inception
from mmgen_tokenizers.evaluation.scoring import KEPT, Extractor, Measured, compare
from mmgen_tokenizers.evaluation.statistics import Moments
from mmgen_tokenizers.files import save_arrays, unflatten

WIDTH, PIECE = 2048, 2000


def features(count: int, seed: int) -> np.ndarray:
    """Like those of InceptionV3: not negative, of uneven spread."""
    rng = np.random.default_rng(seed)
    scale = np.random.default_rng(0).lognormal(0, 0.7, WIDTH).astype(np.float32)
    return np.maximum(rng.standard_normal((count, WIDTH), np.float32) + 0.1 * seed, 0) * scale


def measured(x: np.ndarray) -> Measured:
    moments = [Moments.of(x[i : i + PIECE]) for i in range(0, len(x), PIECE)]
    return Measured(sum(moments[1:], moments[0]).gaussian, None, x, None, None)


def score(count: int, rows: int) -> dict[str, float]:
    """Seconds, and the most memory that this process has held by then."""
    samples, reference = features(count, 1), measured(features(rows, 2))
    start = time.perf_counter()
    found = compare(measured(samples), reference)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    told = {"samples": count, "rows": rows, "seconds": round(seconds, 1), "peak_gigabytes": round(peak, 2)}
    return told | {name: round(figure["value"], 4) for name, figure in found.items()}


def extract(count: int) -> dict[str, float]:
    """Pictures a minute through the network, on all devices."""
    rng = np.random.default_rng(0)
    state = {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in inception.shapes().items()}
    state |= {name: x / x[0].size for name, x in state.items() if x.ndim > 1}  # so that activations stay finite
    with tempfile.TemporaryDirectory() as folder:
        save_arrays(Path(folder), unflatten(state))
        extractor = Extractor(Path(folder) / "model.safetensors")
    pictures = rng.integers(0, 256, (count, inception.SIZE, inception.SIZE, 3), np.uint8)
    start = time.perf_counter()
    extractor(pictures[: extractor.rows])
    first = time.perf_counter()
    found = extractor(pictures)
    minutes = (time.perf_counter() - first) / 60
    assert np.isfinite(found.pool).all()
    return {"pictures": count, "pictures_per_minute": round(count / minutes), "first_call_seconds": round(first - start, 1)}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--samples", type=int, default=50_000)
    p.add_argument("--rows", type=int, default=KEPT, help="of the reference's features")
    p.add_argument("--pictures", type=int, default=200)
    p.add_argument("--out", type=Path)
    arguments = p.parse_args()
    figures = {"statistics": score(arguments.samples, arguments.rows)}
    if arguments.pictures:
        figures["network"] = extract(arguments.pictures)
    write(report("statistics of features, and InceptionV3", figures | {"matmul_gflops": round(matmul_rate())}), arguments.out)


if __name__ == "__main__":
    main()

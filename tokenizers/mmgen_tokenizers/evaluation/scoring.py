"""From sets of pictures to figures: their features, what is kept of these, files of statistics, the comparison."""

import functools
import operator
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, UInt8

from ..errors import UserError
from ..files import temporary_beside
from ..progress import Counter
from . import inception, statistics
from .processes import gather, own
from .sets import ArrayFiles, PictureFolder, open_pictures
from .statistics import Gaussian, Moments

ROWS = {"cpu": 16}  # pictures a device computes at once
OTHER_ROWS = 128
KEPT = 10_000  # rows of features in a file of statistics, as many pictures as ADM's reference files hold
KERNEL_ROWS = 5000  # of each set that the kernel distance is of, at most
FEWEST = 4  # pictures of a set
FOLDED = 1024  # rows that become moments at once: of few that takes as long, and GPUs would wait for it


class Measured(NamedTuple):
    """What is known of a set of pictures; None: not this."""

    pool: Gaussian  # of what FID is of
    spatial: Gaussian | None  # of what sFID is of
    features: Float[np.ndarray, "N F"] | None
    probabilities: Float[np.ndarray, "N K"] | None
    network: str | None  # fingerprint


class Extractor:
    """The network of a file, on all devices of this process."""

    def __init__(self, file: str | Path):
        params = inception.load(file)
        self.file, self.fingerprint = str(file), inception.fingerprint(params)
        devices = jax.local_devices()
        mesh = Mesh(np.array(devices), ("batch",))
        self._params, self._split = jax.device_put(params, NamedSharding(mesh, P())), NamedSharding(mesh, P("batch"))
        self._run, self.rows = jax.jit(inception.features), ROWS.get(devices[0].platform, OTHER_ROWS) * len(devices)

    @property
    def width(self) -> int:
        """Features of a picture."""
        return self._params["fc"]["kernel"].shape[0]

    def __call__(self, pictures: UInt8[np.ndarray, "B H W 3"]) -> inception.Features:
        """NumPy arrays, of any number of pictures: one program for all, whose rows are filled up."""
        pieces = [self._piece(pictures[start : start + self.rows]) for start in range(0, len(pictures), self.rows)]
        return inception.Features(*map(np.concatenate, zip(*pieces, strict=True)))

    def _piece(self, pictures: UInt8[np.ndarray, "b H W 3"]) -> list[np.ndarray]:
        filled = np.zeros((self.rows, *pictures.shape[1:]), np.uint8)
        filled[: len(pictures)] = pictures
        found = self._run(self._params, jax.device_put(filled, self._split))
        return [np.asarray(array)[: len(pictures)] for array in found]


class Meter:
    """Measures a set whose pictures come in pieces; of several processes each is given its own ones (processes.py)."""

    def __init__(self, extractor: Extractor):
        self._extractor, self._kept, self._waiting = extractor, [], []
        self._moments: tuple[Moments, ...] = ()  # of pool and spatial; the latter are too many to be kept

    def add(self, pictures: UInt8[np.ndarray, "B H W 3"]) -> None:
        found = self._extractor(pictures)
        self._kept.append((found.pool, found.probabilities))
        self._waiting.append((found.pool, found.spatial))
        if sum(len(pool) for pool, _ in self._waiting) >= FOLDED:
            self._fold()

    def _fold(self) -> None:
        own = tuple(Moments.of(np.concatenate(column)) for column in zip(*self._waiting, strict=True))
        self._moments, self._waiting = tuple(map(operator.add, self._moments, own)) if self._moments else own, []

    def measured(self) -> Measured:
        """Every process must call it."""
        if self._waiting:
            self._fold()
        pool, spatial = _of_all(self._moments[:1]), _of_all(self._moments[1:])
        columns = zip(*self._kept, strict=True) if self._kept else ((), ())
        features, probabilities = (np.concatenate(gather(column, np.float32)) for column in columns)
        return Measured(pool, spatial, features, probabilities, self._extractor.fingerprint)


def _of_all(own: Sequence[Moments]) -> Gaussian:
    """From the moments of each process, which has one or, if it was given nothing, none."""
    found = gather([moments.rows for moments in own], np.float64)
    return functools.reduce(operator.add, map(Moments.of_rows, found)).gaussian


def measure(extractor: Extractor, pictures: ArrayFiles | PictureFolder) -> Measured:
    """All pictures of a set: several processes read all of it, and each computes its share."""
    meter = Meter(extractor)
    with Counter(len(pictures), "pictures") as counter:
        for batch in own(pictures.batches(extractor.rows)):
            meter.add(batch)
            counter.add(len(batch) * jax.process_count())
    return meter.measured()


# Files of statistics -------------------------------------------------------------------------------------------------


def save_statistics(path: str | Path, measured: Measured, size: Sequence[int]) -> None:
    """Writes mu, sigma, mu_s and sigma_s under the names of ADM's reference files, and beside them "features" (of the first
    10,000 pictures), "count", "size" and "network"."""
    pool, spatial = measured.pool, measured.spatial
    arrays = {"mu": pool.mean, "sigma": pool.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    arrays |= {"features": measured.features[:KEPT], "count": np.int64(pool.count), "size": np.array(size)}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays, network=np.array(measured.network))
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_statistics(path: str | Path, extractor: Extractor, size: Sequence[int] | None) -> None:
    """Raises UserError for statistics of another network, or of pictures of another size, before anything is measured."""
    with _archive(path) as held:
        names, width = set(held.files), len(held["mu"])
        network = str(held["network"]) if "network" in names else None
        found = tuple(held["size"].tolist()) if "size" in names else None
    if network not in (None, extractor.fingerprint):
        raise UserError(
            f"{path} has statistics of the network {network}, {extractor.file} is {extractor.fingerprint}: they do not compare"
        )
    if width != extractor.width:
        raise UserError(f"{path} has {width} features a picture, the network gives {extractor.width}: it is of another network")
    found = open_pictures(path).size if "arr_0" in names else found
    if None not in (found, size) and found != tuple(size):
        shapes = " and of ".join(" x ".join(map(str, s)) for s in (size, found))
        raise UserError(f"the samples and the reference {path} are of {shapes} pixels: score sets of one size")


def read_statistics(path: str | Path, extractor: Extractor) -> tuple[Measured, tuple[int, int] | None]:
    """What `save_statistics` or ADM wrote, and the size of the pictures where it is known. Of ADM's files, the features are
    those of the pictures that they hold."""
    with _archive(path) as held:
        names = set(held.files)
        pool = Gaussian(held["mu"], held["sigma"], int(held["count"]) if "count" in names else None)
        spatial = Gaussian(held["mu_s"], held["sigma_s"], pool.count) if "mu_s" in names else None
        network = str(held["network"]) if "network" in names else None
        features = held["features"] if "features" in names else None
        size = tuple(held["size"].tolist()) if "size" in names else None
    if features is None and "arr_0" in names:
        pictures = open_pictures(path)
        features, size = measure(extractor, pictures).features, pictures.size
    return Measured(pool, spatial, features, None, network), size


def _archive(path: str | Path) -> Any:
    try:
        held = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is no .npz of pictures or statistics ({error})") from None
    if isinstance(held, np.ndarray):
        raise UserError(f"{path} is one array: put pictures into an .npz as arr_0 (np.savez)")
    return held


def has_statistics(path: str | Path) -> bool:
    """Whether a file is one of statistics, rather than of pictures alone."""
    if Path(path).is_dir():
        return False
    with _archive(path) as held:
        return {"mu", "sigma"} <= set(held.files)


# Figures -------------------------------------------------------------------------------------------------------------


def compare(samples: Measured, reference: Measured) -> dict[str, dict[str, Any]]:
    """name -> {"value", and where it can be said "interval": 95% of what other draws of as many samples would give}. Those that
    need what the reference does not have are left out. Raises UserError for too few samples."""
    if samples.pool.count < FEWEST:
        raise UserError(f"{samples.pool.count} pictures are too few to compare sets: give at least {FEWEST}")
    warn_of_few(samples.pool.count, len(samples.pool.mean))
    value, influence = statistics.frechet_influence(samples.features, samples.pool, reference.pool)
    found = {"fid": _figure(value, influence)}
    if samples.spatial is not None and reference.spatial is not None:
        found["sfid"] = {"value": statistics.frechet(samples.spatial, reference.spatial)}
    if samples.probabilities is not None:
        found["inception_score"] = _figure(*statistics.inception_score(samples.probabilities))
    if reference.features is not None and len(reference.features) >= FEWEST:
        within, covered = statistics.precision_recall(samples.features, reference.features)
        found["precision"], found["recall"] = (_figure(float(x.mean()), x) for x in (within, covered))
        found["kid"] = _kernel_figure(samples.features[:KERNEL_ROWS], reference.features[:KERNEL_ROWS])
    return found


def warn_of_few(count: int, width: int) -> None:
    if count <= width:
        warnings.warn(
            f"{count} pictures for {width} features: the covariance has not full rank and FID is far too high; KID has no such "
            "bias, and FIDs of equally few pictures can be compared with each other",
            stacklevel=3,
        )


def _figure(value: float, influence: np.ndarray) -> dict[str, Any]:
    return {"value": value, "interval": list(statistics.interval(value, influence))}


def _kernel_figure(x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    value, variance = statistics.kernel_distance(x, y)
    spread = 1.96 * max(variance, 0) ** 0.5
    return {"value": value, "interval": [value - spread, value + spread], "rows": [len(x), len(y)]}

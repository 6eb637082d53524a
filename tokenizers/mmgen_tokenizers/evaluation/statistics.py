"""Distances between two sets of features, whatever network gave them: mean and covariance, Frechet and kernel distance,
Inception score, precision and recall. Of each figure also its *influence*, [N]: what every row adds to it, to first order,
from which `interval` makes a bootstrap interval without computing the figure again.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ..streaming import groups

NEIGHBOURS = 3  # the k of precision and recall in ADM's evaluator
SPLIT = 5000  # rows that one Inception score is of; the score of more is the mean of these
BLOCK = 1024  # rows of a set whose distances are in memory at once
DRAWS = 1000  # of the bootstrap


# Mean and covariance -------------------------------------------------------------------------------------------------


class Gaussian(NamedTuple):
    """What the Frechet distance knows of a set. `count`: of rows, where it is known."""

    mean: Float[np.ndarray, " F"]
    covariance: Float[np.ndarray, "F F"]
    count: int | None = None


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of rows that come in pieces, in float64 (Chan, Golub and LeVeque 1979): a + b is of both sets."""

    count: int
    mean: Float[np.ndarray, " F"]
    scatter: Float[np.ndarray, "F F"]  # the sum of (x - mean) (x - mean)^T

    @classmethod
    def of(cls, features: Float[np.ndarray, "N F"]) -> "Moments":
        x = np.asarray(features, np.float64)
        mean = x.mean(0)
        apart = x - mean
        return cls(len(x), mean, apart.T @ apart)  # of one array: half of the product's work

    def __add__(self, other: "Moments") -> "Moments":
        count, apart = self.count + other.count, other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(apart, apart * (self.count * other.count / count))
        return Moments(count, self.mean + apart * (other.count / count), scatter)

    @classmethod
    def of_rows(cls, rows: Float[np.ndarray, "F+2 F"]) -> "Moments":
        """The inverse of `rows`."""
        return cls(int(rows[-1, 0]), rows[-2], rows[:-2])

    @property
    def rows(self) -> Float[np.ndarray, "F+2 F"]:
        """As one array, for other processes: scatter, mean, count."""
        return np.vstack([self.scatter, self.mean, np.full(len(self.mean), self.count)])

    @property
    def gaussian(self) -> Gaussian:
        """NaN of fewer than two rows."""
        return Gaussian(self.mean, self.scatter / (self.count - 1 or np.nan), self.count)


# Frechet distance ----------------------------------------------------------------------------------------------------


def frechet(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of the covariances A and B (arXiv 1706.08500).

    The last trace is the sum of the singular values of A^(1/2) B^(1/2), which stays real and needs nothing added to the
    diagonal where a covariance is singular.
    """
    (_, root_a), (_, root_b) = _root(a.covariance), _root(b.covariance)
    return _frechet(a, b, np.linalg.svd(root_a.T @ root_b, compute_uv=False))


def _frechet(a: Gaussian, b: Gaussian, singular: Float[np.ndarray, " F"]) -> float:
    apart = a.mean - b.mean
    return float(apart @ apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * singular.sum())


def _root(covariance: Float[np.ndarray, "F F"]) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, "F R"]]:
    """Standard deviations s along the R principal axes V that have a spread, but for rounding; and V s, a root of the
    covariance. Of few rows R is small, and what follows is quick."""
    values, axes = np.linalg.eigh(covariance)
    seen = values > len(values) * np.finfo(np.float64).eps * values.max(initial=0)
    deviations = np.sqrt(values[seen])
    return deviations, axes[:, seen] * deviations


def frechet_influence(features: Float[np.ndarray, "N F"], a: Gaussian, b: Gaussian) -> tuple[float, Float[np.ndarray, " N"]]:
    """The distance, and how each row of `features`, which `a` is of, moves it.

    The gradient with respect to A is 1 - T, T the map that carries a onto b (Olkin and Pukelsheim 1982): T = W^T W with
    W = S^(1/2) U^T s^(-1) V^T, of A = V s^2 V^T and the singular vectors U and values S of A^(1/2) B^(1/2).
    """
    (deviations, root_a), (_, root_b) = _root(a.covariance), _root(b.covariance)
    left, singular, _ = np.linalg.svd(root_a.T @ root_b, full_matrices=False)
    carry = ((root_a / deviations**2) @ (left * np.sqrt(singular))).astype(np.float32)
    rows = np.asarray(features, np.float32) - a.mean.astype(np.float32)
    effect = rows @ (2 * (a.mean - b.mean)).astype(np.float32)
    effect += np.square(rows).sum(1) - np.square(rows @ carry).sum(1)
    return _frechet(a, b, singular), effect.astype(np.float64) - effect.mean(dtype=np.float64)


# Inception score -----------------------------------------------------------------------------------------------------


def inception_score(probabilities: Float[np.ndarray, "N K"], split: int = SPLIT) -> tuple[float, Float[np.ndarray, " N"]]:
    """exp of the mean divergence of each row from the mean row (arXiv 1606.03498), the mean over pieces of `split` rows in
    their order, as in ADM's evaluator; and each row's influence."""
    pieces = [np.asarray(probabilities[i : i + split], np.float64) for i in range(0, len(probabilities), split)]
    scores, effects = zip(*map(_score, pieces), strict=True)
    return float(np.mean(scores)), np.concatenate([e * len(probabilities) / (len(pieces) * len(e)) for e in effects])


def _score(rows: Float[np.ndarray, "N K"]) -> tuple[float, Float[np.ndarray, " N"]]:
    tiny = np.finfo(np.float64).tiny  # 0 log 0 is 0
    divergence = (rows * (np.log(np.maximum(rows, tiny)) - np.log(np.maximum(rows.mean(0), tiny)))).sum(1)
    score = np.exp(divergence.mean())
    return score, score * (divergence - divergence.mean())


# Precision and recall ------------------------------------------------------------------------------------------------


def precision_recall(
    samples: Float[np.ndarray, "N F"], reference: Float[np.ndarray, "M F"], k: int = NEIGHBOURS
) -> tuple[Bool[np.ndarray, " N"], Bool[np.ndarray, " M"]]:
    """Which samples are within the reference and which references within the samples (arXiv 1904.06991): their means are
    precision and recall. A point is within a set where, for one of the set's points, it is at most as far from it as that
    point's k-th neighbour in the set. Both sets need more than k rows.

    In float32; ADM's evaluator rounds the features to float16 first.
    """
    middle = reference.mean(0, dtype=np.float64)  # distances are differences of squares: smaller ones are exacter
    a, b = (_sides(np.asarray(x, np.float32) - middle.astype(np.float32)) for x in (samples, reference))
    reach_samples, reach_reference = _radii(a, k), _radii(b, k)
    within, covered = np.zeros(len(samples), bool), np.zeros(len(reference), bool)
    for own, other, distance in _distances(a, b, list(itertools.product(_blocks(samples), _blocks(reference)))):
        within[own] |= (distance <= reach_reference[other]).any(1)
        covered[other] |= (distance <= reach_samples[own, None]).any(0)
    return within, covered


class _Sides(NamedTuple):
    """A set twice, so that left @ right.T are squared distances: |a|^2 + |b|^2 - 2 a.b."""

    left: Float[np.ndarray, "N F+2"]
    right: Float[np.ndarray, "N F+2"]


def _sides(x: Float[np.ndarray, "N F"]) -> _Sides:
    norm, one = np.einsum("nf,nf->n", x, x)[:, None], np.ones((len(x), 1), np.float32)
    return _Sides(np.hstack([x, norm, one]), np.hstack([-2 * x, one, norm]))


def _radii(rows: _Sides, k: int) -> Float[np.ndarray, " N"]:
    """Squared distance of each row to its k-th neighbour among the others. A distance is computed once, for both its rows."""
    nearest = np.full((len(rows.left), k), np.inf, np.float32)
    pairs = list(itertools.combinations_with_replacement(_blocks(rows.left), 2))
    for own, other, distance in _distances(rows, rows, pairs):
        if own == other:
            np.fill_diagonal(distance, np.inf)
        else:
            _keep(nearest[other], distance, 0)
        _keep(nearest[own], distance, 1)
    return np.maximum(nearest.max(1), 0)


def _keep(nearest: Float[np.ndarray, "n k"], distance: Float[np.ndarray, "a b"], axis: int) -> None:
    """Has `nearest` hold the k smallest of its own and of `distance` along `axis`. Most rows have none that is nearer."""
    (rows,) = np.nonzero(distance.min(axis) < nearest.max(1))
    taken, each = distance.take(rows, 1 - axis), np.arange(len(rows))
    both = np.concatenate([nearest[rows], taken if axis else taken.T], 1)
    for i in range(nearest.shape[1]):  # quicker than to sort
        place = both.argmin(1)
        nearest[rows, i] = both[each, place]
        both[each, place] = np.inf


def _blocks(rows: Float[np.ndarray, "N F"]) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, len(rows), BLOCK)]


def _distances(
    a: _Sides, b: _Sides, pairs: Sequence[tuple[slice, slice]]
) -> Iterator[tuple[slice, slice, Float[np.ndarray, "n m"]]]:
    """Each pair with the squared distances of its blocks; a thread computes the next ones meanwhile. In NumPy on the host, even
    where there are accelerators, and by every process; tools/bench/scoring.py times a whole score."""
    found = groups(lambda i: a.left[pairs[i][0]] @ b.right[pairs[i][1]].T, len(pairs), 1)
    for (own, other), (distance,) in zip(pairs, found, strict=True):
        yield own, other, distance


# Kernel distance -----------------------------------------------------------------------------------------------------


class _Kernel(NamedTuple):
    """What is needed of a matrix of kernel values between two sets."""

    rows: Float[np.ndarray, " n"]  # its sums
    columns: Float[np.ndarray, " m"]
    squares: float

    @property
    def total(self) -> float:
        return float(self.rows.sum())


def kernel_distance(x: Float[np.ndarray, "n F"], y: Float[np.ndarray, "m F"]) -> tuple[float, float]:
    """KID (arXiv 1801.01401): squared maximum mean discrepancy by the kernel (x.y / F + 1)^3, and its variance over draws of
    both sets. Both estimates are unbiased, whatever the numbers of rows: the one for few pictures. Each set needs four rows.

    The variance is d^2 less an estimate of E[d]^2 from the same terms, without those that share a row.
    """
    n, m = len(x), len(y)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    a, b, c = xx.total / (n * (n - 1)), yy.total / (m * (m - 1)), xy.total / (n * m)
    shared = xy.total**2 - (xy.rows**2).sum() - (xy.columns**2).sum() + xy.squares
    cc = shared / (n * (n - 1) * m * (m - 1))
    ac = (xx.total * xy.total - 2 * xx.rows @ xy.rows) / (n * (n - 1) * (n - 2) * m)
    bc = (yy.total * xy.total - 2 * yy.rows @ xy.columns) / (m * (m - 1) * (m - 2) * n)
    expected = _squared_mean(xx) + _squared_mean(yy) + 4 * cc + 2 * a * b - 4 * ac - 4 * bc
    distance = a + b - 2 * c
    return distance, distance**2 - expected


def _squared_mean(own: _Kernel) -> float:
    """Unbiased estimate of E[k(x, x')]^2: the mean of k_ij k_kl over four different rows."""
    n = len(own.rows)
    return (own.total**2 - 4 * (own.rows**2).sum() + 2 * own.squares) / (n * (n - 1) * (n - 2) * (n - 3))


def _kernel(x: Float[np.ndarray, "n F"], y: Float[np.ndarray, "m F"]) -> _Kernel:
    """Sums of the kernel's values, in float64; of a set with itself without the diagonal."""
    alike, x, y = x is y, np.asarray(x, np.float64), np.asarray(y, np.float64)
    rows, columns, squares = np.zeros(len(x)), np.zeros(len(y)), 0.0
    for start in range(0, len(x), BLOCK):
        values = x[start : start + BLOCK] @ y.T / x.shape[1] + 1
        values *= np.square(values)
        if alike:
            values[np.arange(len(values)), start + np.arange(len(values))] = 0
        rows[start : start + BLOCK] = values.sum(1)
        columns += values.sum(0)
        squares += float(np.square(values).sum())
    return _Kernel(rows, columns, squares)


# Intervals -----------------------------------------------------------------------------------------------------------


def interval(
    value: float, influence: Float[np.ndarray, " N"], share: float = 0.95, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """Where `share` of the bootstrap's draws of the rows put the figure, to first order."""
    rng, influence = np.random.default_rng(seed), np.asarray(influence, np.float64)
    moved = [rng.choice(influence, len(influence)).mean() for _ in range(draws)]
    centre = influence.mean()
    low, high = np.quantile(moved, [(1 - share) / 2, (1 + share) / 2]) - centre
    return value + float(low), value + float(high)

"""FID and its relatives, on features whose figures are computed a second way."""

import itertools

import numpy as np
import pytest
import scipy.linalg
from mmgen_tokenizers.evaluation import statistics
from mmgen_tokenizers.evaluation.statistics import Moments, frechet, frechet_influence, inception_score, interval


def draw(seed: int, rows: int, width: int = 12, shift: float = 0.0) -> np.ndarray:
    """Correlated, not normal, with axes of very different spread."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(width, width)) * np.logspace(0, -3, width)
    return (np.maximum(rng.normal(size=(rows, width)), -1) @ mix + 0.4 + shift).astype(np.float32)


def direct(x: np.ndarray, y: np.ndarray) -> float:
    """The formula as it stands, by scipy."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root))


# Mean and covariance -------------------------------------------------------------------------------------------------


def test_moments_in_pieces_are_those_of_all():
    x = draw(0, 1000) + 1000  # far from 0, where sums of squares lose their digits
    moments = sum((Moments.of(piece) for piece in (x[7:8], x[8:300], x[300:])), Moments.of(x[:7])).gaussian
    assert moments.count == 1000
    again = Moments.of_rows(Moments.of(x[:7]).rows)
    assert again.count == 7 and np.array_equal(again.mean, x[:7].mean(0, np.float64))
    np.testing.assert_array_equal(again.gaussian.covariance, Moments.of(x[:7]).gaussian.covariance)
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)


def test_frechet_equals_scipy():
    x, y = draw(0, 900), draw(1, 700, shift=0.1) * 1.1
    assert frechet(Moments.of(x).gaussian, Moments.of(y).gaussian) == pytest.approx(direct(x, y), rel=1e-6)


def test_frechet_of_known_answers():
    x = draw(0, 500)
    own, shift = Moments.of(x).gaussian, np.linspace(-1, 1, 12)
    assert abs(frechet(own, own)) < 1e-12
    assert frechet(own, own._replace(mean=own.mean + shift)) == pytest.approx((shift**2).sum(), rel=1e-9)
    assert frechet(own, own._replace(covariance=9 * own.covariance)) == pytest.approx(4 * np.trace(own.covariance))


def test_frechet_of_fewer_rows_than_features_is_real_and_the_formula():
    few, many = draw(0, 6), draw(1, 400)
    found = frechet(Moments.of(few).gaussian, Moments.of(many).gaussian)
    # Of a covariance of rank 5 the root is that within its five axes.
    values, axes = np.linalg.eigh(np.cov(few.astype(np.float64), rowvar=False))
    root = (axes[:, -5:] * np.sqrt(values[-5:])).T
    b = np.cov(many.astype(np.float64), rowvar=False)
    trace = np.sqrt(np.linalg.eigvalsh(root @ b @ root.T)).sum()
    apart = few.astype(np.float64).mean(0) - many.astype(np.float64).mean(0)
    assert found == pytest.approx(apart @ apart + values.sum() + np.trace(b) - 2 * trace, rel=1e-6)


def test_influence_is_what_more_weight_on_a_row_does():
    x, y = draw(0, 300), draw(1, 400, shift=0.2)
    a, b = Moments.of(x).gaussian, Moments.of(y).gaussian
    value, influence = frechet_influence(x, a, b)
    assert value == pytest.approx(frechet(a, b), rel=1e-12)
    step = 1e-5
    for row in (0, 17, 123):
        apart = x[row].astype(np.float64) - a.mean
        moved = a._replace(
            mean=a.mean + step * apart, covariance=(1 - step) * a.covariance + step * (1 - step) * np.outer(apart, apart)
        )
        assert (frechet(moved, b) - value) / step == pytest.approx(influence[row], rel=0.02, abs=0.02)


@pytest.mark.statistics
def test_the_interval_of_frechet_is_as_wide_as_draws_differ():
    rows, y = 2000, Moments.of(draw(1, 20_000, shift=0.3)).gaussian
    values = [frechet(Moments.of(draw(seed, rows)).gaussian, y) for seed in range(100, 400)]
    x = draw(0, rows)
    low, high = interval(*frechet_influence(x, Moments.of(x).gaussian, y))
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(values), rel=0.15)


# Inception score -----------------------------------------------------------------------------------------------------


def test_inception_score_by_hand_and_by_pieces():
    assert inception_score(np.eye(10)[np.arange(50) % 10])[0] == pytest.approx(10)  # sure of each, all alike often
    assert inception_score(np.full((50, 10), 0.1))[0] == pytest.approx(1)
    rows = np.random.default_rng(0).dirichlet(np.full(7, 0.3), 25)
    kl = [sum(r * np.log(r / part.mean(0)) for r in part).sum() / len(part) for part in (rows[:10], rows[10:20], rows[20:])]
    value, influence = inception_score(rows, split=10)
    assert value == pytest.approx(np.exp(kl).mean())
    assert influence[:10] / (25 / 30) == pytest.approx(inception_score(rows[:10])[1])


@pytest.mark.statistics
def test_the_interval_of_inception_score_is_as_wide_as_draws_differ():
    def rows(seed):
        return np.random.default_rng(seed).dirichlet(np.full(7, 0.3), 600)

    values = [inception_score(rows(seed), split=200)[0] for seed in range(1, 400)]
    low, high = interval(*inception_score(rows(0), split=200))
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(values), rel=0.15)


# Precision and recall ------------------------------------------------------------------------------------------------


def brute(x, y, k):
    def distance(a, b):
        return np.square(a[:, None].astype(np.float64) - b[None]).sum(-1)

    def within(points, centres):
        return (distance(points, centres) <= np.sort(distance(centres, centres), 1)[:, k]).any(1)

    return within(x, y), within(y, x)


def test_precision_and_recall_equal_brute_force(monkeypatch):
    monkeypatch.setattr(statistics, "BLOCK", 64)  # three blocks, the last one smaller
    x, y = draw(0, 150) * 1.3 + 30, draw(1, 130, shift=0.5) + 30
    for found, expected in zip(statistics.precision_recall(x, y), brute(x, y, 3), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert 0.2 < expected.mean() < 0.95
    alike = statistics.precision_recall(x, x)
    assert all(found.all() for found in alike)


# Kernel distance -----------------------------------------------------------------------------------------------------


def test_kernel_distance_and_its_variance_by_their_definitions(monkeypatch):
    """The variance is d^2 - E, where E has of each product of two of d's terms only those without a row in common."""
    monkeypatch.setattr(statistics, "BLOCK", 2)
    x, y = draw(0, 5, 4), draw(1, 6, 4, shift=0.3)
    n, m = len(x), len(y)

    def k(a, b):
        return (a.astype(np.float64) @ b.astype(np.float64) / 4 + 1) ** 3

    def h(i, j, p, q):  # of two of each set; over all pairs its mean is the distance
        return k(x[i], x[j]) + k(y[p], y[q]) - k(x[i], y[p]) - k(x[j], y[q])

    pairs = [h(i, j, p, q) for i, j in itertools.permutations(range(n), 2) for p, q in itertools.permutations(range(m), 2)]
    found, variance = statistics.kernel_distance(x, y)
    assert found == pytest.approx(np.mean(pairs), rel=1e-9)
    apart = [
        h(i, j, p, q) * h(s, t, u, v)
        for i, j, s, t in itertools.permutations(range(n), 4)
        for p, q, u, v in itertools.permutations(range(m), 4)
    ]
    assert variance == pytest.approx(np.mean(pairs) ** 2 - np.mean(apart), rel=1e-9)


@pytest.mark.statistics
def test_kernel_distance_is_unbiased_and_its_variance_too():
    same = np.array([statistics.kernel_distance(draw(2 * i, 30), draw(2 * i + 1, 20)) for i in range(2000)])
    spread = same[:, 0].std()
    assert abs(same[:, 0].mean()) < 4 * spread / np.sqrt(len(same))
    assert same[:, 1].mean() == pytest.approx(spread**2, rel=0.2)


def test_intervals_hold_the_share_asked_for():
    values = np.random.default_rng(1).normal(size=4000)
    low, high = interval(5.0, values)
    assert (low, high) == pytest.approx((5 - 1.96 / 4000**0.5, 5 + 1.96 / 4000**0.5), abs=4e-3)
    assert interval(5.0, values) == (low, high) != interval(5.0, values, share=0.5)

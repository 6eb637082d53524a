import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mmgen_tokenizers.metrics import psnr, ssim
from mmgen_tokenizers.pictures import read_picture, to_float, to_uint8
from scipy.ndimage import gaussian_filter


def test_psnr_of_each_picture():
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-1, 1, (3, 5, 4, 3)).astype(np.float32) for _ in range(2))
    want = [10 * np.log10(4 / ((x.astype(np.float64) - y) ** 2).mean()) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(psnr(a, b), want, rtol=1e-5)


def test_psnr_of_uint8_steps_and_of_equal_pictures():
    a = jnp.zeros((1, 2, 2, 3))
    np.testing.assert_allclose(psnr(a, a + 1 / 127.5), 48.13, atol=0.01)  # one step of 255 everywhere
    np.testing.assert_allclose(psnr(a, a), 100, atol=1e-3)


def test_ssim_equals_its_definition():
    rng = np.random.default_rng(0)
    a = rng.uniform(-1, 1, (2, 14, 13, 3))
    b = np.clip(a + rng.normal(0, 0.3, a.shape), -1, 1)
    tap = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    w = np.outer(tap, tap)[..., None] / tap.sum() ** 2

    def one(x, y):
        total = []
        for i in range(4):
            for j in range(3):
                p, q = (x[i : i + 11, j : j + 11] + 1) / 2, (y[i : i + 11, j : j + 11] + 1) / 2
                p0, q0 = (w * p).sum((0, 1)), (w * q).sum((0, 1))
                cov = (w * (p - p0) * (q - q0)).sum((0, 1))
                spread = (w * (p - p0) ** 2).sum((0, 1)) + (w * (q - q0) ** 2).sum((0, 1))
                total.append((2 * p0 * q0 + 1e-4) * (2 * cov + 9e-4) / ((p0**2 + q0**2 + 1e-4) * (spread + 9e-4)))
        return np.mean(total)

    np.testing.assert_allclose(ssim(a.astype("f4"), b.astype("f4")), [one(x, y) for x, y in zip(a, b, strict=True)], rtol=1e-4)
    np.testing.assert_allclose(ssim(a, a), 1, atol=1e-5)


def test_psnr_and_ssim_of_photographs_are_those_of_scikit_image(shared):
    """By its own steps: gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255."""
    a = read_picture(next(iter(sorted(shared("kodak").glob("*.png")))))[100:228, 200:360]
    b = to_uint8(to_float(a) + np.random.default_rng(0).normal(0, 0.1, a.shape).astype(np.float32))
    x, y = (picture.astype(np.float64) for picture in (a, b))

    def mean(values):
        return gaussian_filter(values, 1.5, truncate=3.5, axes=(0, 1))

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    index = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    found = [np.asarray(f(to_float(a)[None], to_float(b)[None]))[0] for f in (psnr, ssim)]
    np.testing.assert_allclose(found[0], 10 * np.log10(255**2 / np.square(x - y).mean()), rtol=1e-5)
    np.testing.assert_allclose(found[1], index[5:-5, 5:-5].mean(), atol=1e-5)


# What scikit-image 0.26 gives for a Kodak picture `a` and a // 24 * 24 + 11: peak_signal_noise_ratio(a, b), and
# structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=2).
SCIKIT_IMAGE = {"01": (31.189311, 0.9011815), "09": (31.300821, 0.8458789), "23": (31.212622, 0.8200414)}


@pytest.mark.parametrize("name", SCIKIT_IMAGE)
def test_psnr_and_ssim_of_kodak_are_those_of_scikit_image(shared, name):
    a = read_picture(shared("kodak") / f"{name}.png")
    b = (a // 24 * 24 + 11).astype(np.uint8)
    found = [float(f(to_float(a)[None], to_float(b)[None])[0]) for f in (jax.jit(psnr), jax.jit(ssim))]
    assert found == pytest.approx(SCIKIT_IMAGE[name], rel=1e-6, abs=1e-5)

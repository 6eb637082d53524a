"""The two resizes against their definitions. tests/parity/test_var_vqvae.py compares them with PyTorch's numbers."""

import jax
import numpy as np
import pytest
from mmgen_tokenizers.quantizers import resize

RNG = np.random.default_rng(0)


def test_area_averages_what_an_output_touches():
    x = RNG.standard_normal(16)
    y = resize.area_matrix(16, 13) @ x
    for i in range(13):
        touched = [j for j in range(16) if j < (i + 1) * 16 / 13 and j + 1 > i * 16 / 13]
        np.testing.assert_allclose(y[i], x[touched].mean(), rtol=1e-5)
    np.testing.assert_allclose(resize.area_matrix(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])


def test_bicubic_has_the_sharper_cubic_and_repeats_the_edge():
    weights = [-0.10546875, 0.87890625, 0.26171875, -0.03515625]  # a quarter of a pixel behind a centre, a = -0.75
    up = resize.bicubic_matrix(8, 16)
    np.testing.assert_allclose(up[7, 2:6], weights)
    np.testing.assert_allclose(up[1, :3], [weights[0] + weights[1], *weights[2:]])
    down = resize.bicubic_matrix(8, 4)  # halfway between the two in the middle, nothing smoothed
    np.testing.assert_allclose(down[1, 1:5], [-0.09375, 0.59375, 0.59375, -0.09375])


@pytest.mark.parametrize("kind", [resize.area, resize.bicubic])
def test_rows_and_columns_resize_by_themselves(kind):
    x = RNG.standard_normal((2, 5, 7, 3)).astype(np.float32)
    matrix = resize.area_matrix if kind is resize.area else resize.bicubic_matrix
    got = jax.jit(lambda x: kind(x, (3, 9)))(x)
    np.testing.assert_allclose(got, np.einsum("hH,wW,bHWc->bhwc", matrix(5, 3), matrix(7, 9), x), atol=1e-5)
    assert kind(x, (5, 7)) is x
    np.testing.assert_allclose(matrix(5, 5), np.eye(5), atol=1e-7)
    constant = kind(np.ones((1, 5, 7, 1), np.float32), (2, 11))
    np.testing.assert_allclose(constant, 1, atol=1e-6)

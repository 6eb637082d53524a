import jax.numpy as jnp
import numpy as np
from mmgen_tokenizers.metrics import psnr


def test_psnr_of_each_picture():
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-1, 1, (3, 5, 4, 3)).astype(np.float32) for _ in range(2))
    want = [10 * np.log10(4 / ((x.astype(np.float64) - y) ** 2).mean()) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(psnr(a, b), want, rtol=1e-5)


def test_psnr_of_uint8_steps_and_of_equal_pictures():
    a = jnp.zeros((1, 2, 2, 3))
    np.testing.assert_allclose(psnr(a, a + 1 / 127.5), 48.13, atol=0.01)  # one step of 255 everywhere
    np.testing.assert_allclose(psnr(a, a), 100, atol=1e-3)

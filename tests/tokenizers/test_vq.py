"""The vector quantizer against direct evaluations in NumPy (float64)."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mmgen_tokenizers.quantizers import vq
from mmgen_tokenizers.quantizers.vq import VQ

RNG = np.random.default_rng(0)
SPHERE, PLAIN = VQ(size=11, dim=3, entropy=0.1, temperature=0.3), VQ(size=11, dim=3, normalize=False)


def sample(config):
    params = {"codebook": jnp.asarray(RNG.standard_normal((config.size, config.dim)), jnp.float32)}
    return params, RNG.standard_normal((2, 4, 5, config.dim)).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def direct(config, params, latents):
    """(codes, ids, z, distances), all in float64."""
    z, codes = latents.astype(np.float64), np.asarray(params["codebook"], np.float64)
    if config.normalize:
        z, codes = unit(z), unit(codes)
    distances = ((z[..., None, :] - codes) ** 2).sum(-1)
    ids = distances.argmin(-1)
    return codes[ids], ids, z, distances.reshape(-1, config.size)


@pytest.mark.parametrize("config", [SPHERE, PLAIN])
def test_nearest_code_and_losses_equal_numpy(config):
    params, latents = sample(config)
    codes, ids, z, distances = direct(config, params, latents)
    got, alone, looked_up = jax.jit(
        lambda p, z: (q := vq.quantize(config, p, z), vq.nearest(config, p, z), vq.lookup(config, p, q.ids))
    )(params, latents)
    np.testing.assert_array_equal(got.ids, ids)
    np.testing.assert_array_equal(alone, ids)
    np.testing.assert_allclose(got.codes, codes, atol=1e-6)
    np.testing.assert_allclose(looked_up, codes, atol=1e-6)
    error = ((codes - z) ** 2).mean()
    np.testing.assert_allclose(got.losses["codebook"], error, rtol=1e-5)
    np.testing.assert_allclose(got.losses["commitment"], 0.25 * error, rtol=1e-5)
    assert ("entropy" in got.losses) == (config is SPHERE)


def test_entropy_loss_equals_the_direct_sum():
    params, latents = sample(SPHERE)
    distances = direct(SPHERE, params, latents)[3]
    p = np.exp(-distances / 0.3)
    p /= p.sum(1, keepdims=True)
    mean = p.mean(0)
    want = -(p * np.log(p)).sum(1).mean() + (mean * np.log(mean + 1e-5)).sum()
    got = jax.jit(lambda p, z: vq.quantize(SPHERE, p, z).losses["entropy"])(params, latents)
    np.testing.assert_allclose(got, 0.1 * want, rtol=1e-4)


def test_gradients_go_where_they_should():
    config = VQ(size=11, dim=3, normalize=False, commitment=0.5)
    params, latents = sample(config)
    cotangent = RNG.standard_normal(latents.shape).astype(np.float32)

    def loss(params, z, which):
        q = vq.quantize(config, params, z)
        return (q.codes * cotangent).sum() if which == "codes" else q.losses[which]

    gradients = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    codes, ids, z, _ = direct(config, params, latents)
    of_book, of_z = gradients(params, latents, "codes")
    np.testing.assert_allclose(of_z, cotangent)  # straight-through
    assert not of_book["codebook"].any()
    of_book, of_z = gradients(params, latents, "commitment")
    np.testing.assert_allclose(of_z, 0.5 * 2 * (z - codes) / z.size, rtol=1e-4, atol=1e-7)
    assert not of_book["codebook"].any()
    of_book, of_z = gradients(params, latents, "codebook")
    want = np.zeros((11, 3))
    np.add.at(want, ids, 2 * (codes - z) / z.size)
    np.testing.assert_allclose(of_book["codebook"], want, atol=1e-6)
    assert not of_z.any()


def test_gradients_on_the_sphere_equal_finite_differences_of_the_surrogate():
    """With the ids held, codes move with the normalised latent, and each loss with what it does not hold."""
    params, latents = sample(SPHERE)
    codes, ids, z, _ = direct(SPHERE, params, latents)
    book = np.asarray(params["codebook"], np.float64)
    cotangent = RNG.standard_normal(latents.shape)

    def entropy(z, codes):
        p = np.exp(-((z.reshape(-1, 1, 3) - codes) ** 2).sum(-1) / SPHERE.temperature)
        p /= p.sum(1, keepdims=True)
        mean = p.mean(0)
        return SPHERE.entropy * (-(p * np.log(p)).sum(1).mean() + (mean * np.log(mean + 1e-5)).sum())

    def of_latents(x):
        loss = SPHERE.commitment * ((codes - unit(x)) ** 2).mean() + entropy(unit(x), unit(book))
        return (unit(x) * cotangent).sum() + loss

    def of_codes(x):
        return SPHERE.codebook * ((unit(x)[ids] - z) ** 2).mean() + entropy(z, unit(x))

    def loss(params, z):
        q = vq.quantize(SPHERE, params, z)
        return (q.codes * cotangent).sum() + sum(q.losses.values())

    of_book, of_z = jax.jit(jax.grad(loss, (0, 1)))(params, latents)
    for function, at, gradient in ((of_latents, latents.astype(np.float64), of_z), (of_codes, book, of_book["codebook"])):
        for direction in RNG.standard_normal((3, *at.shape)):
            np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), slope(function, at, direction), rtol=1e-3)


@pytest.mark.parametrize("size", [2**10, 2**16])
@pytest.mark.parametrize("normalize", [False, True])
def test_each_code_of_the_table_is_its_own_nearest(normalize, size):
    config = VQ(size, 8, normalize)
    params = {"codebook": jnp.asarray(RNG.standard_normal((size, 8)), jnp.float32)}
    some = np.arange(size) if size <= 2**10 else RNG.integers(0, size, 256)
    again = jax.jit(lambda p, i: vq.nearest(config, p, vq.lookup(config, p, i)))(params, some)
    np.testing.assert_array_equal(again, some)


def soft_codes(latents, index_codes, codes):
    """IBQ's surrogate in float64: codes mixed by the softmax of the inner products with `index_codes`."""
    logits = latents.astype(np.float64) @ np.asarray(index_codes, np.float64).T
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ np.asarray(codes, np.float64)


def slope(function, x, direction):
    """Central difference of a float64 function along a direction."""
    return (function(x + 1e-5 * direction) - function(x - 1e-5 * direction)) / 2e-5


@pytest.mark.parametrize("normalize", [False, True])
def test_index_backpropagation_takes_the_largest_product_and_reaches_every_code(normalize):
    config = VQ(size=11, dim=3, normalize=normalize, backpropagation="index")
    params, latents = sample(config)
    z, book = (unit(x) if normalize else x for x in (latents, np.asarray(params["codebook"], np.float64)))
    ids = (z @ book.T).argmax(-1)
    cotangent = RNG.standard_normal(latents.shape).astype(np.float32)

    def inner(params, z):
        q = vq.quantize(config, params, z)
        return (q.codes * cotangent).sum(), q

    gradients, got = jax.jit(jax.grad(inner, (0, 1), has_aux=True))(params, latents)
    np.testing.assert_array_equal(got.ids, ids)
    np.testing.assert_array_equal(jax.jit(lambda p, z: vq.nearest(config, p, z))(params, latents), ids)
    np.testing.assert_allclose(got.codes, book[ids], atol=1e-6)
    error = ((book[ids] - z) ** 2).mean()
    np.testing.assert_allclose([got.losses["index"], got.losses["commitment"]], [error, 0.25 * error], rtol=1e-5)

    def normed(x):
        return unit(x) if normalize else x

    def of_latents(x):
        return (soft_codes(normed(x), book, book) * cotangent).sum()

    def of_codes(x):  # the chosen code itself, and by its part in the softmax each one
        return ((normed(x)[ids] + soft_codes(z, normed(x), book)) * cotangent).sum()

    for function, at, gradient in (
        (of_latents, latents.astype(np.float64), gradients[1]),
        (of_codes, np.asarray(params["codebook"], np.float64), gradients[0]["codebook"]),
    ):
        direction = RNG.standard_normal(at.shape)
        np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), slope(function, at, direction), rtol=2e-4)
    assert (np.abs(gradients[0]["codebook"]).sum(-1) > 0).all()  # also the codes that nobody chose


def test_a_large_codebook_is_searched_in_pieces(monkeypatch):
    params, latents = sample(PLAIN)

    def search():
        return jax.jit(lambda p, z: vq.nearest(PLAIN, p, z))

    whole, matrix = search()(params, latents), re.compile("40x(1x)?11xf32")
    assert matrix.search(search().lower(params, latents).as_text())
    monkeypatch.setattr(vq, "AFFINITIES", 7 * PLAIN.size)  # 40 positions: five pieces of 7 and a rest
    np.testing.assert_array_equal(search()(params, latents), whole)
    assert not matrix.search(search().lower(params, latents).as_text())


def test_zero_latent_has_a_finite_gradient():
    params, latents = sample(SPHERE)
    gradient = jax.jit(jax.grad(lambda z: vq.quantize(SPHERE, params, z).codes.sum()))(np.zeros_like(latents))
    assert jnp.isfinite(gradient).all()


def test_codebook_starts_on_the_sphere_or_small():
    init = jax.jit(vq.init, static_argnums=0)
    on, plain = (np.asarray(init(VQ(64, 8, normalize=n), jax.random.key(0))["codebook"]) for n in (True, False))
    np.testing.assert_allclose(np.linalg.norm(on, axis=1), 1, atol=1e-5)
    assert 0.9 / 64 < np.abs(plain).max() <= 1 / 64
    wide = np.asarray(init(VQ(256, 8, normalize=False, backpropagation="index"), jax.random.key(0))["codebook"])
    assert abs(wide.std() - 1) < 0.1  # the softmax of products with tiny codes would be flat


def test_usage_over_a_window_that_slides():
    config = VQ(size=4, dim=2)
    usage, update, report = vq.start_usage(config, window=6), jax.jit(vq.update_usage), jax.jit(vq.usage_metrics)
    assert float(report(usage)["usage"]) == 0
    usage = update(usage, np.array([[0, 1], [1, 1]]))
    metrics = report(usage)
    p = np.array([0.25, 0.75])
    np.testing.assert_allclose(metrics["usage"], 0.5)
    np.testing.assert_allclose(metrics["perplexity"], np.exp(-(p * np.log(p)).sum()), rtol=1e-5)
    usage = update(usage, np.array([2, 2, 3, 3]))  # the first two positions fall out: 1 1 2 2 3 3
    metrics = report(usage)
    np.testing.assert_allclose([metrics["usage"], metrics["perplexity"]], [0.75, 3], rtol=1e-5)
    np.testing.assert_array_equal(usage["idle"], [1, 1, 0, 0])
    usage = update(usage, np.array([0] * 9))  # more than the window holds
    np.testing.assert_array_equal(usage["window"], [0] * 6)


@pytest.mark.parametrize("config", [SPHERE, PLAIN])
def test_revival_moves_dead_codes_onto_latents_inside_a_jitted_step(config):
    params, latents = sample(config)
    usage = {"window": jnp.full(8, -1), "idle": jnp.array([5, 0, 4, 9] + [0] * 7)}
    step = jax.jit(lambda p, u, z, key: vq.revive(config, p, u, z, key, 5))
    revived, after = step(params, usage, latents, jax.random.key(0))
    dead = np.array([0, 3])
    kept = np.setdiff1d(np.arange(11), dead)
    revived, params = jax.tree.map(np.asarray, (revived, params))
    np.testing.assert_array_equal(revived["codebook"][kept], params["codebook"][kept])
    np.testing.assert_array_equal(after["idle"], [0, 0, 4] + [0] * 8)
    z = direct(config, params, latents)[2].reshape(-1, 3)
    distances = np.linalg.norm(revived["codebook"][dead][:, None] - z, axis=-1).min(1)
    assert (distances < 0.1).all()
    again, _ = step(params, usage, latents, jax.random.key(1))
    assert (np.asarray(again["codebook"])[dead] != revived["codebook"][dead]).any()


def test_revival_brings_a_collapsed_codebook_back():
    config = VQ(size=16, dim=4)
    centres = unit(RNG.standard_normal((16, 4)))
    params, usage = {"codebook": jnp.asarray(np.tile(centres[:1], (16, 1)), jnp.float32)}, vq.start_usage(config, 512)

    @jax.jit
    def step(params, usage, z, seed):
        usage = vq.update_usage(usage, vq.nearest(config, params, z))
        return vq.revive(config, params, usage, z, jax.random.key(seed), 2)

    for seed in range(40):
        z = (centres[RNG.integers(0, 16, 64)] + 0.01 * RNG.standard_normal((64, 4))).astype(np.float32)
        params, usage = step(params, usage, z, seed)
    assert float(vq.usage_metrics(usage)["usage"]) > 0.8

"""The multi-scale quantizer against a direct evaluation in NumPy (float64), and the tokenizers made with it."""

import dataclasses

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
import optax
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import multiscale as family
from mmgen_tokenizers.metrics import psnr
from mmgen_tokenizers.quantizers import multiscale, resize, vq

RNG = np.random.default_rng(0)
VAR = mt.MultiScaleVQ(size=13, dim=3, scales=(1, 2, 3, 5), phis=2)
FLEX = dataclasses.replace(VAR, normalize=True, residual=False, phis=0)
H, W = 5, 7  # of the latents: not square, so scales are in proportion
GRIDS = ((1, 1), (2, 3), (3, 4), (5, 7))


def sample(config):
    """Parameters, latents."""
    params = {"codebook": RNG.standard_normal((13, 3))}
    if config.phis:
        phi = [{"kernel": 0.3 * RNG.standard_normal((3, 3, 3, 3)), "bias": 0.1 * RNG.standard_normal(3)} for _ in range(2)]
        params["phi"] = {"0": phi[0], "1": phi[1]}
    return jax.tree.map(lambda x: x.astype(np.float32), (params, RNG.standard_normal((2, H, W, 3))))


def resized(matrix, x, grid):
    return np.einsum("hH,wW,bHWc->bhwc", matrix(x.shape[1], grid[0]), matrix(x.shape[2], grid[1]), x)


def term(config, params, ids, scale):
    """What one scale adds to the sum."""
    h = resized(resize.bicubic_matrix, params["codebook"][ids], (H, W))
    phi = params["phi"][str((0, 0, 1, 1)[scale])]
    around = np.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
    smooth = sum(around[:, i : i + H, j : j + W] @ phi["kernel"][i, j] for i in range(3) for j in range(3)) + phi["bias"]
    return (1 - config.phi_ratio) * h + config.phi_ratio * smooth


def sums(config, params, ids):
    """The sum after each scale."""
    return list(np.cumsum([term(config, params, grid, scale) for scale, grid in enumerate(ids)], 0))


def direct(config, params, latents):
    """Ids of each scale; what was looked up; what the decoder gets after each scale, in float64."""
    params, rest = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, latents))
    ids, vectors, shown = [], [], []
    for scale, grid in enumerate(GRIDS):
        z, codes = resized(resize.area_matrix, rest, grid), params["codebook"]
        if config.normalize:
            z, codes = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, codes))
        ids.append(((z[..., None, :] - codes) ** 2).sum(-1).argmin(-1))
        vectors.append(z)
        if config.residual:
            rest = rest - term(config, params, ids[-1], scale)
        else:
            shown.append(codes[ids[-1]])
    return ids, vectors, sums(config, params, ids) if config.residual else shown


def flat(grids):
    return np.concatenate([grid.reshape(2, -1, *grid.shape[3:]) for grid in grids], 1)


@pytest.mark.parametrize("config", [VAR, FLEX])
def test_ids_codes_and_losses_equal_numpy(config):
    params, latents = sample(config)
    ids, vectors, shown = direct(config, params, latents)
    got, again = jax.jit(lambda p, z: (q := multiscale.quantize(config, p, z), multiscale.prefixes(config, p, q.ids, H, W)))(
        params, latents
    )
    np.testing.assert_array_equal(got.ids, flat(ids))
    for ours, theirs, looked_up in zip((*got.prefixes, got.codes), shown, again, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        np.testing.assert_allclose(looked_up, theirs, atol=1e-5)
    aims = vectors if not config.residual else [latents] * 4
    error = np.mean([((a - b) ** 2).mean() for a, b in zip(shown, aims, strict=True)])
    np.testing.assert_allclose(got.losses["codebook"], error, rtol=1e-5)
    np.testing.assert_allclose(got.losses["commitment"], 0.25 * error, rtol=1e-5)
    assert set(got.losses) == {"codebook", "commitment"}
    scaled = got.vectors / np.linalg.norm(got.vectors, axis=-1, keepdims=True) if config.normalize else got.vectors
    np.testing.assert_allclose(scaled, flat(vectors), atol=1e-5)


def test_gradients_equal_finite_differences_of_the_surrogate():
    """The surrogate: ids fixed, codes = latents + constant, each loss with the other side constant. It is quadratic in each
    argument but for the product of codebook and kernel, so that a central difference in float64 is all but exact."""
    params, latents = sample(VAR)
    ids, _, at = direct(VAR, params, latents)
    params, latents = jax.tree.map(np.float64, (params, latents))
    cotangent = RNG.standard_normal(latents.shape)

    def surrogate(params, z):
        terms = [
            ((total - latents) ** 2).mean() + 0.25 * ((fixed - z) ** 2).mean()
            for total, fixed in zip(sums(VAR, params, ids), at, strict=True)
        ]
        return (cotangent * (z + at[-1] - latents)).sum() + np.mean(terms)

    def ours(params, z):
        q = multiscale.quantize(VAR, params, z)
        return (q.codes * cotangent.astype(np.float32)).sum() + sum(q.losses.values())

    gradient = jax.jit(jax.grad(ours, (0, 1)))(*jax.tree.map(np.float32, (params, latents)))
    leaves, tree = jax.tree.flatten((params, latents))
    for i, (leaf, found) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
        for _ in range(3):
            way = RNG.standard_normal(leaf.shape)
            moved = [tree.unflatten([*leaves[:i], leaf + h * way, *leaves[i + 1 :]]) for h in (1e-5, -1e-5)]
            slope = (surrogate(*moved[0]) - surrogate(*moved[1])) / 2e-5
            np.testing.assert_allclose((np.asarray(found, np.float64) * way).sum(), slope, rtol=1e-4, atol=1e-5)


def test_entropy_is_the_mean_over_scales():
    config = dataclasses.replace(VAR, entropy=0.1, temperature=0.5)
    params, latents = sample(config)
    _, vectors, _ = direct(config, params, latents)
    got = jax.jit(lambda p, z: multiscale.quantize(config, p, z).losses["entropy"])(params, latents)
    want = []
    for z in vectors:
        affinity = -np.square(z.reshape(-1, 1, 3) - params["codebook"]).sum(-1)
        want.append(0.1 * vq.entropy_loss(affinity.astype(np.float32), 0.5))
    np.testing.assert_allclose(got, np.mean(want), rtol=1e-4)


@pytest.mark.parametrize("config", [VAR, FLEX])
def test_next_input_is_the_picture_so_far_at_the_next_size(config):
    params, latents = sample(config)
    ids, _, shown = direct(config, params, latents)
    read = jax.jit(lambda p, ids: multiscale.next_input(config, p, ids, H, W))
    matrix = resize.area_matrix if config.residual else resize.bicubic_matrix
    want = flat([resized(matrix, x, grid) for x, grid in zip(shown[:3], GRIDS[1:], strict=True)])
    np.testing.assert_allclose(read(params, flat(ids)), want, atol=1e-5)
    np.testing.assert_allclose(read(params, flat(ids[:3])), want, atol=1e-5)
    np.testing.assert_allclose(read(params, flat(ids[:1])), want[:, :6], atol=1e-5)


@pytest.mark.parametrize(
    "scales, phis, want",
    [(10, 4, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]), (4, 4, [0, 1, 2, 3]), (5, 5, [0, 1, 2, 3, 4]), (3, 1, [0, 0, 0]), (1, 4, [0])],
)
def test_scales_share_the_convolutions(scales, phis, want):
    config = mt.MultiScaleVQ(scales=tuple(range(1, scales + 1)), phis=phis)
    assert [config.phi_of(k) for k in range(scales)] == want


def test_phi_starts_as_the_identity():
    params = multiscale.init(VAR, jax.random.key(0))
    plain = dataclasses.replace(VAR, phis=0)
    assert set(multiscale.init(plain, jax.random.key(0))) == {"codebook"} and len(params["phi"]) == 2
    ids = RNG.integers(0, 13, (2, 56))
    for with_phi, without in zip(*(multiscale.prefixes(c, params, ids, H, W) for c in (VAR, plain)), strict=True):
        np.testing.assert_allclose(with_phi, without, atol=1e-6)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"scales": (1, 3, 3)}, "must grow"),
        ({"scales": ()}, "must grow"),
        ({"scales": (0, 2)}, "must grow"),
        ({"normalize": True}, "set normalize=False or residual=False"),
        ({"residual": False}, "set phis=0"),
        ({"backpropagation": "index"}, "need backpropagation='latent'"),
    ],
)
def test_contradictory_quantizers_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(VAR, **change)


# The family --------------------------------------------------------------------------------------------------------

NET = mt.CNN(8, (1,), 1, 1, attention_levels=(), middle_blocks=0, middle_attention=False, latent=4, groups=4, stem=4)
QUANTIZER = mt.MultiScaleVQ(size=32, dim=4, scales=(1, 2, 4), phis=2)
TINY = mt.MultiScale(NET, QUANTIZER, image_size=16)
TINY_FLEX = mt.MultiScale(
    NET, dataclasses.replace(QUANTIZER, residual=False, normalize=True, phis=0), image_size=16, quant_conv=1
)
IMAGES = RNG.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module", params=[TINY, TINY_FLEX], ids=["residual", "independent"])
def tok(request):
    params = family.init(request.param, jax.random.key(0))
    params["quantizer"]["codebook"] = params["quantizer"]["codebook"] * 8  # else all of a picture is the code nearest to 0
    return mt.Tokenizer(request.param, params)


def test_layout(tok):
    assert tok.family == "multiscale" and tok.layout.kind == "scales"
    assert tok.layout.scales == ((1, 1), (2, 2), (4, 4)) and tok.layout.sites == 21 and tok.layout.prefixes == (1, 5, 21)
    assert str(tok.layout) == "1 x 1 + 2 x 2 + 4 x 4 = 21 ids of 32 codes"
    assert tok.layout_for(8, 24).scales == ((1, 2), (1, 3), (2, 6)) and (tok.layout.height, tok.layout.width) == (4, 4)
    with pytest.raises(UserError, match="nearest is 16"):
        tok.layout_for(17, 16)


def test_ids_do_not_depend_on_the_batch_nor_on_the_day(tok):
    ids = tok.encode(IMAGES)
    assert ids.shape == (5, 21) and ids.dtype == np.int32
    np.testing.assert_array_equal(tok.encode(IMAGES), ids)
    for i in range(5):
        np.testing.assert_array_equal(tok.encode(IMAGES[i : i + 1]), ids[i : i + 1])


def test_prefixes_of_whole_scales_decode(tok):
    ids, small = tok.encode(IMAGES), not tok.config.quantizer.residual
    pictures = [tok.decode(ids[:, :k]) for k in (1, 5, 21)]
    assert [p.shape[1] for p in pictures] == ([4, 8, 16] if small else [16] * 3)
    other = ids.copy()
    other[:, 5:] = (other[:, 5:] + 1) % 32
    np.testing.assert_array_equal(tok.decode(other[:, :5]), pictures[1])
    assert np.abs(tok.decode(other) - pictures[2]).max() > 1e-3
    assert tok.next_input(ids[:, :5]).shape == tok.next_input(ids).shape == (5, 20, 4)
    np.testing.assert_allclose(tok.next_input(ids[:, :1]), tok.next_input(ids)[:, :4], atol=1e-6)
    for function in (tok.decode, tok.next_input):
        with pytest.raises(UserError, match="6 ids a picture.* first scales 1, 5, 21"):
            function(ids[:, :6])


def test_pictures_that_are_not_square(tok):
    layout = tok.layout_for(8, 24)
    ids = tok.encode(np.zeros((1, 8, 24, 3), np.uint8))
    assert ids.shape == (1, 2 + 3 + 12) and tok.decode(ids, layout).shape == (1, 8, 24, 3)
    assert tok.next_input(ids[:, :2], layout).shape == (1, 3, 4)


def test_save_and_load(tok, tmp_path):
    tok.save(tmp_path / "tok")
    again = mt.load(tmp_path / "tok")
    assert again.config == tok.config and again.family == "multiscale" and again.fingerprint == tok.fingerprint
    np.testing.assert_array_equal(again.encode(IMAGES), tok.encode(IMAGES))


def test_forward_equals_its_parts(tok):
    images = IMAGES.astype(np.float32) / 127.5 - 1
    f = jax.jit(lambda p: family.forward(tok.config, p, images))(tok.params)
    ids = tok.encode(IMAGES)
    np.testing.assert_array_equal(f.ids, ids)
    np.testing.assert_allclose(np.clip(f.reconstruction, -1, 1), tok.decode(ids), atol=1e-5)
    assert f.latents.shape == (5, 21, 4)
    apply, kernel = family.last_layer(tok.config, tok.params, f)
    np.testing.assert_allclose(apply(kernel), f.reconstruction, atol=1e-5)


def test_coarse_loss_compares_what_prefixes_give(tok):
    images = IMAGES.astype(np.float32) / 127.5 - 1
    config = dataclasses.replace(tok.config, coarse=0.5)
    plain, coarse = (jax.jit(lambda p, c=c: family.forward(c, p, images).losses)(tok.params) for c in (tok.config, config))
    ids, layout = tok.encode(IMAGES), tok.layout
    decode, errors = jax.jit(lambda p, ids: family.decode(config, p, ids, layout.height, layout.width)), []
    for k in (1, 5):
        picture = np.asarray(decode(tok.params, ids[:, :k]))
        cells = 16 // picture.shape[1]
        errors.append(np.square(picture - images.reshape(5, 16 // cells, cells, 16 // cells, cells, 3).mean((2, 4))).mean())
    assert set(coarse) == {*plain, "coarse"}
    np.testing.assert_allclose(coarse["coarse"], 0.5 * np.mean(errors), rtol=1e-4)


def test_another_schedule_at_inference():
    """Without residual any scales will do: FlexVAR's point."""
    tok = mt.Tokenizer(TINY_FLEX, family.init(TINY_FLEX, jax.random.key(0)))
    finer = dataclasses.replace(TINY_FLEX, quantizer=dataclasses.replace(TINY_FLEX.quantizer, scales=(2, 3, 4)))
    ids = tok.encode(IMAGES)
    np.testing.assert_array_equal(mt.Tokenizer(finer, tok.params).encode(IMAGES)[:, [0, 1, 2, 3]], ids[:, 1:5])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"image_size": 32}, "the last of scales must be 8"),
        ({"image_size": 18}, "use 16"),
        ({"quantizer": TINY_FLEX.quantizer}, "set quant_conv=1 or 0"),
    ],
)
def test_contradictions_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(TINY, **change)


def test_other_families_have_no_next_input():
    config = mt.VQGAN(NET, mt.VQ(size=32, dim=4), image_size=16)
    from mmgen_tokenizers.families import vqgan

    tok = mt.Tokenizer(config, vqgan.init(config, jax.random.key(0)))
    with pytest.raises(UserError, match="of several scales, and this one gives 4 x 4 = 16 ids of 32 codes"):
        tok.next_input(np.zeros((1, 16), np.int32))


def test_every_scale_makes_the_picture_better():
    """A tiny model, trained for a moment."""
    config = dataclasses.replace(TINY, coarse=0.5)
    blocks = RNG.uniform(-1, 1, (16, 4, 4, 3))
    images = blocks.repeat(4, 1).repeat(4, 2).astype(np.float32)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state):
        def loss(p):
            f = family.forward(config, p, images)
            return jnp.square(f.reconstruction - images).mean() + sum(f.losses.values())

        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state

    params = family.init(config, jax.random.key(0))
    state = optimizer.init(params)
    for _ in range(90):
        params, state = step(params, state)
    tok = mt.Tokenizer(config, params)
    ids = tok.encode(images)
    decibels = [float(psnr(tok.decode(ids[:, :k]), images).mean()) for k in tok.layout.prefixes]
    assert decibels[0] + 0.5 < decibels[1] and decibels[1] + 0.5 < decibels[2] and decibels[2] > 12, decibels

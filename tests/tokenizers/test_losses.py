"""Losses against direct evaluations: hinge, adaptive weight, LPIPS, and the two objectives of a training step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mmgen_tokenizers import losses
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.families.vqgan import VQGAN
from mmgen_tokenizers.files import save_arrays, unflatten
from mmgen_tokenizers.losses import TokenizerLosses, lpips
from mmgen_tokenizers.losses.adversarial import adaptive_weight, hinge_discriminator, hinge_generator
from mmgen_tokenizers.networks import discriminator
from mmgen_tokenizers.networks.cnn import CNN
from mmgen_tokenizers.networks.discriminator import PatchGAN
from mmgen_tokenizers.quantizers.vq import VQ

NET = CNN(4, (1,), 1, 1, attention_levels=(), middle_blocks=1, middle_attention=False, latent=4, groups=2, stem=4)
MODEL = VQGAN(NET, VQ(size=16, dim=4), image_size=16)
CRITIC = PatchGAN(channels=4, layers=2, groups=2)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def setup():
    """Parameters, the critic (compiled), the forward pass of IMAGES."""
    params, critic = vqgan.init(MODEL, jax.random.key(0)), discriminator.init(CRITIC, jax.random.key(1))
    forward = jax.jit(lambda p: vqgan.forward(MODEL, p, IMAGES))(params)
    return params, jax.jit(lambda x: discriminator.apply(CRITIC, critic, x)), forward


def objective(config, setup, forward=None, **options):
    """generator_loss of the forward pass as a compiled function of the step."""
    params, critic, passed = setup
    last = vqgan.last_layer(MODEL, params, passed) if config.adaptive else None
    options = {"critic": critic, "last_layer": last} | options
    return jax.jit(lambda step: losses.generator_loss(config, forward or passed, IMAGES, step, **options))


def test_hinge():
    real, fake = jnp.array([2.0, 0.5]), jnp.array([-3.0, 0.25])
    assert float(hinge_discriminator(real, fake)) == pytest.approx(0.5 * (0.25 + 0.625))
    assert float(hinge_generator(fake)) == pytest.approx(1.375)


def test_discriminator_scores_patches_and_no_picture_moves_another(setup):
    critic = setup[1]
    both = critic(IMAGES)
    assert both.shape == (2, 6, 6, 1)
    np.testing.assert_allclose(critic(IMAGES[:1]), both[:1], atol=1e-5)


def test_discriminator_has_the_parts_that_are_asked_for():
    normed, plain = (
        jax.eval_shape(lambda c=PatchGAN(channels=4, groups=2, norm=norm): discriminator.init(c, jax.random.key(1)))
        for norm in ("group", "none")
    )
    assert set(normed["norms"]) == {"1", "2", "3"} and "bias" not in normed["convs"]["1"]
    assert normed["convs"]["3"]["kernel"].shape == (4, 4, 16, 32) and normed["out"]["kernel"].shape == (4, 4, 32, 1)
    assert "norms" not in plain and "bias" in plain["convs"]["1"]
    with pytest.raises(UserError, match="groups=3"):
        PatchGAN(channels=4, groups=3)


def l1_and_l2(x):
    return 0.5 * jnp.abs(x - IMAGES).mean() + 2 * jnp.square(x - IMAGES).mean()


def test_adaptive_weight_equals_gradients_through_the_whole_network(setup):
    params, critic, forward = setup

    @jax.jit
    def ratio(params):
        def norm(loss):
            gradient = jax.grad(lambda p: loss(vqgan.forward(MODEL, p, IMAGES).reconstruction))(params)
            return jnp.linalg.norm(gradient["decoder"]["conv_out"]["kernel"])

        return norm(l1_and_l2) / (norm(lambda x: hinge_generator(critic(x))) + 1e-4)

    config = TokenizerLosses(l1=0.5, l2=2.0, adversarial=0.3, adversarial_start=10, adaptive=True)
    _, metrics = objective(config, setup)(10)
    np.testing.assert_allclose(metrics["adversarial_weight"], 0.3 * ratio(params), rtol=1e-3)
    assert float(adaptive_weight(lambda k: k * forward.reconstruction, jnp.ones(()), *[jnp.zeros_like(IMAGES)] * 2)) == 0


def test_generator_loss_before_and_after_the_discriminator_starts(setup):
    _, critic, forward = setup
    loss = objective(TokenizerLosses(l1=0.5, l2=2.0, adversarial=0.3, adversarial_start=10), setup)
    before = float(l1_and_l2(forward.reconstruction)) + float(sum(forward.losses.values()))
    value, metrics = loss(9)
    np.testing.assert_allclose(value, before, rtol=1e-5)
    assert float(metrics["adversarial_weight"]) == 0 and float(metrics["loss"]) == float(value)
    np.testing.assert_allclose(metrics["quantizer/commitment"], forward.losses["commitment"], rtol=1e-5)
    np.testing.assert_allclose(loss(10)[0], before - 0.3 * critic(forward.reconstruction).mean(), rtol=1e-5)


def test_the_adversarial_gradient_reaches_the_encoder_once_it_counts(setup):
    params, critic, _ = setup
    config = TokenizerLosses(l2=0.0, adversarial=1.0, adversarial_start=0)

    def loss(p, step):
        return losses.generator_loss(config, vqgan.forward(MODEL, p, IMAGES), IMAGES, step, critic=critic)[1]["adversarial"]

    gradient = jax.jit(jax.grad(loss))
    assert jnp.abs(gradient(params, 0)["encoder"]["conv_in"]["kernel"]).max() > 0
    assert not gradient(params, -1)["encoder"]["conv_in"]["kernel"].any()


def test_discriminator_loss(setup):
    critic = setup[1]
    config = TokenizerLosses(adversarial=1.0, adversarial_start=5)
    loss = jax.jit(lambda x, step: losses.discriminator_loss(config, critic, IMAGES, x, step))
    value, metrics = loss(IMAGES * 0.5, 5)
    np.testing.assert_allclose(value, hinge_discriminator(critic(IMAGES), critic(IMAGES * 0.5)), rtol=1e-5)
    np.testing.assert_allclose(metrics["score_real"], critic(IMAGES).mean(), rtol=1e-5)
    assert float(loss(IMAGES * 0.5, 4)[0]) == 0
    assert not jax.grad(lambda x: loss(x, 5)[0])(IMAGES * 0.5).any()  # the tokenizer does not hear of it


# LPIPS, on a thin VGG16 with random weights ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vgg():
    """Random weights under short names; the scale keeps activations alive through 13 layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lpips, "WIDTHS", (4, 4, 8, 8, 8))
        yield _random_weights(np.random.default_rng(0))


def _random_weights(rng):
    weights = {}
    for name, shape in lpips._names().items():
        fan_in = max(1, int(np.prod(shape[1:])))
        scale = 0.01 if name.endswith("bias") else (2 / fan_in) ** 0.5
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        weights[name] = np.abs(values) if name.startswith("lin") else values
    return weights


def direct_lpips(weights, a, b):
    """One pair of pictures [H, W, 3], in NumPy."""

    def features(x):
        x, taps = ((x - lpips.SHIFT) / lpips.SCALE).astype(np.float32), []
        for k, stage in enumerate(lpips.STAGES):
            if k:
                x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).max((1, 3))
            for n in stage:
                H, W, _ = x.shape
                padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
                w = weights[f"conv.{n}.weight"]
                out = sum(padded[i : i + H, j : j + W] @ w[:, :, i, j].T for i in range(3) for j in range(3))
                x = np.maximum(out + weights[f"conv.{n}.bias"], 0)
            taps.append(x / (np.sqrt((x**2).sum(-1, keepdims=True)) + 1e-10))
        return taps

    pairs = zip(features(a), features(b), strict=True)
    return sum((((x - y) ** 2) @ weights[f"lin.{k}"].reshape(-1)).mean() for k, (x, y) in enumerate(pairs))


def test_lpips_equals_numpy(vgg):
    params = lpips.from_reference(vgg)
    a, b = IMAGES[:, :16, :16], IMAGES[:, 16:, 16:]
    distance = jax.jit(lpips.distance)
    got = distance(params, a, b)
    np.testing.assert_allclose(got, [direct_lpips(vgg, x, y) for x, y in zip(a, b, strict=True)], rtol=1e-4)
    assert (distance(params, a, a) < 1e-12).all()


def test_lpips_in_the_objective_has_a_finite_gradient_where_features_are_0(vgg):
    params = lpips.from_reference({name: 0 * array for name, array in vgg.items()})
    config, target = TokenizerLosses(l2=0.0, perceptual=2.0, lpips=("vgg.pth",)), IMAGES[:1, :16, :16]

    def loss(x, params):
        forward = vqgan.Forward(x, None, None, None, {})
        return losses.generator_loss(config, forward, target, 0, lpips=params)

    (value, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(0 * target, params)
    assert float(value) == 0 == float(metrics["perceptual"]) and jnp.isfinite(gradient).all()


def test_lpips_reads_both_layouts_of_names_and_names_what_is_missing(vgg, tmp_path):
    convolutions = {n.replace("conv.", "features."): a for n, a in vgg.items() if n.startswith("conv")}
    linear = {f"lin{n[-1]}.model.1.weight": a for n, a in vgg.items() if n.startswith("lin")}
    save_arrays(tmp_path / "vgg", unflatten(convolutions))
    save_arrays(tmp_path / "lin", unflatten(linear))
    files = [str(tmp_path / name / "model.safetensors") for name in ("vgg", "lin")]
    loaded = lpips.load(files)
    np.testing.assert_array_equal(loaded["conv"]["28"]["kernel"][0, 1], vgg["conv.28.weight"][:, :, 0, 1].T)
    with pytest.raises(UserError, match="lack lin.0, lin.1"):
        lpips.load(files[:1])
    stage = {n: k for k, numbers in enumerate(lpips.STAGES, 1) for n in numbers}
    packaged = {f"net.slice{stage[int(n.split('.')[1])]}.{n[5:]}": a for n, a in vgg.items() if n.startswith("conv")}
    assert {lpips._short(name) for name in packaged} == {n for n in vgg if n.startswith("conv")}


def test_perceptual_without_weights_says_what_to_do():
    with pytest.raises(UserError, match="losses.lpips"):
        TokenizerLosses(perceptual=1.0)

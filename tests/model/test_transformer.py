"""The transformer as it trains: what accelerators run, recomputed layers, dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest

from mmgen.model import transformer
from mmgen.model.config import BlockConfig, ClassCondition, Dropout, GeneratorConfig, TextCondition, TokenLayout
from mmgen.model.layers import turned_product

CONFIG = GeneratorConfig(
    layout=TokenLayout(height=3, width=4, codebook_size=5),
    condition=ClassCondition(3),
    block=BlockConfig(width=16, heads=4, kv_heads=2, mlp=24, qk_norm=True),
    depth=3,
)
IDS = np.random.default_rng(0).integers(0, 5, (2, 12))
LABELS = {"ids": IDS, "label": np.array([0, 2])}
PADDED = {"ids": IDS, "prompt": np.array([[0, 0, 3], [4, 2, 1]]), "prompt_valid": np.array([[0, 0, 1], [1, 1, 1]], bool)}


def loss_and_gradients(c: GeneratorConfig, batch: dict, key=None):
    params = plans.randomized(transformer.init(c, jax.random.key(0)))
    (value, _), grads = jax.jit(jax.value_and_grad(lambda p: transformer.loss(c, p, batch, key), has_aux=True))(params)
    return value, grads


def assert_same(ours, others, rtol=2e-4):
    np.testing.assert_allclose(ours[0], others[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max()), ours[1], others[1])


@pytest.mark.parametrize(
    ("c", "batch"),
    [(CONFIG, LABELS), (dataclasses.replace(CONFIG, condition=TextCondition(9, 3)), PADDED)],
    ids=["causal", "mask"],
)
def test_what_accelerators_run_computes_the_same(c, batch, monkeypatch):
    """Scanned layers, unflattened products and the library's attention instead of what is fast on a CPU."""
    here = loss_and_gradients(c, batch)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert_same(loss_and_gradients(c, batch), here)


@pytest.mark.parametrize("rows", [1, 3, 65])  # one, few and many go different ways
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_turned_product_is_the_product_with_the_transpose(rows, dtype):
    x, w = (jax.random.normal(jax.random.key(i), shape).astype(dtype) for i, shape in enumerate([(rows, 1, 24), (40, 24)]))
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    np.testing.assert_allclose(turned_product(x, w, jnp.float32), exact, rtol=1e-5, atol=1e-5)


def test_recomputed_layers_have_the_same_gradients():
    key, dropout = jax.random.key(1), Dropout(token=0.2, residual=0.2, mlp=0.2, path=0.2)
    c = dataclasses.replace(CONFIG, dropout=dropout)
    assert_same(loss_and_gradients(dataclasses.replace(c, remat=True), LABELS, key), loss_and_gradients(c, LABELS, key))


@pytest.mark.statistics
def test_dropout_keeps_the_mean_at_the_asked_rate():
    y = transformer._drop(0.3, jax.random.key(0))(jnp.ones((200, 200)))
    assert abs(float((y == 0).mean()) - 0.3) < 0.01 and abs(float(y.mean()) - 1) < 0.01
    c = dataclasses.replace(CONFIG, dropout=Dropout(path=0.4))
    dropped = transformer._layer_drops(c, jax.random.key(0), jnp.float32(0.4))["drop_mlp"](jnp.ones((5000, 2, 3)))
    per_sample = np.asarray(dropped).reshape(5000, -1)
    assert (per_sample == per_sample[:, :1]).all() and abs((per_sample[:, 0] == 0).mean() - 0.4) < 0.03
    assert abs(per_sample.mean() - 1) < 0.05


def test_drop_path_rises_with_depth(monkeypatch):
    seen = []
    monkeypatch.setattr(transformer, "_layer_drops", lambda c, key, path: seen.append(float(path)) or {})
    c, params = dataclasses.replace(CONFIG, dropout=Dropout(path=0.3)), transformer.init(CONFIG, jax.random.key(0))
    transformer.forward(c, params, LABELS, jax.random.key(0))
    np.testing.assert_allclose(seen, [0, 0.15, 0.3], atol=1e-6)

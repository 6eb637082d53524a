"""The transformer as it trains: what accelerators run, recomputed layers, dropout."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest
from mmgen_tokenizers.errors import UserError

from mmgen.model import transformer
from mmgen.model.config import BlockConfig, ClassCondition, Dropout, GeneratorConfig, TextCondition, TokenLayout
from mmgen.model.layers import turned_product
from mmgen.parallel import hlo
from mmgen.parallel.mesh import make_mesh

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
    (_, metrics), grads = jax.jit(jax.value_and_grad(lambda p: transformer.loss(c, p, batch, key), has_aux=True))(params)
    return np.stack([metrics["loss"], metrics["accuracy"]]), grads


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


def test_programs_do_not_grow_with_depth():
    """On a mesh, and so on accelerators: compilation would grow too."""

    def lines(depth: int) -> int:
        c = dataclasses.replace(CONFIG, depth=depth, remat=True)
        params = jax.eval_shape(lambda: transformer.init(c, jax.random.key(0)))
        with jax.set_mesh(make_mesh((1, 1, 1, 1), (jax.devices()[0],))):
            program = jax.jit(jax.grad(lambda p: transformer.loss(c, p, LABELS)[0])).lower(params)
        return len(program.as_text().splitlines())

    assert lines(24) == lines(3)


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


def kept(c: GeneratorConfig, rows: int = 64) -> tuple[int, int]:
    """Bytes of a gradient's program on a mesh, where layers are scanned: what it stacks, by its trace; all temporaries."""
    params = jax.eval_shape(lambda: transformer.init(c, jax.random.key(0)))
    batch = {"ids": np.zeros((rows, 12), int), "label": np.zeros(rows, int)}
    with jax.set_mesh(make_mesh((1, 1, 1, 1), (jax.devices()[0],))):
        traced = jax.jit(jax.grad(lambda p: transformer.loss(c, p, batch)[0])).trace(params)
        return hlo.activations(traced.jaxpr.jaxpr), traced.lower().compile().memory_analysis().temp_size_in_bytes


def test_remat_may_keep_some_products():
    """Less memory than without remat, more than without them; the same gradients."""
    c = dataclasses.replace(CONFIG, remat=True, remat_keep=("qkv", "attention", "mlp"))
    assert_same(loss_and_gradients(c, LABELS), loss_and_gradients(CONFIG, LABELS), rtol=1e-5)
    layers, slots, D, F = 6, 64 * 12, CONFIG.block.width, CONFIG.block.mlp
    deep = dataclasses.replace(CONFIG, depth=layers, remat=True)
    found = [kept(dataclasses.replace(deep, remat_keep=keep)) for keep in ((), ("mlp",), ("qkv", "attention", "mlp"))]
    # What the scan keeps besides: a layer's input. Two products of the MLP; queries, keys and values of half as many heads.
    numbers = [D, D + 2 * F, D + 2 * F + 2 * D + D]
    assert [activations for activations, _ in found] == [4 * layers * slots * n for n in numbers]
    temporaries = [size for _, size in (*found, kept(dataclasses.replace(deep, remat=False)))]
    assert temporaries == sorted(temporaries) and temporaries[0] < 0.5 * temporaries[-1]


@pytest.mark.parametrize("kind", ["neighbor", "masked"])
def test_the_loss_in_parts_is_that_of_all_sites(kind):
    """Two heads; hidden tokens with smoothed labels; groups of sub-tokens."""
    c = plans.config(kind)
    c = dataclasses.replace(c, layout=dataclasses.replace(c.layout, groups=2))
    batch = {"ids": np.random.default_rng(1).integers(0, 5, (2, 16, 2)), "label": np.array([0, 2])}
    parts = dataclasses.replace(c, loss_chunks=4)
    assert_same(loss_and_gradients(parts, batch), loss_and_gradients(c, batch), rtol=1e-5)


def largest(jaxpr) -> int:
    inner = [largest(body) for equation in jaxpr.eqns for body in hlo._bodies(equation)]
    return max([out.aval.size for equation in jaxpr.eqns for out in equation.outvars] + inner, default=0)


def test_logits_of_large_vocabularies_are_never_held_whole():
    c = dataclasses.replace(CONFIG, layout=TokenLayout(height=3, width=4, codebook_size=2048))
    many = {"ids": np.zeros((16, 12), int), "label": np.zeros(16, int)}
    params = jax.eval_shape(lambda: transformer.init(c, jax.random.key(0)))

    def size(parts: int) -> int:
        chosen = dataclasses.replace(c, loss_chunks=parts)
        return largest(jax.make_jaxpr(jax.grad(lambda p: transformer.loss(chosen, p, many)[0]))(params).jaxpr)

    assert size(1) == 16 * 12 * 2048 and size(6) == 16 * 2 * 2048


def test_what_does_not_divide_is_refused():
    with pytest.raises(UserError, match="loss_chunks 5 does not divide 12 sites: take one of 1, 2, 3, 4, 6, 12"):
        dataclasses.replace(CONFIG, loss_chunks=5)
    with pytest.raises(UserError, match="set remat true"):
        dataclasses.replace(CONFIG, remat_keep=("mlp",))


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

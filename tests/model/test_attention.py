"""Faster attention gives what the plain formula gives, under the rule of each kind of plan.

The kernels of GPUs and TPUs are not run here: splash attention runs interpreted, and plain products stand in for cuDNN's.
"""

import warnings
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import plans
import pytest

from mmgen.model import attention as module
from mmgen.model import kernels
from mmgen.model.attention import attend, attention, by_block, rule_of
from mmgen.model.config import ClassCondition, GeneratorConfig, TextCondition, TokenLayout
from mmgen.model.transformer import build_plan
from mmgen.parallel import hlo
from mmgen.plan.plan import NEVER

GRID = TokenLayout(height=3, width=4, codebook_size=5)
VALID = np.ones((2, 14), bool)
VALID[0, :2] = False  # a prompt of three slots, of which two are padding
RULES = {
    "causal": rule_of(build_plan(GeneratorConfig(layout=GRID, condition=ClassCondition(3))), None),
    "prompts": rule_of(build_plan(GeneratorConfig(layout=GRID, condition=TextCondition(9, 3))), jnp.asarray(VALID)),
    "diagonal": rule_of(build_plan(plans.config("neighbor")), None),
    "scales": rule_of(build_plan(plans.config("scale")), None),
}


def inputs(rule, dims: int, heads: int = 2):
    keys, S = jax.random.split(jax.random.key(0), 4), rule.plan.slots
    return [jax.random.normal(key, (2, S, h, dims)) for key, h in zip(keys, (heads, 1, 1, heads), strict=True)]


def same(way, name: str, dims: int = 12):
    """Outputs and gradients, but for what padding gives, which nobody reads."""
    rule = RULES[name]
    q, k, v, weight = inputs(rule, dims)
    weight = weight if rule.valid is None else weight * rule.valid[..., None, None]

    @partial(jax.jit, static_argnums=0)
    def figures(way, q, k, v):
        def value(q, k, v):
            y = way(q, k, v) * (weight != 0)
            return jnp.vdot(weight, y), y

        return jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)(q, k, v)

    wanted = figures(lambda q, k, v: attend(q, k, v, rule.mask), q, k, v)
    found = figures(lambda q, k, v: way(q, k, v, rule), q, k, v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)


@pytest.mark.parametrize("name", ["scales", "diagonal"])
def test_blocks_of_slots_by_themselves(name):
    same(by_block, name)
    assert RULES["scales"].plan.blocks == [(0, 1), (1, 5), (5, 14)]


def test_blocks_compute_no_more_than_their_products():
    """Two for each block, and no mask: VAR's operations without those of pairs that its rule hides."""
    rule = RULES["scales"]
    q, k, v, _ = inputs(rule, 12)
    program = jax.make_jaxpr(lambda q, k, v: by_block(q, k, v, rule))(q, k, v)
    pairs = 1 * 1 + 4 * 5 + 9 * 14
    assert hlo.operations(program.jaxpr) == 2 * 2 * q.shape[0] * q.shape[2] * 12 * pairs
    assert "select_n" not in str(program)  # what a mask is


def test_other_plans_have_no_blocks():
    """Or too many of them; nor have samples with padding."""
    assert kernels.hindrance("blocks", inputs(RULES["scales"], 8)[0], RULES["scales"]) is None
    plan = build_plan(plans.config("masked"))
    assert plan.blocks == [(0, 17)] and not replace(plan, visible=np.full(17, NEVER)).blocks
    long = rule_of(build_plan(GeneratorConfig(layout=TokenLayout(height=8, width=8, codebook_size=5))), None)
    for rule in (RULES["prompts"], long):
        assert "few blocks" in kernels.hindrance("blocks", inputs(rule, 8)[0], rule)


@pytest.mark.parametrize("name", ["prompts", "scales"])
def test_splash_attention(name):
    same(partial(kernels.splash, interpret=True), name)


def test_operations_of_a_kernel_are_those_of_its_tiles():
    """Four tiles of 512 slots, of which the causal rule hides one; two products for each of two heads and two samples."""
    rule = rule_of(build_plan(GeneratorConfig(layout=TokenLayout(height=32, width=32, codebook_size=5))), None)
    program = jax.make_jaxpr(lambda q, k, v: kernels.splash(q, k, v, rule, interpret=True))(*inputs(rule, 12)[:3])
    tiles = hlo.operations(program.jaxpr) / (2 * 2 * 512 * 512 * 12 * 2 * 2)
    assert 3 <= tiles <= 4  # rows of tiles are as long as the longest


@pytest.mark.parametrize("name", RULES)
def test_cudnn_is_asked_for_padded_sizes(name, monkeypatch):
    """Head dims that 8 divides; beside a mask an even number of slots; no mask where the plan is causal. XLA answers."""
    real, asked = jax.nn.dot_product_attention, []

    def library(q, k, v, mask=None, implementation=None, **rest):
        asked.append((q.shape, k.shape, v.shape, mask is None, implementation, rest["is_causal"]))
        return real(q, k, v, mask=mask, **rest)

    monkeypatch.setattr(jax.nn, "dot_product_attention", library)
    same(kernels.cudnn, name, dims=12)
    ((q, k, v, unmasked, implementation, causal), *_) = asked
    assert q == (2, 12 if name == "causal" else q[1], 2, 16) and k == v == (2, q[1], 1, 16)
    assert implementation == "cudnn" and unmasked == causal == (name == "causal") and (causal or q[1] % 2 == 0)


def test_what_cannot_be_done_is_said_once():
    rule = RULES["causal"]
    q, k, v, _ = inputs(rule, 8)
    module._announce.cache_clear()
    with pytest.warns(UserWarning, match="attention splash: splash attention is for TPUs; plain products take its place"):
        found = attention(q, k, v, rule, "splash")
    with warnings.catch_warnings(action="error"):
        for name in ("splash", GeneratorConfig(layout=GRID).attention):  # the default is at home everywhere
            np.testing.assert_array_equal(found, attention(q, k, v, rule, name))


def test_limits_of_the_kernels(monkeypatch):
    rule = RULES["causal"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    q = jnp.zeros((2, 12, 2, 100), jnp.bfloat16)
    assert kernels.hindrance("cudnn", q, rule) is None
    assert "float32 and 100" in kernels.hindrance("cudnn", q.astype(jnp.float32), rule)
    assert "bfloat16 and 136" in kernels.hindrance("cudnn", jnp.zeros((2, 12, 2, 136), jnp.bfloat16), rule)

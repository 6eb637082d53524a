"""Tiny models of each kind."""

import functools
import re
from pathlib import Path

import jax
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.quantizers.multiscale import MultiScaleVQ

import mmgen.plan
from mmgen.model import transformer
from mmgen.model.config import BlockConfig, ClassCondition, GeneratorConfig
from mmgen.model.inputs import INPUT_RULES, Shift
from mmgen.plan import Masked, NextNeighbor, NextScale, RandomOrder

README = (Path(mmgen.plan.__file__).parent / "README.md").read_text(encoding="utf-8")


def new_plan():
    """The plan that the README shows how to write."""
    names = {"__name__": "readme"}
    exec(re.search("```python\n(.*?)```", README, re.DOTALL)[1], names)
    return names["Halves"]


Halves = new_plan()
INPUT_RULES[Halves] = Shift


def config(kind: str, **block) -> GeneratorConfig:
    """A tiny model of each kind, 5 codes, 3 classes."""
    grid, scales = TokenLayout(height=4, width=4, codebook_size=5), MultiScaleVQ(size=5, dim=3, scales=(1, 2, 3), phis=2)
    pyramid = TokenLayout("scales", 3, 3, 5, scales=scales.grids(3, 3))
    plan, layout = {
        "masked": (Masked(steps=5), grid), "new": (Halves(), grid), "neighbor": (NextNeighbor(), grid),
        "random": (RandomOrder(), grid),
        "scale": (NextScale(scales), pyramid),
    }[kind]  # fmt: skip
    sizes = BlockConfig(width=16, heads=2, mlp=24, **block)
    return GeneratorConfig(plan=plan, layout=layout, condition=ClassCondition(3), block=sizes, depth=2)


RAR = {
    "mlp_kind": "gelu_exact", "bias": True, "qk_norm": True, "norm": "layer", "position": "learned", "modulation": "slot",
}  # fmt: skip
VAR = {"mlp_kind": "gelu", "bias": True, "l2_attention": True, "position": "learned"}


@functools.partial(jax.jit, static_argnums=(0, 1))
def parameters(c: GeneratorConfig, seed: int = 0) -> dict:
    """`randomized` ones, by one program: op by op, every small operation would be compiled for itself."""
    return randomized(transformer.init(c, jax.random.key(0)), seed)


def randomized(params: dict, seed: int = 0) -> dict:
    """Weights large enough that every part of the model matters (a fresh head is zero)."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten(
        [0.4 * jax.random.normal(k, p.shape) + (p.ndim <= 2 and p.std() == 0) for k, p in zip(keys, leaves, strict=True)]
    )

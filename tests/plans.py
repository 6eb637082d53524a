"""A throwaway plan of the next-scale kind, which keeps the interfaces honest, and tiny models."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from mmgen_tokenizers.layout import TokenLayout

from mmgen.model.config import BlockConfig, ClassCondition, GeneratorConfig
from mmgen.model.layers import weight
from mmgen.plan import NextNeighbor
from mmgen.plan.plan import COLUMN, CONDITION, CONTENT, POSITIONS, ROW, SCALE, GenerationPlan


def _positions(**columns) -> np.ndarray:
    position = np.zeros((len(next(iter(columns.values()))), POSITIONS), int)
    for name, values in columns.items():
        position[:, {"row": ROW, "column": COLUMN, "scale": SCALE}[name]] = values
    return position


@dataclass(frozen=True)
class Scales:
    """VAR (arXiv 2404.02905): all sites of a scale at once; the first scale's only slot is the condition."""

    sides: tuple[int, ...] = (1, 2, 3)

    def taps(self, depth: int) -> tuple[int, ...]:
        return (depth,)

    def build(self, layout: TokenLayout, condition_slots: int) -> GenerationPlan:
        assert condition_slots == 1 and layout.sites == sum(s * s for s in self.sides)
        scale = np.repeat(np.arange(len(self.sides)), [s * s for s in self.sides])
        cells = [np.divmod(np.arange(s * s), s) for s in self.sides]
        row, column = (np.concatenate([cell[i] for cell in cells]) for i in (0, 1))
        slot = np.arange(layout.sites)
        return GenerationPlan(
            kind=np.where(slot == 0, CONDITION, CONTENT),
            source=np.full(layout.sites, -1),
            reads=scale,
            visible=scale,
            clique=np.full(layout.sites, -1),
            position=_positions(row=row, column=column, scale=scale),
            site_time=scale,
            combine_slot=slot[:, None],
            combine_head=np.zeros((layout.sites, 1), int),
            combine_weight=np.ones((layout.sites, 1), np.float32),
            loss_weight=np.ones(layout.sites, np.float32),
        )


class Pyramid(nnx.Module):
    """A slot reads the sum of the coarser scales' tokens that cover its place (nearest neighbour instead of VAR's bicubic)."""

    def __init__(self, c: GeneratorConfig, rngs: nnx.Rngs):
        self.sides = c.plan.sides
        self.table = weight(rngs, (c.layout.codebook_size, c.block.width), ("vocab", "embed"))
        self.level = weight(rngs, (len(self.sides), c.block.width), (None, "embed"))

    def __call__(self, tokens, slots):
        scale, row, column = (slots.position[..., i] for i in (SCALE, ROW, COLUMN))
        x = jnp.broadcast_to(self.level[...][scale], (len(tokens), *scale.shape[1:], self.level.shape[1]))
        own, first = jnp.array(self.sides)[scale], 0
        for k, side in enumerate(self.sides):
            cell = first + (row * side // own) * side + column * side // own
            coarse = self.table[...][jnp.take_along_axis(tokens, jnp.broadcast_to(cell, x.shape[:2]), axis=1)]
            x = x + jnp.where((scale > k)[..., None], coarse, 0)
            first += side * side
        return x


def config(kind: str, **block) -> GeneratorConfig:
    """A tiny model of each kind, 5 codes, 3 classes."""
    plan, grid = {"neighbor": (NextNeighbor(), (4, 4)), "scale": (Scales(), (1, 14))}[kind]
    return GeneratorConfig(
        plan=plan,
        layout=TokenLayout(height=grid[0], width=grid[1], codebook_size=5),
        condition=ClassCondition(3),
        block=BlockConfig(width=16, heads=2, mlp=24, **block),
        depth=2,
    )


def randomized(params: dict, seed: int = 0) -> dict:
    """Weights large enough that every part of the model matters (a fresh head is zero)."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten(
        [0.4 * jax.random.normal(k, p.shape) + (p.ndim <= 2 and p.std() == 0) for k, p in zip(keys, leaves, strict=True)]
    )

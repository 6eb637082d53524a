"""Throwaway plans of the next-neighbor and the next-scale kind: they keep the interfaces honest."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from mmgen_tokenizers.layout import TokenLayout

from mmgen.model.config import BlockConfig, ClassCondition, GeneratorConfig
from mmgen.model.layers import weight
from mmgen.plan.plan import COLUMN, CONDITION, CONTENT, POSITIONS, ROW, SCALE, GenerationPlan


def _positions(**columns) -> np.ndarray:
    position = np.zeros((len(next(iter(columns.values()))), POSITIONS), int)
    for name, values in columns.items():
        position[:, {"row": ROW, "column": COLUMN, "scale": SCALE}[name]] = values
    return position


@dataclass(frozen=True)
class Diagonals:
    """NAR (arXiv 2503.10696): diagonals from the corner; a right head, and a below head one layer deeper, averaged.

    Slots and sites are sorted by diagonal, so that slots lie in time order; `raster[n]` is where site n lies on the grid.
    """

    def taps(self, depth: int) -> tuple[int, ...]:
        return depth, depth + 1

    def raster(self, layout: TokenLayout) -> np.ndarray:
        row, column = np.divmod(np.arange(layout.sites), layout.width)
        return np.lexsort((row, row + column))

    def build(self, layout: TokenLayout, condition_slots: int) -> GenerationPlan:
        assert condition_slots == 1
        raster = self.raster(layout)
        row, column = np.divmod(raster, layout.width)
        place = np.empty(layout.sites, int)
        place[raster] = np.arange(layout.sites)
        slot_at = np.vectorize(lambda i, j: 1 + place[i * layout.width + j] if i >= 0 and j >= 0 else 0)
        left, up = slot_at(row, column - 1), slot_at(row - 1, column)
        weight = np.stack([np.where(row == 0, 1.0, 0.5), np.where(column == 0, 1.0, 0.5)], 1)
        weight *= np.stack([(column > 0) | (row == 0), (row > 0) | (column == 0)], 1)
        weight[0] = 0.5
        slot = np.stack([np.where(column > 0, left, up), np.where(row > 0, up, left)], 1)
        time = np.concatenate([[0], 1 + row + column])
        inner = time <= (row + column).max()  # the last diagonal's slot predicts nothing
        return GenerationPlan(
            kind=np.where(time == 0, CONDITION, CONTENT)[inner],
            source=np.arange(-1, layout.sites)[inner],
            reads=time[inner],
            visible=time[inner],
            clique=np.full(len(time), -1)[inner],
            position=_positions(row=np.concatenate([[-1], row]), column=np.concatenate([[-1], column]))[inner],
            site_time=row + column,
            combine_slot=slot,
            combine_head=np.tile([0, 1], (layout.sites, 1)),
            combine_weight=weight.astype(np.float32),
            loss_weight=np.ones(layout.sites, np.float32),
        )


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
    plan, grid = {"neighbor": (Diagonals(), (4, 4)), "scale": (Scales(), (1, 14))}[kind]
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

"""Random order (RAR, arXiv 2411.00776): next-token prediction in an order of each sample's own; training anneals it to raster.

site -> step of 2 x 2        slots      c0 .. cC-1   x2   x0   x3       each slot reads itself and what stands before it,
  1 3                        predict          x2     x0   x3   x1       and is told the place of what it predicts
  0 2                        order            2      0    3    1
"""

import dataclasses
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np
from jaxtyping import Array, Float, Int
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.layout import TokenLayout

from mmgen.plan.next_token import NextToken
from mmgen.plan.plan import NOWHERE, TARGET_COLUMN, TARGET_ROW, GenerationPlan, grid_positions


@dataclass(frozen=True)
class RandomOrder:
    """The plan is that of the raster order, in which pictures are drawn. A batch in other orders has its ids in those orders,
    and `places` as its position: what the plan calls site n is then the n-th of the order. `positions` as in NextToken.

    `anneal`: between these fractions of the training run, the share of samples in a random order falls from 1 to 0; (0, 0)
    trains in raster order alone, (1, 1) in random orders alone.
    """

    positions: Literal["diagonal", "none"] = "diagonal"
    anneal: tuple[float, float] = (0.5, 0.75)

    def __post_init__(self):
        start, end = self.anneal
        if not 0 <= start <= end <= 1:
            raise UserError(f"anneal {self.anneal} must be two fractions of the training run, the smaller one first")

    def build(self, layout: TokenLayout, condition_slots: int) -> GenerationPlan:
        raster = NextToken(self.positions).build(layout, condition_slots)
        return dataclasses.replace(raster, position=self.places(layout, condition_slots, np.arange(layout.sites)[None])[0])

    def taps(self, depth: int) -> tuple[int, ...]:
        """One head, behind the last layer."""
        return (depth,)

    def places(
        self, layout: TokenLayout, condition_slots: int, orders: Int[Array, "b n"], xp: ModuleType = np
    ) -> Int[Array, "b s P"]:
        """Positions of the slots of samples whose sites come in `orders`: `orders[b, j]` is predicted at step j. `xp`: numpy,
        or jax.numpy under a trace."""
        C, rows = condition_slots, len(orders)
        place = xp.asarray(grid_positions(layout, np.arange(layout.sites), C, self.positions))
        held = xp.concatenate([xp.broadcast_to(place[:C], (rows, *place[:C].shape)), place[C + orders[:, :-1]]], axis=1)
        target = xp.stack([orders // layout.width, orders % layout.width], axis=-1)
        target = xp.concatenate([xp.full((rows, C - 1, 2), NOWHERE), target], axis=1)
        return xp.concatenate([held[..., :TARGET_ROW], target, held[..., TARGET_COLUMN + 1 :]], axis=-1)

    def random_share(self, progress: Float[Array, ""] | float, xp: ModuleType = np) -> Float[Array, ""]:
        """Share of samples in a random order after `progress`, a fraction of the training run."""
        start, end = self.anneal
        return xp.clip((end - progress) / max(end - start, 1e-9), 0.0, 1.0)

"""Next-neighbor prediction (NAR, arXiv 2503.10696): a grid grows diagonal by diagonal from its first corner.

site -> step of a 4 x 4 grid        slot of (i, j), two heads
  0 1 2 3                             right head -> (i, j + 1)
  1 2 3 4                             below head -> (i + 1, j)
  2 3 4 5
  3 4 5 6                           a site inside is predicted by the mean of its left and its upper neighbor
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.layout import TokenLayout

from mmgen.plan.plan import CONDITION, CONTENT, GenerationPlan, grid_positions

RIGHT, BELOW = range(2)


@dataclass(frozen=True)
class NextNeighbor:
    """2n - 1 steps for n x n sites; the below head reads the state one layer deeper than the right head. `positions` as in
    NextToken."""

    positions: Literal["diagonal", "none"] = "diagonal"

    def build(self, layout: TokenLayout, condition_slots: int) -> GenerationPlan:
        if layout.scales:
            raise UserError(f"next-neighbor prediction reads one grid, this tokenizer gives {layout}: use one of one scale")
        C = condition_slots
        row, column = np.divmod(np.arange(layout.sites), layout.width)
        # Slots in time order: by diagonal, then by row. The last diagonal holds one site, which predicts nothing.
        order = np.lexsort((row, row + column))[:-1]
        time = np.concatenate([np.arange(C) - (C - 1), 1 + (row + column)[order]])
        slot, weight = self._neighbors(layout, order, C)
        return GenerationPlan(
            kind=np.where(time <= 0, CONDITION, CONTENT),
            source=np.concatenate([np.full(C, -1), order]),
            reads=time,
            visible=time,
            clique=np.full(len(time), -1),
            position=grid_positions(layout, order, C, self.positions),
            site_time=row + column,
            combine_slot=slot,
            combine_head=np.tile([RIGHT, BELOW], (layout.sites, 1)),
            combine_weight=weight.astype(np.float32),
            loss_weight=np.ones(layout.sites, np.float32),
        )

    def taps(self, depth: int) -> tuple[int, ...]:
        """After which layer each head reads."""
        return depth, depth + 1

    def _neighbors(self, layout: TokenLayout, order: Int[np.ndarray, "s"], C: int) -> tuple[np.ndarray, np.ndarray]:
        """Slot and weight of each site's left and upper neighbor, [N, 2]. At an edge the other one has all the weight; the
        first site is predicted by both heads of the condition's last slot."""
        slot_of = np.empty(layout.sites, int)
        slot_of[order] = C + np.arange(len(order))
        site = np.arange(layout.sites)
        row, column = np.divmod(site, layout.width)
        there = np.stack([column > 0, row > 0], 1)
        neighbor = np.where(there, np.stack([site - 1, site - layout.width], 1), site[:, None])
        slot = slot_of[np.where(there, neighbor, neighbor[:, ::-1])]  # a slot of the same time, at weight 0
        slot[0], there[0] = C - 1, True
        return slot, there / there.sum(1, keepdims=True)

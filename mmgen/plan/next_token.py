"""Next-token prediction, in raster order (LlamaGen, arXiv 2406.06525; Parti, 2206.10789; Chameleon, 2405.09818) or any other.

slots   c0 .. cC-1  x0  x1  x2 ..        each slot reads itself and what stands before it
sites           x0  x1  x2  x3 ..        each slot predicts the next token
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.layout import TokenLayout

from mmgen.plan.plan import CONDITION, CONTENT, GenerationPlan, grid_positions


@dataclass(frozen=True)
class NextToken:
    """`positions` says where the condition stands for the rotary code: "diagonal": condition slot i stands at row = column = i
    and the picture's grid begins behind it, so that the order of words matters; or "none" as in LlamaGen, whose condition has
    no place: its queries and keys are zero vectors, so that all of it is read alike. `order`: the site that each step predicts.
    """

    positions: Literal["diagonal", "none"] = "diagonal"
    order: tuple[int, ...] = ()  # raster

    def build(self, layout: TokenLayout, condition_slots: int) -> GenerationPlan:
        if layout.scales:
            raise UserError(f"next-token prediction reads one grid, this tokenizer gives {layout}: use one of a single scale")
        sites, C, order = layout.sites, condition_slots, self._order(layout.sites)
        slots = C + sites - 1
        time = np.arange(slots) - (C - 1)
        kind = np.where(time <= 0, CONDITION, CONTENT)
        step = np.argsort(order)  # of each site
        return GenerationPlan(
            kind=kind,
            source=np.concatenate([np.full(C, -1), order[:-1]]),
            reads=time,
            visible=time,
            clique=np.full(slots, -1),
            position=grid_positions(layout, order[:-1], C, self.positions),
            site_time=step,
            combine_slot=C - 1 + step[:, None],
            combine_head=np.zeros((sites, 1), int),
            combine_weight=np.ones((sites, 1), np.float32),
            loss_weight=np.ones(sites, np.float32),
        )

    def taps(self, depth: int) -> tuple[int, ...]:
        """One head, behind the last layer."""
        return (depth,)

    def _order(self, sites: int) -> Int[np.ndarray, "n"]:
        if self.order and sorted(self.order) != list(range(sites)):
            seen = np.bincount(np.clip(self.order, 0, sites), minlength=sites + 1)  # the last: all numbers that are too large
            wrong = [f"{site} is named {count} times" for site, count in enumerate(seen[:sites]) if count != 1]
            raise UserError(
                f"plan.order must name each of the sites 0 .. {sites - 1} once; it has {len(self.order)} numbers"
                + "".join(f", {text}" for text in wrong[:3])
            )
        return np.array(self.order) if self.order else np.arange(sites)

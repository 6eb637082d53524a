"""Next-token prediction in raster order: LlamaGen (arXiv 2406.06525), Parti (2206.10789), Chameleon (2405.09818).

slots   c0 .. cC-1  x0  x1  x2 ..        each slot reads itself and what stands before it
sites           x0  x1  x2  x3 ..        each slot predicts the next token
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.layout import TokenLayout

from mmgen.plan.plan import CONDITION, CONTENT, GenerationPlan, grid_positions


@dataclass(frozen=True)
class NextToken:
    """`positions` says where the condition stands for the rotary code: "diagonal": condition slot i stands at row = column = i
    and the picture's grid begins behind it, so that the order of words matters; or "none" as in LlamaGen, whose condition has
    no place: its queries and keys are zero vectors, so that all of it is read alike.
    """

    positions: Literal["diagonal", "none"] = "diagonal"

    def build(self, layout: TokenLayout, condition_slots: int) -> GenerationPlan:
        if layout.scales:
            raise UserError(f"next-token prediction reads one grid, this tokenizer gives {layout}: use one of a single scale")
        sites, C = layout.sites, condition_slots
        slots = C + sites - 1
        time = np.arange(slots) - (C - 1)
        kind = np.where(time <= 0, CONDITION, CONTENT)
        source = np.where(time <= 0, -1, time - 1)
        return GenerationPlan(
            kind=kind,
            source=source,
            reads=time,
            visible=time,
            clique=np.full(slots, -1),
            position=grid_positions(layout, np.arange(sites - 1), C, self.positions),
            site_time=np.arange(sites),
            combine_slot=C - 1 + np.arange(sites)[:, None],
            combine_head=np.zeros((sites, 1), int),
            combine_weight=np.ones((sites, 1), np.float32),
            loss_weight=np.ones(sites, np.float32),
        )

    def taps(self, depth: int) -> tuple[int, ...]:
        """One head, behind the last layer."""
        return (depth,)

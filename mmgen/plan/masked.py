"""Masked prediction (MaskGIT, arXiv 2202.04200): a picture with holes, all of which are predicted at once, in rounds.

slots   c0 .. cC-1  x0 [M] [M] x3 ..      every slot reads every slot; [M] hides a token
sites               x0  x1  x2 x3 ..      each slot predicts its own site

Which holes are filled in a round the model's confidence says (decoding/masked.py): no array can tell it beforehand.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.layout import TokenLayout

from mmgen.plan.plan import CONDITION, CONTENT, GenerationPlan, grid_positions


@dataclass(frozen=True)
class Masked:
    """Training hides schedule(r) of a sample's tokens, r uniform in [0, 1); decoding leaves schedule((t + 1) / steps) of them
    hidden after round t. Where a site has groups, each sub-token is hidden by itself (MaskBit, arXiv 2409.16211)."""

    schedule: Literal["cosine", "linear", "arccos"] = "cosine"
    steps: int = 12  # rounds of decoding, unless `generate` is told otherwise
    choice_temperature: float = 4.5  # of the noise on confidence, which falls to 0 in the last round
    smoothing: float = 0.1  # of the labels
    visible_weight: float = 0.0  # in the loss, of tokens that are not hidden; hidden ones have 1
    embedding: Literal["table", "bits"] = "table"  # bits: a linear map of a token's bits, -1 or 1, and 0 where they are hidden
    positions: Literal["diagonal", "none"] = "diagonal"  # as in NextToken

    def __post_init__(self):
        if self.steps < 1 or self.choice_temperature < 0:
            raise UserError(f"masked prediction needs steps >= 1 and choice_temperature >= 0, not {self.steps} and "
                            f"{self.choice_temperature}")  # fmt: skip
        if not 0 <= self.smoothing < 1 or not 0 <= self.visible_weight <= 1:
            raise UserError(f"smoothing {self.smoothing} and visible_weight {self.visible_weight} must be in 0 .. 1")

    def build(self, layout: TokenLayout, condition_slots: int) -> GenerationPlan:
        if layout.scales:
            raise UserError(f"masked prediction reads one grid, this tokenizer gives {layout}: use one of a single scale")
        if self.embedding == "bits" and layout.codebook_size & (layout.codebook_size - 1):
            raise UserError(f"{layout.codebook_size} codes are no whole number of bits: set plan.embedding to table")
        C, sites = condition_slots, layout.sites
        now = np.zeros(C + sites, int)
        return GenerationPlan(
            kind=np.where(np.arange(C + sites) < C, CONDITION, CONTENT),
            source=np.full(C + sites, -1),
            reads=now,
            visible=now,
            clique=np.full(C + sites, -1),
            position=grid_positions(layout, np.arange(sites), C, self.positions),
            site_time=np.zeros(sites, int),
            combine_slot=C + np.arange(sites)[:, None],
            combine_head=np.zeros((sites, 1), int),
            combine_weight=np.ones((sites, 1), np.float32),
            loss_weight=np.ones(sites, np.float32),
        )

    def taps(self, depth: int) -> tuple[int, ...]:
        """One head, behind the last layer."""
        return (depth,)

"""Next-scale prediction (VAR, arXiv 2404.02905): a picture's scales from coarse to fine, all sites of a scale at once.

slots   c0 .. cC-1 | 2 x 2: s1 s2 s3 s4 | 3 x 3: s5 ..      a slot reads its scale and the coarser ones
sites      first   | each slot predicts its own site        step = scale

Rows and columns are the middles of the cells, in half cells of the finest scale (Infinity aligns them, too, 2412.04431): what
covers the same part of the picture has the same rotary code in all scales; the condition stands on the diagonal before them.
VAR itself learns a vector of each slot.
"""

from dataclasses import dataclass, field

import numpy as np
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.layout import TokenLayout
from mmgen_tokenizers.quantizers.multiscale import MultiScaleVQ

from mmgen.plan.plan import COLUMN, CONDITION, CONTENT, INDEX, POSITIONS, ROW, SCALE, GenerationPlan


@dataclass(frozen=True)
class NextScale:
    """`quantizer` is that of the multi-scale tokenizer, whose codes and convolutions are what slots read."""

    quantizer: MultiScaleVQ = field(default_factory=MultiScaleVQ)

    def build(self, layout: TokenLayout, condition_slots: int) -> GenerationPlan:
        self._check(layout)
        C, sites = condition_slots, layout.sites
        scale = np.repeat(np.arange(len(layout.scales)), [h * w for h, w in layout.scales])
        time = np.concatenate([np.arange(C) - (C - 1), scale[1:]])
        position = np.zeros((len(time), POSITIONS), int)
        position[:C, [ROW, COLUMN]] = 2 * np.arange(C)[:, None]
        position[C:, ROW] = 2 * C + np.concatenate([np.repeat(_centres(h, layout.height), w) for h, w in layout.scales])[1:]
        position[C:, COLUMN] = 2 * C + np.concatenate([np.tile(_centres(w, layout.width), h) for h, w in layout.scales])[1:]
        position[C:, SCALE] = scale[1:]
        position[:, INDEX] = np.arange(len(time))
        return GenerationPlan(
            kind=np.where(time <= 0, CONDITION, CONTENT),
            source=np.full(len(time), -1),
            reads=time,
            visible=time,
            clique=np.full(len(time), -1),
            position=position,
            site_time=scale,
            combine_slot=C - 1 + np.arange(sites)[:, None],
            combine_head=np.zeros((sites, 1), int),
            combine_weight=np.ones((sites, 1), np.float32),
            loss_weight=np.ones(sites, np.float32),
        )

    def taps(self, depth: int) -> tuple[int, ...]:
        """One head, behind the last layer."""
        return (depth,)

    def _check(self, layout: TokenLayout) -> None:
        if layout.scales != self.quantizer.grids(layout.height, layout.width):
            raise UserError(
                f"next-scale prediction needs ids of the scales {list(self.quantizer.scales)}, the layout is {layout}: "
                "take a multi-scale tokenizer, and its quantizer as plan.quantizer"
            )
        if layout.scales[0] != (1, 1):
            raise UserError(f"the first scale must be one site, which the condition predicts; it is {layout.scales[0]}")


def _centres(cells: int, finest: int) -> np.ndarray:
    """Where the middle of each cell lies, in half cells of the finest scale, rounded."""
    return np.rint((2 * np.arange(cells) + 1) * finest / cells).astype(int)

"""Operations of the model by formula, for MFU: what a step has to compute, whatever the program does beside it."""

from typing import NamedTuple

import numpy as np

from mmgen.model.config import GeneratorConfig
from mmgen.model.transformer import build_plan


class Operations(NamedTuple):
    """Multiplications and additions of a training step for one sample, in two accountings: `causal` counts the pairs of slots
    that the plan lets see each other (half of all for next-token), `full` all pairs. Published figures use either."""

    causal: int
    full: int


def training_operations(c: GeneratorConfig) -> Operations:
    """Three times the forward's, for each product has two in the backward pass; what slots read, norms, and what is
    computed again (remat) do not count (PaLM, arXiv 2204.02311, appendix B)."""
    plan = build_plan(c)
    slot = np.arange(plan.slots)
    attention = 2 * c.layers * c.block.heads * c.block.head_dim  # queries by keys, and weights by values, of one pair of slots
    rest = plan.slots * c.layers * _layer(c) + _modulation(c, plan.slots) + _heads(c, plan.slots)
    return Operations(*(6 * (rest + attention * int(pairs)) for pairs in (plan.allow(slot, slot).sum(), plan.slots**2)))


def _layer(c: GeneratorConfig) -> int:
    """Multiplications of one layer in one slot, but for attention and modulation."""
    b = c.block
    projections = b.width * b.head_dim * (2 * b.heads + 2 * (b.kv_heads or b.heads))
    return projections + b.width * b.mlp * (3 if b.mlp_kind == "swiglu" else 2)


def _modulation(c: GeneratorConfig, slots: int) -> int:
    """Of the layers: once a sample, or in each slot."""
    times = {"none": 0, "shared": 1, "block": c.layers, "slot": c.layers * slots}[c.block.modulation]
    return times * 6 * c.block.width**2


def _heads(c: GeneratorConfig, slots: int) -> int:
    D = c.block.width
    one = c.layout.sites * D * c.layout.groups * c.layout.codebook_size
    one += slots * D * D if c.block.norm_after else 0
    one += 2 * D * D * {"none": 0, "slot": slots}.get(c.block.modulation, 1)
    return len(c.taps) * one

"""What is predicted when, and from what: integer arrays over slots and sites (README.md). Host side, no parameters.

A *slot* is one position that the transformer computes; a *site* is what is predicted at once. Time runs over 0 .. T-1: at time
t the slots with reads == t are computed and the sites with site_time == t are sampled from them. Slots with negative times are
the condition's; they and those of time 0 are computed together, before anything has been sampled.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int
from mmgen_tokenizers.layout import TokenLayout

CONDITION, CONTENT, QUERY, PADDING = range(4)
NEVER = 2**30  # visible: nobody may read this slot
NOWHERE = -1  # position: this slot has no place, its rotary angles are zero vectors
# The columns of `position`.
ROW, COLUMN, SCALE, INDEX, TARGET_ROW, TARGET_COLUMN = range(6)
POSITIONS = 6


class PlanBatch(NamedTuple):
    """What differs from sample to sample; an argument of every jitted program. None: the plan speaks for all."""

    valid: Bool[Array, "B S"] | None = None  # False: padding of a prompt
    source: Int[Array, "B S"] | None = None
    position: Int[Array, "B S P"] | None = None


@dataclass(frozen=True, eq=False)
class GenerationPlan:
    """The arrays, whose meanings stand in the table of README.md.

    Raises ValueError where the arrays contradict each other: a slot that embeds a token before it is sampled, or a site that is
    combined from slots of another time than its own.
    """

    kind: Int[np.ndarray, "S"]
    source: Int[np.ndarray, "S"]  # CONTENT: the site whose token is embedded here, else -1
    reads: Int[np.ndarray, "S"]
    visible: Int[np.ndarray, "S"]
    clique: Int[np.ndarray, "S"]  # slots of one clique see each other; -1: of none
    position: Int[np.ndarray, "S P"]
    site_time: Int[np.ndarray, "N"]
    combine_slot: Int[np.ndarray, "N K"]
    combine_head: Int[np.ndarray, "N K"]
    combine_weight: Float[np.ndarray, "N K"]
    loss_weight: Float[np.ndarray, "N"]

    def __post_init__(self):
        slots, sites = len(self.kind), len(self.site_time)
        for name in ("source", "reads", "visible", "clique", "position"):
            _check(len(getattr(self, name)) == slots, f"{name} has {len(getattr(self, name))} rows for {slots} slots")
        for name in ("combine_slot", "combine_head", "combine_weight", "loss_weight"):
            _check(len(getattr(self, name)) == sites, f"{name} has {len(getattr(self, name))} rows for {sites} sites")
        _check((np.diff(self.reads) >= 0).all(), "slots must be laid out in time order")
        _check((self.visible >= self.reads).all(), "a slot cannot be visible before it is computed")
        embedded = self.source >= 0
        early = self.site_time[self.source[embedded]] >= self.reads[embedded]
        _check(not early.any(), "a slot embeds the token of a site that is not sampled yet")
        _check(
            (np.maximum(self.reads[self.combine_slot], 0) == self.site_time[:, None]).all(),
            "a site must be combined from slots of its own time",
        )

    @property
    def slots(self) -> int:
        return len(self.kind)

    @property
    def sites(self) -> int:
        return len(self.site_time)

    @property
    def times(self) -> int:
        """T: the number of decode steps, which is the number of forwards of plain decoding."""
        return int(self.site_time.max()) + 1

    @property
    def condition_slots(self) -> int:
        return int((self.kind == CONDITION).sum())

    @property
    def causal(self) -> bool:
        """Whether the attention rule is the plain causal mask."""
        slot = np.arange(self.slots)
        return bool((self.clique < 0).all() and (self.allow(slot, slot) == np.tri(self.slots, dtype=bool)).all())

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First slot and end of each group of slots that see all slots up to the last of their own, and no others; empty where
        the rule is another one."""
        slot, starts = np.arange(self.slots), [0, *(np.flatnonzero(np.diff(self.reads)) + 1).tolist()]
        if not (self.allow(slot, slot) == (self.reads[None] <= self.reads[:, None])).all():
            return []
        return list(zip(starts, [*starts[1:], self.slots], strict=True))

    def allow(self, queries: Int[np.ndarray, "Q"], keys: Int[np.ndarray, "Z"], xp=np) -> Bool[np.ndarray, "Q Z"]:
        """The one attention rule, without what differs per sample (PlanBatch.valid). `xp`: jax.numpy makes it a part of a
        program, which else holds it as a constant."""
        q, k = xp.asarray(queries)[:, None], xp.asarray(keys)[None, :]
        kind, reads, visible, clique = map(xp.asarray, (self.kind, self.reads, self.visible, self.clique))
        friends = (clique[q] == clique[k]) & (clique[q] >= 0)
        readable = (kind[k] != PADDING) & ((visible[k] <= reads[q]) | friends)
        return (q == k) | readable


def grid_positions(
    layout: TokenLayout, site: Int[np.ndarray, "s"], condition_slots: int, condition: Literal["diagonal", "none"]
) -> Int[np.ndarray, "c+s P"]:
    """Row, column and index (in raster order, behind the condition) of the condition's slots and of those that hold `site`.

    "diagonal": condition slot i stands at row = column = i, and the grid begins behind it; "none": the condition has no place.
    """
    C = condition_slots
    position = np.zeros((C + len(site), POSITIONS), int)
    position[C:, [ROW, COLUMN]] = np.stack(np.divmod(site, layout.width), 1) + (C if condition == "diagonal" else 0)
    position[:C, [ROW, COLUMN]] = np.arange(C)[:, None] if condition == "diagonal" else NOWHERE
    position[:, INDEX] = np.concatenate([np.arange(C), C + site])
    return position


def _check(fact: bool, message: str) -> None:
    if not fact:
        raise ValueError(f"inconsistent plan: {message}")

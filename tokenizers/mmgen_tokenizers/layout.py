"""How the tokens of one picture are arranged: what a generator must know of a tokenizer."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal


@dataclass(frozen=True)
class TokenLayout:
    """A grid of `height` x `width` sites in raster order, each one of `codebook_size` codes (or `groups` of them, [B, N,
    G]). Kind "scales": several grids, from coarse to `height` x `width`, one behind the other (VAR, arXiv 2404.02905)."""

    kind: Literal["grid", "scales"] = "grid"
    height: int = 16
    width: int = 16
    codebook_size: int = 16384
    groups: int = 1
    scales: tuple[tuple[int, int], ...] = ()  # rows and columns of each; none for a grid

    @property
    def sites(self) -> int:
        return self.prefixes[-1]

    @property
    def prefixes(self) -> tuple[int, ...]:
        """How many ids `decode` takes: all of them, or those of the first scales."""
        return tuple(accumulate(height * width for height, width in self.scales or ((self.height, self.width),)))

    def __str__(self) -> str:
        grids = self.scales or ((self.height, self.width),)
        shown = [f"{height} x {width}" for height, width in grids]
        groups = f" x {self.groups}" if self.groups > 1 else ""
        return f"{' + '.join(shown)} = {self.sites}{groups} ids of {self.codebook_size} codes"

"""How the tokens of one picture are arranged: what a generator must know of a tokenizer."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal


@dataclass(frozen=True)
class TokenLayout:
    """`height` x `width` sites, each one of `codebook_size` codes (or `groups` of them, [B, N, G]).

    "grid": the sites of a picture in raster order. "scales": several grids, from coarse to `height` x `width`, one behind the
    other (VAR, arXiv 2404.02905). "sequence": `width` tokens without a place in the picture (TiTok, arXiv 2406.07550).
    """

    kind: Literal["grid", "scales", "sequence"] = "grid"
    height: int = 16
    width: int = 16
    codebook_size: int = 16384
    groups: int = 1
    scales: tuple[tuple[int, int], ...] = ()  # rows and columns of each; none for a grid
    ordered: bool = False  # any first few tokens make a picture

    @property
    def sites(self) -> int:
        return self.prefixes[-1]

    @property
    def prefixes(self) -> tuple[int, ...]:
        """How many ids `decode` takes: all of them; those of the first scales too, or any number where they are ordered."""
        if self.ordered:
            return tuple(range(1, self.width + 1))
        return tuple(accumulate(height * width for height, width in self.scales or ((self.height, self.width),)))

    def __str__(self) -> str:
        grids = self.scales or ((self.height, self.width),)
        shown = [f"{height} x {width}" for height, width in grids]
        groups = f" x {self.groups}" if self.groups > 1 else ""
        return f"{' + '.join(shown)} = {self.sites}{groups} ids of {self.codebook_size} codes"

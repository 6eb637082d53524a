"""How the tokens of one picture are arranged: what a generator must know of a tokenizer."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TokenLayout:
    """A grid of `height` x `width` sites in raster order, each one of `codebook_size` codes (or `groups` of them, [B, N,
    G])."""

    kind: Literal["grid"] = "grid"
    height: int = 16
    width: int = 16
    codebook_size: int = 16384
    groups: int = 1

    @property
    def sites(self) -> int:
        return self.height * self.width

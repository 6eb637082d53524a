"""How the tokens of one picture are arranged: what a generator must know of a tokenizer."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TokenLayout:
    """`height` x `width` sites, each one of `codebook_size` codes (or `groups` of them, [B, N, G]).

    "grid": sites of a picture in raster order. "sequence": `width` tokens that have no place in it, `height` 1.
    """

    kind: Literal["grid", "sequence"] = "grid"
    height: int = 16
    width: int = 16
    codebook_size: int = 16384
    groups: int = 1
    ordered: bool = False  # the first k sites make a picture, for any k

    @property
    def sites(self) -> int:
        return self.height * self.width

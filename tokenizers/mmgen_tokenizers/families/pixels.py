"""The identity: pixels are the tokens, so what a generator says of them is the exact likelihood of the picture.

Either each channel of a pixel is an id of 256 values, three sub-tokens a site, [B, N, 3]; or each pixel is the nearest colour
of a palette, [B, N] (as the 512 colours of iGPT, Chen et al. 2020). There is nothing to train and no parameter.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from ..errors import UserError
from ..layout import TokenLayout
from ..quantizers import vq
from ..quantizers.vq import VQ

Params = dict
MOST_COLOURS = 256  # that Pillow chooses
SIDE = 64  # pixels, at most, of each picture that colours are chosen by


@dataclass(frozen=True)
class Pixels:
    palette: tuple[tuple[int, int, int], ...] = ()  # red, green, blue from 0 to 255; none: 8 bits a channel
    image_size: int = 32  # pixels a side that generators train on; any other is taken too

    def __post_init__(self):
        if len(set(self.palette)) != len(self.palette) or not all(0 <= c <= 255 for colour in self.palette for c in colour):
            raise UserError("palette: give different colours, each three numbers from 0 to 255")

    @property
    def factor(self) -> int:
        """Pixels a token on a side."""
        return 1


def choose_palette(pictures: Iterable[UInt8[np.ndarray, "H W 3"]], colours: int) -> tuple[tuple[int, int, int], ...]:
    """The colours that suit these pictures best, by median cut; fewer where they have not so many."""
    if not 2 <= colours <= MOST_COLOURS:
        raise UserError(f"a palette of {colours} colours: ask for 2 to {MOST_COLOURS}, or for none, which is 8 bits a channel")
    seen = [np.asarray(_small(Image.fromarray(picture))).reshape(-1, 3) for picture in pictures]
    column = Image.fromarray(np.concatenate(seen)[:, None])
    chosen = column.quantize(colours, Image.Quantize.MEDIANCUT).convert("RGB")
    return tuple(sorted({tuple(map(int, colour)) for colour in np.asarray(chosen).reshape(-1, 3)}))


def _small(image: Image.Image) -> Image.Image:
    image.thumbnail((SIDE, SIDE), Image.Resampling.NEAREST)  # no colour that is not there
    return image


def layout(config: Pixels, height: int, width: int) -> TokenLayout:
    """Of pictures of height x width pixels."""
    return TokenLayout("grid", height, width, len(config.palette) or 256, 1 if config.palette else 3)


def init(config: Pixels, key: Array) -> Params:
    return {}


def _colours(config: Pixels) -> Float[np.ndarray, "V 3"]:
    return np.array(config.palette, np.float32) / 127.5 - 1


def encode(config: Pixels, params: Params, images: Float[Array, "B H W 3"], dtype=jnp.float32) -> Int[Array, "B N *G"]:
    """Pictures in [-1, 1] -> ids in raster order: of 8 bits exactly those bits."""
    flat = images.reshape(images.shape[0], -1, 3)
    if not config.palette:
        return jnp.clip(jnp.round((flat + 1) * 127.5), 0, 255).astype(jnp.int32)
    return vq.nearest(VQ(len(config.palette), 3, normalize=False), {"codebook": _colours(config)}, flat)


def embed(config: Pixels, params: Params, ids: Int[Array, "B N *G"]) -> Float[Array, "B N 3"]:
    """Ids -> colours in [-1, 1]."""
    return jnp.asarray(_colours(config))[ids] if config.palette else ids.astype(jnp.float32) / 127.5 - 1


def decode(config: Pixels, params: Params, ids: Int[Array, "B N *G"], height: int, width: int, dtype=jnp.float32):
    """Ids -> pictures float32 [B, H, W, 3] in [-1, 1]."""
    return embed(config, params, ids).reshape(ids.shape[0], height, width, 3)

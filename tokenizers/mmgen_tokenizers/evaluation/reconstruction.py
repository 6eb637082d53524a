"""What a tokenizer keeps of pictures: PSNR, SSIM, LPIPS, rFID, and how much of its codebook it uses."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from ..api import Tokenizer
from ..errors import UserError
from ..losses import lpips
from ..metrics import psnr, ssim
from ..pictures import to_float, to_uint8
from ..progress import Counter
from ..quantizers.vq import MOST_COUNTED
from .results import Result, about_set, surroundings
from .scoring import Extractor, Meter, compare, save_statistics
from .sets import open_pictures
from .statistics import interval

ROWS = 32  # pictures at a time


class Codes:
    """Counts how often each code is used; each group has its own."""

    def __init__(self, tokenizer: Tokenizer):
        self._each, self._groups = tokenizer.layout.codebook_size, tokenizer.layout.groups
        codes = self._each * self._groups
        self._counts = np.zeros(codes, np.int64) if codes <= MOST_COUNTED else None

    def add(self, ids: Int[np.ndarray, "B N *G"]) -> None:
        if self._counts is not None:
            own = ids.reshape(-1, self._groups) + np.arange(self._groups) * self._each
            self._counts += np.bincount(own.reshape(-1), minlength=len(self._counts))

    def figures(self) -> Result:
        """Of more codes than can be counted: nothing."""
        if self._counts is None:
            return {}
        share = self._counts / self._counts.sum()
        entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
        return {"usage": {"value": float((share > 0).mean())}, "perplexity": {"value": float(np.exp(entropy) / self._groups)}}


def evaluate(
    tokenizer: Tokenizer,
    data: str | Path,
    size: int | None = None,
    crop: str = "adm",
    weights: str | Path | None = None,
    perceptual: Sequence[str] | None = None,
    statistics: str | Path | None = None,
) -> Result:
    """Figures over all pictures of a folder or .npz, cut to squares of `size` pixels (the training resolution unless given).

    `weights`: of InceptionV3, for rFID, whose reference are the same pictures; `perceptual`: files of LPIPS. `statistics`:
    where to write those of the originals.
    """
    side = size or tokenizer.config.image_size
    layout = tokenizer.layout_for(side, side)
    if statistics is not None and weights is None:
        raise UserError("statistics are of InceptionV3's features: give its weights")
    extractor = None if weights is None else Extractor(weights)
    distance = None if perceptual is None else jax.jit(lpips.distance)
    vgg = None if perceptual is None else lpips.load(perceptual)
    pictures, codes, scores = open_pictures(data, (side, side), crop), Codes(tokenizer), []
    meters = [] if extractor is None else [Meter(extractor), Meter(extractor)]
    with Counter(len(pictures), "pictures") as counter:
        for before in pictures.batches(ROWS):
            ids = tokenizer.encode(before)
            after = to_uint8(tokenizer.decode(ids, layout))
            codes.add(ids)
            scores.append(_likeness(before, after, distance, vgg))
            for meter, set_ in zip(meters, (after, before), strict=False):
                meter.add(set_)
            counter.add(len(before))
    rows = {name: np.concatenate([score[name] for score in scores]) for name in scores[0]}
    found = {name: {"value": float(x.mean()), "interval": list(interval(float(x.mean()), x))} for name, x in rows.items()}
    found |= codes.figures()
    about = {"from": str(data), "pictures": len(rows["psnr"]), "size": [side, side]}
    if meters:
        restored, originals = (meter.measured() for meter in meters)
        about, compared = about_set(data, pictures, originals), compare(restored, originals)
        found |= {"rfid": compared["fid"], "kid": compared["kid"]}
        if statistics is not None:
            save_statistics(statistics, originals, pictures.size)
    return {"figures": found, "pictures": about, "tokenizer": tokenizer.fingerprint, **surroundings(extractor, crop)}


def _likeness(
    before: UInt8[np.ndarray, "B H W 3"], after: UInt8[np.ndarray, "B H W 3"], distance, vgg
) -> dict[str, Float[np.ndarray, " B"]]:
    """Of each picture, after rounding to 256 steps."""
    a, b = to_float(before), to_float(after)
    found = {"psnr": psnr(a, b)}
    if min(a.shape[1:3]) >= 11:
        found["ssim"] = ssim(a, b)
    if distance is not None:
        found["lpips"] = distance(vgg, a, b)
    return {name: np.asarray(values, np.float64) for name, values in found.items()}

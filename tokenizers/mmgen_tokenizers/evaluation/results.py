"""What an evaluation gives: figures, and beside them everything that they depend on, as JSON and as lines of text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..errors import UserError
from .scoring import (
    Extractor,
    Measured,
    check_statistics,
    compare,
    has_statistics,
    measure,
    read_statistics,
    save_statistics,
)
from .sets import ArrayFiles, PictureFolder, open_pictures
from .statistics import NEIGHBOURS, SPLIT

Size = Sequence[int] | None
Result = dict[str, Any]

NAMES = {
    "fid": "FID", "sfid": "sFID", "inception_score": "Inception score", "precision": "precision", "recall": "recall",
    "kid": "KID", "rfid": "rFID", "psnr": "PSNR in dB", "ssim": "SSIM", "lpips": "LPIPS",
    "usage": "share of the codebook in use", "perplexity": "perplexity of the codes",
    "recognised": "recognised as the class asked for", "classifier": "real ones that are recognised",
    "fcd": "FCD", "fcd_of_real": "FCD of real ones", "fcd_of_blurred": "FCD of blurred ones", "fcd_of_noise": "FCD of noise",
    "bits_per_dimension": "bits a dimension", "bits_per_picture": "bits a picture", "bits_per_token": "bits a token",
}  # fmt: skip


def score(
    samples: str | Path,
    reference: str | Path,
    weights: str | Path,
    size: Size = None,
    crop: str = "adm",
    statistics: str | Path | None = None,
) -> Result:
    """Scores a set of pictures against another, or against a file of statistics.

    `samples`, `reference`: .npz or folder; `weights`: see inception.py. Pictures of a folder are cut to `size`; those of the
    reference to the samples' size in any case. `statistics`: where to write those of the reference, to use them again. Several
    processes share the work, if all of them call it, and each gets the result.
    """
    extractor = Extractor(weights)
    pictures = open_pictures(samples, size, crop)
    _check(reference, extractor, pictures.size, crop, statistics)
    measured = measure(extractor, pictures)
    against, about = read_reference(reference, extractor, pictures.size, crop, statistics)
    sets = {"samples": about_set(samples, pictures, measured), "reference": about}
    return {"figures": compare(measured, against), **sets, **surroundings(extractor, crop)}


def check_reference(
    path: str | Path, weights: str | Path, size: Size, crop: str = "adm", statistics: str | Path | None = None
) -> None:
    """Raises UserError for what `score` would refuse as its reference, before the samples are drawn."""
    _check(path, Extractor(weights), size, crop, statistics)


def _check(path: str | Path, extractor: Extractor, size: Size, crop: str, statistics: str | Path | None) -> None:
    if not has_statistics(path):
        open_pictures(path, size, crop)
        return
    if statistics is not None:
        raise UserError(f"{path} is a file of statistics already: --save-statistics writes those of pictures")
    check_statistics(path, extractor, size)


def read_reference(
    path: str | Path, extractor: Extractor, size: Size, crop: str, statistics: str | Path | None = None
) -> tuple[Measured, Result]:
    """What a file of statistics, or a set of pictures of `size`, gives; and what the result says of it."""
    if has_statistics(path):
        measured, found = read_statistics(path, extractor)
        about = {"from": str(path), "pictures": measured.pool.count, "size": found and list(found), "statistics": True}
    else:
        pictures = open_pictures(path, size, crop)
        measured = measure(extractor, pictures)
        if statistics is not None and jax.process_index() == 0:
            save_statistics(statistics, measured, pictures.size)
        about = about_set(path, pictures, measured)
    rows = 0 if measured.features is None else len(measured.features)
    return measured, about | {"pictures_for_precision_and_recall": rows}


def about_set(path: str | Path, pictures: ArrayFiles | PictureFolder, measured: Measured) -> Result:
    skipped = {"skipped": pictures.skipped} if pictures.skipped else {}
    return {"from": str(path), "pictures": measured.pool.count, "size": list(pictures.size)} | skipped


def surroundings(extractor: Extractor | None, crop: str) -> Result:
    """What else figures depend on."""
    from .. import __version__

    network = None if extractor is None else {"file": extractor.file, "fingerprint": extractor.fingerprint}
    settings = {
        "crop_of_folders": crop,
        "neighbours": NEIGHBOURS,
        "inception_score_of": SPLIT,
        "interval": "95%, bootstrap of the samples to first order (KID: by its variance); the reference is held fixed",
    }
    versions = {"mmgen_tokenizers": __version__, "jax": jax.__version__, "numpy": np.__version__}
    return {"network": network, "settings": settings, "versions": versions, "device": jax.devices()[0].device_kind}


def explain(result: Result) -> str:
    """The figures as lines: name, value, interval."""
    lines = []
    for name, figure in result["figures"].items():
        value, bounds = figure["value"], figure.get("interval")
        between = f"  {bounds[0]:.5g} .. {bounds[1]:.5g}" if bounds else ""
        lines.append(f"  {NAMES.get(name, name):<30}{value:>10.5g}{between}")
    return "\n".join(lines)

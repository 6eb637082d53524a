"""How papers evaluate, as data. FID depends on each of these choices; two numbers compare where all of them agree."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from ..errors import UserError, nearest
from ..quantizers.resize import bicubic

ADM_REFERENCE = "VIRTUAL_imagenet256_labeled.npz, ADM's statistics of ImageNet's training pictures and 10,000 of them"


@dataclass(frozen=True)
class Protocol:
    """One way to evaluate. `sampling`: settings of `Generator.generate` over those recommended with the weights."""

    source: str
    reference: str
    pictures: int = 50_000
    size: int = 256
    labels: Literal["uniform", "each"] | None = None  # classes drawn with equal chance; or as many pictures of each
    sampling: Mapping[str, Any] = field(default_factory=dict)
    rounding: Literal["nearest", "down"] = "nearest"  # to the 256 steps
    resize: Literal["bicubic", "none"] = "none"  # of models that draw another size: cubic, a = -0.75, not smoothed
    crop: Literal["adm", "lanczos"] = "adm"  # of reference pictures


PROTOCOLS = {
    "llamagen_c2i_256": Protocol(
        "LlamaGen (arXiv 2406.06525), autoregressive/sample/sample_c2i_ddp.py", ADM_REFERENCE, labels="uniform",
        sampling={"temperature": 1.0, "top_k": 0, "top_p": 1.0}, resize="bicubic",
    ),
    "var_256": Protocol(
        "VAR (arXiv 2404.02905), README", ADM_REFERENCE, labels="each", rounding="down",
        # Its cfg 1.5 counts from 0.
        sampling={"guidance": 2.5, "guidance_schedule": "linear", "temperature": 1.0, "top_k": 900, "top_p": 0.96},
    ),
    "rar_256": Protocol(
        "RAR (arXiv 2411.00776), sample_imagenet_rar.py", ADM_REFERENCE, labels="each", rounding="down",
        sampling={"top_k": 0, "top_p": 1.0},
    ),
    "adm_256": Protocol(
        "ADM (arXiv 2105.05233), scripts/image_sample.py", ADM_REFERENCE, labels="uniform", rounding="down"
    ),
    "rfid_val_256": Protocol(
        "LlamaGen (arXiv 2406.06525), tokenizer/validation/val_ddp.py", "the 50,000 validation pictures of ImageNet themselves"
    ),
}  # fmt: skip


def named(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol {name!r}; known: {', '.join(PROTOCOLS)}.{nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def draw_labels(protocol: Protocol, classes: int, count: int, seed: int) -> Int[np.ndarray, " count"]:
    """The class of each picture. The classes take turns where each has as many, so that pieces of a set have all of them."""
    if protocol.labels == "each":
        return np.arange(count) % classes
    return np.random.default_rng(seed).integers(0, classes, count)


def finish(protocol: Protocol, pictures: Float[np.ndarray, "B h w 3"]) -> UInt8[np.ndarray, "B H W 3"]:
    """What a model drew, in [-1, 1], as the protocol's pictures. Raises UserError for another size that it does not resize.

    The authors of LlamaGen clip after resizing, where our decoders have clipped before.
    """
    size = (protocol.size, protocol.size)
    if pictures.shape[1:3] != size:
        if protocol.resize == "none":
            found = " x ".join(map(str, pictures.shape[1:3]))
            raise UserError(f"the model draws pictures of {found}; the protocol is of {protocol.size} and resizes none")
        pictures = np.asarray(jax.jit(bicubic, static_argnums=1)(pictures, size))
    scaled = (np.clip(pictures.astype(np.float32), -1, 1) + 1) * 127.5
    return (np.floor(scaled + 0.5) if protocol.rounding == "nearest" else np.floor(scaled)).astype(np.uint8)

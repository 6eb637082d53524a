"""Which decoder draws the tokens: the arguments of `generate` checked, and the window that suits a device."""

from dataclasses import dataclass, fields
from typing import Literal

import jax
import numpy as np
from jaxtyping import Int
from mmgen_tokenizers.errors import UserError, nearest

from mmgen.decoding.coupling import COUPLINGS
from mmgen.decoding.jacobi import INITS
from mmgen.model.config import GeneratorConfig

OPTIONS = {
    "autoregressive": (),
    "jacobi": ("window", "init", "coupling"),
    "speculative": ("window", "coupling", "draft"),
}
# Operations that a device does while it reads one byte: matrix products in the dtype that it computes in over memory. H200 and
# CPU measured, TPUs by data sheet.
OPERATIONS_PER_BYTE = {"h200": 184, "tpu v5 lite": 243, "tpu v5p": 164, "tpu v6 lite": 575, "cpu": 7}
OTHER_DEVICE = 200
LARGEST_WINDOW = 64


@dataclass(frozen=True)
class Choice:
    """What a call of `generate` says; None: not given."""

    decoder: str
    window: int | Literal["auto"] | None = None
    init: str | Int[np.ndarray, "b n ..."] | None = None
    coupling: str | None = None
    draft: object | None = None  # a Generator

    def __post_init__(self):
        if self.decoder not in OPTIONS:
            raise UserError(f"decoder {self.decoder!r} is not one of {', '.join(OPTIONS)}.{nearest(self.decoder, OPTIONS)}")
        for name in (field.name for field in fields(self)[1:]):
            if getattr(self, name) is not None and name not in OPTIONS[self.decoder]:
                users = " or ".join(repr(decoder) for decoder, names in OPTIONS.items() if name in names)
                raise UserError(f"{name} is a setting of decoder {users}, not of {self.decoder!r}")
        if self.window not in (None, "auto") and (not isinstance(self.window, int | np.integer) or self.window < 2):
            raise UserError(f'window {self.window!r} must be 2 or more sites a forward, or "auto"; one site is plain decoding')
        for name, known in (("coupling", COUPLINGS), ("init", INITS)):
            value = getattr(self, name)
            if isinstance(value, str) and value not in known:
                raise UserError(f"{name} {value!r} is not one of {', '.join(known)}.{nearest(value, known)}")
        if self.decoder == "speculative" and self.draft is None:
            raise UserError("decoder 'speculative' needs a draft: a smaller generator of the same tokenizer")


def auto_window(c: GeneratorConfig, params: dict, rows: int, itemsize: int) -> int:
    """As many sites as one forward computes while it reads weights and cache: up to there they are free.

    `rows`: of the transformer, guided pairs included; `params`: of decode_params.
    """
    kind = jax.local_devices()[0].device_kind.lower()
    per_byte = next((number for name, number in OPERATIONS_PER_BYTE.items() if name in kind), OTHER_DEVICE)
    weights = sum(p.size for p in jax.tree.leaves((params["layers"], params["ends"]["heads"])))
    length = c.condition.slots + c.layout.sites / 2  # read on average
    cache = 2 * c.layers * (c.block.kv_heads or c.block.heads) * c.block.head_dim * length
    operations = rows * (2 * weights + 4 * c.layers * c.block.width * length)
    free = per_byte * itemsize * (weights + rows * cache) / operations
    return int(np.clip(free, 2, min(LARGEST_WINDOW, max(2, c.layout.sites - 1))))

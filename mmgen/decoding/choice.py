"""Which decoder draws the tokens: the arguments of `generate` checked, and the window that suits a device."""

from dataclasses import dataclass, fields
from typing import Literal

import jax
import numpy as np
from jaxtyping import Int
from mmgen_tokenizers.errors import UserError, nearest

from mmgen.decoding.coupling import COUPLINGS
from mmgen.decoding.jacobi import INITS, Start
from mmgen.decoding.known import in_order
from mmgen.model.config import GeneratorConfig
from mmgen.model.transformer import build_plan

OPTIONS = {
    "autoregressive": (),
    "jacobi": ("window", "init", "coupling"),
    "speculative": ("window", "coupling", "draft"),
}
# Operations that a device does while it reads one byte: matrix products in the dtype that it computes in over memory. Rough:
# one H200 and one CPU were measured, TPUs are by data sheet.
OPERATIONS_PER_BYTE = {"h200": 184, "tpu v5 lite": 243, "tpu v5": 164, "tpu v6 lite": 575, "cpu": 7}
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


def check_draft(own, draft=None) -> None:
    """Two generators, the second of which drafts for the first, must speak of the same tokens in the same order."""
    if draft is None:
        return
    if draft.config.layout != own.config.layout:
        raise UserError(
            f"the draft predicts {draft.config.layout}, this generator {own.config.layout}: take a draft of the same"
        )
    prints = [model.tokenizer.fingerprint for model in (own, draft) if model.tokenizer is not None]
    if len(set(prints)) > 1:
        raise UserError(f"the draft has another tokenizer ({prints[1]}) than this generator ({prints[0]}): train both with one")
    plans = [build_plan(model.config) for model in (own, draft)]
    kinds = [type(model.config.plan).__name__ for model in (own, draft)]
    if kinds[0] != kinds[1] or (plans[0].site_time != plans[1].site_time).any():
        raise UserError(
            f"the draft ({kinds[1]}) predicts in another order than this generator ({kinds[0]}): take one of the same"
        )


def starting(c: GeneratorConfig, batch: dict, init: str | Int[np.ndarray, "b n ..."] | None) -> Start:
    """What Jacobi decoding begins from, for all rows."""
    layout, rows = c.layout, len(next(iter(batch.values())))
    shape = (rows, layout.sites, layout.groups) if layout.groups > 1 else (rows, layout.sites)
    if init is None or isinstance(init, str):
        return Start(np.int32(INITS.index(init or "law")), np.zeros(shape, np.int32))
    init = np.asarray(init, np.int32)
    if init.shape != shape:
        raise UserError(f"init has shape {init.shape}; give tokens {shape}, a row for each picture")
    if init.min() < 0 or init.max() >= layout.codebook_size:
        raise UserError(f"init must hold tokens in 0 .. {layout.codebook_size - 1}; found {init.min()} .. {init.max()}")
    return Start(np.int32(len(INITS)), in_order(c, batch, init))


def auto_window(c: GeneratorConfig, params: dict, rows: int, itemsize: int) -> int:
    """As many sites as one forward computes while it reads weights and cache: up to there they are free. The power of two
    below: a CPU takes longer for 14 rows than for 16.

    `rows`: of the transformer, guided pairs included; `params`: of decode_params.
    """
    kind = jax.local_devices()[0].device_kind.lower()
    per_byte = next((number for name, number in OPERATIONS_PER_BYTE.items() if name in kind), OTHER_DEVICE)
    weights = sum(p.size for p in jax.tree.leaves((params["layers"], params["ends"]["heads"])))
    length = c.condition.slots + c.layout.sites / 2  # read on average
    cache = 2 * c.layers * (c.block.kv_heads or c.block.heads) * c.block.head_dim * length
    operations = rows * (2 * weights + 4 * c.layers * c.block.width * length)
    free = per_byte * itemsize * (weights + rows * cache) / operations
    return int(np.clip(2 ** np.floor(np.log2(free)), 2, min(LARGEST_WINDOW, max(2, c.layout.sites - 1))))

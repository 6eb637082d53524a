"""Vectors <-> ids: one module a kind of quantizer, its weights of losses in its configuration.

Each module has the same functions over a configuration and its parameters (an empty dict where there is nothing to learn):
`init(config, key)`, `nearest(config, params, latents) -> ids`, `lookup(config, params, ids) -> codes`, and for training
`quantize(config, params, latents) -> Quantized`. A configuration has `dim` (channels of a code), `size` (ids are below it) and
`groups` (ids a site).
"""

from types import ModuleType

from . import binary, fsq, vq

Quantizer = vq.VQ | binary.LFQ | binary.BSQ | fsq.FSQ
_MODULES = {vq.VQ: vq, binary.LFQ: binary, binary.BSQ: binary, fsq.FSQ: fsq}


def functions(config: Quantizer) -> ModuleType:
    """The module that implements a configuration."""
    return _MODULES[type(config)]

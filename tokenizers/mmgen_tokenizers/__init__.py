"""Image tokenizers in JAX: pictures <-> ids.

>>> import mmgen_tokenizers as mt
>>> tok = mt.load("folder")              # an exported or converted folder, or a run folder
>>> ids = tok.encode(images)             # [B, H, W, 3] uint8, or float32 in [-1, 1] -> int32 [B, N]
>>> pictures = tok.decode(ids)           # float32 [B, H, W, 3] in [-1, 1]

The names below are imported when first used, so that `import mmgen_tokenizers` itself is immediate.
"""

import importlib

_HOMES = {
    "api": ("Tokenizer", "convert", "load"),
    "errors": ("UserError",),
    "families.flexible": ("Flexible",),
    "families.multiscale": ("MultiScale",),
    "families.pixels": ("Pixels",),
    "families.titok": ("Proxy", "TiTok"),
    "families.vqgan": ("VQGAN",),
    "layout": ("TokenLayout",),
    "losses": ("TokenizerLosses",),
    "networks.cnn": ("CNN",),
    "networks.discriminator": ("PatchGAN",),
    "networks.vit": ("Trunk", "ViT"),
    "quantizers.binary": ("BSQ", "LFQ"),
    "quantizers.fsq": ("FSQ",),
    "quantizers.multiscale": ("MultiScaleVQ",),
    "quantizers.vq": ("VQ",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

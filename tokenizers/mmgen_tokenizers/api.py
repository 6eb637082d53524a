"""Tokenizer: what a user holds. Pictures -> ids -> pictures, saved and loaded as a folder."""

import copy
import dataclasses
import functools
import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int, Int8, UInt8
from PIL import Image

from .configs import changed, from_json, to_json
from .errors import UserError, nearest
from .families import flexible, multiscale, pixels, titok, vqgan
from .families.flexible import Flexible
from .families.multiscale import MultiScale
from .families.pixels import Pixels
from .families.titok import TiTok
from .families.vqgan import VQGAN
from .files import (
    check_shapes,
    check_target,
    flatten,
    load_arrays,
    read_json,
    save_arrays,
    temporary_beside,
    unflatten,
    write_json,
)
from .layout import TokenLayout
from .pictures import stack
from .quantizers.binary import LFQ, ids_to_bits

FORMAT = 1  # of the saved folder
Config = VQGAN | MultiScale | TiTok | Flexible | Pixels
FAMILIES = {  # name in config.json -> configuration, functions
    "vqgan": (VQGAN, vqgan),
    "multiscale": (MultiScale, multiscale),
    "titok": (TiTok, titok),
    "flexible": (Flexible, flexible),
    "pixels": (Pixels, pixels),
}
PIXELS = 2**20  # a chunk of a large batch: 16 pictures of 256 x 256

Images = UInt8[np.ndarray, "B H W 3"] | Float[np.ndarray, "B H W 3"] | Image.Image | Sequence[Image.Image]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _encode(family: Any, config: Any, dtype: str, params: dict, images: Images) -> Int[jax.Array, "B N *G"]:
    signed = images.astype(jnp.float32) / 127.5 - 1 if images.dtype == jnp.uint8 else images
    return family.encode(config, params, signed, jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _decode(
    family: Any, config: Any, dtype: str, grid: tuple[int, int], params: dict, ids: Int[jax.Array, "B N *G"]
) -> Float[jax.Array, "B H W 3"]:
    return jnp.clip(family.decode(config, params, ids, *grid, jnp.dtype(dtype)), -1, 1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _next_input(
    family: Any, config: Any, grid: tuple[int, int], params: dict, ids: Int[jax.Array, "B M"]
) -> Float[jax.Array, "B L C"]:
    return family.next_input(config, params, ids, *grid)


def family_of(config: Config) -> tuple[str, Any]:
    """The name of its family, and the module with the family's functions."""
    return next((name, functions) for name, (kind, functions) in FAMILIES.items() if type(config) is kind)


def _chunks(function, array: np.ndarray, chunk: int, rows: NamedSharding | None) -> np.ndarray:
    """function over pieces of at most `chunk` rows a device, each padded to a power of two: few shapes, so few compilations.
    `rows`: which devices share them."""
    done, devices = [], 1 if rows is None else rows.num_devices
    for start in range(0, len(array), chunk * devices):
        piece = array[start : start + chunk * devices]
        size = devices << (-(-len(piece) // devices) - 1).bit_length()
        padded = np.concatenate([piece, np.repeat(piece[:1], size - len(piece), 0)])
        done.append(np.asarray(function(padded if rows is None else jax.device_put(padded, rows)))[: len(piece)])
    return np.concatenate(done)


def _chunk(pixels: int) -> int:
    """Pictures a chunk for pictures of that many pixels: a power of two, at most 256."""
    return 1 << min(8, max(0, (PIXELS // pixels).bit_length() - 1))


class Tokenizer:
    """A configuration and its parameters. Immutable: training makes new ones."""

    def __init__(
        self,
        config: Config,
        params: dict,
        source: str | None = None,
        buffers: dict[str, np.ndarray] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ):
        """`params`: as families.*.init gives them. `dtype`: what the networks compute in; bfloat16 is faster on accelerators
        and moves some ids. `source`: the family of published weights that it was converted from, with `buffers`, tensors
        of that checkpoint which are not used here and are given back on export."""
        self.config, self.source, self.buffers, self.dtype = config, source, buffers or {}, dtype
        self.params, self._rows = jax.tree.map(jnp.asarray, params), None
        self.family, self._functions = family_of(config)

    def over(self, devices: Iterable[jax.Device]) -> "Tokenizer":
        """The same one, whose weights are on all of these devices, which share the pictures."""
        other, mesh = copy.copy(self), Mesh(np.array(list(devices)), ("pictures",))
        other.params = jax.device_put(self.params, NamedSharding(mesh, P()))
        other._rows = NamedSharding(mesh, P("pictures"))
        return other

    def __str__(self) -> str:
        count, size = sum(leaf.size for leaf in jax.tree.leaves(self.params)) / 1e6, self.config.image_size
        return f"{self.family}, {count:.2f}M parameters, {size} x {size} pixels -> {self.layout}"

    def __repr__(self) -> str:
        return f"Tokenizer({self})"

    @property
    def layout(self) -> TokenLayout:
        """Of pictures of the training resolution."""
        return self.layout_for(self.config.image_size, self.config.image_size)

    @property
    def factor(self) -> int | None:
        """Pixels a token on a side, where pictures of any multiple of it are taken; None where they have one size."""
        return getattr(self.config, "factor", None)

    def layout_for(self, height: int, width: int) -> TokenLayout:
        """Of pictures of height x width pixels. Raises UserError where the tokenizer cannot take them."""
        return self._functions.layout(self.config, height, width)

    def encode(self, images: Images) -> Int[np.ndarray, "B N *G"]:
        """Pictures, uint8 or float32 in [-1, 1], of any batch size -> ids int32 in the order of the layout; with a last axis G
        where it has groups. numpy and jax arrays, or Pillow's pictures (one, or a list of one size)."""
        images = _checked_images(images)
        self.layout_for(*images.shape[1:3])
        encode = functools.partial(_encode, self._functions, self.config, self.dtype, self.params)
        return _chunks(encode, images, _chunk(images.shape[1] * images.shape[2]), self._rows)

    def encode_bits(self, images: Images) -> Int8[np.ndarray, "B N K"]:
        """The bits (0 or 1) of binary codes in the order of the latent's channels, whatever the order and groups of the ids:
        quantizers.binary.bits_to_ids makes the ids of them. Raises UserError where codes are not binary."""
        quantizer = getattr(self.config, "quantizer", self.config)  # pixels have none
        if not isinstance(quantizer, LFQ):
            raise UserError(f"the codes of a {type(quantizer).__name__} are not bits, those of LFQ and BSQ are: use encode")
        return np.asarray(ids_to_bits(quantizer, self.encode(images)))

    def decode(self, ids: Int[np.ndarray, "B N *G"], layout: TokenLayout | None = None) -> Float[np.ndarray, "B H W 3"]:
        """Ids -> pictures float32, clamped to [-1, 1]. The first ids alone, as many as layout.prefixes says, give a coarse one.

        `layout`: where the pictures are neither of the training resolution nor square (see layout_for).
        """
        ids = self._checked_ids(ids)
        layout = self._fitting(ids, layout)
        if layout.ordered:  # one program for every k
            absent = np.full((len(ids), layout.sites - ids.shape[1], *ids.shape[2:]), -1, np.int32)
            ids = np.concatenate([ids, absent], 1)
        cells = self.layout.height * self.layout.width
        pixels = self.config.image_size**2 * layout.height * layout.width // cells
        grid = (layout.height, layout.width)
        decode = functools.partial(_decode, self._functions, self.config, self.dtype, grid, self.params)
        return _chunks(decode, ids, _chunk(pixels), self._rows)

    def embed(self, ids: Int[np.ndarray, "B N *G"]) -> Float[np.ndarray, "B N C"]:
        """Code vectors, float32, as the decoder consumes them."""
        return np.asarray(self._functions.embed(self.config, self.params, jnp.asarray(self._checked_ids(ids))))

    def next_input(self, ids: Int[np.ndarray, "B M"], layout: TokenLayout | None = None) -> Float[np.ndarray, "B L C"]:
        """Ids of the first scales -> what a next-scale transformer reads at the sites of the second scale up to the one after
        them, float32. `layout`: as for decode."""
        ids = self._checked_ids(ids)
        layout = self._fitting(ids, layout)
        if not layout.scales:
            raise UserError(f"next_input is for tokenizers of several scales, and this one gives {layout}")
        grid = (layout.height, layout.width)
        read = functools.partial(_next_input, self._functions, self.config, grid, self.params)
        return _chunks(read, ids, _chunk(layout.sites * self.config.quantizer.dim), self._rows)

    def _fitting(self, ids: Int[np.ndarray, "B N"], layout: TokenLayout | None) -> TokenLayout:
        """The layout, where none is given that of training or a square grid. Raises UserError where the ids are not of it."""
        layout, count = layout or self._square(ids.shape[1]), ids.shape[1]
        if count not in layout.prefixes:
            whole = f" (of the first scales {', '.join(map(str, layout.prefixes))})" if layout.scales else ""
            raise UserError(
                f"{count} ids a picture, but the layout is {layout}{whole}:"
                " for pictures of another shape pass layout=tok.layout_for(height, width)"
            )
        return layout

    def _square(self, sites: int) -> TokenLayout:
        """The layout of training, or the square grid of so many sites."""
        side = math.isqrt(sites)
        if sites == self.layout.sites or side * side != sites or self.layout.kind != "grid":
            return self.layout
        return dataclasses.replace(self.layout, height=side, width=side)

    def _checked_ids(self, ids: Int[np.ndarray, "B N *G"]) -> Int[np.ndarray, "B N *G"]:
        ids, groups, size = np.asarray(ids), self.layout.groups, self.layout.codebook_size
        shape = "[B, N]" if groups == 1 else f"[B, N, {groups}]"
        fits = ids.ndim == 2 if groups == 1 else ids.ndim == 3 and ids.shape[2] == groups
        if not fits or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise UserError(f"expected ids {shape} of integers, got {ids.dtype} {list(ids.shape)}")
        if ids.min() < 0 or ids.max() >= size:
            raise UserError(
                f"ids reach from {ids.min()} to {ids.max()}, but the codebook has codes 0 to {size - 1}: another tokenizer's?"
            )
        return ids.astype(np.int32)

    def save(self, folder: str | Path) -> None:
        """Write `folder`: config.json, model.safetensors. A new folder appears whole or not at all; of an old one each file."""
        folder = Path(folder)
        if folder.exists():
            return self._write(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = temporary_beside(folder)
        try:
            self._write(part)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        save_arrays(folder, self.params)
        if self.buffers:
            save_arrays(folder, unflatten(self.buffers), stem="reference_buffers")
        else:  # of a tokenizer that was here
            (folder / "reference_buffers.safetensors").unlink(missing_ok=True)
        write_json(folder / "config.json", self._description())

    def _description(self) -> dict[str, Any]:
        about = {"format": FORMAT, "kind": "tokenizer", "family": self.family, "source": self.source}
        return {**about, "fingerprint": self.fingerprint, "config": to_json(self.config)}

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the configuration and weights: token shards say by it which tokenizer made them.

        Settings that have their defaults do not count, so that a later version with more settings gives the same digits.
        """
        digest = hashlib.sha256(json.dumps(changed(self.config), sort_keys=True).encode())
        for name, value in sorted(flatten(self.params).items()):
            array = np.ascontiguousarray(value, dtype=np.float32)
            digest.update(f"{name} {array.shape}".encode())
            digest.update(array.data)
        return digest.hexdigest()[:16]


def _checked_images(images: Images) -> Images:
    """float32 or uint8 [B, H, W, 3], or UserError."""
    first = images[0] if isinstance(images, list | tuple) and images else images
    images = stack(images) if isinstance(first, Image.Image) else np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        remedy = ": drop or repeat channels, or pass Pillow's pictures" if images.shape[-1:] in ((1,), (2,), (4,)) else ""
        raise UserError(f"expected pictures [B, H, W, 3] with 3 channels last, got {list(images.shape)}{remedy}")
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"expected pictures of uint8 or of float32 in [-1, 1], got {images.dtype}")
    low, high = images.min(), images.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError("the pictures hold NaN or infinite pixels")
    if low < -1.01 or high > 1.01:
        raise UserError(
            f"float pictures must be in [-1, 1], these reach from {low:g} to {high:g}: pass uint8, or x / 127.5 - 1"
        )
    return images.astype(np.float32)


def load(folder: str | Path, dtype: Literal["float32", "bfloat16"] = "float32") -> Tokenizer:
    """The tokenizer of an exported or converted folder, of a run (its export/), or of a generator (its tokenizer/).

    `dtype`: what its networks compute in; bfloat16 is faster on accelerators and moves some ids.
    """
    folder, about = _find(Path(folder))
    kind = FAMILIES.get(about.get("family"))
    if kind is None:
        raise UserError(
            f"{folder}/config.json: unknown family {about.get('family')!r}.{nearest(about.get('family'), FAMILIES)}"
        )
    if about.get("format", 0) > FORMAT:
        raise UserError(f"{folder} has format {about['format']}, this version reads up to {FORMAT}: upgrade mmgen-tokenizers")
    config = from_json(kind[0], about.get("config"), f"{folder}/config.json: config")
    params = load_arrays(folder)
    check_shapes(folder, params, shapes(config))
    held = (folder / "reference_buffers.safetensors").is_file()
    buffers = flatten(load_arrays(folder, stem="reference_buffers")) if held else None
    return Tokenizer(config, params, about.get("source"), buffers, dtype)


def _find(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder itself, its export/ or its tokenizer/, whichever is a tokenizer; with its config.json."""
    found = None
    for place in (folder, folder / "export", folder / "tokenizer", folder / "export" / "tokenizer"):
        if (place / "config.json").is_file():
            about = read_json(place / "config.json")
            if about.get("kind") == "tokenizer":
                return place, about
            found = place
    if found is not None:
        raise UserError(f"{found} holds no tokenizer: neither it nor its tokenizer/ has a config.json of one")
    read_json(folder / "config.json")  # raises: absent
    raise AssertionError


def shapes(config: Config) -> dict:
    """The parameters of a configuration as jax.ShapeDtypeStruct, nothing allocated."""
    return jax.eval_shape(functools.partial(family_of(config)[1].init, config), jax.random.key(0))


def convert(
    family: str, checkpoint: str | Path, out: str | Path | None = None, config: dict[str, Any] | None = None
) -> Tokenizer:
    """A published checkpoint (safetensors, .pt, .ckpt; see pretrained/) -> a Tokenizer, saved as the folder `out` if given.

    `config` takes the reference's own keys, documented in pretrained/<family>.py; None: what the weights say. Raises UserError
    listing tensors that are missing, extra or of another shape.
    """
    from .pretrained import FAMILIES as published

    if family not in published:
        raise UserError(f"unknown family {family!r}; there are {', '.join(published)}.{nearest(family, published)}")
    if out is not None:
        check_target(out, checkpoint)
    tokenizer = published[family].convert(checkpoint, config)
    if out is not None:
        tokenizer.save(out)
    return tokenizer

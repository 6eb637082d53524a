"""Pictures: files of every kind -> uint8 [H, W, 3], squares for training, grids and PNG files of results."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageOps, PngImagePlugin

from .errors import UserError
from .files import write_atomically

MAX_PIXELS = 1 << 27  # 134 million: 400 MB as RGB. What claims more is refused before it is unpacked.
LINE, LETTER = 12, 6  # pixels of a caption, from line to line and, at most on the average, from letter to letter
SMALLEST_CROP = 0.8  # random crops show at least this fraction of the shorter side
# Formats that Pillow decodes itself. Not EPS, whose plug-in runs Ghostscript on the file.
FORMATS = "PNG JPEG MPO JPEG2000 WEBP AVIF GIF BMP DIB ICO TIFF PPM PSD TGA PCX QOI".split()

Picture = UInt8[np.ndarray, "H W 3"]


class PictureError(UserError):
    """A file that cannot be read as a picture: damaged, of another type, or far too large."""


def _available_formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # AVIF and JPEG2000 depend on how Pillow was built


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF (or XMP) orientation says. Unreadable EXIF says nothing: the picture is taken as it lies."""
    try:
        return ImageOps.exif_transpose(image)
    except ImportError:  # of Pillow's own modules: no fault of the file
        raise
    except Exception:  # EXIF is a second file format, with damage of its own
        return image


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)


def _grey16(image: Image.Image) -> Picture:
    """16 bits a pixel (in Pillow's modes I;16 and I) to 8: scaled by 255 / 65535, where convert() would clip."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise PictureError("its integers need more than 16 bits: convert it to 8 or 16 bits")
    grey = _to_8_bits(values)
    if isinstance(key := image.info.get("transparency"), int):  # one grey value of a PNG is transparent
        grey[values == key] = 255
    return np.repeat(grey[:, :, None], 3, axis=2)


def _grey_float(image: Image.Image) -> Picture:
    """Float pixels: 0..1 or 0..255, told apart by the largest; anything else has no known scale."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
        raise PictureError("its floats lie outside of 0..1 and 0..255: convert it to 8 or 16 bits")
    grey = np.rint(values * (255 if values.max() <= 1 else 1)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _rgb(image: Image.Image) -> Picture:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey16(image)
    if image.mode == "F":
        return _grey_float(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _decode(data: bytes) -> Picture:
    if not data:
        raise PictureError("it is empty")
    with Image.open(io.BytesIO(data), formats=_available_formats()) as image:
        width, height = image.size
        if not 0 < width * height <= MAX_PIXELS:
            raise PictureError(f"it claims {width} x {height} pixels, the limit is {MAX_PIXELS:,}")
        image.load()  # once: some damaged PNGs raise at the first load and pass at the second
        return _rgb(_upright(image))


def read_picture(source: str | Path | bytes) -> Picture:
    """Reads a picture as uint8 [H, W, 3], judged by its content, whatever its name says.

    Turned upright by EXIF, 16 bits and floats scaled to 8, palette, grey, CMYK and Lab converted, transparency laid on
    white, the first frame of an animation. Raises `PictureError` that names the file and the cause; never a part of a
    picture, and never more than 134 million pixels.
    """
    name = "the picture" if isinstance(source, bytes) else str(source)
    try:
        return _decode(source if isinstance(source, bytes) else Path(source).read_bytes())
    except PictureError as error:
        raise PictureError(f"cannot read {name}: {error}") from None
    except Image.UnidentifiedImageError:
        raise PictureError(f"cannot read {name}: it is no picture of a known format") from None
    except MemoryError:
        raise PictureError(f"cannot read {name}: it asks for more memory than there is") from None
    except ImportError:  # of Pillow's own modules: no fault of the file
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise PictureError(f"cannot read {name}: {error}") from None


def as_rgb(array: np.ndarray) -> Picture:
    """uint8 or uint16 [H, W, 1, 3 or 4] -> uint8 [H, W, 3], transparency laid on white. Raises `PictureError` for the rest."""
    if array.dtype == np.uint16:
        array = _to_8_bits(array)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise PictureError(f"{array.dtype} {list(array.shape)} is no picture of 8 or 16 bits, grey, RGB or RGBA")
    if array.shape[-1] == 1:
        return np.repeat(array, 3, axis=-1)
    return _rgb(Image.fromarray(array))


def stack(images: Image.Image | Sequence[Image.Image]) -> UInt8[np.ndarray, "B H W 3"]:
    """Pillow's pictures, read as files are (see `read_picture`); of one size, or `UserError`."""
    images = [images] if isinstance(images, Image.Image) else images
    pictures = [_rgb(_upright(image)) for image in images]
    sizes = {picture.shape[:2] for picture in pictures}
    if len(sizes) > 1:
        shown = ", ".join(f"{height} x {width}" for height, width in sorted(sizes)[:4])
        raise UserError(f"pictures of one batch must have one size, these have {shown}: crop them, or encode them one by one")
    return np.stack(pictures)


def is_picture(path: str | Path) -> bool:
    """Whether the file begins like a picture of a known format. It may still be damaged."""
    try:
        with Image.open(path, formats=_available_formats()):
            return True
    except Exception:  # as in read_picture: anything that a decoder raises
        return False


# Squares -----------------------------------------------------------------------------------------------------------


def resize_shorter(picture: Picture, size: int) -> Picture:
    """Scales so that the shorter side has `size` pixels, with antialiasing (Lanczos)."""
    height, width = picture.shape[:2]
    shorter = min(height, width)
    if shorter == size:
        return picture
    shape = (max(size, round(width * size / shorter)), max(size, round(height * size / shorter)))
    return np.array(Image.fromarray(picture).resize(shape, Image.Resampling.LANCZOS))


def center_crop(picture: Picture, size: int) -> Picture:
    """The middle `size` x `size` pixels."""
    top, left = (picture.shape[0] - size) // 2, (picture.shape[1] - size) // 2
    return picture[top : top + size, left : left + size]


def adm_crop(picture: Picture, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The middle square as ADM (arXiv 2105.05233) cuts it, for training and for reference sets: halved by averages while the
    shorter side has twice the pixels, then cubic."""
    image = Image.fromarray(picture)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    shape = (round(image.width * scale), round(image.height * scale))
    return center_crop(np.array(image.resize(shape, Image.Resampling.BICUBIC)), size)


def cover(picture: Picture, height: int, width: int) -> Picture:
    """The middle of the picture in the aspect of `height` x `width`, scaled to it with antialiasing; nothing is stretched."""
    rows, columns = picture.shape[:2]
    wide, high = min(columns, rows * width / height), min(rows, columns * height / width)
    left, top = (columns - wide) / 2, (rows - high) / 2
    box = (left, top, left + wide, top + high)
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS, box))


def fit(
    picture: Picture,
    size: int,
    crop: Literal["center", "random"] = "center",
    flip: bool = False,
    rng: np.random.Generator | None = None,
    margin: float | None = None,
) -> UInt8[np.ndarray, "size size 3"]:
    """A square of `size` pixels: the shorter side scaled, the longer one cropped.

    "random" crops show 80% to 100% of the shorter side at a random place (as in ADM, arXiv 2105.05233), or 1 / `margin` of it
    (VAR, arXiv 2404.02905); `flip` mirrors every second picture. Both draw from `rng`, which they need.
    """
    if crop == "random":
        shorter = int(size * margin) if margin else int(rng.integers(size, int(size / SMALLEST_CROP) + 1))
        picture = resize_shorter(picture, shorter)
        top, left = (int(rng.integers(0, side - size + 1)) for side in picture.shape[:2])
        picture = picture[top : top + size, left : left + size]
    else:
        picture = center_crop(resize_shorter(picture, size), size)
    if flip and rng.random() < 0.5:
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture)


def ten_crop(picture: Picture, size: int, margin: float) -> UInt8[np.ndarray, "10 size size 3"]:
    """Four corners and the middle of the central square of margin x `size` pixels, and the same five of its mirror image.

    The crops that LlamaGen (arXiv 2406.06525) and RAR (arXiv 2411.00776) train on: margin 1.1, and LlamaGen's 1.05 besides.
    """
    side = int(size * margin)
    square = center_crop(resize_shorter(picture, side), side)
    far = side - size

    def five(square: np.ndarray) -> list[np.ndarray]:
        corners = [(0, 0), (0, far), (far, 0), (far, far)]
        return [square[y : y + size, x : x + size] for y, x in corners] + [center_crop(square, size)]

    return np.stack(five(square) + five(square[:, ::-1]))


# Results -----------------------------------------------------------------------------------------------------------


def to_float(pictures: UInt8[np.ndarray, "*B H W 3"]) -> Float[np.ndarray, "*B H W 3"]:
    """uint8 0..255 -> float32 -1..1; within a traced program too, which has then a quarter of the bytes to copy."""
    return pictures.astype(np.float32) / 127.5 - 1


def to_uint8(pictures: Float[np.ndarray, "*B H W 3"]) -> UInt8[np.ndarray, "*B H W 3"]:
    """Float -1..1 (clamped) -> uint8 0..255; uint8 stays as it is."""
    pictures = np.asarray(pictures)
    if pictures.dtype == np.uint8:
        return pictures
    return np.rint((np.clip(pictures.astype(np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def grid(pictures: Float[np.ndarray, "B H W 3"], columns: int, gap: int = 2) -> Picture:
    """Pictures (uint8, or float in -1..1) side by side in rows of `columns`, with `gap` white pixels between."""
    pictures = to_uint8(pictures)
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    page = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        page[top : top + height, left : left + width] = picture
    return page


def enlarged(picture: Picture, width: int) -> Picture:
    """The picture with each pixel as so many that it is at least `width` pixels wide."""
    times = -(-width // picture.shape[1])
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def with_caption(picture: Picture, text: str, lines: int = 1) -> Picture:
    """The picture with a strip for so many lines of text under it."""
    strip = Image.new("RGB", (picture.shape[1], 2 + LINE * lines), "white")
    ImageDraw.Draw(strip).multiline_text((1, 1), text, fill="black", spacing=1)
    return np.concatenate([picture, np.asarray(strip)])


def with_captions(pictures: UInt8[np.ndarray, "B H W 3"], texts: Sequence[str], width: int = 128, lines: int = 5) -> np.ndarray:
    """Pictures to look at: enlarged to at least `width` pixels across, with the texts under them in up to `lines` lines."""
    pictures = [enlarged(picture, width) for picture in pictures]
    across = pictures[0].shape[1] // LETTER
    wrapped = [textwrap.wrap(text, across, max_lines=lines, placeholder=" ...") for text in texts]
    most = max(map(len, wrapped))
    return np.stack([with_caption(picture, "\n".join(text), most) for picture, text in zip(pictures, wrapped, strict=True)])


def png_bytes(picture: Picture, text: Mapping[str, str] | None = None) -> bytes:
    """A PNG file's content; `text` becomes its international text chunks."""
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, str(value))
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(picture)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def write_png(path: str | Path, picture: Picture, text: Mapping[str, str] | None = None) -> None:
    """Writes a picture (uint8, or float in -1..1), whole or not at all, with `text` as PNG metadata."""
    write_atomically(path, png_bytes(picture, text))

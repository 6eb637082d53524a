import io
import json
import struct
import zlib

import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.pictures import (
    PictureError,
    as_rgb,
    center_crop,
    fit,
    grid,
    is_picture,
    png_bytes,
    read_picture,
    resize_shorter,
    ten_crop,
    to_float,
    to_uint8,
    write_png,
)
from PIL import Image, ImageCms

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without sharp edges: red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * x // width, 255 * y // height, np.full_like(x, 90)], -1).astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(rows: np.ndarray, colour: int, extra: bytes = b"") -> bytes:
    """A PNG of 16 bits a sample, [H, W, C]."""
    height, width = rows.shape[:2]
    data = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_plain_pictures_are_exact():
    picture = smooth(12, 9)
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        read = read_picture(saved(Image.fromarray(picture), kind))
        assert read.dtype == np.uint8 and np.array_equal(read, picture), kind


def test_16_bits_are_scaled_not_clipped():
    values = np.array([[0, 128, 256, 257], [1000, 32768, 65278, 65535]], np.uint16)
    expected = np.rint(values * (255 / 65535)).astype(int)
    for data in (png16(values[..., None], 0), saved(Image.fromarray(values), "TIFF"), saved(Image.fromarray(values), "PPM")):
        read = read_picture(data).astype(int)
        assert np.abs(read - expected[..., None]).max() == 0
    colour = np.stack([values, values[::-1], values * 0], -1)
    assert np.abs(read_picture(png16(colour, 2)).astype(int) - np.rint(colour * (255 / 65535))).max() <= 1


def test_a_transparent_grey_of_16_bits_is_white():
    values = np.array([[0, 1000, 65535]], np.uint16)
    read = read_picture(png16(values[..., None], 0, chunk(b"tRNS", struct.pack(">H", 1000))))
    assert read[0, :, 0].tolist() == [0, 255, 255]


def test_integers_of_unknown_scale_are_refused():
    data = saved(Image.fromarray(np.array([[0, 70000]], np.int32)), "TIFF")
    with pytest.raises(PictureError, match="more than 16 bits"):
        read_picture(data)


@pytest.mark.parametrize(("largest", "expected"), [(1.0, [0, 128, 255]), (255.0, [0, 128, 255]), (300.0, None), (np.nan, None)])
def test_floats(largest, expected):
    data = saved(Image.fromarray(np.array([[0, largest / 2, largest]], np.float32)), "TIFF")
    if expected is None:
        with pytest.raises(PictureError, match="floats"):
            read_picture(data)
    else:
        assert read_picture(data)[0, :, 1].tolist() == expected


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    picture = smooth(24, 40)
    turned = Image.fromarray(picture)
    undo = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}.get(orientation, [])
    for method in undo:  # how a camera held like this stores the picture
        turned = turned.transpose(Image.Transpose(method))
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = read_picture(saved(turned, "JPEG", exif=exif, quality=95))
    assert read.shape == picture.shape
    assert np.abs(read.astype(int) - picture).mean() < 3


def test_unreadable_exif_is_ignored():
    picture = smooth(16, 16)
    read = read_picture(saved(Image.fromarray(picture), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95))
    assert np.abs(read.astype(int) - picture).mean() < 3


def test_transparency_is_laid_on_white():
    rgba = np.zeros((1, 4, 4), np.uint8)
    rgba[0, :, :3] = RED
    rgba[0, :, 3] = (255, 0, 128, 51)
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        read = read_picture(saved(Image.fromarray(rgba), kind, **options)).astype(int)
        assert np.abs(read[0] - [RED, WHITE, (255, 127, 127), (255, 204, 204)]).max() <= 1, kind
    grey = Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA")
    assert read_picture(saved(grey))[0, :, 0].tolist() == [10, 255]
    keyed = Image.fromarray(np.array([[RED, BLUE]], np.uint8))
    assert np.array_equal(read_picture(saved(keyed, transparency=BLUE))[0], [RED, WHITE])


def test_palette_with_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    assert np.array_equal(read_picture(saved(image))[0], [RED, GREEN, BLUE])
    assert np.array_equal(read_picture(saved(image, transparency=1))[0], [RED, WHITE, BLUE])
    assert np.array_equal(read_picture(saved(image, transparency=bytes([255, 0, 255])))[0], [RED, WHITE, BLUE])


def test_one_bit_and_grey():
    one = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    assert read_picture(saved(one))[:, :, 2].tolist() == [[0, 255], [255, 0]]
    assert read_picture(saved(Image.fromarray(np.array([[7, 200]], np.uint8))))[0].tolist() == [[7] * 3, [200] * 3]


def test_cmyk():
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow: red
    for kind in ("JPEG", "TIFF"):
        read = read_picture(saved(cmyk, kind)).astype(int)
        assert np.abs(read - RED).max() <= 3, kind


def test_lab():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    picture = Image.fromarray(np.tile(np.array([(200, 60, 50), (40, 160, 70), (70, 90, 190)], np.uint8), (4, 2, 1)))
    transform = ImageCms.buildTransform(srgb, lab, "RGB", "LAB")
    read = read_picture(saved(ImageCms.applyTransform(picture, transform), "TIFF")).astype(int)
    assert np.abs(read - np.asarray(picture)).max() <= 6


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    read = read_picture(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert np.array_equal(read, np.full((8, 8, 3), RED))


def test_the_content_counts_not_the_name(tmp_path):
    (tmp_path / "a.png").write_bytes(saved(Image.fromarray(smooth(20, 20)), "JPEG", quality=95))
    assert np.abs(read_picture(tmp_path / "a.png").astype(int) - smooth(20, 20)).mean() < 3
    (tmp_path / "b.jpg").write_text("<html><body>404</body></html>")
    with pytest.raises(PictureError, match=r"b\.jpg: it is no picture of a known format"):
        read_picture(tmp_path / "b.jpg")
    (tmp_path / "c.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")  # would run Ghostscript
    with pytest.raises(PictureError, match="no picture of a known format"):
        read_picture(tmp_path / "c.png")
    assert is_picture(tmp_path / "a.png") and not is_picture(tmp_path / "b.jpg") and not is_picture(tmp_path)


def test_what_cannot_be_read_names_the_file(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    for name, cause in (("empty.png", "empty"), ("none.png", "No such file"), (".", "directory")):
        with pytest.raises(UserError, match=cause) as caught:
            read_picture(tmp_path / name)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_truncated_pictures_are_refused(kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = saved(Image.fromarray(noise), kind)
    for fraction in (0.02, 0.3, 0.7):
        with pytest.raises(PictureError):
            read_picture(data[: int(len(data) * fraction)])


def test_a_damaged_png_stays_refused():
    """Pillow raises at the first load of some damaged PNGs and is silent at the second."""
    data = bytearray(png_bytes(smooth(64, 64)))
    data[len(data) // 2] ^= 255
    for _ in range(2):
        with pytest.raises(PictureError):
            read_picture(bytes(data))


def test_bombs_are_refused_before_they_unpack():
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    with pytest.raises(PictureError, match="pixels"):
        read_picture(bomb)
    below_pillows_limit = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0)
    with pytest.raises(PictureError, match="claims 12000 x 12000 pixels"):
        read_picture(bomb.replace(chunk(b"IHDR", header), chunk(b"IHDR", below_pillows_limit)))


def test_every_file_of_the_bad_images(shared):
    folder = shared("bad_images")
    for entry in json.loads((folder / "manifest.json").read_text())["files"]:
        if entry["pillow_default"] == "reject":
            with pytest.raises(PictureError, match="cannot read"):
                read_picture(folder / entry["file"])
            continue
        picture = read_picture(folder / entry["file"])
        width, height = entry["observed"]["rgb_size"]
        assert picture.shape == (height, width, 3) and picture.dtype == np.uint8, entry["file"]


def test_the_bad_images_that_can_be_read_are_right(shared):
    folder = shared("bad_images")
    hopper = read_picture(folder / "ok_control_hopper.png").astype(int)
    grey = np.asarray(Image.fromarray(hopper.astype(np.uint8)).convert("L"))[..., None].astype(int)
    copies = {"hopper.Lab.tif": 3, "hopper_orientation_6.jpg": 6, "hopper_orientation_8.jpg": 6, "gen_jpeg_named.png": 6}
    for name, tolerance in copies.items():
        assert np.abs(read_picture(folder / name) - hopper).mean() < tolerance, name
    assert np.abs(read_picture(folder / "hopper_be.pfm") - grey).mean() < 1
    assert read_picture(folder / "16bit.cropped.tif").max() == round(694 * 255 / 65535)
    for name in ("transparent.png", "transparent.webp", "pil123p.png"):
        assert read_picture(folder / name)[-1, -1].tolist() == [255, 255, 255], name
    for name in ("apng_delay.png", "apng_mode_16bit.png", "decompression_bomb_extents.gif", "five_channels.psd"):
        assert np.array_equal(np.unique(read_picture(folder / name).reshape(-1, 3), axis=0), [[255, 0, 0]]), name


# ------------------------------------------------------------------------------------------------------------ squares


def test_fit_scales_the_shorter_side_and_takes_the_middle():
    wide = smooth(40, 120)
    assert np.array_equal(fit(wide, 40), wide[:, 40:80])
    half = fit(wide, 20)
    assert half.shape == (20, 20, 3) and half.flags.c_contiguous
    assert (
        np.abs(half.astype(int) - np.asarray(Image.fromarray(wide[:, 40:80]).resize((20, 20), Image.Resampling.BOX))).max() <= 2
    )
    assert fit(smooth(3, 2), 16).shape == fit(smooth(1, 900), 16).shape == (16, 16, 3)


def test_scaling_antialiases():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(fit(stripes, 16)[:, 2:-2].astype(int) - 128).max() <= 2


def test_random_crops_and_flips_come_from_the_generator_alone():
    picture = smooth(50, 80)
    crops = [fit(picture, 32, "random", True, np.random.default_rng(seed)) for seed in range(40)]
    again = [fit(picture, 32, "random", True, np.random.default_rng(seed)) for seed in range(40)]
    assert all(np.array_equal(a, b) for a, b in zip(crops, again, strict=True))
    assert len({crop.tobytes() for crop in crops}) > 30
    mirrored = sum(crop[0, 0, 0] > crop[0, -1, 0] for crop in crops)
    assert 8 < mirrored < 32
    spans = [int(crop[-1, 0, 1]) - int(crop[0, 0, 1]) for crop in crops]  # green grows by 255 over the whole height
    assert 0.75 * 255 < min(spans) < 0.85 * 255 and max(spans) > 0.95 * 245


def test_ten_crop():
    picture = smooth(44, 60)
    crops = ten_crop(picture, 40, 1.1)
    square = center_crop(picture, 44)
    assert crops.shape == (10, 40, 40, 3)
    for crop, (y, x) in zip(crops, [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)], strict=False):
        assert np.array_equal(crop, square[y : y + 40, x : x + 40])
    assert np.array_equal(crops[5], square[:, ::-1][:40, :40]) and np.array_equal(crops[9], crops[4][:, ::-1])
    assert ten_crop(picture, 40, 1.05).shape == (10, 40, 40, 3)
    assert resize_shorter(picture, 44) is picture


def test_as_rgb():
    grey = np.array([[[3], [200]]], np.uint8)
    assert np.array_equal(as_rgb(grey), np.repeat(grey, 3, -1))
    assert as_rgb(np.array([[[65535, 257, 0]]], np.uint16)).tolist() == [[[255, 1, 0]]]
    assert as_rgb(np.array([[[255, 0, 0, 0]]], np.uint8)).tolist() == [[[255, 255, 255]]]
    with pytest.raises(PictureError, match="float32"):
        as_rgb(np.zeros((2, 2, 3), np.float32))


# ------------------------------------------------------------------------------------------------------------ results


def test_values():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    assert to_float(every).min() == -1 and to_float(every).max() == 1 and to_float(every).dtype == np.float32
    assert np.array_equal(to_uint8(to_float(every)), every)
    assert to_uint8(np.array([-7.0, 7.0])).tolist() == [0, 255] and to_uint8(every) is every


def test_grid():
    page = grid(np.stack([smooth(4, 6)] * 5), columns=3, gap=2)
    assert page.shape == (4 * 2 + 2, 6 * 3 + 4, 3)
    assert np.array_equal(page[6:, 8:14], smooth(4, 6)) and (page[6:, 16:] == 255).all() and (page[4:6] == 255).all()
    assert np.array_equal(grid(to_float(np.stack([smooth(4, 6)] * 5)), 3), page)


def test_png_with_text(tmp_path):
    path = tmp_path / "new" / "a.png"
    write_png(path, to_float(smooth(8, 8)), {"prompt": "ein rötliches 😀", "seed": "3"})
    assert np.array_equal(read_picture(path), smooth(8, 8)) and [p.name for p in path.parent.iterdir()] == ["a.png"]
    with Image.open(path) as image:
        assert image.text == {"prompt": "ein rötliches 😀", "seed": "3"}


def test_a_fault_of_the_installation_is_no_damage(monkeypatch):
    def broken(*_, **__):
        raise ImportError("no decoder")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(ImportError, match="no decoder"):  # else every picture would count as damaged
        read_picture(b"x")

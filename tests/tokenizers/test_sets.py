"""Sets of pictures that are scored: arrays, folders of arrays, folders of pictures; how these are cut."""

import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.evaluation.sets import open_pictures
from mmgen_tokenizers.pictures import adm_crop, png_bytes, write_png
from PIL import Image


def pictures(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def all_of(found, rows=3):
    return np.concatenate(list(found.batches(rows)))


def test_arrays_are_streamed_in_pieces(tmp_path):
    first, second = pictures(0, 7, 6, 5), pictures(1, 2, 6, 5)
    np.savez(tmp_path / "0.npz", arr_0=first, arr_1=np.arange(7))
    np.savez_compressed(tmp_path / "1.npz", arr_0=second)
    found = open_pictures(tmp_path / "0.npz")
    assert (len(found), found.size) == (7, (6, 5)) and [len(b) for b in found.batches(3)] == [3, 3, 1]
    np.testing.assert_array_equal(all_of(found), first)
    np.testing.assert_array_equal(all_of(open_pictures(tmp_path)), np.concatenate([first, second]))


def test_a_folder_is_cut_mixed_and_what_is_damaged_left_out(tmp_path, capsys):
    for i in range(6):
        write_png(tmp_path / f"class_{i // 3}" / f"{i}.png", np.full((10, 8 + i, 3), 40 * i, np.uint8))
    (tmp_path / "class_0" / "bad.png").write_bytes(png_bytes(pictures(0, 30, 30))[:500])
    found = open_pictures(tmp_path, (8, 8))
    values = all_of(found)[:, 0, 0, 0].tolist()
    assert sorted(values) == [0, 40, 80, 120, 160, 200] != values and found.size == (8, 8)
    assert values == all_of(open_pictures(tmp_path, (8, 8)))[:, 0, 0, 0].tolist()
    assert found.skipped == 1 and "bad.png" in capsys.readouterr().err


def test_a_folder_without_size_keeps_that_of_its_pictures(tmp_path):
    image = pictures(0, 6, 9)
    write_png(tmp_path / "a.png", image)
    Image.fromarray(image[..., 0]).save(tmp_path / "b.png")  # grey
    found = all_of(open_pictures(tmp_path))
    assert found.shape == (2, 6, 9, 3) and any((x == image).all() for x in found)
    write_png(tmp_path / "c.png", pictures(1, 9, 6))
    with pytest.raises(UserError, match="has pictures of . x . and of . x .: say with --size PIXELS"):
        all_of(open_pictures(tmp_path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": pictures(0, 4, 5, 5)[..., 0]}, r"arr_0 is uint8 \[4, 5, 5\]; pictures are uint8 \[N, H, W, 3\]"),
        ({"arr_0": np.zeros((4, 5, 5, 3), np.float32)}, "arr_0 is float32"),
        ({"arr_0": pictures(0, 0, 5, 5)}, "arr_0 is"),
        ({"tokens": np.zeros(3)}, "no .npz with pictures under arr_0"),
    ],
)
def test_arrays_that_are_no_pictures(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=message):
        open_pictures(tmp_path / "x.npz")


def test_files_that_do_not_serve(tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=pictures(0, 4, 5, 5))
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:100])
    (tmp_path / "empty").mkdir()
    for name, message in (("cut.npz", "no .npz with pictures"), ("empty", "there are no pictures in")):
        with pytest.raises(UserError, match=message):
            open_pictures(tmp_path / name)
    with pytest.raises(UserError, match="has pictures of 5 x 5, not of 8 x 8"):
        open_pictures(tmp_path / "x.npz", (8, 8))
    (tmp_path / "cut.npz").unlink()
    np.savez(tmp_path / "y.npz", arr_0=pictures(0, 4, 6, 6))
    with pytest.raises(UserError, match="y.npz has pictures of 6 x 6, .*x.npz of 5 x 5"):
        open_pictures(tmp_path)


def test_adm_crop_halves_by_means_then_scales():
    picture = pictures(0, 16, 24)
    small = picture.reshape(8, 2, 12, 2, 3).mean((1, 3))
    found = adm_crop(picture, 8)  # one halving, then nothing is left to scale
    assert np.abs(found - small[:, 2:10].astype(int)).max() <= 1
    cubic = np.array(Image.fromarray(picture).resize((18, 12), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(adm_crop(picture, 12), cubic[:, 3:15])

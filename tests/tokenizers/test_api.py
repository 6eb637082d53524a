"""The object that a user holds: encode, decode, save, load, and what it refuses."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers import api
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import vqgan
from mmgen_tokenizers.files import load_arrays, save_arrays, write_json
from PIL import Image

NET = mt.CNN(4, (1, 1), 1, 1, attention_levels=(), middle_blocks=1, middle_attention=False, latent=4, groups=2, stem=2)
CONFIG = mt.VQGAN(NET, mt.VQ(size=32, dim=4), image_size=16)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tok():
    return mt.Tokenizer(CONFIG, vqgan.init(CONFIG, jax.random.key(0)))


def test_layout(tok):
    assert tok.layout == mt.TokenLayout(height=4, width=4, codebook_size=32)
    assert tok.layout_for(8, 32).sites == 16 and tok.layout_for(8, 32).width == 8
    with pytest.raises(UserError, match="17 is not a multiple of 4; the nearest is 16"):
        tok.layout_for(16, 17)


def test_encode_and_decode_agree_with_the_functions(tok):
    ids = tok.encode(IMAGES)
    assert ids.shape == (5, 16) and ids.dtype == np.int32
    floats = IMAGES.astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(tok.encode(floats), ids)
    np.testing.assert_array_equal(tok.encode(jnp.asarray(floats)), ids)
    np.testing.assert_array_equal(jax.jit(lambda p, x: vqgan.encode(CONFIG, p, x))(tok.params, floats), ids)
    pictures = tok.decode(ids)
    assert pictures.shape == IMAGES.shape and pictures.dtype == np.float32 and np.abs(pictures).max() <= 1
    raw = jax.jit(lambda p, x: vqgan.decode(CONFIG, p, x, 4, 4))(tok.params, ids)
    np.testing.assert_allclose(pictures, np.clip(raw, -1, 1), atol=1e-6)
    np.testing.assert_allclose(tok.embed(ids), vqgan.embed(CONFIG, tok.params, ids))


def test_any_batch_size_with_few_compilations(tok, monkeypatch):
    monkeypatch.setattr(api, "PIXELS", 4 * 16 * 16)  # chunks of 4
    seen = []
    inner = api._encode

    def counting(*arguments):
        seen.append(len(arguments[-1]))
        return inner(*arguments)

    monkeypatch.setattr(api, "_encode", counting)
    images = np.concatenate([IMAGES] * 3)[:11]
    whole = tok.encode(images)
    assert seen == [4, 4, 4] and whole.shape == (11, 16)  # the last 3 padded to 4
    seen.clear()
    for count in range(1, 10):
        np.testing.assert_array_equal(tok.encode(images[:count]), whole[:count])
    assert set(seen) == {1, 2, 4}


def test_pictures_of_other_sizes(tok):
    ids = tok.encode(np.zeros((1, 8, 24, 3), np.uint8))
    assert ids.shape == (1, 12)
    assert tok.decode(ids, tok.layout_for(8, 24)).shape == (1, 8, 24, 3)
    assert tok.decode(np.zeros((1, 9), np.int32)).shape == (1, 12, 12, 3)  # another square needs no layout
    with pytest.raises(UserError, match="layout=tok.layout_for"):
        tok.decode(ids)


@pytest.mark.parametrize(
    "images, words",
    [
        (np.zeros((16, 16, 3), np.uint8), r"\[B, H, W, 3\]"),
        (np.zeros((1, 3, 16, 16), np.uint8), "channels last"),
        (np.zeros((1, 16, 16, 4), np.uint8), r"got \[1, 16, 16, 4\]: drop or repeat channels, or pass Pillow's"),
        (np.zeros((1, 16, 16, 1), np.float32), "drop or repeat channels"),
        (np.zeros((0, 16, 16, 3), np.uint8), r"got \[0, 16"),
        (np.zeros((1, 18, 16, 3), np.uint8), "nearest is"),
        (np.full((1, 16, 16, 3), np.nan, np.float32), "NaN"),
        (np.full((1, 16, 16, 3), 200, np.float32), "from 200 to 200"),
        (np.zeros((1, 16, 16, 3), np.int64), "int64"),
    ],
)
def test_wrong_pictures_are_refused(tok, images, words):
    with pytest.raises(UserError, match=words):
        tok.encode(images)


def test_pictures_of_pillow(tok):
    arrays = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    images = [Image.fromarray(array) for array in arrays]
    np.testing.assert_array_equal(tok.encode(images), tok.encode(arrays))
    np.testing.assert_array_equal(tok.encode(images[0]), tok.encode(arrays[:1]))
    clear = Image.new("LA", (16, 16), (0, 0))  # read as files are: transparency is white
    np.testing.assert_array_equal(tok.encode(clear), tok.encode(np.full((1, 16, 16, 3), 255, np.uint8)))
    with pytest.raises(UserError, match="16 x 16, 16 x 20: crop them"):
        tok.encode([images[0], Image.new("RGB", (20, 16))])


@pytest.mark.parametrize(
    "ids, words",
    [([[32] * 16], "0 to 31"), ([[-1] * 16], "from -1"), ([3] * 16, "B, N"), ([[0.5] * 16], "integers"), ([[]], r"\[1, 0\]")],
)
def test_wrong_ids_are_refused(tok, ids, words):
    with pytest.raises(UserError, match=words):
        tok.decode(np.array(ids))


def test_save_and_load(tok, tmp_path):
    tok.save(tmp_path / "run" / "export")
    assert sorted(p.name for p in (tmp_path / "run" / "export").iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["export"]  # no temporary folder stays
    for folder in (tmp_path / "run", tmp_path / "run" / "export"):
        again = mt.load(folder)
        assert again.config == tok.config and again.fingerprint == tok.fingerprint
        np.testing.assert_array_equal(again.encode(IMAGES), tok.encode(IMAGES))
    about = json.loads((tmp_path / "run" / "export" / "config.json").read_text())
    assert about["format"] == 1 and about["family"] == "vqgan" and about["fingerprint"] == tok.fingerprint
    (tmp_path / "run" / "export" / "notes.txt").write_text("kept")
    tok.save(tmp_path / "run" / "export")
    assert (tmp_path / "run" / "export" / "notes.txt").read_text() == "kept"


def test_load_takes_the_tokenizer_of_a_generator(tok, tmp_path):
    write_json(tmp_path / "config.json", {"format": 1, "family": "generator"})
    with pytest.raises(UserError, match="holds no tokenizer"):
        mt.load(tmp_path)
    tok.save(tmp_path / "tokenizer")
    assert mt.load(tmp_path).fingerprint == tok.fingerprint


def test_fingerprint_tells_weights_and_configurations_apart(tok):
    moved = jax.tree.map(lambda x: x + 1e-6, tok.params)
    commitment = dataclasses.replace(CONFIG, quantizer=dataclasses.replace(CONFIG.quantizer, commitment=0.5))
    prints = {tok.fingerprint, mt.Tokenizer(CONFIG, moved).fingerprint, mt.Tokenizer(commitment, tok.params).fingerprint}
    assert len(prints) == 3 and all(len(p) == 16 for p in prints)
    assert mt.Tokenizer(CONFIG, jax.tree.map(np.asarray, tok.params)).fingerprint == tok.fingerprint


def test_bfloat16_where_asked(tok, tmp_path):
    tok.save(tmp_path / "tok")
    rough = mt.load(tmp_path / "tok", dtype="bfloat16")
    ids = tok.encode(IMAGES)
    difference = np.abs(rough.decode(ids) - tok.decode(ids))
    assert 0 < difference.max() < 0.1


def test_damaged_folders_are_explained(tok, tmp_path):
    tok.save(tmp_path / "tok")
    with pytest.raises(UserError, match="Did you mean 'tok'"):
        mt.load(tmp_path / "tik")
    params = load_arrays(tmp_path / "tok")
    params["quantizer"]["codebook"] = params["quantizer"]["codebook"][:16]
    save_arrays(tmp_path / "tok", params)
    with pytest.raises(UserError, match=r"quantizer.codebook is \[16, 4\], config.json asks for \[32, 4\]"):
        mt.load(tmp_path / "tok")
    del params["quantizer"]
    save_arrays(tmp_path / "tok", params)
    with pytest.raises(UserError, match="quantizer.codebook is nothing"):
        mt.load(tmp_path / "tok")
    about = json.loads((tmp_path / "tok" / "config.json").read_text())
    write_json(tmp_path / "tok" / "config.json", about | {"format": 99})
    with pytest.raises(UserError, match="upgrade"):
        mt.load(tmp_path / "tok")
    write_json(tmp_path / "tok" / "config.json", about | {"family": "vqgam"})
    with pytest.raises(UserError, match="Did you mean 'vqgan'"):
        mt.load(tmp_path / "tok")


def test_a_truncated_file_and_an_unknown_key_are_named(tok, tmp_path):
    tok.save(tmp_path / "tok")
    weights, config = tmp_path / "tok" / "model.safetensors", tmp_path / "tok" / "config.json"
    whole, about = weights.read_bytes(), json.loads(config.read_text())
    for left in (len(whole) - 4, 100, 0):
        weights.write_bytes(whole[:left])
        with pytest.raises(UserError, match=r"model.safetensors is damaged .* fetch or export it again"):
            mt.load(tmp_path / "tok")
    weights.write_bytes(whole)
    about["config"]["network"]["chanels"] = 4
    write_json(config, about)
    with pytest.raises(UserError, match=r"config.json: config.network: CNN has no field 'chanels'. Did you mean 'channels'\?"):
        mt.load(tmp_path / "tok")
    write_json(config, {key: value for key, value in about.items() if key != "config"})
    with pytest.raises(UserError, match=r"config.json: config: expected the fields of VQGAN"):
        mt.load(tmp_path / "tok")


def test_unknown_family_of_weights():
    with pytest.raises(UserError, match="Did you mean 'llamagen-vq'"):
        mt.convert("llamagen-qv", "weights.pt")


def test_import_is_immediate_and_needs_no_mmgen():
    code = "import sys, mmgen_tokenizers; print(sorted({'jax', 'flax', 'mmgen', 'grain'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="lode"):
        mt.lode  # noqa: B018
    assert "load" in dir(mt)

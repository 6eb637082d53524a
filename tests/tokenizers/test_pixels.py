"""Pixels as tokens: nothing is lost, or only what the palette cannot say."""

import jax
import mmgen_tokenizers as mt
import numpy as np
import pytest
from mmgen_tokenizers.errors import UserError
from mmgen_tokenizers.families import pixels
from mmgen_tokenizers.pictures import to_uint8

RNG = np.random.default_rng(0)
PALETTE = ((0, 0, 0), (0, 0, 1), (255, 0, 0), (128, 127, 129), (255, 255, 255))


def test_all_bytes_there_and_back():
    tok = mt.Tokenizer(mt.Pixels(image_size=4), {})
    images = RNG.permuted(np.arange(768, dtype=np.int64) % 256).astype(np.uint8).reshape(1, 8, 32, 3)
    ids = tok.encode(images)
    np.testing.assert_array_equal(ids, images.reshape(1, 256, 3))
    np.testing.assert_array_equal(tok.encode(images.astype(np.float32) / 127.5 - 1), ids)
    layout = tok.layout_for(8, 32)
    assert layout == mt.TokenLayout(height=8, width=32, codebook_size=256, groups=3)
    np.testing.assert_array_equal(to_uint8(tok.decode(ids, layout)), images)
    with pytest.raises(UserError, match="codes 0 to 255"):
        tok.decode(ids + 1, layout)
    with pytest.raises(UserError, match="codes of a Pixels are not bits"):
        tok.encode_bits(images)


def test_a_palette_takes_the_nearest_colour(tmp_path):
    tok = mt.Tokenizer(mt.Pixels(PALETTE, image_size=6), {})
    tok.save(tmp_path / "tok")
    tok = mt.load(tmp_path / "tok")
    assert tok.config.palette == PALETTE and tok.fingerprint != mt.Tokenizer(mt.Pixels(image_size=6), {}).fingerprint
    colours = np.array(PALETTE)
    chosen = RNG.integers(0, 5, (2, 36))
    exact = colours[chosen].astype(np.uint8).reshape(2, 6, 6, 3)
    np.testing.assert_array_equal(tok.encode(exact), chosen)
    np.testing.assert_array_equal(to_uint8(tok.decode(chosen)), exact)
    some = RNG.integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
    distance = ((some.reshape(2, 36, 1, 3) - colours) ** 2).sum(-1)
    np.testing.assert_array_equal(tok.encode(some), distance.argmin(-1))
    assert jax.tree.leaves(tok.params) == []


def test_a_palette_is_chosen_by_pictures():
    pictures = [np.array(PALETTE, np.uint8)[RNG.integers(0, 5, (9, 200))] for _ in range(3)]
    assert pixels.choose_palette(pictures, 5) == tuple(sorted(PALETTE))  # scaling mixes no colours
    noise = [RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)]
    assert len(pixels.choose_palette(noise, 16)) == 16


@pytest.mark.parametrize("palette", [((0, 0, 256),), ((1, 2, 3), (1, 2, 3))])
def test_impossible_palettes_are_refused(palette):
    with pytest.raises(UserError, match="different colours"):
        mt.Pixels(palette)
